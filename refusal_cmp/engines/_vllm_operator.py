"""The operator through which edits reach vLLM's forward pass, whether it runs eagerly, compiled or as a CUDA graph.

Hooks are traced into a compiled graph once, so a hook that is added later is ignored without a word. Ours are there
before anything is traced, and at every site of every layer they call an operator:

    refusal_cmp::edit(x, site)                      x ↦ edit(x)                          what a module writes
    refusal_cmp::edit_sum(hidden, residual, site)   (h, r) ↦ (edit(h + r), 0) or (h, r)  a stream handed on in two parts

To the compiler it is opaque: it is called at every step, and looks up what is to be done in the `Edits` of the engine
that runs. A graph holds the number of a site and nothing of a plan, so it is compiled once per model.

A CUDA graph records kernels and their addresses, and no Python. There, `Edits` holds every term of every site in a
buffer whose address stays, padded with zero rows to `RANK`; a plan is installed by copying into the buffers, and what
is computed is the same whatever they hold: every token costs as much as an edit of that rank. Elsewhere the operator
runs as Python, and an edit costs what its own rank and terms cost; a site without one costs a copy.

Several plans may share a batch, except in CUDA graphs. Each has a slot, `Edits.order` is told before every pass whose
slot each token is in, and a site's edits are then those of all plans together, of which a token takes its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from refusal_cmp.edit import ALWAYS, LowRankEdit, stack
from refusal_cmp.model.by_row import MixedEdit

RANK = 32
"""The largest rank of an edit where CUDA graphs are captured."""
SEEN = 8
"""Tokens of a pass that `Edits.seen` has room for: those of a probe."""


class Edits:
    """What the operator does at each site of one model, and what it saw on entry to the layers.

    Parameters
    ----------
    n_sites
        Sites are numbered from 0.
    watched
        Sites where the stream is seen before it is edited, in the order of `seen`.
    width
        d.
    scales
        What a module writes reaches the stream times this, by site; 1 where there is none.
    captured
        Whether passes are captured as CUDA graphs.
    """

    def __init__(
        self,
        n_sites: int,
        watched: list[int],
        width: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        scales: Mapping[int, float],
        captured: bool,
    ) -> None:
        self.captured, self.watching = captured, False
        self._rows = {site: row for row, site in enumerate(watched)}
        self._scales, self._width, self._device = dict(scales), width, device
        self._dtype = torch.promote_types(dtype, torch.float32)
        self.seen = torch.zeros(len(watched), SEEN, width, device=device, dtype=self._dtype)
        self._edits: list[LowRankEdit | None] = [None] * n_sites
        self._mixed: dict[int, MixedEdit] = {}
        self._slots = torch.zeros(0, dtype=torch.long, device=device)
        self._active = torch.zeros(n_sites, 1, dtype=torch.bool, device=device)
        """Which sites have an edit, of the plan in each slot."""
        if captured:
            self._edits = [nothing(RANK, width).to(device, self._dtype) for _ in range(n_sites)]

    def install(self, *plans: Mapping[int, LowRankEdit]) -> None:
        """The edits of a plan, or of one in each slot, by site, in the place of those before. See `refused`."""
        if len(plans) == 1 or self.captured:
            self._install_one(*plans)
            return
        there = [[_does(plan.get(site)) for plan in plans] for site in range(len(self._edits))]
        self._active = torch.tensor(there, device=self._device)
        self._edits = [None] * len(self._edits)
        self._mixed = self._together(plans)

    def _install_one(self, edits: Mapping[int, LowRankEdit]) -> None:
        self._mixed = {}
        self._active = self._active[:, :1]
        for site, buffers in enumerate(self._edits):
            edit = edits.get(site)
            edit = edit if _does(edit) else None
            self._active[site] = edit is not None
            if not self.captured:
                self._edits[site] = None if edit is None else edit.to(self._device, self._dtype)
            elif buffers is not None:
                whole = stack([edit, nothing(RANK, self._width)]).tensors()
                for name, buffer in buffers.tensors().items():
                    buffer.copy_(whole[name][0])

    def _together(self, plans: Sequence[Mapping[int, LowRankEdit]]) -> dict[int, MixedEdit]:
        """By site what the plans do there; sites at which all do the same share it."""
        shared: dict[tuple[int | None, ...], MixedEdit] = {}
        mixed = {}
        for site in {site for edits in plans for site, edit in edits.items() if _does(edit)}:
            here = [edits.get(site) for edits in plans]
            key = tuple(None if edit is None else id(edit) for edit in here)
            if key not in shared:
                shared[key] = MixedEdit([edit and edit.to(self._device, self._dtype) for edit in here])
            mixed[site] = shared[key]
        return mixed

    def order(self, slots: Sequence[int], n_tokens: Sequence[int]) -> None:
        """The next pass reads so many tokens of requests of these slots, one request after the other."""
        self._slots = torch.repeat_interleave(torch.tensor(slots), torch.as_tensor(n_tokens)).to(self._device)

    def refused(self, *plans: Mapping[int, LowRankEdit]) -> str:
        """Why the edits of these plans cannot be installed here; '' if they can."""
        if self.captured and len(plans) > 1:
            return "several plans cannot share a pass that is a CUDA graph"
        edits = plans[0]
        rank = max((len(edit.V) for edit in edits.values() if edit.V is not None), default=0)
        if self.captured and rank > RANK:
            return f"it edits along {rank} directions at a site, and CUDA graphs have room for {RANK}"
        return ""

    def edit(self, x: Tensor, site: int) -> Tensor:
        """The edited vectors; a copy where there is no edit, as an operator may not return what it was given."""
        self._watch(x, site)
        edit, scale = self._at(site, x), self._scales.get(site, 1.0)
        if edit is None:
            return _copy(x)
        edited = edit(x) if scale == 1 else edit(x * scale) / scale
        active = self._acts(site, x)
        return edited if active is None else torch.where(active, edited, x).contiguous()

    def edit_sum(self, hidden: Tensor, residual: Tensor, site: int) -> tuple[Tensor, Tensor]:
        """The edited stream and zeros; both parts as they were where there is no edit, not rounded to one."""
        edit = self._at(site, hidden)
        if edit is None and not (self.watching and site in self._rows):
            return _copy(hidden), _copy(residual)
        stream = hidden + residual
        self._watch(stream, site)
        if edit is None:
            return _copy(hidden), _copy(residual)
        edited, active = edit(stream), self._acts(site, stream)
        if active is None:
            return edited, torch.zeros_like(residual, memory_format=torch.contiguous_format)
        return torch.where(active, edited, hidden).contiguous(), residual.masked_fill(active, 0).contiguous()

    def _at(self, site: int, x: Tensor) -> Callable[[Tensor], Tensor] | None:
        """What is done at a site, if anything."""
        mixed = self._mixed.get(site)
        return self._edits[site] if mixed is None else partial(mixed, of=self._slots_of(x))

    def _acts(self, site: int, x: Tensor) -> Tensor | None:
        """Where the site has an edit, if not in all vectors: in a buffer it may have none, and of some plans."""
        if site in self._mixed:
            return self._active[site, self._slots_of(x)].view(*x.shape[:-1], 1)
        return self._active[site, 0] if self.captured else None

    def _slots_of(self, x: Tensor) -> Tensor:
        """The slot of every vector; the first of those that pad the pass, which are nobody's."""
        n = x[..., 0].numel()
        return torch.cat([self._slots[:n], self._slots.new_zeros(n - len(self._slots[:n]))])

    def _watch(self, stream: Tensor, site: int) -> None:
        """Keep the first tokens of the stream. A CUDA graph does so at every replay: what it does is fixed."""
        if (self.watching or self.captured) and site in self._rows:
            rows = stream.reshape(-1, self._width)[:SEEN]
            self.seen[self._rows[site], : len(rows)] = rows.to(self.seen.dtype)


def _does(edit: LowRankEdit | None) -> bool:
    return edit is not None and bool(edit.tensors())


def _copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def nothing(rank: int, d: int) -> LowRankEdit:
    """The edit that changes nothing, with every term there, of that rank."""
    V, A, B = torch.zeros(3, rank, d)
    r, b, c = torch.zeros(3, d)
    return LowRankEdit(V, A, B, torch.zeros(rank), r, b, c, tau=torch.tensor(ALWAYS), keep=torch.tensor(0.0))


OF: WeakValueDictionary[int, Edits] = WeakValueDictionary()
"""The edits of each engine in this process, by the identity of its table of layers, which every forward pass names."""


def running() -> Edits:
    """The edits of the engine whose forward pass this is."""
    from vllm.forward_context import get_forward_context

    return OF[id(get_forward_context().no_compile_layers)]


torch.library.define("refusal_cmp::edit", "(Tensor x, int site) -> Tensor")
torch.library.define("refusal_cmp::edit_sum", "(Tensor hidden, Tensor residual, int site) -> (Tensor, Tensor)")


@torch.library.impl("refusal_cmp::edit", "default")
def _edit(x: Tensor, site: int) -> Tensor:
    return running().edit(x, site)


@torch.library.impl("refusal_cmp::edit_sum", "default")
def _edit_sum(hidden: Tensor, residual: Tensor, site: int) -> tuple[Tensor, Tensor]:
    return running().edit_sum(hidden, residual, site)


@torch.library.register_fake("refusal_cmp::edit")
def _like_edit(x: Tensor, site: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("refusal_cmp::edit_sum")
def _like_edit_sum(hidden: Tensor, residual: Tensor, site: int) -> tuple[Tensor, Tensor]:
    return _like_edit(hidden, site), _like_edit(residual, site)
