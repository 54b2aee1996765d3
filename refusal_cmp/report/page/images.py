"""The page's figures: SVG that takes the page's colours, or PNG where that is smaller."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from refusal_cmp.report.figures import Drawn, Outcome
from refusal_cmp.report.figures._style import FAINT, INK, PAPER

LARGEST_SVG = 400_000
"""Bytes; a figure that is larger as SVG goes into the page as PNG."""


def placed_figures(outcomes: Sequence[Outcome], images: Mapping[tuple[str, str], bytes]) -> list[dict[str, Any]]:
    """The figures by section, in order."""
    return [
        {
            "name": one.name,
            "section": one.name.split("-")[0],
            "title": one.title,
            "says": one.says,
            "image": _image(one, images),
        }
        for one in outcomes
        if isinstance(one, Drawn)
    ]


def _image(one: Drawn, images: Mapping[tuple[str, str], bytes]) -> Markup:
    svg = inline_svg(images[one.name, "svg"].decode(), one.name, one.title)
    if len(svg) <= LARGEST_SVG:
        return Markup(svg)
    data = base64.b64encode(images[one.name, "png"]).decode()
    return Markup(f'<img src="data:image/png;base64,{data}" alt="{html.escape(one.title)}">')


def inline_svg(svg: str, name: str, title: str) -> str:
    """An SVG made by matplotlib as part of a page.

    Its identifiers get the name in front, or they would meet those of other figures; ink and paper become the
    page's, so that the dark is dark; and coordinates lose digits that no screen shows, styles their spaces.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'(?<= )(d|x|y)="[^"]*"|translate\([^)]*\)', lambda match: _rounded(match[0]), svg)
    svg = svg.replace(INK, "currentColor").replace(PAPER, "var(--paper)").replace(FAINT, "var(--line)")
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg)
    width = float(size[1]) if size else 0
    head = f'role="img" aria-label="{html.escape(title)}" style="--width:{width:.0f}pt"'
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', head, svg, count=1)
    svg = re.sub(r'style="[^"]*"', lambda match: match[0].replace(": ", ":").replace("; ", ";"), svg)
    return re.sub(r"\n\s*", "\n", svg)


def _rounded(attribute: str) -> str:
    return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), attribute)
