"""A paragraph for a paper's section on methods, in LaTeX: what a run did, as its configuration says, with citations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refusal_cmp.config import KINDS
from refusal_cmp.evals import EVALUATORS
from refusal_cmp.evals.perplexity import ON_DISTRIBUTION
from refusal_cmp.interventions import INTERVENTIONS
from refusal_cmp.methods import EXTRACTORS
from refusal_cmp.plan import number
from refusal_cmp.registry import Registry, parse_spec
from refusal_cmp.report.citations import HARNESS, cited_by
from refusal_cmp.report.data import RunData
from refusal_cmp.report.wording import sentence_list

MEASURES = {
    "refusal": "whether it refuses, by the phrases of the original work",
    "coherence": "whether the unedited model reads it as language",
    "guard": "whether a guard model finds it unsafe",
    "rubric": "how a model grades it by a rubric",
}
"""What evaluators say of a completion."""


def method_text(data: RunData) -> str:
    """The paragraph; `\\citep` with the keys of `refusal-cmp cite`."""
    sentences = (_extraction, _selection, _interventions, _evaluation)
    return "\n".join(part for sentence in sentences for part in sentence(data)) + "\n"


def _extraction(data: RunData) -> list[str]:
    config, model = data.config, data.manifest.get("model", {})
    n = {kind: _kept(data, f"{kind}_train") for kind in KINDS}
    sources = sentence_list([_tt(config[kind]) for kind in KINDS])
    size = f" ({model['n_layers']} blocks of width {model['d_model']})" if "n_layers" in model else ""
    said = [
        f"Refusal directions of {_tt(config['model'])}{size} are extracted by "
        f"{_cited(EXTRACTORS, config['methods'])} from the residual stream on entry to every block, at the tokens that "
        f"the chat template puts behind an instruction, on {n['harmful']} harmful and {n['harmless']} harmless prompts "
        f"({sources})."
    ]
    if config["filter_prompts"]:
        said.append(
            "Training and validation prompts on which the unedited model does not do as expected (harmful ones that it "
            "does not refuse, harmless ones that it does) are left out."
        )
    return said


def _selection(data: RunData) -> list[str]:
    rule, n = data.rule, {kind: _kept(data, f"{kind}_val") for kind in KINDS}
    reach = "at its own layer" if rule.rank_by == "local" else "at all layers"
    return [
        f"Every component is scored on {n['harmful']} harmful and {n['harmless']} harmless validation prompts: by the "
        f"log-odds of refusal of harmful prompts with its subspace removed {reach} (bypass), by those of harmless "
        "prompts with its direction added (induce), and by the Kullback--Leibler divergence of the next token on "
        "harmless prompts (KL).",
        f"Of the components in the first {100 * rule.prune_layers:.0f}\\,\\% of the blocks with an induce score from "
        f"{number(rule.induce_threshold)} on and a KL of at most {number(rule.kl_threshold)} nats, each method uses "
        "the one with the lowest bypass.",
        *[
            f"For {_tt(one.method)} none did, and the limits were relaxed ({one.note})."
            for one in data.selections
            if one.fallback
        ],
    ]


def _interventions(data: RunData) -> list[str]:
    scopes = {"single": "the selected component", "all": "all layers"}
    named = [scopes.get(one) or f"the best {one.partition(':')[2]}\\,\\% of the components" for one in data.scopes]
    return [
        f"Each direction is edited by {_cited(INTERVENTIONS, data.config['interventions'])}, at {sentence_list(named)}."
    ]


def _evaluation(data: RunData) -> list[str]:
    config, evals = data.config, [parse_spec(name)[0] for name in data.config["evals"]]
    tests = sentence_list([_tt(name) for name in dict.fromkeys(dataset for _, dataset in data.answers)])
    said = [
        f"Under each of {len(data.edited)} edits and without one, up to {config['max_new_tokens']} tokens are "
        f"generated greedily for every test prompt ({tests})."
    ]
    judged = [f"{MEASURES[name]}{_keys(EVALUATORS, name)}" for name in evals if name in MEASURES]
    if judged:
        said.append(f"Of each completion we ask {sentence_list(judged)}.")
    costs = []
    if "perplexity" in evals:
        texts = sentence_list([_tt(name) for name in config["texts"] if name != ON_DISTRIBUTION])
        costs.append(f"the loss on {texts}")
    if "capability" in evals:
        costs.append(f"accuracy on {sentence_list([_tt(task) for task in config['tasks']])} \\citep{{{HARNESS}}}")
    if "kl" in evals:
        costs.append("the KL to the unedited model's next token on harmless test prompts")
    if costs:
        said.append(f"As costs we measure {sentence_list(costs)}.")
    said.append(
        "Intervals are of 95\\,\\%, Wilson's for shares; differences to the unedited model are paired, and their "
        "p-values are after Holm's correction over all plans."
    )
    return said


def _kept(data: RunData, split: str) -> int:
    return len(data.prompts["prompts"][split])


def _cited(registry: Registry[Any], specs: Sequence[str]) -> str:
    """Plugins by name, each with the works that it rests on."""
    return sentence_list([f"{_tt(spec)}{_keys(registry, parse_spec(spec)[0])}" for spec in specs])


def _keys(registry: Registry[Any], name: str) -> str:
    keys = cited_by(registry.get(name)) if name in registry else []
    return f" \\citep{{{','.join(keys)}}}" if keys else ""


def _tt(text: str) -> str:
    escaped = text.replace("\\", "/")
    for sign in "&%_#$":
        escaped = escaped.replace(sign, f"\\{sign}")
    return f"\\texttt{{{escaped}}}"
