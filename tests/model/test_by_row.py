"""Rows of one pass under plans of their own are what they are under each plan alone, whatever the plans do."""

from __future__ import annotations

import pytest
import torch

from refusal_cmp.api import class_covariances
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.engines import Engine
from refusal_cmp.engines.hf import HFEngine
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.interventions import INTERVENTIONS
from refusal_cmp.model.batching import RowBudget
from refusal_cmp.model.by_row import MixedEdit
from refusal_cmp.model.generation import Job, complete
from refusal_cmp.plan import Place, Plan, baseline
from refusal_cmp.planning import Chosen, Scope, make_plan
from refusal_cmp.subspace import Component

from support.architectures import SUPPORTED, chat_model
from support.models import instructions

D = 12
SOME_TOKENS = ("ablation[tokens=prompt]", "actadd[keep-norm=true,tokens=generated]", "ablation[when=0.1]")


def edits():
    """Of every form that there is, of several ranks, and none."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return [
        LowRankEdit(V=drawn(3, D), A=drawn(3, D)),
        None,
        LowRankEdit(b=drawn(D)),
        LowRankEdit(V=drawn(1, D), B=drawn(1, D)),
        LowRankEdit(V=drawn(2, D), A=drawn(2, D), B=drawn(2, D), t=drawn(2), b=drawn(D), keep=torch.ones(()).double()),
        LowRankEdit(V=drawn(4, D), r=drawn(D), c=drawn(D), tau=torch.tensor(0.1).double()),
        LowRankEdit(),
    ]


@pytest.mark.parametrize("flat", [False, True])
def test_a_row_is_edited_by_its_own_edit_and_no_other(flat):
    some = edits()
    of = torch.tensor([4, 0, 1, 5, 3, 0, 2, 6, 5, 4])
    x = torch.randn(len(of), 5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = MixedEdit(some)(x.flatten(0, 1) if flat else x, of).reshape(x.shape)
    for row, expected, at in zip(found, x, of.tolist(), strict=True):
        edit = some[at]
        torch.testing.assert_close(row, expected if edit is None else edit(expected[None])[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(found[[2, 7]], x[[2, 7]])


def test_what_overflows_under_one_plan_stays_in_its_rows():
    x = torch.ones(2, 3, D)
    x[0] = torch.finfo(torch.float32).max
    rows = torch.ones(1, D)
    found = MixedEdit([LowRankEdit(V=rows, A=rows), LowRankEdit(b=torch.ones(D))])(x, torch.tensor([0, 1]))
    assert not found[0].isfinite().any()
    assert torch.equal(found[1], x[1] + 1)


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("term", ["A", "B", "r", "b"])
def test_an_edit_that_is_no_number_stays_in_its_rows(term, bad):
    x, rows = torch.ones(2, 3, D), torch.ones(1, D)
    broken = LowRankEdit(b=rows[0] * bad) if term == "b" else LowRankEdit(V=rows, **{term: (rows * bad).view(1, D)})
    if term == "r":
        broken = LowRankEdit(V=rows, r=rows[0] * bad)
    whole = LowRankEdit(V=rows, A=rows, B=rows, r=rows[0], b=rows[0])
    found = MixedEdit([broken, whole])(x, torch.tensor([0, 1]))
    assert not found[0].isfinite().any()
    torch.testing.assert_close(found[1], whole(x[1:])[0])


@pytest.fixture(scope="module")
def plans(tiny, tiny_fields):
    """The baseline and every intervention, in one layer and in all, and some with gates, kept norms and some tokens."""
    made, kinds = [baseline()], [instructions(f"tiny-{kind}", "train", 12) for kind in ("harmful", "harmless")]
    for method, field in tiny_fields.items():
        read = class_covariances(tiny, *kinds, field, layer=5, position=-1)
        chosen = Chosen(field, Component(-1, 5), tuple(field), covariances=read)
        specs = [*INTERVENTIONS, *SOME_TOKENS] if method == "diff-in-means" else ["nullspace"]
        for spec in specs:
            strengths = INTERVENTIONS.create(spec).strengths
            for scope in ("single", "all"):
                made.append(make_plan(spec, chosen, Scope(scope), strength=strengths and strengths[0]))
    return made


def test_completions_of_many_plans_at_once_are_those_of_one_at_a_time(tiny, plans):
    """Every intervention in one batch: also where few rows fit, and others enter as they end."""
    sets = [instructions(f"tiny-{kind}", "test", 2) for kind in ("harmful", "harmless")]
    expected = {}
    for plan in plans:
        with tiny.edited(plan):
            expected[plan.label] = [tiny.generate(some, max_new_tokens=8) for some in sets]
    assert len({repr(one) for one in expected.values()}) > len(plans) / 4
    for n in (5, 128):
        jobs, told = [Job(plan, some, {}) for plan in plans for some in sets], []
        complete(tiny, jobs, max_new_tokens=8, rows=RowBudget(tiny.device, n), finished=told.append)
        assert sorted(map(id, told)) == sorted(map(id, jobs))
        for job in jobs:
            completions = [job.done[index] for index in range(2)]
            assert completions == expected[job.plan.label][sets.index(job.instructions)], job.plan.label
    assert not tiny.edits_some_tokens


def test_answers_that_end_at_once_leave_the_others_under_their_plans(tiny, plans, monkeypatch):
    """Prompts enter beside rows that are written on, and none of them stays."""
    some, kinds = plans[:9], [instructions(f"tiny-{kind}", "test", 4) for kind in ("harmful", "harmless")]
    first = tiny.last_logits(tiny.batch(tiny.tokenize(kinds[1]))).argmax(-1).tolist()
    monkeypatch.setattr(type(tiny), "stop_ids", property(lambda _: frozenset(first)))
    jobs = [Job(plan, texts, {}) for plan in some for texts in (kinds[0], kinds[1])]
    complete(tiny, jobs, max_new_tokens=6, rows=RowBudget(tiny.device, 8))
    ended = []
    for job in jobs:
        with tiny.edited(job.plan):
            expected = tiny.generate(job.instructions, max_new_tokens=6)
        assert [job.done[index] for index in range(4)] == expected, job.plan.label
        ended += [one.n_tokens == 0 for one in expected]
    assert 8 <= sum(ended) < len(ended)


def test_what_is_done_is_kept_and_only_rounds_with_something_missing_are_made(tiny, plans, monkeypatch):
    prompts = instructions("tiny-harmful", "test", 2)

    def jobs(done):
        return [Job(plan, prompts, dict(done.get(index, {}))) for index, plan in enumerate(plans[:10])]

    whole = jobs({})
    complete(tiny, whole, max_new_tokens=4, rows=RowBudget(tiny.device, 2))
    there = {index: job.done for index, job in enumerate(whole)}
    passes = []
    monkeypatch.setattr(type(tiny), "edited_by_row", _counted(type(tiny).edited_by_row, passes))
    again = jobs(there)
    del again[7].done[1]
    complete(tiny, again, max_new_tokens=4, rows=RowBudget(tiny.device, 2))
    assert [job.done for job in again] == [job.done for job in whole]
    assert len(passes) == 1, "20 prompts are three rounds"


def _counted(function, calls):
    def counted(*args):
        calls.append(args)
        return function(*args)

    return counted


@pytest.fixture(scope="module", params=SUPPORTED[::4], ids=lambda family: family.key)
def family(request):
    return chat_model(request.param)


def test_plans_share_batches_in_every_kind_of_block(family):
    rows = torch.nn.functional.normalize(torch.randn(2, family.d_model, generator=torch.manual_seed(0)))
    removed = {
        Place(layer, site): LowRankEdit(V=rows, A=-rows) for layer in range(3) for site in ("attn_out", "mlp_out")
    }
    some = [Plan("removed", removed), baseline(), Plan("added", {Place(1, "resid_pre"): LowRankEdit(b=4 * rows[0])})]
    prompts = ["How do I bake a cake?", "Name a bird."]
    jobs = [Job(plan, prompts, {}) for plan in some]
    complete(family, jobs, max_new_tokens=5, rows=RowBudget(family.device, 4))
    for job in jobs:
        with family.edited(job.plan):
            assert [job.done[index] for index in range(2)] == family.generate(prompts, max_new_tokens=5)


def test_an_engine_of_one_plan_at_a_time_does_the_same(tiny, plans):
    class OneByOne(Engine):
        start = None

        def generate(self, *args, **more):
            return HFEngine(tiny).generate(*args, **more)

    prompts, told, steps = instructions("tiny-harmless", "test", 2), [], []
    found = {kind: [Job(plan, prompts, {}) for plan in plans[:4]] for kind in ("one", "many")}
    found["one"][2].done.update(HFEngine(tiny).generate_many(found["many"], 4) or found["many"][2].done)
    OneByOne().generate_many(found["one"], 4, _progress(steps), told.append)
    assert told == found["one"]
    assert sum(steps) == 8
    assert [job.done for job in found["one"]] == [job.done for job in found["many"]]


def _progress(steps):
    from contextlib import contextmanager

    @contextmanager
    def progress(_, total):
        assert total == 8
        yield steps.append

    return progress


def test_an_edit_that_no_row_could_have_is_refused_as_alone():
    granite = chat_model(next(family for family in SUPPORTED if family.key == "granite-moe-shared-expert"))
    plan = Plan("added", {Place(1, "mlp_out"): LowRankEdit(b=torch.ones(granite.d_model))})
    jobs = [Job(one, ["Name a bird."], {}) for one in (baseline(), plan)]
    with pytest.raises(RefusalCmpError, match="only a linear edit can act"):
        complete(granite, jobs, max_new_tokens=2, rows=RowBudget(granite.device))
