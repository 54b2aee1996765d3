"""What the vLLM engine finds and proves in decoder layers, on stand-ins that hand on the stream as vLLM's do."""

from __future__ import annotations

import sys
import types
from dataclasses import fields

import pytest
import torch
from torch import nn

from refusal_cmp.config import SITES
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.engines import _vllm_operator
from refusal_cmp.engines._vllm_operator import RANK, Edits, nothing
from refusal_cmp.engines._vllm_worker import Editor, UnprovenError, slot_of
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


class Hidden(Layer):
    """Runs without hooks at all."""

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
        return self.compute_logits(self.stream(ids))

    def stream(self, ids):
        handed = (self.embed(ids),)
        for layer in self.layers:
            if isinstance(layer, Deferred):
                handed = layer(ids, *(*handed, None)[:2])
            elif isinstance(layer, Stale):
                handed = layer(ids, *handed)
            else:
                handed = (layer(*handed),)
        return sum(handed) if isinstance(self.layers[0], Deferred) else handed[0]

    def compute_logits(self, stream):
        return self.head(stream)


IDS = torch.arange(TOKENS) * 7


def proven(layer, patch, *, captured=False, compiled=False):
    model = Decoder(layer)
    editor = Editor(model, LAYERS, lambda: model(IDS), captured=captured)
    patch.setattr(_vllm_operator, "running", lambda: editor.edits)
    if compiled:
        torch._dynamo.reset()
        model.stream = torch.compile(model.stream, fullgraph=True, backend="aot_eager")
    editor.watch()
    model(IDS)
    editor.test()
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


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("captured", [False, True], ids=["", "in buffers"])
@pytest.mark.parametrize("layer", [Layer, Scaled, Deferred, Stale, Parallel])
@torch.inference_mode()
def test_edits_act_where_their_places_say_and_leave_nothing(layer, captured, compiled, monkeypatch):
    """Installed when the hooks have long been there; compiled, in a graph that was traced before."""
    model, editor = proven(layer, monkeypatch, captured=captured, compiled=compiled)
    unedited = model(IDS)
    assert torch.equal(unedited, Decoder(layer)(IDS))
    V, A, B = torch.randn(3, 2, WIDTH, dtype=torch.float64)
    everywhere = {
        Place(index, site): LowRankEdit(V=V, A=A)
        for index in range(LAYERS)
        for site in ("resid_pre", "attn_out", "mlp_out")
    }
    for edits in (
        everywhere,
        {Place(1, "attn_out"): LowRankEdit(V=V, A=A)},
        {Place(2, "resid_pre"): LowRankEdit(V=V, A=A, B=B, t=V[:, 0], b=A[0])},
        {Place(0, "resid_pre"): LowRankEdit(b=B[0]), Place(1, "mlp_out"): LowRankEdit()},
    ):
        editor.install(edits)
        torch.testing.assert_close(model(IDS), by_hand(Decoder(layer), edits), atol=1e-10, rtol=1e-10)
    editor.install({})
    assert torch.equal(model(IDS), unedited)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("layer", [Layer, Scaled, Deferred, Stale, Parallel])
@torch.inference_mode()
def test_plans_in_one_pass_edit_their_own_tokens_and_no_others(layer, compiled, monkeypatch):
    """Tokens in the order of a pass, in the slots of three plans of several ranks, and one that edits nothing."""
    model, editor = proven(layer, monkeypatch, compiled=compiled)
    unedited = model(IDS)
    V, A, B = torch.randn(3, 2, WIDTH, dtype=torch.float64)
    plans = [
        {Place(index, site): LowRankEdit(V=V, A=A) for index in range(LAYERS) for site in SITES},
        {},
        {
            Place(1, "resid_pre"): LowRankEdit(
                V=V[:1], B=B[:1], A=A[:1], t=V[:1, 0], b=A[0], c=V[1], tau=V.new_zeros(())
            )
        },
        {Place(0, "attn_out"): LowRankEdit(V=V, r=B[0], A=A, keep=V.new_ones(())), Place(1, "mlp_out"): LowRankEdit()},
    ]
    assert editor.install(*plans) == ""
    runs = [(2, 1), (0, 2), (3, 1), (1, 1)]
    slots = [slot for slot, n in runs for _ in range(n)]
    editor.edits.order(*map(list, zip(*runs, strict=True)))
    found = model(IDS)
    slots += [0] * (len(IDS) - len(slots))  # tokens that pad the pass
    for slot, edits in enumerate(plans):
        mine = [index for index, one in enumerate(slots) if one == slot]
        torch.testing.assert_close(found[mine], by_hand(Decoder(layer), edits)[mine], atol=1e-10, rtol=1e-10)
    assert torch.equal(found[slots.index(1)], unedited[slots.index(1)])
    editor.install({})
    assert torch.equal(model(IDS), unedited)


@torch.inference_mode()
def test_plans_share_no_pass_that_is_a_cuda_graph(monkeypatch):
    _, editor = proven(Deferred, monkeypatch, captured=True)
    assert "several plans cannot share a pass" in editor.install({}, {})


def test_a_request_says_its_slot():
    assert [slot_of(name) for name in ("2.7.1", "12.7.1-ab.3", "0", "7-ab.c", "x")] == [2, 12, 0, 0, 0]


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Secret, "no two modules' outputs add up"),
        (Deaf, "no two modules' outputs add up"),
        (Hidden, "run without their hooks"),
    ],
)
@torch.inference_mode()
def test_what_cannot_be_proven_is_refused(layer, reason, monkeypatch):
    with pytest.raises(UnprovenError, match=reason):
        proven(layer, monkeypatch)


@torch.inference_mode()
def test_an_edit_that_does_not_act_is_not_proven(monkeypatch):
    monkeypatch.setattr(Edits, "install", lambda *_: None)
    with pytest.raises(UnprovenError, match=r"does not reach the residual stream: 100\.0% .* after layer 0"):
        proven(Deferred, monkeypatch)


@torch.inference_mode()
def test_a_graph_that_was_compiled_without_hooks_is_not_proven(monkeypatch):
    """As one from a cache that does not know of them: the sites are found, and nothing acts there."""
    model = Decoder(Deferred)
    editor = Editor(model, LAYERS, lambda: model(IDS), captured=False)
    monkeypatch.setattr(_vllm_operator, "running", lambda: editor.edits)
    editor.watch()
    Decoder(Deferred)(IDS)
    with pytest.raises(UnprovenError, match="run without their hooks"):
        editor.test()


@torch.inference_mode()
def test_logits_that_are_not_finite_are_noticed(monkeypatch):
    model, editor = proven(Deferred, monkeypatch)
    model(IDS)
    assert not editor.non_finite
    editor.install({Place(1, "resid_pre"): LowRankEdit(b=torch.full((WIDTH,), torch.inf, dtype=torch.float64))})
    model(IDS)
    assert editor.non_finite


def test_every_term_of_an_edit_has_a_buffer():
    assert nothing(2, WIDTH).tensors().keys() == {field.name for field in fields(LowRankEdit)}


@torch.inference_mode()
def test_buffers_stay_where_they_are_and_refuse_what_they_have_no_room_for():
    edits = Edits(2, [0], WIDTH, torch.device("cpu"), torch.bfloat16, scales={}, captured=True)
    before = [term.data_ptr() for edit in edits._edits for term in edit.tensors().values()]
    hidden, residual = torch.randn(2, 5, WIDTH).bfloat16()
    assert all(map(torch.equal, edits.edit_sum(hidden, residual, 0), (hidden, residual)))  # not their rounded sum
    V = torch.linalg.qr(torch.randn(WIDTH, 3))[0].mT
    edits.install({0: LowRankEdit(V=V, A=-V)})
    edited, nil = edits.edit_sum(hidden, residual, 0)
    assert torch.equal(edited, LowRankEdit(V=V, A=-V)(hidden + residual))
    assert not nil.any()
    assert torch.equal(edits.edit(hidden, 1), hidden)
    assert before == [term.data_ptr() for edit in edits._edits for term in edit.tensors().values()]
    large = torch.zeros(RANK + 1, WIDTH)
    assert f"{RANK + 1} directions at a site" in edits.refused({1: LowRankEdit(V=large, A=large)})
    assert edits.refused({1: LowRankEdit(V=large[1:], A=large[1:])}) == ""


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
