"""A paragraph for a paper's section on methods, in LaTeX: what a run did, as its configuration says, with citations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refusal_cmp.config import BUDGET, KINDS
from refusal_cmp.data import DATASETS, TEXTS
from refusal_cmp.engines import ENGINES
from refusal_cmp.evals import EVALUATORS
from refusal_cmp.evals.perplexity import ON_DISTRIBUTION
from refusal_cmp.interventions import INTERVENTIONS
from refusal_cmp.methods import EXTRACTORS
from refusal_cmp.plan import number
from refusal_cmp.registry import Registry, parse_spec
from refusal_cmp.report.citations import HARNESS, cited_by, works_named
from refusal_cmp.report.data import RunData
from refusal_cmp.report.figures.inlp import METHOD as INLP
from refusal_cmp.report.figures.inlp import WHOLE_SUBSPACE
from refusal_cmp.report.latex_phrases import on_test_prompts, own_source, tt, where_scored
from refusal_cmp.report.wording import does, sentence_list

MEASURES = {
    "refusal": "whether it refuses, by the phrases of the original work",
    "coherence": "whether the unedited model reads it as language",
    "guard": "whether {guard} finds it unsafe",
    "rubric": "how a model grades it by a rubric",
}
"""What evaluators say of a completion."""
CLASSIFIERS = {
    "newton": "logistic regressions",
    "logistic": "scikit-learn's logistic regressions",
    "linear-svc": "scikit-learn's linear support vector classifiers",
    "ridge": "scikit-learn's ridge classifiers",
    "perceptron": "scikit-learn's perceptrons",
}
"""What INLP is made of, by the name of the setting."""


def method_text(data: RunData) -> str:
    """The paragraph; `\\citep` with the keys of `refusal-cmp cite`."""
    sentences = (_extraction, _inlp, _selection, _interventions, _evaluation)
    return "\n".join(part for sentence in sentences for part in sentence(data)) + "\n"


def _extraction(data: RunData) -> list[str]:
    config, model = data.config, data.manifest.get("model", {})
    prompts = [
        f"{_kept(data, f'{kind}_train')} {kind} prompts ({own_source(data, kind)}{_keys(DATASETS, config[kind])})"
        for kind in KINDS
    ]
    size = f" ({model['n_layers']} blocks of width {model['d_model']})" if "n_layers" in model else ""
    said = [
        f"Refusal directions of {_named(config['model'])}{size} are extracted by "
        f"{_cited(EXTRACTORS, config['methods'])} from the residual stream on entry to every block, at the tokens that "
        f"the chat template puts behind an instruction, on {sentence_list(prompts)}, of which "
        f"{_in_percent(config['dev_share'])} of either kind are held out as a dev split (seed {config['seed']})."
    ]
    if config["filter_prompts"]:
        said.append(
            "Training and validation prompts on which the unedited model does not do as expected (harmful ones that it "
            "does not refuse, harmless ones that it does) are left out."
        )
    return said


def _inlp(data: RunData) -> list[str]:
    """How INLP's subspaces are found, and how many of their directions are used; nothing of runs without it."""
    config, said = data.config, []
    found = [name for name in config["methods"] if parse_spec(name)[0] == INLP]
    for name in found:
        of = {setting: config[f"inlp_{setting}"] for setting in ("classifier", "c", "stop", "max_k")}
        of |= config["method_options"].get(INLP, {}) | config["method_options"].get(name, {}) | parse_spec(name)[1]
        penalty = "" if of["classifier"] == "perceptron" else f" (L2 penalty, $C = {number(float(of['c']))}$)"
        chance = "accuracy on the dev split is no better than chance (binomial, one-sided at 5\\,\\%)"
        fixed = f"balanced accuracy on the dev split is below {of['stop']}"
        said.append(
            f"{tt(name)} fits {CLASSIFIERS[of['classifier']]}{penalty} to the classes, on the activations as they are, "
            "one after the other, and projects each one's direction out before the next; it ends with the first whose "
            f"{chance if of['stop'] == 'binomial' else fixed}, which is left out, or after {of['max_k']}."
        )
    if found:
        used = [_directions_used(policy, config["kl_threshold"]) for policy in config["inlp_k"]]
        whole = [tt(name) for name in config["interventions"] if name in WHOLE_SUBSPACE]
        along = f"; {sentence_list(whole)} {does(len(whole), 'edit')} along all of these" if whole else ""
        along += "; other interventions edit along the first" if 0 < len(whole) < len(config["interventions"]) else ""
        each = (
            used[0] if len(used) == 1 else f"in turn {sentence_list([f'({i}) {one}' for i, one in enumerate(used, 1)])}"
        )
        said.append(f"Of INLP's directions we use {each}{along}.")
    return said


def _directions_used(policy: str, kl_threshold: float) -> str:
    """A k policy in words."""
    if policy == BUDGET:
        return (
            f"the most leading ones whose removal has a KL of at most {number(kl_threshold)} nats, or the first alone"
        )
    if policy == "full":
        return "all"
    if policy.startswith("acc"):
        return f"those before the first with a dev accuracy below {policy.removeprefix('acc')}\\,\\%"
    return "the first" if policy == "1" else f"the first {policy}"


def _selection(data: RunData) -> list[str]:
    rule, n = data.rule, {kind: _kept(data, f"{kind}_val") for kind in KINDS}
    reach = "at its own layer" if rule.rank_by == "local" else "at all layers"
    return [
        f"Every component (a token and a layer){where_scored(data)} is scored on {n['harmful']} harmful and "
        f"{n['harmless']} harmless validation prompts: by the log-odds of refusal of harmful prompts with its subspace "
        f"removed {reach} (bypass), by those of harmless prompts with its direction added (induce), and by the "
        "Kullback--Leibler divergence of the next token on harmless prompts (KL).",
        f"Of those in the first {_in_percent(rule.prune_layers)} of the blocks with an induce score from "
        f"{number(rule.induce_threshold)} on and a KL of at most {number(rule.kl_threshold)} nats, each method uses "
        "the one with the lowest bypass.",
        *[
            f"For {tt(one.method)} there is none, and the limits were relaxed ({one.note})."
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
    labels = [plan.label for plan in data.edited]
    distinct = len(data.distinct(labels))
    edits = f"{len(labels)} edits" if distinct == len(labels) else (
        f"{distinct} distinct edits (of {len(labels)} plans, some of which do exactly the same)"
    )  # fmt: skip
    engine = f" by {_cited(ENGINES, [config['engine']])}" if _keys(ENGINES, config["engine"]) else ""
    said = [
        f"Under each of {edits} and without one, up to {config['max_new_tokens']} tokens are generated greedily"
        f"{engine} for every test prompt: {on_test_prompts(data, lambda name: _keys(DATASETS, name))}."
    ]
    guard = _named(config["guard"])
    judged = [f"{MEASURES[name].format(guard=guard)}{_keys(EVALUATORS, name)}" for name in evals if name in MEASURES]
    if judged:
        said.append(f"Of each completion we ask {sentence_list(judged)}.")
    costs = []
    if "perplexity" in evals:
        texts = [f"{tt(name)}{_keys(TEXTS, name)}" for name in config["texts"] if name != ON_DISTRIBUTION]
        texts += ["the unedited model's own answers"] if ON_DISTRIBUTION in config["texts"] else []
        costs.append(f"the loss on {sentence_list(texts)}")
    if "capability" in evals:
        costs.append(f"accuracy on {sentence_list(list(map(_named, config['tasks'])))} \\citep{{{HARNESS}}}")
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
    return sentence_list([f"{tt(spec)}{_keys(registry, parse_spec(spec)[0])}" for spec in specs])


def _keys(registry: Registry[Any], name: str) -> str:
    return _citation(cited_by(registry.get(name)) if name in registry else [])


def _named(name: str) -> str:
    """A model or a task, with the works that it is from."""
    return f"{tt(name)}{_citation(works_named(name))}"


def _citation(keys: Sequence[str]) -> str:
    return f" \\citep{{{','.join(keys)}}}" if keys else ""


def _in_percent(share: float) -> str:
    return f"{100 * share:.0f}\\,\\%"
