"""Templates, filled: with the style and the script of every page in them."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from refusal_cmp.data.conversations import in_words

TEMPLATES = Path(__file__).parent / "templates"


def filled(template: str, **values: Any) -> str:
    """A template of `templates/` with these values."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["label"] = _label
    environment.filters["in_words"] = in_words
    css, js = (Markup((TEMPLATES / f"page.{kind}").read_text(encoding="utf-8")) for kind in ("css", "js"))
    return environment.get_template(template).render(css=css, js=js, **values)


def _label(plan: str) -> Markup:
    """A plan's label that a narrow screen breaks where its parts begin."""
    parts = re.findall(r"[^/@]+/?|@[^/@]*", plan)
    return Markup("".join(f"<span>{html.escape(part)}</span>" for part in parts))
