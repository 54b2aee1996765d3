"""Phrases in LaTeX that captions and the paragraph on the method share: names, citations, prompts, what was scored."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from refusal_cmp.config import ENDINGS, KINDS, is_path, path_and_column
from refusal_cmp.plan import BASELINE
from refusal_cmp.registry import Registry, parse_spec
from refusal_cmp.report.citations import cited_by
from refusal_cmp.report.data import RunData
from refusal_cmp.report.wording import sentence_list

ESCAPES = str.maketrans(
    {"\\": "/", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {sign: rf"\{sign}" for sign in "&%_#${}"}
)
"""Signs that LaTeX reads as commands; backslashes are those of paths."""
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""What a model's id on a hub looks like."""
RANKS = {
    "bypass": "the lowest bypass",
    "accuracy-then-bypass": "the highest balanced accuracy of its first direction on the dev split and, among equals, "
    "the lowest bypass",
    "cosmic": "the highest sum of cosines of COSMIC \\citep{siu2025cosmic}, of mean states under opposite edits",
    "attribution": "the lowest bypass to first order in the edit, by attribution \\citep{syed2024attribution}",
}
"""What the best component has, by rank key."""
LISTED = 4
"""Most layers at equal distances that are all written out."""


def escaped(text: str) -> str:
    """A text as LaTeX prints it."""
    return text.translate(ESCAPES)


def tt(text: str) -> str:
    """A name, in the letters of a typewriter."""
    return rf"\texttt{{{escaped(text)}}}"


def token_tt(text: str) -> str:
    """A token in the letters of a typewriter, its spaces seen and what is not printed as Python writes it."""
    signs = {"\\": r"\textbackslash{}", " ": r"\textvisiblespace{}"}
    return rf"\texttt{{{''.join(signs.get(one) or escaped(one) for one in repr(text)[1:-1])}}}"


def public_name(name: str) -> str:
    """A model or a set as a paper names it: of a path its last part, without a column; an id of a hub as it is."""
    path, _ = path_and_column(name)
    is_file = path.lower().endswith((*ENDINGS, ".gguf"))
    if not re.search(r"[/\\]", path) and path not in (".", ".."):
        return path
    if HUB_ID.fullmatch(path) and not is_file and not os.path.exists(path):
        return path
    last = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
    return Path(path).resolve().name if last in ("", ".", "..") else last


def cited(registry: Registry[Any], spec: str) -> str:
    """A plugin by name, with the works that it rests on."""
    return f"{tt(spec)}{works_behind(registry, parse_spec(spec)[0])}"


def works_behind(registry: Registry[Any], name: str) -> str:
    """The citation of the works that a plugin rests on, with a space before it; nothing where there are none."""
    return citation(cited_by(registry.get(name)) if name in registry else [])


def citation(keys: Sequence[str]) -> str:
    """A citation with a space before it; nothing of no works."""
    return f" \\citep{{{','.join(keys)}}}" if keys else ""


def best_has(data: RunData) -> str:
    """What the best component of a method has, `the lowest bypass`; by method, where they are ranked differently."""
    methods: dict[str, list[str]] = {}
    for one in data.selections:
        base = parse_spec(data.extracted_by[one.method])[0]
        key = data.config["rank_key_of"].get(base, data.config["rank_key"])
        methods.setdefault(key, []).append(tt(one.method))
    if len(methods) == 1:
        return RANKS[next(iter(methods))]
    return " or ".join(f"{RANKS[key]} (with {sentence_list(names)})" for key, names in methods.items())


def at_component(which: str) -> str:
    """A component as a sentence has it, of `-1,7`: `token $-1$ in layer 7`."""
    position, _, layer = which.partition(",")
    return f"token ${position}$ in layer {layer}"


def own_source(data: RunData, kind: str) -> str:
    """Where the run's own prompts of a kind are from, and by what label, where one file holds both kinds."""
    config, other = data.config, next(one for one in KINDS if one != kind)
    name = tt(public_name(config[kind]))
    if config["label_column"] is None or not is_path(config[kind]):
        return name
    own = config[f"{kind}_label"]
    values = " or ".join(tt(str(value)) for value in own or config[f"{other}_label"])
    return f"{name} where {tt(config['label_column'])} is {'' if own else 'not '}{values}"


def on_test_prompts(data: RunData, cite: Callable[[str], str] = lambda _: "") -> str:
    """How many test prompts there are of what kind, and where they are from: `20 harmful (jailbreakbench) and …`.

    Parameters
    ----------
    cite
        What is put behind the name or path of a source.
    """
    sizes = {dataset: len(rows) for (plan, dataset), rows in data.answers.items() if plan == BASELINE}
    return sentence_list([f"{n} {_test_set(data, dataset, cite)}" for dataset, n in sizes.items()])


def _test_set(data: RunData, dataset: str, cite: Callable[[str], str]) -> str:
    source = data.test_sources[dataset]
    works = cite(source)
    if source == dataset:
        return f"{tt(public_name(dataset))}{works}"
    is_own = dataset in KINDS and source == data.config[dataset]
    return f"{escaped(dataset)} ({own_source(data, dataset) if is_own else tt(public_name(source))}{works})"


def where_scored(data: RunData) -> str:
    """At which positions and in which layers components were scored; nothing where all were.

    ` at position $-1$ in layers 8 to 23 (of 0 to 29)`, with the space before it.
    """
    read = {position for field in data.fields.values() for position in field.means.positions}
    n_layers = next(iter(data.fields.values())).means.n_layers
    positions = sorted({component.position for component in data.scored}, reverse=True)
    layers = sorted({component.layer for component in data.scored})
    parts = []
    if len(positions) < len(read):
        parts.append(f" at {_plural('position', positions)} {sentence_list([f'${one}$' for one in positions])}")
    if len(layers) < n_layers:
        parts.append(f" in {_plural('layer', layers)} {_numbers(layers)} (of 0 to {n_layers - 1})")
    return "".join(parts)


def _plural(what: str, several: Sequence[int]) -> str:
    return what if len(several) == 1 else f"{what}s"


def _numbers(layers: Sequence[int]) -> str:
    """`8 to 23`, `6, 8, …, 22`, `3, 5 and 9`."""
    steps = {after - before for before, after in pairwise(layers)}
    if steps == {1} and len(layers) > 2:
        return f"{layers[0]} to {layers[-1]}"
    if len(steps) == 1 and len(layers) > LISTED:
        return rf"{layers[0]}, {layers[1]}, \dots, {layers[-1]}"
    return sentence_list([str(layer) for layer in layers])
