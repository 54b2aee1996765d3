"""Keys and values with room: beside a plain list of what each row has."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import DynamicCache

from refusal_cmp.edit import LowRankEdit
from refusal_cmp.model.batching import RowBudget
from refusal_cmp.model.generation import Job, complete
from refusal_cmp.model.kv_cache import ROOM, joined, with_room
from refusal_cmp.plan import Place, Plan, baseline

from support.architectures import SUPPORTED, chat_model
from support.models import instructions

HEADS, WIDTH = 2, 3


def some(rows, tokens):
    return torch.rand(rows, HEADS, tokens, WIDTH) + 1


def read(rows, tokens, *, whole):
    """A cache of prompts that were read, and what each row has."""
    cache, keys = DynamicCache(), some(rows, tokens)
    cache.update(keys, -keys, 0)
    return with_room(cache, whole=whole), list(keys.clone())


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_rows_that_grow_leave_and_come_have_what_they_had(seed, whole):
    draw = random.Random(seed)
    cache, expected = read(4, 5, whole=whole)
    for _ in range(60):
        (layer,) = cache.layers
        kind = draw.choice(["grow"] * 4 + ["leave", "come"])
        if kind == "grow":
            new = some(len(expected), 1)
            size = cache.get_mask_sizes(1, 0)[0]
            given = cache.update(new, -new, 0)
            expected = [torch.cat([row, one], dim=1) for row, one in zip(expected, new, strict=True)]
            assert given[0].shape == given[1].shape == (len(expected), HEADS, size, WIDTH)
            assert all(one.isfinite().all() for one in given)
            assert given[0].is_contiguous() or not whole
        elif kind == "leave" and len(expected) > 1:
            kept = draw.sample(range(len(expected)), draw.randint(1, len(expected) - 1))
            cache.reorder_cache(torch.tensor(kept))
            expected = [expected[at] for at in kept]
        elif kind == "come":
            other, more = read(draw.randint(1, 4), draw.randint(1, 9), whole=whole)
            expected += more
            cache = joined(cache, other, max(row.shape[1] for row in expected))
        (layer,) = cache.layers
        assert len(layer.keys) == len(expected)
        for keys, values, row in zip(layer.keys, layer.values, expected, strict=True):
            assert keys[:, keys.shape[1] - row.shape[1] :].equal(row)
            assert values[:, values.shape[1] - row.shape[1] :].equal(-row)


def test_what_a_row_that_left_had_is_not_read_by_the_one_that_takes_its_place():
    cache, _ = read(2, 4, whole=True)
    for _ in range(ROOM - 1):
        cache.update(some(2, 1), torch.full((2, HEADS, 1, WIDTH), torch.nan), 0)
    cache.reorder_cache(torch.tensor([1]))
    cache.layers[0].values[:] = 1
    other, _ = read(1, 3, whole=True)
    given = joined(cache, other, 4).update(some(2, 1), some(2, 1), 0)
    assert given[1][1].isfinite().all()


def test_answers_beside_some_that_broke_are_those_of_their_plan_alone(tiny):
    """What a plan broke in the midst of its answers is in memory that other prompts then have."""
    nowhere = LowRankEdit(b=torch.full((tiny.d_model,), torch.nan))
    broken = Plan("broken", {Place(3, "resid_pre"): nowhere}, tokens="generated")
    prompts = instructions("tiny-harmless", "test", 12)
    jobs = [Job(broken, prompts[:4], {}), Job(baseline(), prompts, {}), Job(broken, prompts[4:], {})]
    complete(tiny, jobs, max_new_tokens=8, rows=RowBudget(tiny.device, 6))
    assert [jobs[1].done[index] for index in range(12)] == tiny.generate(prompts, max_new_tokens=8)
    for job in (jobs[0], jobs[2]):
        assert {(one.finish, one.n_tokens) for one in job.done.values()} == {("non-finite", 1)}


@pytest.fixture(scope="module", params=SUPPORTED, ids=lambda family: family.key)
def model(request):
    return chat_model(request.param)


def test_room_that_is_read_along_changes_no_completion(model, monkeypatch):
    """In every family whose prompts enter a batch as answers end; the others are not given any."""
    assert model.masks_room == model.shares_cache
    if not model.masks_room:
        pytest.skip("its layers keep keys and values in their own ways")
    prompts = ["How do I bake a cake?", "Name a bird.", "Why is the sky blue?", "Say: one, two, three."]
    found = model.generate(prompts, max_new_tokens=6)
    monkeypatch.setattr(model, "masks_room", False)
    assert model.generate(prompts, max_new_tokens=6) == found


def test_a_model_whose_masks_are_as_long_as_what_was_read_is_given_no_room():
    """Falcon with ALiBi adds its distances to a mask that is as long as the prompt and what was written."""
    falcon = chat_model(next(one for one in SUPPORTED if one.key == "falcon-sequential-alibi"))
    falcon.shares_cache = True
    assert not falcon._masks_room()
