"""A study's file → its cells: named ones, or every combination of a grid, or both multiplied.

    settings: {config: published, limit: 40}         # of every cell; config is a file, or one that comes with us
    cells:                                           # named ones
      published: {}
      own-directions: {direction: own}
    grid:                                            # every combination of these
      model: [google/gemma-2b-it, 01-ai/Yi-6B-Chat]
      seed: [1, 2, 3]

A cell's label is its name and what the grid gives it, `own-directions,model=google%2Fgemma-2b-it,seed=1`. It depends on
no other cell, so that adding one renames none, and `parse_label` gives back what it says.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from refusal_cmp.config import (
    BUDGET,
    CHOOSING,
    LONGEST_FILE,
    SETTINGS_OF,
    STAGES,
    RunConfig,
    is_marked,
    load_config,
    read_settings,
)
from refusal_cmp.errors import RefusalCmpError, shortened, unknown_name
from refusal_cmp.files import plain_yaml, read_text

LONGEST = 150
"""Letters of a label, which is the name of a folder."""
NAME = re.compile(r"[a-z0-9][a-z0-9.+-]{0,59}")
OWNED = ("runs_dir", "alias", "openai_key")
"""Settings that a study sets itself, or that no file may hold."""
UNASKED = (*(name for name, one in RunConfig.model_fields.items() if is_marked(one, CHOOSING)), "compare_rankings")
"""Settings of select that say what is done with scores, and not which components are scored by what."""


class Resources(BaseModel):
    """What one cell takes of a machine; by default by the size of its model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpus: int | None = Field(None, ge=1)
    gpus: int | None = Field(None, ge=0)


class _File(BaseModel):
    """What a study's file may hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None
    settings: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    cells: dict[str, dict[str, Any] | None] = {}
    until: str = STAGES[-1]
    resources: Resources = Resources()


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    name: str
    """Among the named cells; empty if the study has none."""
    keys: Mapping[str, Any]
    """What the grid gives it."""
    settings: Mapping[str, Any]
    """All that are set; the others have their defaults."""

    @cached_property
    def label(self) -> str:
        """The name of its run directory."""
        pairs = [f"{_quoted(key)}={_written(value)}" for key, value in self.keys.items()]
        return ",".join([*([self.name] if self.name else []), *pairs])

    @property
    def subject(self) -> str:
        """The label without the seed: what seeds are repetitions of."""
        return Cell(self.name, {key: value for key, value in self.keys.items() if key != "seed"}, {}).label or "all"

    @cached_property
    def config(self) -> RunConfig:
        """The configuration, without where it runs."""
        return load_config(None, dict(self.settings))

    @cached_property
    def digest(self) -> str:
        """A hash of every setting that its results depend on."""
        return self.config.digest

    @cached_property
    def bases(self) -> dict[str, str]:
        """By stage: a hash of the settings that its artefacts depend on beside what their own records say."""
        config = self.config
        extract = {**config.binding("extract"), **_dumped(config, "methods", "given", "direction_at")}
        kept = [name for name in SETTINGS_OF["select"].model_fields if name not in UNASKED]
        if BUDGET in config.inlp_k:
            kept.append("kl_threshold")  # which decides how many directions are scored
        asked = extract | _dumped(config, *kept, "prune_layers")
        infer = extract | _dumped(config, "eval_datasets", "contrast", "max_new_tokens", "engine")
        evaluate = infer | config.binding("select", "infer") | _dumped(config, *SETTINGS_OF["evaluate"].model_fields)
        evaluate = {name: value for name, value in evaluate.items() if name not in UNASKED}
        found = {"extract": extract, "select": asked, "infer": infer, "evaluate": evaluate}
        if config.ranking_rules:
            del found["select"]  # which measures what scoring costs
        return {stage: _digest(one) for stage, one in found.items()}


@dataclass(frozen=True)
class Study:
    """Every cell, and what they have in common."""

    name: str
    cells: Sequence[Cell]
    until: str = STAGES[-1]
    """The last stage of every cell."""
    resources: Resources = field(default_factory=Resources)

    @property
    def stages(self) -> tuple[str, ...]:
        """Those of every cell."""
        return STAGES[: STAGES.index(self.until) + 1]

    @cached_property
    def by_label(self) -> dict[str, Cell]:
        """The cells by label."""
        return {cell.label: cell for cell in self.cells}

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """The settings that the grid gives to any cell, in the order of the first that has them."""
        return tuple(dict.fromkeys(key for cell in self.cells for key in cell.keys))

    @property
    def is_named(self) -> bool:
        """Whether there are named cells."""
        return any(cell.name for cell in self.cells)

    def lends(self) -> dict[str, tuple[str, ...]]:
        """By label: the stages whose artefacts another cell may need.

        Subspaces and scores are few, and cells that are added later may need them; completions and what is said of them
        are many, and are put down only where a cell of now needs them.
        """
        counts = Counter((stage, base) for cell in self.cells for stage, base in cell.bases.items())
        always = ("extract", "select")
        return {
            cell.label: tuple(stage for stage, base in cell.bases.items() if stage in always or counts[stage, base] > 1)
            for cell in self.cells
        }

    def to_json(self) -> dict[str, Any]:
        """Everything, as `Study.from_json` reads it."""
        cells = [{"label": cell.label, **asdict(cell)} for cell in self.cells]
        common = dict(self.cells[0].settings)
        for cell in self.cells:
            common = {key: value for key, value in common.items() if cell.settings.get(key, cell) == value}
        for one in cells:
            one["settings"] = {key: value for key, value in one["settings"].items() if key not in common}
        resources = self.resources.model_dump()
        return {"study": self.name, "until": self.until, "resources": resources, "settings": common, "cells": cells}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Study:
        """The study that `to_json` wrote."""
        common = content["settings"]
        cells = [Cell(one["name"], one["keys"], common | one["settings"]) for one in content["cells"]]
        return cls(content["study"], cells, content["until"], Resources(**content["resources"]))


def read_study(path: Path, name: str | None = None) -> Study:
    """The study of a YAML file.

    Parameters
    ----------
    name
        Of its folder; by default what the file says, or the file's own.

    Raises
    ------
    RefusalCmpError
        For the first thing in it that is not understood, or that no run would take.
    """
    text = read_text(path, "study", give="a YAML file", most=LONGEST_FILE)
    content = plain_yaml.load(text, f"The study {path}")
    if not isinstance(content, dict):
        raise RefusalCmpError(f"The study {path} must hold settings, grid or cells, and does not.")
    for key in content:
        if key not in _File.model_fields:
            raise unknown_name(f"part of the study {path}", shortened(str(key)), _File.model_fields)
    try:
        file = _File(**content)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        where = ".".join(map(str, first["loc"][:2]))
        message = first["msg"][0].lower() + first["msg"][1:]
        raise RefusalCmpError(f"In the study {path}, {where} does not hold: {message}.") from None
    if file.until not in STAGES:
        raise unknown_name("stage", file.until, STAGES)
    if STAGES.index(file.until) < STAGES.index("evaluate"):
        raise RefusalCmpError(f"The study {path} ends at {file.until}, before there are results; give until: evaluate.")
    study = Study(_named(name or file.name or path.stem.lower()), _cells(path, file), file.until, file.resources)
    _check(path, study)
    return study


def parse_label(label: str) -> tuple[str, dict[str, Any]]:
    """The name and the keys that a label says; inverse of `Cell.label`."""
    name, keys = "", {}
    for piece in label.split(","):
        key, sign, value = piece.partition("=")
        if sign:
            keys[unquote(key)] = _read(value)
        else:
            name = piece
    return name, keys


def _named(name: str) -> str:
    if not NAME.fullmatch(name):
        raise RefusalCmpError(
            f"A study cannot be called {shortened(name)!r}, as that is the name of its folder: use lower-case letters, "
            "digits and . + -, 60 at most."
        )
    return name


def _cells(path: Path, file: _File) -> list[Cell]:
    common = dict(file.settings)
    for owner, settings in (("settings", common), ("grid", file.grid), *((n, c or {}) for n, c in file.cells.items())):
        for name in OWNED:
            if name in settings:
                raise RefusalCmpError(
                    f"In the study {path}, {owner} sets {name}, which is not the study's; leave it out."
                )
    for name in ("config", *OWNED):
        if name in file.grid:
            raise RefusalCmpError(f"{name} cannot be in the grid of {path}; give it to named cells.")
    if empty := [name for name, values in file.grid.items() if not values]:
        raise RefusalCmpError(f"In the study {path}, the grid has no value for {empty[0]}; give one, or leave it out.")
    cells = []
    for name, own in (file.cells or {"": None}).items():
        if file.cells:
            _named(name)
        given = common | (own or {})
        base = given.pop("config", None)
        settings = {**({} if base is None else read_settings(base)), **given}
        if both := sorted(set(own or {}) & set(file.grid)):
            raise RefusalCmpError(f"In the study {path}, the cell {name} and the grid both set {both[0]}; keep one.")
        for values in itertools.product(*file.grid.values()):
            keys = dict(zip(file.grid, values, strict=True))
            cells.append(Cell(name, keys, _with_test_seed(settings, keys)))
    return cells


def _with_test_seed(settings: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a cell; where seeds differ the test prompts do not, as seeds are compared on them."""
    found = {**settings, **keys}
    if "seed" in keys and found.get("test_seed") is None:
        found["test_seed"] = settings.get("seed", RunConfig.model_fields["seed"].default)
    return found


def _check(path: Path, study: Study) -> None:
    """Every cell's settings are those of a run, and its label is a folder's name and its own."""
    seen: dict[str, str] = {}
    for cell in study.cells:
        try:
            digest = cell.digest
        except RefusalCmpError as error:
            raise RefusalCmpError(f"{str(error).removesuffix('.')} (cell {cell.label or 'all'} of {path}).") from None
        if len(cell.label.encode()) > LONGEST:
            raise RefusalCmpError(
                f"The label of a cell of {path} is too long for a folder, {shortened(cell.label)}; give such settings "
                "to named cells."
            )
        if not cell.label:
            raise RefusalCmpError(f"The study {path} has neither a grid nor cells; give one, or use `refusal-cmp run`.")
        if cell.label in seen:
            raise RefusalCmpError(f"In the study {path}, two cells are {cell.label}; give each value once.")
        seen[cell.label] = digest


def _dumped(config: RunConfig, *names: str) -> dict[str, Any]:
    return config.model_dump(mode="json", include=set(names))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _quoted(text: str) -> str:
    return quote(text, safe="-._:@[]~ ").replace(" ", "%20")


def _written(value: Any) -> str:
    """A value in a label: text as it is, a list of plain values joined by +, anything else as JSON."""
    if isinstance(value, list) and value and not any(isinstance(one, list | dict) for one in value):
        return "+".join(map(_written, value)) + ("+" if len(value) == 1 else "")
    if isinstance(value, str) and value and _plainly(value) == value:
        return _quoted(value)
    return _quoted(json.dumps(value, separators=(",", ":")))


def _read(text: str) -> Any:
    if "+" in text:
        return [_read(piece) for piece in text.removesuffix("+").split("+")]
    return _plainly(unquote(text))


def _plainly(text: str) -> Any:
    """What a text stands for: a number, true, false, null, JSON, or itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
