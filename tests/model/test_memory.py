"""What a pass holds beside the weights: within its budget whatever the vocabulary, and without a change of results."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from transformers import LlamaConfig

from refusal_cmp.evals.capability import _strict_lm
from refusal_cmp.evals.kl import divergences
from refusal_cmp.model import batching, refusal_metric
from refusal_cmp.model.batching import PASS_BYTES, Cost, RowBudget, slices
from refusal_cmp.model.hooks import after, installed
from refusal_cmp.model.losses import Scored, losses
from refusal_cmp.plan import baseline
from refusal_cmp.selection.scoring import Scorer

from support.models import instructions

SMALL = 2**14
"""A budget of bytes that the passes of a tiny model are over."""


@pytest.fixture
def documents(random_model):
    """Of different lengths, scored in full, at their ends, and not at all; two differ in their last token."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = random_model.model.config.vocab_size
    ids = [torch.randint(vocabulary, (n,), generator=generator).tolist() for n in (40, 3, 90, 17, 60)]
    twin = [*ids[3][:-1], (ids[3][-1] + 1) % vocabulary]
    return [Scored(ids[0], 39), Scored(ids[1], 1), Scored(ids[2], 70), Scored(ids[3], 1), Scored(twin, 1),
            Scored(ids[4], 0), Scored([], 0)]  # fmt: skip


@pytest.fixture
def made(random_model):
    """Of how many tokens every pass of the random model makes logits."""
    tokens, head = [], random_model.model.get_output_embeddings()
    with installed([after(head, lambda logits: tokens.append(logits.shape[:-1].numel()))]):
        yield tokens


def textbook(model, document):
    """The summed cross-entropy of one document, and whether all that is scored is likeliest."""
    if not document.n:
        return 0.0, True
    with torch.no_grad():
        logits = model.model(torch.tensor([document.ids])).logits[0, -1 - document.n : -1].double()
    targets = torch.tensor(document.ids[-document.n :])
    wanted = logits.log_softmax(-1)[torch.arange(document.n), targets]
    return float(-wanted.sum()), bool((logits.argmax(-1) == targets).all())


@pytest.mark.parametrize("budget", [PASS_BYTES, SMALL])
def test_losses_are_those_of_whole_passes_however_little_a_pass_may_take(
    random_model, documents, made, monkeypatch, budget
):
    monkeypatch.setattr(batching, "PASS_BYTES", budget)
    found = losses(random_model, documents)
    most = max(made)
    expected = [textbook(random_model, document) for document in documents]
    assert [one.total for one in found] == pytest.approx([total for total, _ in expected], rel=1e-9)
    assert [one.is_greedy for one in found] == [greedy for _, greedy in expected]
    assert [one.n_tokens for one in found] == [document.n for document in documents]
    one_token = random_model.row_bytes(0)
    assert most * one_token <= max(budget, one_token)


def test_documents_that_differ_in_their_last_token_share_a_row(random_model, documents, made):
    losses(random_model, documents[3:5])
    assert made == [1]


@pytest.mark.parametrize("rolling", [False, True])
def test_log_likelihoods_are_lm_evals_own(tiny, monkeypatch, rolling):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    kind = "loglikelihood_rolling" if rolling else "loglikelihood"
    texts = instructions("tiny-harmless", "test", 6)
    pairs = [(text,) for text in texts] if rolling else [(a, f" {b}") for a in texts for b in (*texts[:2], "A", "B")]
    requests = [Instance(kind, {}, pair, index) for index, pair in enumerate(pairs)]
    theirs = getattr(HFLM(pretrained=tiny.model, tokenizer=tiny.tokenizer, batch_size=4), kind)(requests)
    for budget in (PASS_BYTES, 2**20):
        monkeypatch.setattr(batching, "PASS_BYTES", budget)
        ours = getattr(_strict_lm(tiny, None), kind)(requests)
        pairs = [(one, one) if rolling else one for one in (*ours, *theirs)]
        found, expected = pairs[: len(ours)], pairs[len(ours) :]
        assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], rel=1e-5)
        assert rolling or [one[1] for one in found] == [one[1] for one in expected]


def test_completions_scores_and_divergences_do_not_depend_on_the_budget(tiny, tiny_fields, monkeypatch):
    prompts = [instructions(f"tiny-{kind}", "val", 6) for kind in ("harmful", "harmless")]
    field = tiny_fields["diff-in-means"]
    some = type(field)(field.method, field.means, {at: field[at] for at in list(field)[5:8]})

    def everything():
        tokens = tiny.refusal_tokens(prompts[0])
        scores = Scorer(tiny, *prompts, tokens).score(some, "local", multipliers=(1.0,))
        unedited = tiny.per_prompt(prompts[1], tiny.last_logits, None)
        (kl,) = divergences(tiny, prompts[1], unedited.roll(1, 0), [baseline()], None)
        completions = [one.text for one in tiny.generate(prompts[0], max_new_tokens=6)]
        return tokens, scores, torch.tensor(kl), completions

    whole = everything()
    monkeypatch.setattr(batching, "PASS_BYTES", 1)
    monkeypatch.setattr(batching, "SLICE_BYTES", 1)
    alone = everything()
    assert alone[0] == whole[0]
    for name in ("bypass", "induce", "kl"):
        torch.testing.assert_close(getattr(alone[1], name), getattr(whole[1], name), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone[2], whole[2], atol=1e-4, rtol=1e-5)
    assert alone[3] == whole[3]


def test_the_stream_of_one_layer_is_kept_and_read_on_from(random_model):
    prompts = ["how do you make a cake", "hello"]
    scorer = Scorer(random_model, prompts, prompts, (1,))
    (part,) = scorer.harmful
    streams = random_model.streams(part.batch)
    for layer in (1, 3, 3, 0, 2):
        assert torch.equal(scorer._stream(part, layer), streams[layer])
    assert part.layer == 2


def test_slices_give_what_the_whole_gives(monkeypatch):
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    whole = refusal_metric(logits, (1, 2))
    assert len(slices(logits)) == 1
    monkeypatch.setattr(batching, "SLICE_BYTES", 7 * 2 * 8 * 30)
    assert [len(some) for some in slices(logits)] == [7] * 7 + [1]
    assert torch.equal(refusal_metric(logits, (1, 2)), whole)


@pytest.mark.parametrize(
    ("limit", "lengths", "size"),
    [(8, [1] * 20, 8), (8, [3, 3, 3, 4], 3), (8, [10], 1), (8, [11, 1], 1), (2, [1, 1, 1], 2), (8, [1, 2, 5, 5], 2)],
)
def test_rows_go_together_within_the_budget(monkeypatch, limit, lengths, size):
    monkeypatch.setattr(batching, "PASS_BYTES", 10)
    rows = RowBudget(torch.device("cpu"), limit)
    assert rows.first(lengths, lambda some: max(some)) == lengths[:size]


def test_the_cost_of_a_row_is_arithmetic():
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    cost = Cost.of(config, torch.float32)
    assert cost.row(0, logits=5) == 5 * 4 * 1000
    assert cost.row(0, logits=0, cached=7) == 7 * 4 * 2 * 3 * 2 * 16
    assert cost.row(10, logits=0) == 10 * 4 * (8 * 64 + 3 * 512)
    assert Cost.of(config, torch.bfloat16).row(0) == (2 + 4) * 1000


MEASURE = """
import json, torch
from transformers import LlamaConfig, LlamaForCausalLM
from refusal_cmp.data import DATASETS
from refusal_cmp.model import ChatModel
from refusal_cmp.model.batching import peak, start_peak
from refusal_cmp.model.losses import Scored, losses
from refusal_cmp.plan import baseline
from refusal_cmp.evals.capability import _strict_lm

torch.set_num_threads(1)
tiny = ChatModel.load("tiny-refuser")
config = LlamaConfig(vocab_size=131072, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                     num_attention_heads=1, eos_token_id=tiny.tokenizer.eos_token_id)
model = ChatModel(LlamaForCausalLM(config), tiny.tokenizer, "wide")
device, taken = torch.device("cpu"), {}

def measured(name, work):
    before = start_peak(device)
    work()
    taken[name] = peak(device) - before

text = list(range(33))
measured("losses", lambda: losses(model, [Scored([row, *text], 33) for row in range(48)]))
lm = _strict_lm(model, None)
requests = [(None, [row, *range(300)], [1]) for row in range(12)]
measured("log-likelihoods", lambda: lm._loglikelihood_tokens(requests))
measured("a long text", lambda: losses(model, [Scored(list(range(1500)), 1499)]))
prompts = [one.instruction for one in DATASETS.get("tiny-harmless")("train")[:64]]
measured("metrics", lambda: model.refusal_metrics(prompts, (1, 2)))
print(json.dumps(taken))
"""


def test_a_large_vocabulary_is_held_in_parts_measured_in_a_process_of_its_own():
    """Whole, the logits of each of the first three are 0.8 to 1.9 GB, copies apart."""
    command = [sys.executable, "-c", textwrap.dedent(MEASURE)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    taken = json.loads(done.stdout.splitlines()[-1])
    assert max(taken.values()) < PASS_BYTES + 2**28, taken
