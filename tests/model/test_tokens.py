"""Plans that edit tokens of the prompt, or generated ones, alone: which tokens those are, whoever reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from refusal_cmp.edit import LowRankEdit
from refusal_cmp.engines.hf import HFEngine
from refusal_cmp.engines.vllm import VLLMEngine
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model.folding import InexactError, fold
from refusal_cmp.model.hooks import installed
from refusal_cmp.model.losses import Scored, losses
from refusal_cmp.plan import Place, Plan, baseline
from refusal_cmp.planning import Chosen, Scope, make_plan
from refusal_cmp.subspace import Component

from support.models import instructions

PROMPTS = ["how do you make a cake ?", "one cow", "help a red bird"]
NEW = 5


def plan(tokens="all", layers=(0, 2), site="mlp_out"):
    """An edit that leaves nothing as it was: the contribution is turned round in half of its dimensions."""
    rows = torch.eye(32, dtype=torch.float64)[:16]
    return Plan("hand/edit", {Place(layer, site): LowRankEdit(V=rows, A=-2 * rows) for layer in layers}, tokens=tokens)


def masked(model, edited, there):
    """Hooks that edit some tokens of a pass alone."""

    def only_there(edit):
        return lambda _, __, out: torch.where(there[:, None], edit(out), out)

    return [
        model.blocks[place.layer].mlp_out.register_forward_hook(only_there(edit))
        for place, edit in edited.edits.items()
    ]


def greedy_by_hand(model, prompt, edited, tokens):
    """Greedy tokens by full passes without a cache, under an edit whose every token is masked by its place."""
    (ids,) = model.tokenize([prompt])
    start, written = len(ids), []
    for _ in range(NEW):
        sequence = torch.tensor([[*ids, *written]])
        there = torch.arange(sequence.shape[1]) >= start
        there = there if tokens == "generated" else ~there
        with torch.inference_mode(), installed(masked(model, edited, there)):
            logits = model.model(input_ids=sequence).logits[0, -1]
        written.append(int(logits.argmax()))
    return model.tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.parametrize("tokens", ["prompt", "generated"])
def test_completions_are_those_of_full_passes_with_a_mask(random_model, tokens, monkeypatch):
    monkeypatch.setattr(type(random_model), "stop_ids", property(lambda _: frozenset()))
    with random_model.edited(plan(tokens)):
        found = [one.text for one in random_model.generate(PROMPTS, max_new_tokens=NEW)]
    expected = [greedy_by_hand(random_model, prompt, plan(tokens), tokens) for prompt in PROMPTS]
    assert found == expected
    others = []
    for other in (plan(), baseline()):
        with random_model.edited(other):
            others.append([one.text for one in random_model.generate(PROMPTS, max_new_tokens=NEW)])
    assert all(found != other for other in others)


def test_prompts_are_read_unedited_by_a_plan_for_generated_tokens(random_model):
    batch = random_model.batch(random_model.tokenize(PROMPTS))
    plain = random_model.last_logits(batch)
    with random_model.edited(plan("generated")):
        assert torch.equal(random_model.last_logits(batch), plain)
    with random_model.edited(plan("prompt")):
        found = random_model.last_logits(batch)
    with random_model.edited(plan()):
        assert torch.equal(random_model.last_logits(batch), found)
    assert torch.equal(random_model.last_logits(batch), plain)
    assert not random_model.edits_some_tokens


@pytest.mark.parametrize("tokens", ["prompt", "generated"])
def test_the_loss_of_an_answer_counts_it_as_generated_and_its_question_as_the_prompt(random_model, tokens):
    """Also where texts begin alike, one is scored in pieces, and what one is asked another answers."""
    documents = [Scored([5, 9, 12, 7, 20, 11], 3), Scored([5, 9, 12, 7, 20, 11], 5), Scored([5, 9, 12, 8], 1)]
    documents.append(Scored([5, 9, 12, 7, 20, 11, 13, 14, 15], 8))
    with random_model.edited(plan(tokens)):
        found = losses(random_model, documents)
    for (ids, n), loss in zip(documents, found, strict=True):
        there = torch.arange(len(ids)) >= len(ids) - n
        there = there if tokens == "generated" else ~there
        with torch.inference_mode(), installed(masked(random_model, plan(), there)):
            logits = random_model.model(input_ids=torch.tensor([ids])).logits[0]
        expected = torch.nn.functional.cross_entropy(logits[-n - 1 : -1], torch.tensor(ids[-n:]), reduction="sum")
        assert loss.total == pytest.approx(float(expected), rel=1e-6)


def test_a_long_text_is_scored_in_pieces_alike(random_model, monkeypatch):
    documents = [Scored([5, 9, 12, 7, 20, 11, 13, 14, 15], 6)]
    with random_model.edited(plan("generated")):
        (whole,) = losses(random_model, documents)
        monkeypatch.setattr("refusal_cmp.model.losses.most_scored", lambda *_: 2)
        (pieces,) = losses(random_model, documents)
    assert pieces.total == pytest.approx(whole.total, rel=1e-9)


def test_it_is_part_of_a_plan_s_label_its_file_and_its_digest(random_model, tiny_fields):
    field = tiny_fields["diff-in-means"]
    chosen = Chosen(field, Component(-1, 5), tuple(field))
    plans = [
        make_plan(f"ablation{brackets}", chosen, Scope("single"))
        for brackets in ("", "[tokens=prompt]", "[tokens=generated]", "[tokens=all]")
    ]
    assert [one.tokens for one in plans] == ["all", "prompt", "generated", "all"]
    assert plans[1].label == "diff-in-means/ablation[tokens=prompt]@single"
    assert len({one.digest for one in plans}) == 3
    for one in plans:
        again = Plan.from_tensors(*one.to_tensors())
        assert again.tokens == one.tokens
        assert again.digest == Plan.from_tensors(*again.to_tensors()).digest
    assert replace(baseline(), tokens="prompt").digest == baseline().digest, "nothing is edited anywhere"
    with pytest.raises(RefusalCmpError, match="'tokens'"):
        make_plan("ablation[tokens=some]", chosen, Scope("single"))
    with pytest.raises(InexactError, match="of the prompt alone"):
        fold(plans[1], 10)


def test_an_engine_that_cannot_tell_tokens_apart_says_so():
    HFEngine.check_tokens("prompt")
    VLLMEngine.check_tokens("all")
    with pytest.raises(RefusalCmpError, match="edits all tokens alike; take hf"):
        VLLMEngine.check_tokens("generated")


def test_generation_of_transformers_itself_is_told_apart_too(tiny, tiny_fields):
    """Benchmarks that generate use it."""
    field = tiny_fields["diff-in-means"]
    chosen = Chosen(field, Component(-1, 5), tuple(field))
    prompts = instructions("tiny-harmful", "test", 2)
    for tokens in ("prompt", "generated"):
        with tiny.edited(make_plan(f"ablation[tokens={tokens}]", chosen, Scope("all"))):
            ours = tiny.generate(prompts, max_new_tokens=12)
            for prompt, one in zip(prompts, ours, strict=True):
                (ids,) = tiny.tokenize([prompt])
                out = tiny.model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
                assert tiny.tokenizer.decode(out, skip_special_tokens=True) == one.text
