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


def test_a_batch_that_does_not_fit_is_halved_for_good(random_model, monkeypatch):
    complete, sizes = generation._complete, []

    def small_memory(model, batch, max_new_tokens):
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return complete(model, batch, max_new_tokens)

    expected = random_model.generate(PROMPTS, max_new_tokens=5)
    monkeypatch.setattr(generation, "_complete", small_memory)
    engine = HFEngine(random_model)
    assert engine.generate(baseline(), PROMPTS, 5) == expected
    assert sizes == [12, 6, 3, 3, 3, 3]
    assert engine.generate(baseline(), PROMPTS, 5) == expected
    assert sizes[6:] == [3, 3, 3, 3]


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
    monkeypatch.setattr(generation, "_complete", lambda *_: pytest.fail("made again"))
    assert greedy(random_model, PROMPTS, max_new_tokens=5, rows=rows, done=done) == expected
