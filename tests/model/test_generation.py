"""Greedy generation in batches that shrink and caches that grow: the completions of one prompt at a time."""

from __future__ import annotations

import pytest
import torch

from refusal_cmp.engines.hf import HFEngine
from refusal_cmp.model import generation
from refusal_cmp.model.batching import RowBudget, is_out_of_memory
from refusal_cmp.model.generation import greedy
from refusal_cmp.model.kv_cache import ROOM
from refusal_cmp.plan import baseline

PROMPTS = [f"{a} {b}" for a in ("how do you", "cow", "one two three red", "hello") for b in ("cake", "bird", "blue ?")]


@pytest.fixture
def stopping(random_model, monkeypatch):
    """The random model with a token that ends some of its answers early, at different lengths."""
    tokens = [
        random_model.model.generate(
            torch.tensor([ids]), max_new_tokens=ROOM + 20, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(ids) :].tolist()
        for ids in random_model.tokenize(PROMPTS)
    ]
    stop = max(
        {token for t in tokens for token in t}, key=lambda token: len({t.index(token) for t in tokens if token in t})
    )
    monkeypatch.setattr(random_model.model.generation_config, "eos_token_id", stop)
    return random_model


def test_batches_are_as_one_prompt_at_a_time_beyond_the_room_of_the_cache(stopping):
    together = stopping.generate(PROMPTS, max_new_tokens=ROOM + 20)
    assert together == [stopping.generate([prompt], max_new_tokens=ROOM + 20)[0] for prompt in PROMPTS]
    assert len({one.n_tokens for one in together}) > 2
    for prompt, completion in zip(PROMPTS, together, strict=True):
        ids = torch.tensor(stopping.tokenize([prompt]))
        out = stopping.model.generate(
            ids, max_new_tokens=ROOM + 20, do_sample=False, eos_token_id=list(stopping.stop_ids)
        )
        new = out[0, ids.shape[1] :].tolist()
        assert completion.text == stopping.tokenizer.decode(new[: completion.n_tokens], skip_special_tokens=True)
        assert [token in stopping.stop_ids for token in new[completion.n_tokens :]] == [True] * (
            completion.finish == "stop"
        )


def small_memory(model, monkeypatch, most):
    """A model whose passes hold no more than so many prompts; the sizes of those that are tried to read."""
    read, sizes = generation._read, []

    def tried(model, batch):
        sizes.append(len(batch))
        if len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return read(model, batch)

    monkeypatch.setattr(generation, "_read", tried)
    return sizes


def test_a_batch_that_does_not_fit_is_halved_for_good(random_model, monkeypatch):
    expected = random_model.generate(PROMPTS, max_new_tokens=5)
    sizes = small_memory(random_model, monkeypatch, 3)
    engine = HFEngine(random_model)
    assert engine.generate(baseline(), PROMPTS, 5) == expected
    assert sizes[:3] == [12, 6, 3]
    assert sum(sizes[2:]) == 12
    assert max(sizes[2:]) <= 3
    n = len(sizes)
    assert engine.generate(baseline(), PROMPTS, 5) == expected
    assert sizes[n:] == sizes[2:n]


def memory_error(allocate):
    """What is raised where there is not enough memory."""
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate()
    return caught.value


def test_every_way_to_run_out_of_memory_is_known():
    assert is_out_of_memory(memory_error(lambda: torch.empty(2**60)))
    assert is_out_of_memory(memory_error(lambda: bytearray(2**60)))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)"))


def test_batches_that_are_done_are_not_made_again(random_model, monkeypatch):
    rows = RowBudget(random_model.device, 4)
    done = {}
    expected = greedy(random_model, PROMPTS, max_new_tokens=5, rows=rows, done=done)
    assert sorted(done) == list(range(len(PROMPTS)))
    monkeypatch.setattr(generation, "_read", lambda *_: pytest.fail("made again"))
    assert greedy(random_model, PROMPTS, max_new_tokens=5, rows=rows, done=done) == expected


def test_a_batch_stays_full_as_answers_end(stopping, monkeypatch):
    """Of 48 answers no more than eight are written at a time, in fewer passes than eight after eight would take."""
    passes, forward = [], type(stopping).forward

    def counted(self, keep, **inputs):
        passes.append(len(inputs["input_ids"]))
        return forward(self, keep, **inputs)

    expected = [stopping.generate([prompt], max_new_tokens=ROOM + 20)[0] for prompt in PROMPTS] * 4
    monkeypatch.setattr(type(stopping), "forward", counted)
    found = greedy(stopping, PROMPTS * 4, max_new_tokens=ROOM + 20, rows=RowBudget(stopping.device, 8))
    assert found == expected
    assert max(passes) <= 8
    eights = [expected[first : first + 8] for first in range(0, 48, 8)]
    assert len(passes) < sum(max(one.n_tokens for one in some) for some in eights)


def test_rows_that_are_much_longer_are_written_by_themselves(random_model, monkeypatch):
    lengths, forward = [], type(random_model).forward
    prompts = [*PROMPTS, *(f"{prompt} {'one ' * 40}" for prompt in PROMPTS[:3])]

    def noted(self, keep, **inputs):
        lengths.append(inputs["attention_mask"].shape)
        return forward(self, keep, **inputs)

    expected = [random_model.generate([prompt], max_new_tokens=4)[0] for prompt in prompts]
    monkeypatch.setattr(type(random_model), "forward", noted)
    assert random_model.generate(prompts, max_new_tokens=4) == expected
    assert max(rows for rows, tokens in lengths if tokens > 40) == 3


def test_rows_are_broken_by_what_is_not_finite_and_not_by_a_sum_that_overflows():
    rows = torch.zeros(6, 9)
    rows[1, 3], rows[2, 4], rows[3, 8] = torch.nan, torch.inf, -torch.inf
    rows[4, :2] = torch.tensor([torch.inf, -torch.inf])
    rows[5] = torch.finfo(torch.float32).max
    assert generation._broken(rows).tolist() == [False, True, True, True, True, False]
    assert generation._broken(rows[:1]).tolist() == [False]
