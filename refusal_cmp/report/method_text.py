"""A paragraph for a paper's section on methods, in LaTeX: what a run did, as its configuration says, with citations."""

from __future__ import annotations

import math
from collections.abc import Sequence

from refusal_cmp.config import KINDS
from refusal_cmp.data import DATASETS, TEXTS
from refusal_cmp.engines import ENGINES
from refusal_cmp.evals import EVALUATORS
from refusal_cmp.evals.perplexity import ON_DISTRIBUTION
from refusal_cmp.methods import EXTRACTORS
from refusal_cmp.model.chat_model import METRIC_EPSILON
from refusal_cmp.plan import number
from refusal_cmp.registry import parse_spec
from refusal_cmp.report.citations import HARNESS, OURS, OWN_KEY, PHRASES, works_named
from refusal_cmp.report.data import RunData
from refusal_cmp.report.figures.inlp import METHOD as INLP
from refusal_cmp.report.latex_phrases import (
    best_has,
    citation,
    cited,
    escaped,
    on_test_prompts,
    own_source,
    public_name,
    token_tt,
    tt,
    where_scored,
    works_behind,
)
from refusal_cmp.report.method_edits import components_text, edits_text, inlp_directions
from refusal_cmp.report.seeds import SeedsData
from refusal_cmp.report.wording import clause_list, sentence_list, span

MEASURES = {
    "refusal": "whether it refuses, by {phrases}",
    "coherence": "whether the unedited model reads it as language",
    "guard": "whether {guard} finds it unsafe",
    "rubric": "how a model grades it by a rubric",
}
"""What evaluators say of a completion."""
FILTERED = (
    "Training and validation prompts of which the refusal metric of the unedited model says otherwise than their "
    "label, at most 0 on harmful ones or above 0 on harmless ones, are left out, whatever the model goes on to answer."
)
"""By what prompts are filtered."""
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
    return _paragraph(data, [data])


def method_text_over_seeds(data: SeedsData) -> str:
    """The paragraph on runs with several seeds, which says of each what only it did."""
    return _paragraph(data.as_run, list(data.runs.values()))


def _paragraph(data: RunData, runs: Sequence[RunData]) -> str:
    """The paragraph on one run, or on several as if they were one.

    Parameters
    ----------
    runs
        That one run, or those of the seeds.
    """
    sentences = (_extraction, _inlp, _selection, _interventions, _evaluation)
    return "\n".join(part for sentence in sentences for part in sentence(data, runs)) + "\n"


def _extraction(data: RunData, runs: Sequence[RunData]) -> list[str]:
    config, model = data.config, data.manifest.get("model", {})
    sources = {kind: f"{own_source(data, kind)}{works_behind(DATASETS, config[kind])}" for kind in KINDS}
    prompts = [f"{_kept(runs, f'{kind}_train')} {kind} prompts ({source})" for kind, source in sources.items()]
    methods = sentence_list([cited(EXTRACTORS, spec) for spec in config["methods"]])
    seeds = sentence_list([str(run.config["seed"]) for run in runs])
    size = f" ({model['n_layers']} blocks of width {model['d_model']})" if "n_layers" in model else ""
    said = [
        f"All is done with {tt(OURS)}{citation([OWN_KEY])}.",
        f"Refusal directions of {_named(config['model'])}{size} are extracted by {methods} from the "
        "residual stream on entry to every block, at the tokens that the chat template puts behind an instruction, on "
        f"{sentence_list(prompts)}, of which {_in_percent(config['dev_share'])} of either kind are held out as a dev "
        f"split ({'seed' if len(runs) == 1 else 'seeds'} {seeds}).",
    ]
    for name, field in data.fields.items():
        if field.means.positions[-1] != -1:
            said.append(f"{tt(name)} reads the last token of the instruction itself in their place.")
    if len(runs) > 1:
        said.append(
            "With each of the seeds prompts are drawn and all that follows is done anew, on the same test prompts."
        )
    return [*said, _metric(runs), *([FILTERED] if config["filter_prompts"] else [])]


def _metric(runs: Sequence[RunData]) -> str:
    """What the log-odds are of that filter prompts and score components."""
    by_seed = {run.config["seed"]: _refusal_tokens(run) for run in runs}
    same = len(set(by_seed.values())) == 1
    each = [those if same else f"{those} with seed {seed}" for seed, those in by_seed.items()]
    exponent = round(math.log10(METRIC_EPSILON))
    return (
        "The refusal metric of a prompt is the log-odds $\\log(P + \\epsilon) - \\log(1 - P + \\epsilon)$, with "
        f"$\\epsilon = 10^{{{exponent}}}$, where $P$ is the probability that the first token of the answer is "
        f"{'; '.join(each[:1] if same else each)} (numbers are those of the vocabulary)."
    )


def _refusal_tokens(run: RunData) -> str:
    """The refusal tokens of a run, each with its number in the vocabulary."""
    pairs = zip(run.prompts["refusal_token_texts"], run.prompts["refusal_tokens"], strict=True)
    named = [f"{token_tt(text)} ({token})" for text, token in pairs]
    return f"{'the refusal token' if len(named) == 1 else 'one of the refusal tokens'} {sentence_list(named)}"


def _inlp(data: RunData, runs: Sequence[RunData]) -> list[str]:
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
        said.append(inlp_directions(data))
    return said


def _selection(data: RunData, runs: Sequence[RunData]) -> list[str]:
    rule, n = data.rule, {kind: _kept(runs, f"{kind}_val") for kind in KINDS}
    reach = "at its own layer" if rule.rank_by == "local" else "at all layers"
    uses = "each method uses the one with" if "best" in data.config["component"] else "the best of a method has"
    return [
        f"Every component (a token and a layer){where_scored(data)} is scored on {n['harmful']} harmful and "
        f"{n['harmless']} harmless validation prompts: by the mean refusal metric of harmful prompts with its "
        f"subspace removed {reach} (bypass), by that of harmless prompts with its direction added (induce), and by the "
        "Kullback--Leibler divergence of the next token on harmless prompts (KL).",
        f"Of those in the first {_in_percent(rule.prune_layers)} of the blocks with an induce score from "
        f"{number(rule.induce_threshold)} on and a KL of at most {number(rule.kl_threshold)} nats, {uses} "
        f"{best_has(data)}.",
        *[
            f"{_for(run, runs)} {tt(one.method)} there is none, and the limits were relaxed ({one.note})."
            for run in runs
            for one in run.selections
            if one.fallback
        ],
        *components_text(data, runs),
    ]


def _for(run: RunData, runs: Sequence[RunData]) -> str:
    return "For" if len(runs) == 1 else f"With seed {run.config['seed']}, for"


def _interventions(data: RunData, runs: Sequence[RunData]) -> list[str]:
    return edits_text(data)


def _evaluation(data: RunData, runs: Sequence[RunData]) -> list[str]:
    config, evals = data.config, [parse_spec(name)[0] for name in data.config["evals"]]
    labels = [plan.label for plan in data.edited]
    distinct = len(data.distinct(labels))
    edits = f"{len(labels)} edits" if distinct == len(labels) else (
        f"{distinct} distinct edits (of {len(labels)} plans, some of which do exactly the same)"
    )  # fmt: skip
    beside = _in_place_of_edits(data)
    engine = f" by {cited(ENGINES, config['engine'])}" if works_behind(ENGINES, config["engine"]) else ""
    said = [
        f"Under each of {edits} and without one{beside}, up to {config['max_new_tokens']} tokens are generated greedily"
        f"{engine} for every test prompt: {on_test_prompts(data, lambda name: works_behind(DATASETS, name))}."
    ]
    by = {"guard": _named(config["guard"]), "phrases": _refusal_phrases(config["phrases"])}
    judged = [f"{MEASURES[name].format(**by)}{works_behind(EVALUATORS, name)}" for name in evals if name in MEASURES]
    if judged:
        said.append(f"Of each completion we ask {clause_list(judged)}.")
    costs = []
    if "perplexity" in evals:
        texts = [
            f"{tt(public_name(name))}{works_behind(TEXTS, name)}" for name in config["texts"] if name != ON_DISTRIBUTION
        ]
        texts += ["the unedited model's own answers"] if ON_DISTRIBUTION in config["texts"] else []
        costs.append(f"the loss on {sentence_list(texts)}")
    if "capability" in evals:
        tasks = [f"{tt(name)}{citation(works_named(name))}" for name in config["tasks"]]
        costs.append(f"accuracy on {sentence_list(tasks)}{citation([HARNESS])}")
    if "kl" in evals:
        costs.append("the KL to the unedited model's next token on harmless test prompts")
    if costs:
        said.append(f"As costs we measure {clause_list(costs)}.")
    return [*said, _intervals(data, runs)]


def _in_place_of_edits(data: RunData) -> str:
    """What else the prompts are put to: other checkpoints, other system prompts."""
    others = [tt(public_name(plan.checkpoint)) for plan in data.checkpoints]
    asked = [f"``{escaped(plan.system)}''" for plan in data.system_prompts]
    weights = f", and with the weights of {sentence_list(others)} instead" if others else ""
    several = "s" if len(asked) > 1 else ""
    prompts = f", and, unedited, with the system prompt{several} {sentence_list(asked)}" if asked else ""
    return weights + prompts


def _intervals(data: RunData, runs: Sequence[RunData]) -> str:
    if len(runs) > 1:
        return (
            "Numbers are means over the seeds, with the standard deviation between seeds; intervals are of 95\\,\\% "
            "and hierarchical, of seeds and prompts."
        )
    tested = data.comparisons is not None
    paired = (
        "; differences to the unedited model are paired, and their p-values are after Holm's correction over all plans"
    )
    return f"Intervals are of 95\\,\\%, Wilson's for shares of completions{paired if tested else ''}."


def _kept(runs: Sequence[RunData], split: str) -> str:
    """How many prompts of a split there are; from the fewest to the most, where seeds differ in that."""
    found = {len(run.prompts["prompts"][split]) for run in runs}
    return span(min(found), max(found))


def _named(name: str) -> str:
    """A model, with the works that it is from."""
    return f"{tt(public_name(name))}{citation(works_named(name))}"


def _refusal_phrases(phrases: str) -> str:
    """Whose phrases say what refuses."""
    known = {
        "published": f"the phrases of \\citet{{{PHRASES['published']}}}",
        "extended": f"the extended phrases of {tt(OURS)}, which are not the published ones",
    }
    return known.get(phrases) or f"phrases of our own ({tt(public_name(phrases))})"


def _in_percent(share: float) -> str:
    return f"{100 * share:.0f}\\,\\%"
