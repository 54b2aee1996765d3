"""A plan: an intervention made concrete. Its label, its facts, and an edit for each place it touches."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from refusal_cmp.config import Site
from refusal_cmp.edit import LowRankEdit

BASELINE = "baseline"
Tokens = Literal["all", "prompt", "generated"]


class Place(NamedTuple):
    """Where an edit acts: a decoder block and a site in it."""

    layer: int
    site: Site


@dataclass(frozen=True)
class Plan:
    """The same edits on every prompt, for every evaluator: on all its tokens, or on one part of them."""

    label: str
    """`method/intervention:strength@scope`, with what differs from the defaults in brackets."""
    edits: Mapping[Place, LowRankEdit]
    method: str = ""
    k: int | None = None
    intervention: str = ""
    strength: float | None = None
    scope: str = ""
    n_components: int | None = None
    """Components in scope."""
    n_layers: int | None = None
    """Distinct layers in scope: an edit acts once in each, however many of its components are in scope."""
    direction: str = ""
    """`best`: the selected component's subspace everywhere; `own`: each layer's own."""
    position: int | None = None
    layer: int | None = None
    tokens: Tokens = "all"
    """Which tokens are edited: `all`, those of the `prompt`, or those `generated` after it."""
    cell: str = ""
    """Of a plan whose strength was calibrated: its intervention and the side of it, which stand for its strength where
    plans are compared."""
    checkpoint: str = ""
    """Where the other weights are that the model runs with, of a plan that is a checkpoint and edits nothing."""
    content: str = ""
    """A hash of that checkpoint's files, or its commit on the hub."""
    system: str = ""
    """The system prompt in place of the run's, of a plan that asks the model for it and edits nothing."""

    @property
    def edits_nothing(self) -> bool:
        """Whether it is another checkpoint or another system prompt, with which plans of edits are compared."""
        return bool(self.checkpoint or self.system)

    @cached_property
    def digest(self) -> str:
        """A hash of the edits and where they act, or of what is in their place: plans of one digest do the same."""
        digest = hashlib.sha256(self.content.encode())
        if self.system:
            digest.update(f"system\0{self.system}".encode())
        if self.edits and self.tokens != "all":
            digest.update(self.tokens.encode())
        for place in sorted(self.edits):
            for name, term in sorted(self.edits[place].tensors().items()):
                digest.update(f"{place.layer}.{place.site}.{name}.{tuple(term.shape)}".encode())
                digest.update(term.double().contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def facts(self) -> dict[str, str | int | float | None]:
        """Everything but the edits, as `results.csv` has it."""
        return {name: getattr(self, name) for name in FACTS}

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The edits as float32 tensors, each once, and as metadata the label and where they act."""
        tensors: dict[str, Tensor] = {}
        names: dict[bytes, str] = {}
        places: dict[str, dict[str, str]] = {}
        for place, edit in self.edits.items():
            for term, tensor in edit.tensors().items():
                values = tensor.float().cpu().clone(memory_format=torch.contiguous_format)  # views share memory
                name = names.setdefault(repr(values.shape).encode() + values.numpy().tobytes(), str(len(names)))
                tensors[name] = values
                places.setdefault(f"{place.layer}.{place.site}", {})[term] = name
        tokens = {} if self.tokens == "all" else {"tokens": self.tokens}
        return tensors, {"label": self.label, "places": json.dumps(places), **tokens}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Plan:
        """The plan that `to_tensors` wrote, without its facts; places of the same edit share it, as before."""
        edits: dict[Place, LowRankEdit] = {}
        shared: dict[tuple[tuple[str, str], ...], LowRankEdit] = {}
        for at, terms in json.loads(metadata["places"]).items():
            layer, site = at.split(".")
            key = tuple(terms.items())
            if key not in shared:
                shared[key] = LowRankEdit(**{term: tensors[name] for term, name in key})
            edits[Place(int(layer), site)] = shared[key]
        tokens: Any = metadata.get("tokens", "all")
        return cls(metadata["label"], edits, tokens=tokens)


FACTS = [
    "method",
    "k",
    "intervention",
    "strength",
    "scope",
    "n_components",
    "n_layers",
    "direction",
    "position",
    "layer",
]


def baseline() -> Plan:
    """The plan that does nothing: the model as it is."""
    return Plan(BASELINE, {})


ALSO = "also/"
"""How the label of a plan that is another checkpoint begins."""


def checkpoint(name: str, where: str, content: str) -> Plan:
    """The plan that runs the model with the weights of another checkpoint, unedited."""
    return Plan(ALSO + name, {}, checkpoint=where, content=content)


PROMPT = "prompt/"
"""How the label of a plan that is another system prompt begins."""


def prompted(name: str, system: str) -> Plan:
    """The plan that asks for it: the model unedited, with this system prompt in place of the run's."""
    return Plan(PROMPT + name, {}, system=system)


_LABEL = re.compile(r"[a-z0-9.,:@=/\[\]+-]+")
_ENCODING = str.maketrans({"/": "_", ":": "~"})
_DECODING = str.maketrans({"_": "/", "~": ":"})


def file_name(label: str) -> str:
    """A plan's label as the name of a folder: `/` and `:` become `_` and `~`, which no label contains."""
    if not _LABEL.fullmatch(label) or label.startswith("."):
        raise ValueError(f"not a plan label: {label!r}")
    return label.translate(_ENCODING)


def label_of(file_name: str) -> str:
    """The label that a folder is named for; inverse of `file_name`."""
    return file_name.translate(_DECODING)


def component_of(plan: Plan) -> str | None:
    """Where a plan's direction is from, as its label says, if not from the method's best component."""
    found = re.search(r"\[component=([^,\]]+)", plan.label)
    return None if found is None else found[1].replace("+", ", ")


def number(value: float) -> str:
    """A strength or percentage as labels and file names have it: 2, -1, 0.5."""
    return format(value, "g")
