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
OUTLINE = re.compile(r'<path id="([^"]+)" ((?:d="[^"]*" )?transform="scale\(0\.015625\)")/>')
"""A letter as matplotlib draws it, in 64ths; a space has no shape."""


def placed_figures(outcomes: Sequence[Outcome], images: Mapping[tuple[str, str], bytes]) -> list[dict[str, Any]]:
    """The figures by section, in order. Letters are drawn by outlines, and one that several figures have is in one."""
    outlines: dict[str, str] = {}
    return [
        {
            "name": one.name,
            "section": one.name.split("-")[0],
            "title": one.title,
            "says": one.says,
            "image": _image(one, images, outlines),
        }
        for one in outcomes
        if isinstance(one, Drawn)
    ]


def _image(one: Drawn, images: Mapping[tuple[str, str], bytes], outlines: dict[str, str]) -> Markup:
    more = dict(outlines)
    svg = inline_svg(images[one.name, "svg"].decode(), one.name, one.title, more)
    if len(svg) <= LARGEST_SVG:
        outlines |= more
        return Markup(svg)
    data = base64.b64encode(images[one.name, "png"]).decode()
    return Markup(f'<img src="data:image/png;base64,{data}" alt="{html.escape(one.title)}">')


def inline_svg(svg: str, name: str, title: str, outlines: dict[str, str]) -> str:
    """An SVG made by matplotlib as part of a page.

    Its identifiers get the name in front, or they would meet those of other figures; ink and paper become the
    page's, so that the dark is dark; and what no screen shows is left out: digits of coordinates, spaces, identifiers
    that nothing refers to, and outlines of letters that the page has already.

    Parameters
    ----------
    outlines
        Names of the outlines that the page has, by their shapes; those that this figure adds are added.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = _identified(svg, name, outlines)
    svg = re.sub(r'(?<= )(d|x|y)="[^"]*"|translate\([^)]*\)', lambda match: _rounded(match[0]), svg)
    svg = svg.replace(INK, "currentColor").replace(PAPER, "var(--paper)").replace(FAINT, "var(--line)")
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg)
    width = float(size[1]) if size else 0
    head = f'role="img" aria-label="{html.escape(title)}" style="--width:{width:.0f}pt"'
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', head, svg, count=1)
    svg = re.sub(r'style="[^"]*"', lambda match: match[0].replace(": ", ":").replace("; ", ";"), svg)
    svg = re.sub(r'(?<= )d="[^"]*"', lambda match: re.sub(r"\s*([A-Za-z])\s*", r"\1", match[0]), svg)
    return re.sub(r"\s*\n\s*", "", svg.replace("<defs></defs>", ""))


def _identified(svg: str, name: str, outlines: dict[str, str]) -> str:
    """The SVG with short identifiers that are its own on the page, and with the outlines that the page has not yet."""
    svg = svg.replace("xlink:href", "href").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    renamed: dict[str, str] = {}

    def outline(match: re.Match[str]) -> str:
        known = match[2] in outlines
        renamed[match[1]] = outlines.setdefault(match[2], f"g{len(outlines)}")
        return "" if known else match[0]

    svg = OUTLINE.sub(outline, svg)
    for one in re.findall(r'(?:href="#|url\(#)([^")]+)', svg):
        renamed.setdefault(one, f"{name}-{len(renamed)}")
    svg = re.sub(r' id="([^"]+)"', lambda match: f' id="{renamed[match[1]]}"' if match[1] in renamed else "", svg)
    return re.sub(r'(href="#|url\(#)([^")]+)', lambda match: match[1] + renamed[match[2]], svg)


def _rounded(attribute: str) -> str:
    return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), attribute)
