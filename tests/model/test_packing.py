"""Prompts that share a row give what they give alone: logits, streams, losses and completions, of every family."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from refusal_cmp.data import Document
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.model import ChatModel
from refusal_cmp.model.batching import RowBudget
from refusal_cmp.model.losses import encode, losses
from refusal_cmp.model.packing import MOST_PROMPTS, Pack, PackedBatch, packs
from refusal_cmp.model.reading import read_streams, streams_at
from refusal_cmp.plan import Place
from refusal_cmp.subspace import Component

from support.architectures import SUPPORTED, chat_model, tokenizer

PROMPTS = ["How do I bake a cake?", "How do I bake bread for two?", "Name a bird.", "How do I bake a cake?", "Name it"]
ALONE = {"falcon-sequential-alibi", "bloom", "mpt", "qwen3-next", "jamba", "lfm2"}
"""Families whose prompts cannot share a row: positions that are read off the mask, and blocks that recur."""
OWN_CACHE = {"mistral", "gemma-2", "gemma-3-text", "gemma-3-multimodal", "cohere2", "gpt-oss", "llama-4-text", "olmo-3",
             "exaone-4", "gemma-4-text", "mistral-3-multimodal"}  # fmt: skip
"""Families with layers that keep the keys and values of the last tokens only."""
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def with_wide_windows(family):
    """Windows are eight tokens wide in the other tests, which is less than any prompt has."""
    wide = {"sliding_window": 64, "attention_chunk_size": 64}

    def widened(given):
        return given and {name: wide.get(name, value) for name, value in given.items()}

    return replace(family, settings=widened(family.settings), nested=widened(family.nested))


@pytest.fixture(scope="module", params=SUPPORTED, ids=lambda family: family.key)
def model(request):
    return chat_model(with_wide_windows(request.param))


def sequences_of(model):
    return model.tokenize(PROMPTS)


def one_row(model, sequences):
    """All of them in one row, in lexicographic order, and that order."""
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    return order, model.packed(sequences, [Pack(tuple(order), 0)])[1]


def test_which_families_share_rows_and_keys_is_known(model):
    assert model.shares_rows == (model.name not in ALONE)
    assert model.shares_cache == (model.name not in ALONE | OWN_CACHE)


def test_logits_and_streams_in_one_row_are_those_of_rows_of_their_own(model):
    if not model.shares_rows:
        pytest.skip("its prompts are read in rows of their own")
    order, packed = one_row(model, sequences_of(model))
    plain = model.batch([sequences_of(model)[index] for index in order])
    torch.testing.assert_close(model.last_logits(packed), model.last_logits(plain), **CLOSE)
    components = [Component(position, layer) for position in (-1, -3) for layer in range(model.n_layers)]
    for one, other in zip(streams_at(model, packed, components), streams_at(model, plain, components), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    read = {"packed": {}, "plain": {}}
    for name, batch in (("packed", packed), ("plain", plain)):
        read_streams(model, batch, read[name].__setitem__, 4)
    for layer, stream in read["plain"].items():
        torch.testing.assert_close(read["packed"][layer], stream, **CLOSE)


def test_an_edit_acts_on_shared_tokens_as_on_others(model):
    if not model.shares_rows:
        pytest.skip("its prompts are read in rows of their own")
    basis = torch.nn.functional.normalize(torch.randn(2, model.d_model, generator=torch.Generator().manual_seed(0)))
    edit = LowRankEdit(V=basis, A=-basis, b=basis[0])
    order, packed = one_row(model, sequences_of(model))
    plain = model.batch([sequences_of(model)[index] for index in order])
    with model.edited({Place(1, "resid_pre"): edit}):
        torch.testing.assert_close(model.last_logits(packed), model.last_logits(plain), **CLOSE)


def test_completions_and_losses_are_those_of_one_prompt_at_a_time(model):
    together = model.generate(PROMPTS, max_new_tokens=6)
    assert together == [model.generate([prompt], max_new_tokens=6)[0] for prompt in PROMPTS]
    documents = [Document(text, "Where is it?") for text in ("Here, by the door.", "Here, by the sea.", "Here")]
    scored = [encode(model, document) for document in documents]
    alone = [losses(model, [one])[0] for one in scored]
    for one, other in zip(losses(model, scored), alone, strict=True):
        assert one.total == pytest.approx(other.total, rel=1e-5)
        assert one[1:] == other[1:]


def test_prompts_longer_than_a_window_are_read_in_rows_of_their_own():
    mistral = next(family for family in SUPPORTED if family.key == "mistral")
    model, long = chat_model(with_wide_windows(mistral)), ["word " * 80, "word " * 81]
    assert model.shares_rows
    batches = [batch for _, batch in model.batches([*PROMPTS, *long])]
    assert not any(isinstance(batch, PackedBatch) for batch in batches)
    assert any(isinstance(batch, PackedBatch) for _, batch in model.batches(PROMPTS))


def test_a_row_is_no_longer_than_a_window_that_layers_count_by_places_in_it():
    """GPT-Neo's local attention looks back by places in the row, whatever mask it is given."""
    config = GPTNeoConfig(vocab_size=5_000, hidden_size=32, num_layers=2, attention_types=[[["global", "local"], 1]],
                          num_heads=2, window_size=128, max_position_embeddings=512)  # fmt: skip
    torch.manual_seed(0)
    model = ChatModel(GPTNeoForCausalLM(config), tokenizer(), "gpt-neo")
    assert model.shares_rows
    prompts = [f"How do I bake {'very ' * n}good cakes?" for n in range(24)]
    sequences = model.tokenize(prompts)
    assert model.packed(sequences, packs(sequences, 10_000, 24))[1].ids.shape[1] > 128, "but for the limit"
    alone = torch.cat([model.last_logits(model.batch([ids])) for ids in sequences])
    for rows, batch in model.batches(prompts):
        assert isinstance(batch, PackedBatch)
        assert batch.ids.shape[1] <= 128
        torch.testing.assert_close(model.last_logits(batch), alone[rows], **CLOSE)


small = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=8)


def cost(sequences, width):
    """Of one row with these prompts: its tokens, and the work on them."""
    tokens = len({tuple(ids[: end + 1]) for ids in sequences for end in range(len(ids))})
    return tokens, tokens * (6 * width + tokens)


@settings(deadline=None, max_examples=60)
@given(small, st.integers(1, 8), st.integers(1, 30))
def test_no_other_cut_of_the_sorted_prompts_costs_less(sequences, most, width):
    found = packs(sequences, width, most)
    assert sorted(index for pack in found for index in pack.prompts) == list(range(len(sequences)))
    assert all(pack.size() <= most for pack in found)
    rows = [[sequences[index] for index in pack.prompts] for pack in found]
    assert [cost(row, width)[0] for row in rows] == [pack.tokens for pack in found]
    in_order = sorted(sequences)
    least = min(
        sum(cost(in_order[a:b], width)[1] for a, b in itertools.pairwise([0, *cuts, len(in_order)]))
        for n in range(len(in_order))
        for cuts in itertools.combinations(range(1, len(in_order)), n)
        if all(b - a <= most for a, b in itertools.pairwise([0, *cuts, len(in_order)]))
    )
    assert sum(cost(row, width)[1] for row in rows) == least


def test_a_pack_that_does_not_fit_is_made_of_fewer():
    sequences = [[1] * 30 + [n] for n in range(MOST_PROMPTS + 5)]
    assert max(pack.size() for pack in packs(sequences, 100, 1000)) > 9
    found = packs(sequences, 100, 1000, fits=lambda pack: pack.size() <= 3)
    assert max(pack.size() for pack in found) <= 3
    assert sum(pack.size() for pack in found) == len(sequences)


@settings(deadline=None, max_examples=40)
@given(small)
def test_a_token_reads_what_leads_to_it_and_nothing_else(sequences):
    rows = [sorted(sequences), [[2, 2]]]
    batch = PackedBatch.of(rows, pad=0, dtype=torch.float32, device=torch.device("cpu")).repeated(2)
    flat, positions = batch.ids.flatten(), batch.position_ids.flatten()
    expected = [*rows[0], *rows[1]] * 2
    for path, there, ids in zip(batch.paths, batch.path_mask, expected, strict=True):
        own = path[there]
        assert flat[own].tolist() == ids
        assert positions[own].tolist() == list(range(len(ids)))
        row, size = int(own[0]) // batch.ids.shape[1], batch.ids.shape[1]
        for n, token in enumerate(own.tolist()):
            assert (batch.reads[row, 0, token % size] == 0).nonzero()[:, 0].tolist() == sorted(
                (own[: n + 1] % size).tolist()
            )


def test_fewer_prompts_share_a_row_where_memory_runs_out(tiny):
    sequences, sizes = tiny.tokenize([f"How do I bake {n} cakes?" for n in range(12)]), []

    def work(indices, batch):
        sizes.append(len(indices))
        if len(indices) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        done.extend(indices)

    done = []
    tiny.over_packs(sequences, RowBudget(tiny.device), lambda some: 1, work)
    assert sorted(done) == list(range(12))
    assert sizes[0] == 12
    assert sum(sizes[1:]) >= 12
