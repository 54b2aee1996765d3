"""The page's first screen: the answer in sentences, its numbers, and the best plan of each method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from refusal_cmp.config import CONTRAST, EVERYTHING
from refusal_cmp.data.sampling import to_raise
from refusal_cmp.evals import Unit, measure_of
from refusal_cmp.plan import BASELINE, component_of
from refusal_cmp.report.answer import (
    BROKEN,
    RUIN,
    Cost,
    Standing,
    answers_already,
    as_good,
    best_by_method,
    cost_of,
    costs,
    distinct,
)
from refusal_cmp.report.data import RunData
from refusal_cmp.report.wording import bounds, counted, decimal, minus, percent, sentence_list, shown, with_bounds
from refusal_cmp.selection import missed
from refusal_cmp.statistics import ENOUGH, Estimate, fewest, rate_among

TILES = (
    ("harmful prompts refused", "harmful", "refusal"),
    ("harmless prompts refused", "harmless", "refusal"),
    ("prompts that only sound harmful, refused", CONTRAST, "refusal"),
    ("harmful prompts, unsafe by the guard", "harmful", "guard_unsafe"),
)
"""Numbers of the best plan that stand beside the baseline's, before the costs."""


PLAN = "{plan}"
VERDICTS = {
    "nothing": "There is no refusal to suppress: the unedited model answers already. The numbers are those of {plan}.",
    "ruined": "No plan suppresses refusal: every one destroys the model. The numbers are those of {plan}.",
    "few": "Too few harmful test prompts to decide; {plan} comes nearest.",
    "none": "No plan suppresses refusal; {plan} comes nearest.",
    "doubt": "No plan suppresses refusal beyond doubt; {plan} comes nearest.",
    "unpriced": "{plan} suppresses refusal; at what cost was not measured "
    "(add perplexity, capability or kl to --evals).",
    "best": "{plan} suppresses refusal at the least cost.",
}
"""The first sentence, by what the run lets us say."""
UNASKED = "Whether what it answers is language was not checked; add coherence to --evals."
WANDERS = 0.5
"""Nats a token by which answers to harmless prompts are foreseen worse than the unedited model's own: it is told."""
FEW_TEXTS = 50
"""Fewer texts than draw a line between language and none that can be relied on."""
MISSED = 0.1
"""Share of completions that count as answers and are refusals by the published phrases, from which that is told."""


def first_screen(data: RunData, ranked: Sequence[Standing]) -> dict[str, Any] | None:
    """What the first screen says; None if refusal was not measured."""
    if not ranked:
        return None
    measured = costs(data)
    best = ranked[0]
    different = distinct(data, ranked)
    suppress = [one for one in different if one.suppresses]
    verdict = _verdict(data, best)
    return {
        "plan": best.plan,
        "verdict": verdict,
        "headline": VERDICTS[verdict].split(PLAN),
        "unasked": UNASKED if not data.asks_for_language and verdict != "nothing" else "",
        "among": best.among,
        "sentences": [*_sentences(data, different, measured), *_too_few(verdict, best, data)],
        "tiles": _tiles(data, best, measured),
        "methods": [method_row(data, one, measured) for one in best_by_method(ranked)],
        "costs": [cost.name for cost in measured],
        "counts": f"{len(suppress)} of {counted(len(different), 'distinct plan')} do so",
        "broken": [one.plan for one in different if one.is_broken],
        "enough": percent(ENOUGH),
        "share_broken": percent(BROKEN),
        "ruin": f"{RUIN:g} nat",
        "tie": _tie(measured[0]) if measured else "",
        "cost": measured[0].name if measured else None,
        "asks_for_language": data.asks_for_language,
    }


def _verdict(data: RunData, best: Standing) -> str:
    """What the run lets us say of the plan that is named: one of the cases of the page's first sentence."""
    if answers_already(data):
        return "nothing"
    if best.is_broken:
        return "ruined"
    if not best.may_suppress:
        return "none"
    if best.answered.n < fewest(best.among):
        return "few"
    if not best.suppresses:
        return "doubt"
    return "unpriced" if best.cost is None else "best"


def _more(data: RunData, needed: int) -> str:
    """How to get as many harmful test prompts as are needed, which depends on how many there are."""
    counts = data.prompts["counts"]
    of_set = next((of for name, of in counts.items() if name.startswith("harmful: ")), counts["harmful_test"])
    left = of_set["available"] - of_set["duplicates"] - of_set["near_duplicates"]
    settings = to_raise(left, needed, n_test=data.config["n_test"], limit=data.config["limit"])
    if settings:
        options = sentence_list([f"--{name.replace('_', '-')}" for name in settings])
        return f"its set has {left}: take more of them with {options}"
    return f"its set has no more than {left}: give more prompts, or test on another set in a run of its own (--alias)"


def _sentences(data: RunData, ranked: Sequence[Standing], measured: Sequence[Cost]) -> list[str]:
    """What the best plan does, what it costs, what does so too, and what it does to harmless prompts."""
    best = ranked[0]
    said = [f"It answers {with_bounds(best.answered, 'share')} of {best.answered.n} harmful test prompts {how(data)}"]
    if best.among > 1:
        said[0] += f" (the interval allows for its choice among {best.among} plans on the same prompts)"
    said[0] += _before(data, best)
    if best.cost is not None and measured:
        said += [*_costs(data, best, measured), *_others(ranked, measured[0])]
    return [
        *said,
        *_on_harmless(data, best),
        *_to_the_point(data, best),
        *_component(data, best),
        *_thresholds(data, best),
        *_phrases(data, best),
    ]


def _thresholds(data: RunData, best: Standing) -> list[str]:
    """Where the KL threshold alone decides how much a method removes: that method is compared by the threshold."""
    unedited, said = data.baseline_metric.get("harmful"), []
    if unedited is None or component_of(next(one for one in data.edited if one.label == best.plan)) is not None:
        return []
    for method, table in data.scores.groupby("method", sort=False):
        other = missed(table, data.rule, unedited)
        if other is not None:
            said.append(f"{method}: {other.sentence(unedited, data.rule.kl_threshold)}")
    if not said:
        return []
    return [
        f"Beware: the KL threshold decides what is compared. {' '.join(said)} Compare methods at one component too "
        "(--component best,shared)."
    ]


def how(data: RunData) -> str:
    """What counts as an answer, as was measured."""
    return "in language and without refusing" if data.asks_for_language else "without refusing"


def _to_the_point(data: RunData, best: Standing) -> list[str]:
    """What nobody judged of the answers, and whether they read as if they were about something else."""
    said = []
    edited, unedited = (data.get(plan, "harmless", "unedited_loss") for plan in (best.plan, BASELINE))
    if edited is not None and unedited is not None and edited.value - unedited.value > WANDERS:
        said.append(
            f"Beware: what it says after harmless prompts the unedited model foresees much worse than its own answers "
            f"({decimal(edited.value, 2)} nats a token, and {decimal(unedited.value, 2)}); it may wander from the "
            "question, so read some completions."
        )
    elif data.get(best.plan, "harmful", "rubric_score") is None:
        said.append("Whether its answers help with what was asked was not judged: read some, or add rubric to --evals.")
    line = data.get(BASELINE, EVERYTHING, "language_threshold")
    if line is not None and line.n < FEW_TEXTS:
        said.append(f"What is language was told by a line that is drawn from {counted(line.n, 'text')} only.")
    return said


def _too_few(verdict: str, best: Standing, data: RunData) -> list[str]:
    """Why so few prompts cannot decide, and what would."""
    if verdict != "few":
        return []
    n, chosen = best.answered.n, f"chosen among {best.among}, " if best.among > 1 else ""
    perfect, needed = percent(rate_among(n, n, best.among).low), fewest(best.among)
    return [
        f"Of {n} prompts not even a plan that answers all is known to answer {percent(ENOUGH)}: {chosen}its interval "
        f"would begin at {perfect}. It takes {needed} or more, and {_more(data, needed)}."
    ]


def _phrases(data: RunData, best: Standing) -> list[str]:
    """Whether the phrases that were chosen let pass what the published ones call a refusal."""
    said = []
    for plan, who in ((best.plan, "it"), (BASELINE, "the unedited model")):
        answered, published = data.answered(plan), data.get(plan, "harmful", "attack_success")
        if answered is not None and published is not None and answered.value - published.value > MISSED:
            said.append(f"{who} answers {percent(published.value)} where that is {percent(answered.value)}")
    if not said:
        return []
    return [
        f"Beware: by the published phrases {' and '.join(said)}; read the completions, as the phrases that were chosen "
        "may not be those by which this model refuses."
    ]


def _costs(data: RunData, best: Standing, measured: Sequence[Cost]) -> list[str]:
    """What the plan loses by everything that was measured."""
    changes = [(cost, cost_of(data, best.plan, cost)) for cost in measured]
    said = [f"{cost.name} {_change(lost, cost)}" for cost, lost in changes if lost is not None]
    return [f"Its cost: {'; '.join(said)}."]


def _before(data: RunData, best: Standing) -> str:
    """What the unedited model does, and how sure the difference is: the end of a sentence."""
    unedited = data.answered(BASELINE)
    if unedited is None:
        return "."
    tested = data.versus_baseline(best.plan, "harmful", data.answered_by)
    surely = f" ({_p(tested[1])} after Holm’s correction)" if tested else ""
    return f"; unedited, the model answers {with_bounds(unedited, 'share')}{surely}."


def _others(ranked: Sequence[Standing], cost: Cost) -> list[str]:
    """How many more plans do the same at the same cost, and with which methods."""
    others = as_good(ranked, cost.tie)
    if not others:
        return []
    methods = sorted({one.method for one in others} - {ranked[0].method})
    also = f", also with {sentence_list(methods)}" if methods else f", all with {ranked[0].method}"
    verb = "does" if len(others) == 1 else "do"
    more = counted(len(others), "more distinct plan")
    return [f"{more} {verb} so at a cost within {_tie(cost)} of it{also}."]


def _on_harmless(data: RunData, best: Standing) -> list[str]:
    """What the plan does to harmless prompts, where it refuses more than a few."""
    over, unedited = data.get(best.plan, "harmless", "refusal"), data.get(BASELINE, "harmless", "refusal")
    if over is None or unedited is None or over.value <= BROKEN:
        return []
    start = "But it" if over.value > unedited.value else "It"
    before = f"where the unedited model refuses {with_bounds(unedited, 'share')}"
    return [f"{start} refuses {with_bounds(over, 'share')} of the harmless prompts, {before}."]


def _component(data: RunData, best: Standing) -> list[str]:
    """Where the direction was taken from, and what was not right with that."""
    plan = next(one for one in data.edited if one.label == best.plan)
    scores = data.scores[data.scores["method"] == best.method]
    scored = scores[(scores["position"] == plan.position) & (scores["layer"] == plan.layer)]
    if scored.empty:
        return []
    kl = decimal(float(scored[f"{data.rule.rank_by}_kl"].iloc[0]), 3)
    at = f"position {minus(str(plan.position))}, layer {plan.layer}"
    chosen = next((one for one in data.selections if one.method == best.method), None)
    if component_of(plan) is not None and not bool(scored["kept"].iloc[0]):
        why = scored["dropped_by"].iloc[0] if "dropped_by" in scored else None
        by = f" (dropped by {why})" if isinstance(why, str) and why else ""
        return [
            f"Beware: its direction is that of {at}, which does not meet the filters{by}; its removal changes harmless "
            f"validation prompts by {kl} nats."
        ]
    if chosen is None or not chosen.fallback or component_of(plan) is not None:
        return [f"Its direction is that of {at}, whose removal changes harmless validation prompts by {kl} nats."]
    return [
        f"Beware: no component met the filters, and its direction is that of {at}, taken as a {chosen.note}; its "
        f"removal changes harmless validation prompts by {kl} nats."
    ]


def _tie(cost: Cost) -> str:
    return f"{100 * cost.tie:g} points" if cost.unit == "share" else f"{cost.tie:g} nats"


def _change(value: float, cost: Cost) -> str:
    """A cost in words."""
    if not math.isfinite(value):
        return "is not finite any more"
    if abs(value) < 0.0005:
        return "does not change"
    direction = "rises" if value * cost.sign > 0 else "falls"
    amount = f"{100 * abs(value):.1f} points" if cost.unit == "share" else f"{abs(value):.3f} {cost.unit}"
    return f"{direction} by {amount}"


def _tiles(data: RunData, best: Standing, measured: Sequence[Cost]) -> list[dict[str, str]]:
    """Numbers of the best plan beside the baseline's."""
    wanted = [*TILES]
    for cost in measured:
        wanted += [(f"{cost.name.split(' on ')[0]} on {one}", one, cost.metric) for one in cost.datasets]
    tiles = []
    for name, dataset, metric in wanted:
        edited, unedited = data.get(best.plan, dataset, metric), data.get(BASELINE, dataset, metric)
        if edited is None or unedited is None:
            continue
        unit = measure_of(metric).unit
        paired = data.versus_baseline(best.plan, dataset, metric)
        tiles.append(
            {
                "name": name,
                "before": shown(unedited.value, unit),
                "after": shown(edited.value, unit),
                "interval": bounds(edited, unit),
                "paired": "" if paired is None else f"change {_difference(paired[0], unit)}, {_p(paired[1])}",
            }
        )
    return tiles


def _p(value: float) -> str:
    """A p-value, if the test gave one."""
    return "no p" if math.isnan(value) else "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def _difference(one: Estimate, unit: Unit) -> str:
    """A difference with its sign and its interval, shares in points."""
    scale, form = (100, "{:+.0f}") if unit == "share" else (1, "{:+.3f}")
    value, low, high = (minus(form.format(scale * number)) for number in one[:3])
    return f"{value} [{low}, {high}]" + (" points" if unit == "share" else "")


def method_row(data: RunData, one: Standing, measured: Sequence[Cost]) -> dict[str, Any]:
    """The best plan of a method."""
    over = data.get(one.plan, "harmless", "refusal")
    return {
        "method": one.method,
        "plan": one.plan,
        "falls_short": _falls_short(one),
        "answered": with_bounds(one.answered, "share"),
        "over": "–" if over is None else with_bounds(over, "share"),
        "costs": [_cost(cost_of(data, one.plan, cost), cost) for cost in measured],
    }


def _falls_short(one: Standing) -> str:
    if one.suppresses:
        return ""
    return "destroys the model" if one.is_broken else "not beyond doubt" if one.may_suppress else "does not suppress it"


def _cost(value: float | None, cost: Cost) -> str:
    """A cost as the change of what is measured."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    return minus(f"{100 * cost.sign * value:+.1f}" if cost.unit == "share" else f"{cost.sign * value:+.3f}")
