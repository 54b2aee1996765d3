"""Damage and calibration on a random model in float64: against transformers alone, and scipy's root finder."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import log_softmax

from refusal_cmp.api import extract, plan_intervention
from refusal_cmp.calibration.calibrate import calibrate
from refusal_cmp.calibration.curves import Refusal
from refusal_cmp.calibration.damage import MEASURES, Meter
from refusal_cmp.calibration.search import TOLERANCE
from refusal_cmp.calibration.varied import Varied, check_varied, varied
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.grid import grid_cells
from refusal_cmp.plan import Place, Plan
from refusal_cmp.planning import Chosen, Scope
from refusal_cmp.subspace import Component

WORDS = "cake cow bird red blue one two three".split()
HARMFUL = [f"how do you make {a} {b} {c}" for a, b, c in itertools.permutations(WORDS[:4], 3)]
HARMLESS = [f"help {a} {b} {c} ?" for a, b, c in itertools.permutations(WORDS[4:], 3)]
PROMPTS = ["help one cow ?", "help two red bird ?", "help a cake"]
ANSWERS = ["Sure . Here you make", "I", "two three one blue red ' m sorry"]
AT = {"layer": 2, "position": -1}
N = 4


@pytest.fixture(scope="module")
def found(random_model):
    return extract(random_model, HARMFUL, HARMLESS, "inlp", c=10.0, stop="0.55", max_k=3)


def plain(model, ids, edits):
    """Logits and what leaves the last block, of one sequence: the modules of transformers, hooked by hand."""
    seen, handles = [], []
    for place, edit in edits.items():
        layer = model.model.model.layers[place.layer]
        module = {"resid_pre": layer, "attn_out": layer.self_attn.o_proj, "mlp_out": layer.mlp.down_proj}[place.site]
        if place.site == "resid_pre":
            handles.append(module.register_forward_pre_hook(lambda _, args, edit=edit: (edit(args[0]), *args[1:])))
        else:
            handles.append(module.register_forward_hook(lambda _, __, out, edit=edit: edit(out)))
    handles.append(model.model.model.layers[-1].register_forward_hook(lambda _, __, out: seen.append(out)))
    with torch.inference_mode():
        logits = model.model(torch.tensor([ids])).logits[0].numpy()
    for handle in handles:
        handle.remove()
    return logits, seen[0][0].numpy()


def slow(model, measure, plan, prompt, answer):
    """A measure of one prompt, a token after the other."""
    question = model.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
    ids = question["input_ids"] if not isinstance(question, list) else question
    said = model.tokenizer(answer, add_special_tokens=False)["input_ids"][:N]
    values = []
    for t in range(1 if measure == "first-kl" else min(N, len(said) + 1)):
        (before, h), (now, edited) = (plain(model, [*ids, *said[:t]], edits) for edits in ({}, plan.edits))
        p, q = (log_softmax(logits[-1]) for logits in (before, now))
        if measure.endswith("kl"):
            values.append(float((np.exp(p) * (p - q)).sum()))
        elif measure == "change":
            values.append(float(np.linalg.norm(edited[-1] - h[-1]) / np.linalg.norm(h[-1])))
        elif t < len(said):
            values.append(float(p[said[t]] - q[said[t]]))
    return np.mean(values)


@pytest.mark.parametrize("measure", sorted(MEASURES))
def test_damage_is_that_of_transformers_alone(random_model, found, measure):
    plans = [
        plan_intervention("nullspace", found, scope="all", strength=0.6, **AT),
        plan_intervention("actadd", found, scope="all", strength=-0.8, **AT),
        plan_intervention("clamp", found, scope="single", strength=-1.0, **AT),
    ]
    meter = Meter(random_model, PROMPTS, measure, N, answers=ANSWERS)
    groups = meter.groups(plans)
    assert sorted(map(tuple, groups)) == [(0, 1), (2,)]  # by the block that they begin at
    for which in groups:
        values = meter([plans[index] for index in which])
        expected = [
            [slow(random_model, measure, plans[index], *pair) for pair in zip(PROMPTS, ANSWERS, strict=True)]
            for index in which
        ]
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-6, atol=1e-9)
    assert float(meter([Plan("nothing", {})]).abs().max()) == 0


def test_an_edit_of_generated_tokens_alone_spares_the_first(random_model, found):
    whole = plan_intervention("actadd", found, scope="all", strength=2.0, **AT)
    meters = [Meter(random_model, PROMPTS, name, N, answers=ANSWERS, some_tokens=True) for name in ("first-kl", "kl")]
    generated, prompt = (replace(whole, tokens=which) for which in ("generated", "prompt"))
    assert meters[0]([generated]).abs().max() < 1e-12 < meters[0]([prompt]).min()
    assert meters[1]([generated]).min() > 1e-6
    assert [len(group) for group in meters[1].groups([whole, generated, prompt])] == [1, 1, 1]


def test_the_answers_are_the_models_own(random_model):
    meter = Meter(random_model, PROMPTS, "kl", N)
    assert meter.answers == [one.text for one in random_model.generate(PROMPTS, max_new_tokens=N)]


@pytest.fixture(scope="module")
def cells(found) -> list[Varied]:
    chosen = Chosen(found, Component(-1, 2), tuple(found))
    names = ["ablation", "nullspace", "affine", "actadd", "reflection", "alterrep", "clamp", "angular"]
    return varied(grid_cells([chosen], names, [Scope("all")], strengths={}))


def test_cells_go_from_nothing_to_their_default_strength(cells):
    names = [cell.name for cell in cells]
    assert names == [
        "ablation", "nullspace", "affine", "actadd:-", "actadd:+", "reflection:+", "alterrep:1", "clamp:-1", "clamp:1",
        "angular:90", "angular:75",
    ]  # fmt: skip
    x = torch.randn(3, random_width(cells), dtype=torch.float64)
    for cell in cells:
        assert cell.at(1).digest == cell.cell.plan().digest
        assert cell.at(1).label == cell.cell.plan().label
        assert all(float((edit(x) - x).abs().max()) < 0.1 for edit in cell.at(1e-4).edits.values())
        assert cell.at(0.3).cell == cell.name
    labels = [cells[names.index(name)].at(0.25).label for name in ("ablation", "actadd:-", "clamp:-1")]
    assert labels == ["inlp/ablation:0.25@all", "inlp/actadd:-0.25@all", "inlp/clamp[share=0.25]:-1@all"]


def random_width(cells) -> int:
    return cells[0].cell.chosen.field[Component(-1, 2)].direction.shape[0]


def test_strengths_that_differ_by_how_far_they_go_are_one_cell(found):
    chosen = Chosen(found, Component(-1, 2), tuple(found))
    given = {"actadd": (-2.0, -1.0, 0.0, 1.0), "ablation": (0.5, 1.0)}
    cells = varied(grid_cells([chosen], ["actadd", "ablation"], [Scope("all")], strengths=given))
    assert [cell.name for cell in cells] == ["actadd:-", "actadd:+", "ablation"]
    with pytest.raises(RefusalCmpError, match="take share out"):
        check_varied("clamp[share=0.5]")


@pytest.mark.parametrize("measure", ["kl", "change"])
def test_calibrated_strengths_are_those_of_a_root_finder(random_model, cells, measure):
    """brentq in float64, one plan at a time, from a dense scan on: the first strength that meets the budget."""
    meter = Meter(random_model, PROMPTS, measure, N, answers=ANSWERS)
    budget = {"kl": 0.02, "change": 0.15}[measure]
    done: dict[int, list[list[float]]] = {}
    calibrated = calibrate(cells, meter, budget, done=done)
    assert {one.found.status for one in calibrated} <= {"met", "below"}
    assert sum(one.found.status == "met" for one in calibrated) >= 6

    def damage(cell: Varied, times: float) -> float:
        return float(meter([cell.at(times)]).mean())

    for cell, one in zip(cells, calibrated, strict=True):
        assert len(one.tried) <= 12
        scan = [(u, damage(cell, u)) for u in np.linspace(0.02, 1, 12) * min(cell.end, 2 * one.found.times)]
        if one.found.status == "below":
            assert max(value for _, value in scan) < budget
            continue
        assert abs(one.found.damage - budget) <= TOLERANCE * budget
        before, after = next(
            (low[0], high[0]) for low, high in itertools.pairwise([(0.0, 0.0), *scan]) if high[1] >= budget
        )
        root = brentq(lambda u, cell=cell: damage(cell, u) - budget if u else -budget, before, after, xtol=1e-6)
        assert one.found.times == pytest.approx(root, rel=2 * TOLERANCE / one.found.elasticity + 1e-3)
    again = calibrate(cells, OnlyGroups(meter), budget, done=done)
    assert again == calibrated, "what is measured is not measured again"


def test_the_number_of_directions_is_that_of_trying_all(random_model):
    """Budgets between the damages of every two numbers of directions, and one that a number meets."""
    found = extract(random_model, HARMFUL, HARMLESS, "pca", max_k=3)
    chosen = Chosen(found, Component(-1, 2), tuple(found), whole=found)
    grid = grid_cells([chosen], ["nullspace", "ablation", "transport"], [Scope("single"), Scope("all")], strengths={})
    assert [cell.most for cell in grid] == [3, 3, 1, 1, 1, 1]
    nullspace, ablation = varied(grid[:3:2], over="k")
    assert (nullspace.most, ablation.most) == (3, 1)
    leading = [found.leading(str(k)) for k in (1, 2, 3)]
    plain = [plan_intervention("nullspace", one, scope="single", **AT) for one in leading]
    for k, plan in enumerate(plain, 1):
        assert nullspace.at(1, k).digest == plan.digest
        assert (nullspace.at(1, k).label, nullspace.at(1, k).k) == (f"pca/nullspace[k={k}]@single", k)
    meter = Meter(random_model, PROMPTS, "kl", N, answers=ANSWERS)
    damages = [float(meter([plan]).mean()) for plan in plain]
    assert damages == sorted(damages), "of this model it grows with every direction"
    for budget, k, status in (
        (damages[0] / 2, 1, "met"),
        ((damages[0] + damages[1]) / 2, 2, "met"),
        ((damages[1] + damages[2]) / 2, 3, "met"),
        (damages[1], 2, "met"),
        (2 * damages[2], 3, "below"),
    ):
        (one,) = calibrate([nullspace], meter, budget)
        assert (one.found.k, one.found.status) == (k, status)
        assert float(meter([nullspace.at(one.found.times, one.found.k)]).mean()) == pytest.approx(one.found.damage)
        between = [(tried.k, tried.damage) for tried in one.found.beside]
        assert between in ([], [(k - 1, pytest.approx(damages[k - 2])), (k, pytest.approx(damages[k - 1]))])
        assert bool(between) == (one.found.times < 1 < k)


class OnlyGroups:
    """A meter that cannot measure."""

    def __init__(self, meter: Meter) -> None:
        self.groups = meter.groups


def test_refusal_is_that_of_the_first_token(random_model, found):
    sets, tokens = {"harmful": HARMFUL[:5], "harmless": HARMLESS[:3]}, [7, 8, 9]
    plan = plan_intervention("actadd", found, scope="all", strength=3.0, **AT)
    refusal = Refusal(random_model, sets, tokens)
    with random_model.edited(plan):
        edited = {name: random_model.refusal_metrics(of_set, tokens) for name, of_set in sets.items()}
    unedited = {name: random_model.refusal_metrics(of_set, tokens) for name, of_set in sets.items()}
    for given, expected in ((refusal([plan])[0], edited), (refusal.unedited(), unedited)):
        assert given == {name: (metric > 0).int().tolist() for name, metric in expected.items()}
    assert Place(2, "resid_pre") in plan.edits
