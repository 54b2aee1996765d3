"""Calibration and curves from Python: the plans and numbers of the parts that a run is made of."""

from __future__ import annotations

import itertools

import pytest

from refusal_cmp import Component, calibrate, curve, extract
from refusal_cmp.calibration.damage import Meter
from refusal_cmp.calibration.search import TOLERANCE
from refusal_cmp.errors import RefusalCmpError

WORDS = "cake cow bird red blue one two three".split()
HARMFUL = [f"how do you make {a} {b} {c}" for a, b, c in itertools.permutations(WORDS[:4], 3)]
HARMLESS = [f"help {a} {b} {c} ?" for a, b, c in itertools.permutations(WORDS[4:], 3)]
AT = {"layer": 2, "position": -1, "n_tokens": 4}
TOKENS = (7, 8, 9)


@pytest.fixture(scope="module")
def found(random_model):
    return extract(random_model, HARMFUL, HARMLESS, "pca", max_k=3)


def damage(model, plan, measure="kl"):
    return float(Meter(model, HARMLESS[:6], measure, 4)([plan]).mean())


@pytest.mark.parametrize(
    ("intervention", "budget", "more"),
    [
        ("nullspace", "kl=0.002", {}),
        ("actadd", "first-kl=0.05", {"strength": 1.0, "scope": "single"}),
        ("nullspace", 0.002, {"over": "k"}),
    ],
)
def test_the_plan_does_the_damage_of_the_budget(random_model, found, intervention, budget, more):
    one = calibrate(random_model, intervention, found, HARMLESS[:6], budget, **AT, **more)
    measure, _, wanted = budget.partition("=") if isinstance(budget, str) else ("kl", "", budget)
    assert one.found.status == "met"
    assert damage(random_model, one.plan, measure) == pytest.approx(float(wanted), rel=1.1 * TOLERANCE)
    assert (one.found.k is None) == ("over" not in more)
    assert one.plan.strength is None or one.plan.strength > 0
    assert (one.found.times, one.found.damage) in [(each.times, each.damage) for each in one.tried]


def test_a_curve_is_of_the_strengths_that_are_asked_for(random_model, found):
    sets = {"harmful": HARMFUL[:5], "harmless": HARMLESS[6:9]}
    how = {**AT, "scope": "single", "refusal_tokens": TOKENS, "strength": 1.0}
    table = curve(random_model, "actadd", found, HARMLESS[:6], sets, strengths=(0.5, 3.0), **how)
    assert list(table) == ["plan", "times", "damage", "harmful", "harmless"]
    assert list(table["plan"]) == ["baseline", "pca/actadd:0.5@single", "pca/actadd:3@single"]
    from refusal_cmp import plan_intervention

    plan = plan_intervention("actadd", found, layer=2, scope="single", strength=3.0)
    assert table["damage"].iloc[2] == pytest.approx(damage(random_model, plan))
    with random_model.edited(plan):
        refused = {
            name: (random_model.refusal_metrics(some, TOKENS) > 0).double().mean() for name, some in sets.items()
        }
    assert dict(table.iloc[2][["harmful", "harmless"]]) == {name: float(share) for name, share in refused.items()}
    within = curve(random_model, "actadd", found, HARMLESS[:6], sets, limit=0.05, **how)
    assert len(within) == 7
    assert within["damage"].is_monotonic_increasing
    assert within["damage"].iloc[-1] == pytest.approx(0.05, rel=0.15)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda *a: calibrate(*a, HARMLESS, "kl=x", **AT), "it must be MEASURE=BUDGET"),
        (lambda *a: calibrate(*a, [], **AT), "none are given"),
        (lambda *a: calibrate(*a, HARMLESS, strength=0.0, **AT), "changes nothing at strength 0"),
        (lambda *a: calibrate(*a, HARMLESS, over="k", **AT), "one number of directions that actadd can have"),
        (lambda *a: curve(*a, HARMLESS, {"harmful": HARMFUL}, measure="ld", **AT), "measure of damage"),
    ],
)
def test_a_mistake_is_a_sentence(random_model, found, call, sentence):
    assert Component(-1, 2) in found
    with pytest.raises(RefusalCmpError, match=sentence):
        call(random_model, "actadd", found)
