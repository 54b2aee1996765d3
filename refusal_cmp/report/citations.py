"""What a run rests on: the works that its plugins, prompt sets, tasks and models cite, as BibTeX.

A plugin cites a work by naming it in its docstring or its module's, as in `Arditi et al. 2024`; works that only names
of tasks or models tell of say so in `assets/references.yaml`.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from refusal_cmp.config import CONTRAST, ROLE
from refusal_cmp.data import DATASETS, TEXTS
from refusal_cmp.engines import ENGINES
from refusal_cmp.evals import EVALUATORS
from refusal_cmp.files import plain_yaml
from refusal_cmp.interventions import INTERVENTIONS, Intervention
from refusal_cmp.methods import EXTRACTORS
from refusal_cmp.registry import Registry, parse_spec

OURS, HARNESS = "refusal-cmp", "gao2024framework"
"""The name of this package, and the key of lm-eval."""
OWN_KEY = "refusalcmp"
"""The key of this package."""
PHRASES = {"published": "arditi2024refusal"}
"""What work sets of refusal phrases are from, by the name of the set."""
RANK_KEYS = {"cosmic": "siu2025cosmic", "attribution": "syed2024attribution"}
"""What works rank keys are from."""
ESCAPES = str.maketrans({"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#"})

Work = Mapping[str, Any]


@cache
def works() -> dict[str, Work]:
    """Every work that is known, by its key in BibTeX."""
    text = (files("refusal_cmp") / "assets" / "references.yaml").read_text(encoding="utf-8")
    return plain_yaml.load(text, "The list of works")


def cited_by(plugin: Any) -> list[str]:
    """The keys of the works that a plugin's docstring names, or, of a class, its module's."""
    text = inspect.getdoc(plugin) or ""
    if inspect.isclass(plugin):
        text += f"\n{inspect.getdoc(sys.modules[plugin.__module__]) or ''}"
    return [key for key, work in works().items() if re.search(rf"\b{re.escape(_named(work))}\b", text)]


def works_of(config: Mapping[str, Any]) -> list[str]:
    """The keys of the works that a run with these settings rests on, in the order of the list."""
    evals = [parse_spec(name)[0] for name in config["evals"]]
    used: dict[Registry[Any], Sequence[str]] = {
        EXTRACTORS: [parse_spec(name)[0] for name in config["methods"]],
        INTERVENTIONS: [parse_spec(name)[0] for name in config["interventions"]],
        EVALUATORS: evals,
        ENGINES: [config["engine"]],
        DATASETS: [config["harmful"], config["harmless"], *(_source(config, name) for name in config["eval_datasets"])],
        TEXTS: config["texts"] if "perplexity" in evals else [],
    }
    found = {
        key
        for registry, names in used.items()
        for name in names
        if name in registry
        for key in cited_by(registry.get(name))
    }
    if any(INTERVENTIONS.create(name).when is not None for name in config["interventions"] if _known(name)):
        found |= set(cited_by(Intervention))
    if "refusal" in evals and config["phrases"] in PHRASES:
        found.add(PHRASES[config["phrases"]])
    ranked = {config["rank_key"], *config["rank_key_of"].values()}
    found |= {work for key, work in RANK_KEYS.items() if key in ranked}
    names = [config["model"]]
    if "guard" in evals:
        names.append(config["guard"])
    if "capability" in evals:
        names += config["tasks"]
        found.add(HARNESS)
    found |= {key for name in names for key in works_named(name)}
    return [key for key in works() if key in found]


def works_named(name: str) -> list[str]:
    """The keys of the works that a model or a task is from, by its name."""
    last = name.rpartition("/")[2].lower()
    return [key for key, work in works().items() if any(last.startswith(start.lower()) for start in work.get("of", ()))]


def bibtex(keys: Iterable[str]) -> str:
    """These works, and this one, as BibTeX."""
    ours: Work = {
        "type": "software",
        "author": ["{The refusal-cmp contributors}"],
        "title": "refusal-cmp: comparing ways of finding and editing the refusal directions of chat models",
        "version": version(OURS),
        "year": 2026,
    }
    entries = {OWN_KEY: ours} | {key: works()[key] for key in keys}
    return "\n\n".join(_entry(key, work) for key, work in entries.items()) + "\n"


def _entry(key: str, work: Work) -> str:
    authors = [name for name in work["author"] if name != "and others"]
    others = ["others"] if len(authors) < len(work["author"]) else []
    fields = {
        "author": " and ".join([*authors, *others]),
        "title": f"{{{work['title']}}}",
        **{name: work[name] for name in ("booktitle", "version", "year", "url") if name in work},
    }
    if "eprint" in work:
        fields |= {"eprint": work["eprint"], "archivePrefix": "arXiv"}
    lines = [
        f"  {name} = {{{str(value).translate(ESCAPES) if name != 'url' else value}}}," for name, value in fields.items()
    ]
    return "\n".join([f"@{work['type']}{{{key},", *lines, "}"])


def _known(intervention: str) -> bool:
    return parse_spec(intervention)[0] in INTERVENTIONS


def _named(work: Work) -> str:
    """A work as texts name it: `Lin et al. 2022`, `Rocchetti & Ferrara 2026`, `Zou et al. 2023b`."""
    if "named" in work:
        return str(work["named"])
    families = [name.split()[-1] for name in work["author"]]
    who = families[0] if len(families) == 1 else f"{families[0]} & {families[1]}"
    return f"{who if len(families) < 3 else f'{families[0]} et al.'} {work['year']}"


def _source(config: Mapping[str, Any], test_set: str) -> str:
    """What the prompts of a test set are read from: `jailbreakbench` of `harmful=jailbreakbench`."""
    played = ROLE.fullmatch(test_set)
    return played["source"] if played else config["contrast"] if test_set == CONTRAST else test_set
