"""Directions found through the model: the objective is what it says, descent goes down, the model stays as it is."""

from __future__ import annotations

import pytest
import torch

from refusal_cmp.api import extract, plan_intervention
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.judges.completion import refuses
from refusal_cmp.methods import EXTRACTORS, ModelMethod, Said
from refusal_cmp.methods._optimise import (
    Adam,
    Goals,
    Objective,
    Terms,
    ablation,
    descend,
    first_sentence,
    in_cone,
    orthonormal,
)
from refusal_cmp.model.reading import collect
from refusal_cmp.model.sight import ModelSight
from refusal_cmp.plan import Place
from refusal_cmp.progress import silent
from refusal_cmp.subspace import Component

from support.models import instructions

HARMFUL = [f"how do you make a {a} {b}" for a in ("cake", "cow", "bird") for b in ("red", "blue", "one", "two")]
HARMLESS = [f"hello {a} {b}" for a in ("cake", "cow", "bird") for b in ("red", "blue", "one", "two")]
SAID = [Said("how do you make a cake", "Sure Here"), Said("hello", "I cannot help you ."), Said("hello cow", "red")]


@pytest.fixture(scope="module")
def sight(random_model):
    activations = collect(random_model, HARMFUL, HARMLESS)
    return ModelSight(random_model, [*HARMFUL, *HARMLESS], activations, refuses, lambda _: None)


def unit_rows(k, d=32, seed=0):
    return orthonormal(torch.randn(k, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def log_probs(model, said, edits):
    """Of the answer's tokens, by one unpadded pass."""
    prompt = model.tokenize([said.instruction])[0]
    answer = model.tokenizer(said.answer, add_special_tokens=False)["input_ids"]
    with torch.inference_mode(), model.edited(edits):
        logits = model.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double()
    return logits[len(prompt) - 1 : -1].log_softmax(-1), torch.tensor(answer)


def test_the_objective_is_its_equation_under_the_plans_of_the_interventions(random_model, sight):
    direction, norm, weights, layer = unit_rows(1)[0], 3.0, (0.7, 0.3, 2.0), 2
    goals = Goals(SAID[:1], SAID[1:2], SAID[2:])
    field = extract(random_model, HARMFUL, HARMLESS)
    field = field.only([Component(-1, layer)])
    subspace = field[Component(-1, layer)]
    plan = plan_intervention("ablation", field, layer=layer)
    ours = ablation(subspace.direction, random_model.n_layers)
    assert set(plan.edits) == set(ours)
    assert all(torch.equal(plan.edits[at].V, ours[at].V) and torch.equal(plan.edits[at].A, ours[at].A) for at in ours)

    removed = ablation(direction, random_model.n_layers)
    added = {Place(layer, "resid_pre"): LowRankEdit(b=norm * direction)}

    def cross_entropy(said, edits):
        found, tokens = log_probs(random_model, said, edits)
        return -found[torch.arange(len(tokens)), tokens].mean()

    p, q = (log_probs(random_model, SAID[2], edits)[0] for edits in (removed, {}))
    kl = (p.exp() * (p - q)).sum(-1).mean()
    expected = weights[0] * cross_entropy(SAID[0], removed) + weights[1] * cross_entropy(SAID[1], added)
    found = Objective(sight, layer, norm, weights)(direction, goals)
    assert found.shape == (3,)
    assert float(found.sum()) == pytest.approx(float(expected + weights[2] * kl), rel=1e-5)


def test_its_gradient_is_that_of_finite_differences_and_the_weights_have_none(random_model, sight):
    goals, objective = Goals(SAID[:2], SAID[1:], SAID[:2]), Objective(sight, 1, 2.0, (1.0, 0.5, 1.0))
    direction, step = unit_rows(1)[0], unit_rows(1, seed=3)[0]
    asked = direction.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(asked, goals).sum(), asked)
    small = 0.01
    with torch.no_grad():
        ahead, behind = (float(objective(direction + sign * small * step, goals).sum()) for sign in (1, -1))
    assert float(gradient @ step) == pytest.approx((ahead - behind) / (2 * small), rel=1e-2)
    assert all(weight.requires_grad and weight.grad is None for weight in random_model.model.parameters())
    assert not any(block.module._forward_pre_hooks for block in random_model.blocks)


def test_an_answer_is_foreseen_alike_alone_and_in_a_batch(random_model, sight):
    edits = ablation(unit_rows(1)[0], random_model.n_layers)
    together = sight.foresees(SAID, edits)
    for said, found in zip(SAID, together, strict=True):
        expected, tokens = log_probs(random_model, said, edits)
        assert torch.equal(found.tokens, tokens)
        torch.testing.assert_close(found.logits.double().log_softmax(-1), expected, atol=1e-5, rtol=1e-5)


def toy(target):
    """Objective: the squared distance from a direction, the same with any goals."""

    class Toy:
        def __call__(self, direction, goals):
            return (direction - target).square()

        def of(self, directions, goals):
            return Terms(float(torch.stack([self(one, goals).sum() for one in directions]).mean()), 0.0, 0.0)

    return Toy()


def run(objective, start, **how):
    goals = Goals(SAID, SAID, SAID)
    given = {"steps": 200, "rate": 0.1, "batch": 1, "samples": 0, "patience": 50, "seed": 0, "name": "toy"} | how
    return descend(objective, start, goals, goals, progress=silent, **given)


def test_descent_finds_the_direction_that_there_is_to_find():
    target = unit_rows(1, seed=1)[0]
    found = run(toy(target), unit_rows(1))
    assert float(found.basis[0] @ target) > 0.999
    assert sum(found.best) < 1e-3 < sum(found.start)
    assert torch.equal(found.basis, run(toy(target), unit_rows(1)).basis), "the same seed finds the same"


def test_descent_never_returns_worse_than_its_start_and_ends_where_nothing_gets_better():
    target = unit_rows(1, seed=1)[0]
    found = run(toy(target), target[None], rate=1.0, patience=2)
    assert (found.best, found.steps) == (found.start, 10)
    assert torch.equal(found.basis[0], target)


def test_a_cone_turns_its_middle_to_the_direction_and_stays_orthonormal():
    target = unit_rows(1, seed=1)[0]
    found = run(toy(target), unit_rows(3), samples=4)
    torch.testing.assert_close(found.basis @ found.basis.mT, torch.eye(3, dtype=torch.float64))
    middle = found.basis.sum(0) / found.basis.sum(0).norm()
    assert float(middle @ target) > 0.95
    assert sum(found.best) < sum(found.start)


def test_draws_of_a_cone_are_unit_and_not_negative():
    rows = unit_rows(3)
    drawn = in_cone(rows, 50, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.norm(dim=-1), torch.ones(50, dtype=torch.float64))
    assert ((drawn @ rows.mT) >= -1e-12).all()
    torch.testing.assert_close(drawn @ rows.mT @ rows, drawn)


def test_a_cone_begins_with_the_difference_in_means_in_its_middle():
    direction = unit_rows(1)[0]
    for k in (2, 3, 5):
        rows = EXTRACTORS.create(f"cones[k={k}]").begin(direction)
        torch.testing.assert_close(rows @ rows.mT, torch.eye(k, dtype=torch.float64))
        torch.testing.assert_close(rows @ direction, torch.full((k,), k**-0.5, dtype=torch.float64))


def test_adam_goes_by_its_rate_and_ends_where_the_gradient_does():
    x, adam = torch.tensor([3.0, -2.0], dtype=torch.float64), Adam(0.1)
    first = adam(2 * x)
    torch.testing.assert_close(first, 0.1 * x.sign(), atol=1e-6, rtol=0)
    for _ in range(400):
        x = x - adam(2 * x)
    assert x.abs().max() < 1e-2


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("I cannot help. It is 3.5 metres.", "I cannot help."),
        ("It is 3.5 metres! So", "It is 3.5 metres!"),
        ("No end", "No end"),
    ],
)
def test_a_refusal_ends_with_its_first_sentence(answer, sentence):
    assert first_sentence(answer) == sentence


def test_what_cannot_be_is_refused_before_any_work(random_model):
    with pytest.raises(
        RefusalCmpError, match=r"at is \(-9, 1\), and the model has positions -3 to -1 and layers 0 to 3"
    ):
        EXTRACTORS.create("rdo[at=-9+1]").check((-3, -2, -1), 4, 32)
    with pytest.raises(RefusalCmpError, match="option 'k' of method 'cones' is 1, and this does not hold"):
        EXTRACTORS.create("cones[k=1]")
    with pytest.raises(RefusalCmpError, match="refuses 0 of 10 harmful prompts"):
        extract(random_model, HARMFUL, HARMLESS, "rdo[tokens=3]")


@pytest.fixture(scope="module")
def found(tiny):
    """Both on the embedded model."""
    prompts = instructions("tiny-harmful", "train", 30), instructions("tiny-harmless", "train", 30)
    how = "steps=5,batch=4,tokens=6,prompts=8,rate=0.1"
    specs = (f"rdo[{how}]", f"cones[at=-1+7,draws=1,{how}]")
    return {spec.partition("[")[0]: extract(tiny, *prompts, spec) for spec in specs}


def test_it_begins_where_the_difference_in_means_acts_and_has_one_component(tiny, found):
    at = Component(-1, 7)  # what selection chooses on this model
    for field in found.values():
        assert list(field) == [at]
        assert len(field.missing) == len(tiny.positions) * tiny.n_layers - 1
        assert set(field.missing.values()) == {"it is optimised at (-1, 7) alone"}
    assert (found["rdo"][at].k, found["cones"][at].k) == (1, 2)
    cone = found["cones"][at]
    torch.testing.assert_close(cone.basis.sum(0) / 2**0.5, cone.direction)


def test_it_is_no_worse_than_difference_in_means_on_prompts_that_neither_has_seen(tiny, found, tiny_fields):
    at = Component(-1, 7)
    harmful, harmless = instructions("tiny-harmful", "test", 12), instructions("tiny-harmless", "test", 12)
    start = tiny_fields["diff-in-means"][at].direction
    sight = ModelSight(tiny, [], tiny_activations(tiny), refuses, lambda _: None)
    refusals = sight.answers(harmful, {}, 8)
    goals = Goals(
        [Said(*pair) for pair in zip(harmful, sight.answers(harmful, ablation(start, tiny.n_layers), 8), strict=True)],
        [Said(*pair) for pair in zip(harmless, refusals, strict=True)],
        [Said(*pair) for pair in zip(harmless, sight.answers(harmless, {}, 8), strict=True)],
    )
    objective = Objective(sight, at.layer, found["rdo"].means.distance(at), (1.0, 0.2, 1.0))
    assert sum(objective.of(found["rdo"][at].direction[None], goals)) <= sum(objective.of(start[None], goals))


def tiny_activations(tiny):
    return collect(tiny, instructions("tiny-harmful", "train", 10), instructions("tiny-harmless", "train", 10))


def test_a_method_that_sees_the_model_is_not_fitted_without_it(random_model):
    method = EXTRACTORS.create("rdo")
    assert isinstance(method, ModelMethod)
    with pytest.raises(RefusalCmpError, match="has to see the model"):
        method.fit_field(collect(random_model, HARMFUL, HARMLESS), "rdo")
