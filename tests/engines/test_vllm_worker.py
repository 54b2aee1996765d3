"""What the vLLM engine finds and proves in decoder layers, on stand-ins that hand on the stream as vLLM's do."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

from refusal_cmp.edit import LowRankEdit
from refusal_cmp.engines._vllm_worker import Editor, UnprovenError
from refusal_cmp.engines.vllm import import_vllm
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.plan import Place

WIDTH, LAYERS, TOKENS = 16, 3, 5


class Layer(nn.Module):
    """The stream alone, as GPT-2's and (with a scale) Granite's."""

    scale = 1.0

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.self_attn = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def attended(self, stream):
        return stream + self.scale * self.self_attn(self.norm(stream))

    def forward(self, hidden_states):
        stream = self.attended(hidden_states)
        return stream + self.scale * self.mlp(self.norm(stream))


class Scaled(Layer):
    scale = 0.3


class Deferred(Layer):
    """The addition is left to the next layer, and done in place, as by vLLM's norms."""

    def forward(self, positions, hidden_states, residual):
        residual = hidden_states.clone() if residual is None else residual.add_(hidden_states)
        residual = self.attended(residual)
        return self.mlp(self.norm(residual)), residual


class Stale(Layer):
    """A residual that nobody reads goes round with the stream."""

    def forward(self, positions, hidden_states, residual=None):
        stream = self.attended(hidden_states)
        return stream + self.mlp(self.norm(stream)), stream


class Parallel(Layer):
    def forward(self, hidden_states):
        read = self.norm(hidden_states)
        return hidden_states + self.self_attn(read) + self.mlp(read)


class Secret(Layer):
    """Adds what no module of it returns."""

    def forward(self, hidden_states):
        return super().forward(hidden_states) + hidden_states.cos()


class Deaf(Layer):
    """Runs its attention where no hook is called, and adds that."""

    def attended(self, stream):
        self.self_attn(self.norm(stream))
        return stream + self.self_attn.forward(self.norm(stream))


class Captured(Layer):
    """Runs without hooks at all, as a captured graph does."""

    def __call__(self, hidden_states):
        return self.forward(hidden_states)


class Decoder(nn.Module):
    def __init__(self, layer):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, WIDTH)
        self.layers = nn.ModuleList(layer() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, 50)
        self.double()

    def forward(self, ids):
        handed = (self.embed(ids),)
        for layer in self.layers:
            if isinstance(layer, Deferred):
                handed = layer(ids, *(*handed, None)[:2])
            elif isinstance(layer, Stale):
                handed = layer(ids, *handed)
            else:
                handed = (layer(*handed),)
        return self.compute_logits(sum(handed) if isinstance(self.layers[0], Deferred) else handed[0])

    def compute_logits(self, stream):
        return self.head(stream)


IDS = torch.arange(TOKENS) * 7


def proven(layer):
    model = Decoder(layer)
    editor = Editor(model, LAYERS)
    editor.record()
    model(IDS)
    editor.find()
    model(IDS)
    editor.prove()
    return model, editor


def by_hand(model, edits):
    """The logits, with every edit applied where its place says."""

    def at(layer, site, x):
        return edits[Place(layer, site)](x) if Place(layer, site) in edits else x

    stream = model.embed(IDS)
    for index, layer in enumerate(model.layers):
        entry = at(index, "resid_pre", stream)
        stream = entry + at(index, "attn_out", layer.scale * layer.self_attn(layer.norm(entry)))
        read = entry if isinstance(layer, Parallel) else stream
        stream = stream + at(index, "mlp_out", layer.scale * layer.mlp(layer.norm(read)))
    return model.head(stream)


@pytest.mark.parametrize("layer", [Layer, Scaled, Deferred, Stale, Parallel])
@torch.inference_mode()
def test_edits_act_where_their_places_say_and_leave_nothing(layer):
    model, editor = proven(layer)
    unedited = model(IDS)
    V, A, B = torch.randn(3, 2, WIDTH, dtype=torch.float64)
    everywhere = {
        Place(index, site): LowRankEdit(V=V, A=A)
        for index in range(LAYERS)
        for site in ("resid_pre", "attn_out", "mlp_out")
    }
    for edits in (
        everywhere,
        {Place(1, "attn_out"): LowRankEdit(V=V, A=A)},
        {Place(2, "resid_pre"): LowRankEdit(V=V, A=A, B=B, b=A[0])},
        {Place(0, "resid_pre"): LowRankEdit(b=B[0])},
    ):
        editor.install(edits)
        torch.testing.assert_close(model(IDS), by_hand(Decoder(layer), edits), atol=1e-10, rtol=1e-10)
    editor.install({})
    assert torch.equal(model(IDS), unedited)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Secret, "no two modules' outputs add up"),
        (Deaf, "an edit does not reach the residual stream"),
        (Captured, "run without their hooks"),
    ],
)
@torch.inference_mode()
def test_what_cannot_be_proven_is_refused(layer, reason):
    with pytest.raises(UnprovenError, match=reason):
        proven(layer)


@torch.inference_mode()
def test_logits_that_are_not_finite_are_noticed():
    model, editor = proven(Deferred)
    model(IDS)
    assert not editor.non_finite
    editor.install({Place(1, "resid_pre"): LowRankEdit(b=torch.full((WIDTH,), torch.inf, dtype=torch.float64))})
    model(IDS)
    assert editor.non_finite


@pytest.mark.parametrize(
    ("module", "message"),
    [(None, "The package vllm is missing"), ({"__version__": "0.9.1", "LLM": None}, "vLLM 0.9.1 is too old: 0.32")],
)
def test_a_vllm_that_is_missing_or_too_old_is_one_sentence(monkeypatch, module, message):
    fake = None if module is None else types.SimpleNamespace(**module)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    with pytest.raises(RefusalCmpError, match=message) as raised:
        import_vllm()
    assert "pip install" in str(raised.value)
    assert raised.value.settings == {"engine": "hf"}
