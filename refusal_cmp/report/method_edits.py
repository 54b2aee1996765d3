"""Sentences of the paragraph on the method that say what is edited: along which directions, where, how much."""

from __future__ import annotations

from collections.abc import Sequence

from refusal_cmp.config import BUDGET, Site
from refusal_cmp.interventions import INTERVENTIONS, Scope, edits_whole_subspace
from refusal_cmp.plan import component_of, number
from refusal_cmp.planning import UNIT_METHOD
from refusal_cmp.registry import parse_spec
from refusal_cmp.report.data import RunData
from refusal_cmp.report.latex_phrases import at_component, citation, cited, escaped, tt
from refusal_cmp.report.wording import does, sentence_list

ADDITION = "actadd"
TOKENS = {"prompt": "those of the prompt alone", "generated": "those alone that are generated after the prompt"}
GATE = ("lee2025programming",)
"""What gates are from."""
SITES = {
    "resid_pre": "the input of the block",
    "attn_out": "the output of its attention",
    "mlp_out": "the output of its MLP",
}
"""Where an edit acts in a layer, in words."""


def inlp_directions(data: RunData) -> str:
    """How many of INLP's directions are used by the interventions that ran, and by the scores of components."""
    names = _interventions(data)
    whole = [tt(name) for name in names if edits_whole_subspace(name)]
    first = [tt(name) for name in names if not edits_whole_subspace(name)]
    used = [_used(policy, data.config["kl_threshold"]) for policy in data.config["inlp_k"]]
    each = used[0] if len(used) == 1 else f"in turn {sentence_list([f'({i}) {one}' for i, one in enumerate(used, 1)])}"
    along_first = f"{sentence_list(first)} {does(len(first), 'edit')} along the first alone" if first else ""
    if not whole:
        return f"Of INLP's directions {along_first}; the scores of components remove {each}."
    along_whole = f"{sentence_list(whole)} and the scores of components use {each}"
    if data.config.get("calibrate_over") == "k":
        along_whole = f"the scores of components use {each}, and {sentence_list(whole)} as many as are calibrated"
    return f"Of INLP's directions {along_whole}{f'; {along_first}' if first else ''}."


def _used(policy: str, kl_threshold: float) -> str:
    """A k policy in words."""
    if policy == BUDGET:
        return (
            f"as many leading directions as can be removed at a KL of at most {number(kl_threshold)} nats, or the "
            "first where that is more already"
        )
    if policy == "full":
        return "all"
    if policy.startswith("acc"):
        return f"those before the first with a dev accuracy below {policy.removeprefix('acc')}\\,\\%, or the first"
    return "the first" if policy == "1" else f"the first {policy}, or all where there are fewer"


def edits_text(data: RunData) -> list[str]:
    """What edits there are, in which layers and where in a layer they act, and what the unit of additions is."""
    names = _interventions(data)
    return [
        f"Each direction is edited by {sentence_list([_with_strengths(data, name) for name in names])}, on every token "
        f"of prompt and answer, {_layers(data)}. A component says where a direction is read; the edit acts on the "
        f"layer as a whole.{_directions(data)}",
        *_sites(data, names),
        *_nearer(data, names),
        *_calibrated(data),
        *_kept_norms(names),
        *_gates(names),
        *_tokens(names),
        *_shares(data, names),
        *([_unit(data)] if ADDITION in map(_base, names) else []),
    ]


def _base(spec: str) -> str:
    """An intervention without its options."""
    return parse_spec(spec)[0]


def _installed(names: Sequence[str]) -> list[str]:
    """Those of the interventions that can be asked."""
    return [name for name in names if _base(name) in INTERVENTIONS]


def _interventions(data: RunData) -> list[str]:
    """The interventions that ran, in order."""
    return list(dict.fromkeys(plan.intervention for plan in data.edited))


def _strengths(data: RunData, name: str) -> list[str]:
    plans = [plan for plan in data.edited if plan.intervention == name and not (plan.cell and data.calibration)]
    found = dict.fromkeys(plan.strength for plan in plans)
    return [f"${number(one)}$" for one in found if one is not None]


def _with_strengths(data: RunData, name: str) -> str:
    of = _strengths(data, name)
    at = f" at {'strength' if len(of) == 1 else 'strengths'} {sentence_list(of)}" if of else ""
    return f"{cited(INTERVENTIONS, name)}{at}"


def _layers(data: RunData) -> str:
    """The layers of every scope: `in turn in the layer of its component and in all layers`."""
    order = "those that meet the limits first" if data.config["pool"] == "kept-first" else "best first"
    words = {"single": "in the layer of its component", "all": "in all layers"}
    named = [
        words.get(one) or f"in the layers of the first {one.partition(':')[2]}\\,\\% of the ranked components ({order})"
        for one in data.scopes
    ]
    return named[0] if len(named) == 1 else f"in turn {sentence_list(named)}"


def _directions(data: RunData) -> str:
    """Whose direction a layer has, where several are edited."""
    if not _edits_several(data):
        return ""
    if data.config["direction"] == "own":
        return (
            " Where several layers are edited, each has what was found at the best-ranked of its own components, and "
            "one that has none is left as it is."
        )
    return " Where several layers are edited, all have what was found at that one component."


def _edits_several(data: RunData) -> bool:
    return any((plan.n_layers or 0) > 1 for plan in data.edited)


def _sites(data: RunData, names: Sequence[str]) -> list[str]:
    """Where in a layer interventions act; nothing of those that are not installed."""
    found: dict[tuple[tuple[Site, ...], ...], list[str]] = {}
    for name in _installed(names):
        layers = INTERVENTIONS.create(name).sites(data.setting, 2 if _edits_several(data) else 1)
        found.setdefault(tuple(layers), []).append(name)
    if not found:
        return []
    said = [f"{sentence_list(list(map(tt, those)))} {_act(sites, len(those))}" for sites, those in found.items()]
    repeated = data.setting.compose == "component" and "reflection" in map(_base, names)
    often = f"; {tt('reflection')} acts there as often as the layer has components in scope" if repeated else ""
    return [f"In a layer {'; '.join(said)}{often}."]


def _act(sites: Sequence[Sequence[Site]], n: int) -> str:
    first, *others = [sentence_list([SITES[site] for site in one]) if one else "nothing" for one in sites]
    if others in ([], [first]):
        return f"{does(n, 'edit')} {first}"
    return f"{does(n, 'edit')} {first} if it is the first that is edited, and {others[0]} if it is not"


def _nearer(data: RunData, names: Sequence[str]) -> list[str]:
    """Which interventions act in one layer although several are in scope."""
    if data.scopes == ["single"]:
        return []
    one = [
        tt(name)
        for name in _installed(names)
        if INTERVENTIONS.create(name).reach(Scope("all"), data.setting).kind == "single"
    ]
    if not one:
        return []
    return [f"Whatever the scope, {sentence_list(one)} {does(len(one), 'edit')} the layer of the component alone."]


def _calibrated(data: RunData) -> list[str]:
    """By what the strengths of the plans were chosen."""
    found = data.calibration
    if found is None:
        return []
    rows, unit = found["plans"], f" {found['unit']}" if found["unit"] else ""
    other = sum(row["status"] != "met" for row in rows)
    varies = any(row.get("k") is not None for row in rows)
    over = "number of directions, where they have an order and it edits along all, and the " if varies else ""
    rest = f", and {other} of {len(rows)} plans, for which there is none, at the nearest one" if other else ""
    return [
        f"Every edit has the {over}strength at which it does the same damage to {found['n']} harmless validation "
        f"prompts, a {escaped(found['said'])} of {found['budget']:g}{unit}{rest}. Edits that have no strength of "
        "their own, or change something at each, are done in part."
    ]


def _kept_norms(names: Sequence[str]) -> list[str]:
    """Which edits keep norms."""
    those = [tt(name) for name in _installed(names) if INTERVENTIONS.create(name).keep_norm]
    if not those:
        return []
    return [
        f"What {sentence_list(those)} {does(len(those), 'edit')} is rescaled to the norm that it had, at every token "
        "and site."
    ]


def _gates(names: Sequence[str]) -> list[str]:
    """Which edits are behind a gate, and with what thresholds."""
    found: dict[str, list[str]] = {}
    for name in _installed(names):
        when = INTERVENTIONS.create(name).when
        if when is not None:
            middle = "the middle between the cosines of the two means"
            found.setdefault(middle if when == "midpoint" else f"${number(when)}$", []).append(tt(name))
    said = [f"{sentence_list(those)} where it is above {threshold}" for threshold, those in found.items()]
    if not said:
        return []
    return [
        "Some edits act on the stream alone, at the tokens that a gate lets through, by the cosine of the stream with "
        f"the difference of the class means of the layer{citation(GATE)}: {sentence_list(said)}."
    ]


def _tokens(names: Sequence[str]) -> list[str]:
    """Which edits act on a part of the tokens alone."""
    found: dict[str, list[str]] = {}
    for name in _installed(names):
        found.setdefault(TOKENS.get(INTERVENTIONS.create(name).tokens, ""), []).append(tt(name))
    said = [f"{sentence_list(those)} {does(len(those), 'edit')} {which}" for which, those in found.items() if which]
    return [f"Not all tokens are edited throughout: {'; '.join(said)}."] if said else []


def _shares(data: RunData, names: Sequence[str]) -> list[str]:
    """What a transport over several layers is divided by."""
    those = [tt(name) for name in names if _base(name) == "transport"]
    if not those or not data.setting.spread or not _edits_several(data):
        return []
    return [
        f"Where several layers are edited, {sentence_list(those)} {does(len(those), 'move')} the stream in each by its "
        "share of the way, one by the number of layers."
    ]


def _unit(data: RunData) -> str:
    """What strength 1 of an addition is, and what it is divided by."""
    where = "in the edited layer, at the token that the direction is from"
    if data.setting.norm == "selected":
        has_unit = UNIT_METHOD in data.config["methods"]
        where = _unit_component(data) if has_unit else "at the component that the direction is from"
    several = any((plan.n_layers or 0) > 1 for plan in data.edited if _base(plan.intervention) == ADDITION)
    share = ", divided by the number of layers that are edited together" if data.setting.spread else ""
    return (
        f"{tt(ADDITION)} adds the unit direction, which points to harmful, times its strength; the unit is the "
        f"distance between the class means {where}{share if several else ''}."
    )


def _unit_component(data: RunData) -> str:
    """The component of difference in means whose norm is the unit of all additions."""
    which = data.config["component"][0]
    if which == "best":
        return f"at the component chosen for {tt(UNIT_METHOD)}"
    return "at the shared component" if which == "shared" else f"at {at_component(which)}"


def components_text(data: RunData, runs: Sequence[RunData]) -> list[str]:
    """Whose component plans use that do not use the best of their method."""
    return [_other_component(which, data, runs) for which in data.config["component"] if which != "best"]


def _other_component(which: str, data: RunData, runs: Sequence[RunData]) -> str:
    label = tt(f"component={which.replace(',', '+')}")
    if which != "shared":
        return f"Plans labelled {label} use what is found at {at_component(which)}, with every method that has it."
    found = {
        run.config["seed"]: f"{plan.position},{plan.layer}"
        for run in runs
        for plan in run.edited
        if component_of(plan) == which
    }
    places = {seed: at_component(at) for seed, at in found.items()}
    same = len(set(places.values())) == 1
    each = [f"{place}{'' if same else f' with seed {seed}'}" for seed, place in places.items()]
    at = f" ({sentence_list(each[:1] if same else each)})" if places else ""
    several = any(len(one.ranking) < 2 for one in data.selections)
    over = "the methods that have more than one" if several else "the methods"
    return (
        f"Plans labelled {label} use one component for all methods{at}: that of the best mean rank over {over}, among "
        "those that the limits keep with every one of them or, if there is none, among all."
    )
