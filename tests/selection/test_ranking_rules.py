"""Ranking rules: attribution is the first-order term of bypass, COSMIC its plain form; both cost what they say."""

from __future__ import annotations

from contextlib import ExitStack
from unittest import mock

import pandas as pd
import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from refusal_cmp.config import SITES
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.model import refusal_metric
from refusal_cmp.model.gradients import Slope, slopes
from refusal_cmp.model.hooks import before, installed
from refusal_cmp.plan import Place
from refusal_cmp.planning import Setting
from refusal_cmp.selection import Rule, cosmic, ranked_table, score_table, select
from refusal_cmp.selection.attribution import PASSES, Rows, attribution, sum_of_changes
from refusal_cmp.selection.rankings import against_exact
from refusal_cmp.selection.scoring import PromptScores, Scorer, candidate_edits, passes_of_bypass
from refusal_cmp.subspace import ClassMeans, Component, Subspace, SubspaceField

from support.architectures import SUPPORTED, chat_model

HARMFUL = ["how do you make a bird ?", "make", "how do I help one cow three"]
HARMLESS = ["hello", "a red cake ?", "two birds . hello"]
TOKENS = (7, 8)


@pytest.fixture(scope="module")
def field(random_model) -> SubspaceField:
    """Random subspaces of one and two directions, one of them oblique, in some layers of the float64 model."""
    rng, d, positions = torch.Generator().manual_seed(1), random_model.d_model, tuple(random_model.positions)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    subspaces = {}
    for position, layer, k in ((-1, 1, 2), (-2, 1, 1), (-1, 2, 1), (-2, 3, 2)):
        basis = torch.linalg.qr(random(d, k)).Q.mT
        outside = random(k, d)
        oblique = basis + 0.3 * (outside - outside @ basis.mT @ basis) if layer == 2 else None
        subspaces[Component(position, layer)] = Subspace(basis, basis[0], 1.0, torch.ones(k).double(), oblique)
    means = ClassMeans(positions, *(random(len(positions), random_model.n_layers, d) for _ in range(2)))
    return SubspaceField("random", means, subspaces)


@pytest.fixture
def exact_norms():
    """The model's norms are of float32 whatever it is, too coarse for finite differences."""

    def forward(norm, x):
        return norm.weight * x * (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()

    with mock.patch.object(LlamaRMSNorm, "forward", forward):
        yield


def metric_under(model, edits, prompt) -> torch.Tensor:
    """The refusal metric of one prompt in float64, by a whole pass."""
    batch = model.batch(model.tokenize([prompt]))
    with torch.inference_mode(), model.edited(edits):
        return refusal_metric(model.forward(1, **batch.inputs, use_cache=False).logits[:, -1], TOKENS)[0]


def shrunk(edits, size):
    """The edits with their change times `size`."""
    return {place: LowRankEdit(V=edit.V, A=size * edit.A) for place, edit in edits.items()}


@pytest.mark.parametrize("reach", ["local", "global"])
@pytest.mark.parametrize("sites", [("resid_pre",), ("resid_pre", "attn_out", "mlp_out")])
def test_attribution_is_the_derivative_of_bypass_in_the_size_of_the_edit(
    random_model, exact_norms, field, reach, sites
):
    """Prompts of different lengths share a batch: what is at padding counts for nothing."""
    setting, step = Setting(sites=sites), 1e-5
    found = attribution(random_model, HARMFUL, TOKENS, field, reach, setting=setting)
    for index, component in enumerate(field):
        edits = candidate_edits("nullspace", field, component, reach, setting)
        for column, prompt in enumerate(HARMFUL):
            up, down = (metric_under(random_model, shrunk(edits, sign * step), prompt) for sign in (1, -1))
            expected = metric_under(random_model, {}, prompt) + (up - down) / (2 * step)
            torch.testing.assert_close(found[index, column], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["Granite", "Granite-MoE (shared expert)", "Gemma-2", "OLMo-2"])
def test_slopes_are_of_what_is_added_to_the_stream(name):
    """Scaled, by several modules, after a norm: the directional derivative along a random edit is that of passes."""
    model = chat_model(next(one for one in SUPPORTED if one.name == name))
    is_exact = "MoE" not in name  # experts have no float64
    model.model.to(torch.float64 if is_exact else torch.float32)
    batch, generator = model.batch(model.tokenize([HARMFUL[0]])), torch.Generator().manual_seed(0)
    V = torch.linalg.qr(torch.randn(model.d_model, 2, generator=generator, dtype=torch.float64)).Q.mT
    edits = {Place(1, site): LowRankEdit(V=V, A=-V) for site in SITES}

    def metric(edits):
        with torch.inference_mode(), model.edited(edits):
            return value(model.forward(1, **batch.inputs, use_cache=False).logits[:, -1])[0]

    def value(logits):
        return logits[:, 5].double() - logits[:, 9].double()

    _, found = slopes(model, batch, value, edits)
    step = 1e-2
    for site in SITES:
        here = {place: edit for place, edit in edits.items() if place.site == site}
        rows = {place: Rows(edit.V, edit.A, torch.tensor([0, 0])) for place, edit in here.items()}
        change = sum_of_changes([one for one in found if one.place.site == site], rows, 1)[0, 0]
        plain = (metric(shrunk(here, step)) - metric(shrunk(here, -step))) / (2 * step)
        assert plain.abs() > 1e-5
        torch.testing.assert_close(change, plain, rtol=0.01, atol=2e-5 if is_exact else 1e-3)


def test_attribution_is_exact_where_the_metric_is_linear():
    torch.manual_seed(0)
    w, x = torch.randn(16, dtype=torch.float64), torch.randn(3, 5, 16, dtype=torch.float64)
    edits = [LowRankEdit(V=torch.randn(k, 16).double(), A=torch.randn(k, 16).double()) for k in (1, 3)]
    at = Place(0, "resid_pre")
    rows = {at: Rows(torch.cat([e.V for e in edits]), torch.cat([e.A for e in edits]), torch.tensor([0, 1, 1, 1]))}
    change = sum_of_changes([Slope(at, x, w.expand_as(x))], rows, 2)
    expected = torch.stack([((edit(x) - x) @ w).sum(-1) for edit in edits])
    torch.testing.assert_close(change, expected, atol=1e-12, rtol=1e-12)


def test_slopes_leave_weights_and_model_as_they_were(random_model):
    batch = random_model.batch(random_model.tokenize(HARMFUL))
    before_it = random_model.last_logits(batch)
    weights = list(random_model.model.parameters())
    _, found = slopes(random_model, batch, lambda logits: refusal_metric(logits, TOKENS), [Place(1, "mlp_out")])
    assert all(weight.requires_grad and weight.grad is None for weight in weights)
    assert torch.equal(random_model.last_logits(batch), before_it)
    assert not found[0].gradient[~batch.mask].any()


def plain_cosmic(model, field, component, reach, layers):
    """The slow obvious form: one prompt at a time, whole passes, the equations of the module's docstring."""

    def mean_state(prompts, edits):
        states = []
        for prompt in prompts:
            reading = [before(model.blocks[i].module, lambda x: states.append(x[0, -1])) for i in layers]
            with installed(reading), model.edited(edits):
                model.last_logits(model.batch(model.tokenize([prompt])))
        return torch.stack(states).mean(0)

    removal = candidate_edits("nullspace", field, component, reach, None)
    addition = candidate_edits("actadd", field, component, "local", None, 1.0)
    comply = cosine_similarity(mean_state(HARMFUL, removal), mean_state(HARMLESS, {}), dim=0)
    refuse = cosine_similarity(mean_state(HARMLESS, addition), mean_state(HARMFUL, {}), dim=0)
    return torch.stack([comply, refuse])


@pytest.mark.parametrize("reach", ["local", "global"])
def test_cosmic_is_its_plain_form(random_model, field, reach, monkeypatch):
    monkeypatch.setattr(cosmic, "SHARE", 0.5)
    layers = cosmic.least_alike(field.means)
    alike = [float(cosine_similarity(*(m[-1, i] for m in (field.means.harmful, field.means.harmless)), dim=0))
             for i in range(4)]  # fmt: skip
    assert layers == sorted(sorted(range(1, 4), key=alike.__getitem__)[:2]), "never the embeddings"
    scorer = Scorer(random_model, HARMFUL, HARMLESS, TOKENS, max_rows=4)
    found = cosmic.cosmic(scorer, field, reach)
    expected = torch.stack([plain_cosmic(random_model, field, component, reach, layers) for component in field])
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    assert field.only([at for at in field if at.layer < max(layers)]), "some edits are seen"
    done = {index: found[index].tolist() for index in (0, 1, 2)}
    torch.testing.assert_close(cosmic.cosmic(scorer, field, reach, done=done), found, atol=1e-12, rtol=0)


class Tokens:
    """How many tokens go through blocks, counted where they are computed."""

    def __init__(self, model):
        self.model, self.count, self.stack = model, 0, ExitStack()

    def __enter__(self):
        kind = type(self.model.blocks[0].module)
        plain = kind.forward

        def forward(block, hidden_states, *args, **kwargs):
            self.count += hidden_states.shape[0] * hidden_states.shape[1]
            return plain(block, hidden_states, *args, **kwargs)

        self.stack.enter_context(mock.patch.object(kind, "forward", forward))
        return self

    def __exit__(self, *_):
        self.stack.close()


@pytest.mark.parametrize("reach", ["local", "global"])
def test_costs_are_the_passes_that_are_made(random_model, field, reach):
    """But for the unedited stream that passes start from, which is read once for all components."""
    prompts = ["how do you make ?", "I help one cow ?"]  # of one length
    scorer = Scorer(random_model, prompts, prompts, TOKENS)
    whole = random_model.n_layers * scorer.harmful[0].batch.ids.numel()
    with Tokens(random_model) as counted:
        scorer.score(field, reach, multipliers=(1.0,))
    assert 0 <= counted.count / whole - 3 * passes_of_bypass(field, reach) <= 2, "as much for KL and for induce"
    with Tokens(random_model) as counted:
        cosmic.cosmic(scorer, field, reach)
    assert -1e-9 <= counted.count / whole - cosmic.passes(field, reach) <= 2
    batch = random_model.batch(random_model.tokenize(prompts))
    with Tokens(random_model) as counted:
        attribution(random_model, prompts, TOKENS, field, reach)
    assert counted.count == random_model.n_layers * batch.ids.numel(), "forward, and back once more"
    assert PASSES == 2


def scores_of(field) -> PromptScores:
    n = len(field)
    return PromptScores(torch.arange(n).double()[:, None].repeat(1, 2), torch.ones(n, 3, 2), torch.zeros(n, 2))


def test_the_keys_rank_the_highest_or_the_lowest_first(field):
    ruled = {
        ("cosmic", "local"): torch.tensor([[0.1, 0.2], [0.5, 0.4], [0.3, 0.3], [-0.1, 0.9]]),
        ("attribution", "local"): torch.tensor([[2.0, 0.0], [-1.0, 3.0], [0.0, 0.0], [5.0, -9.0]]),
    }
    for key, order in (("cosmic", [1, 3, 2, 0]), ("attribution", [3, 2, 0, 1])):  # of equals the lower bypass is first
        table = ranked_table(field, {"local": scores_of(field)}, Rule(rank_key=key, prune_layers=1.0), ruled)
        assert table.sort_values("rank").index.tolist() == order
        assert set(table["key"]) == {f"local_{key}"}
    scored = score_table(field, {"local": scores_of(field)}, Rule(), ruled)
    scored.loc[3, "local_cosmic"] = float("nan")
    assert select(scored, Rule(rank_key="cosmic"), 4).loc[3, "dropped_by"] == "nan+layer"
    assert select(scored, Rule(), 4).loc[3, "dropped_by"] == "layer", "what does not rank may be unknown"


def test_a_rule_that_is_bypass_itself_agrees_and_costs_nothing():
    n = 12
    table = pd.DataFrame({"rank": range(1, n + 1), "kept": [i % 2 == 0 for i in range(n)],
                          "dropped_by": ["", "induce+kl", "", "layer"] * 3,
                          "local_bypass": [float(i) for i in range(n)]})  # fmt: skip
    table["local_attribution"], table["local_cosmic"] = 3 * table["local_bypass"] - 1, table["local_bypass"]
    same, opposite = (against_exact(table, name, "local", "local") for name in ("attribution", "cosmic"))
    assert same["regret"] == 0
    assert opposite["regret"] == 10, "cosmic is best where it is highest, of the kept"
    for pool, k in (("kept", 6), ("within_kl", 9), ("all", n)):
        assert same["pools"][pool] == {"n": k, "rho": pytest.approx(1), "says_little": k < 8, "tau": pytest.approx(1),
                                       "top1_match": True, "top5_overlap": 1.0,
                                       "top10_overlap": 1.0 if k > 10 else None}  # fmt: skip
        assert opposite["pools"][pool]["rho"] == pytest.approx(-1)
