"""Rows of one pass under plans of their own: every row is edited as its own plan says, and as no other.

The edits that several plans have at a place are one, of all rows that they read, V = [V₁; …; V_g]: a row of the pass
under plan i reads all coordinates, and keeps those of V_i,

    x ↦ x + (m_i ∘ x Vᵀ) A + (m_i ∘ |x Vᵀ − t|) B + ‖m_i ∘ x Vᵀ‖ r_i + b_i        m_i: 1 at the rows of V_i, else 0

and has its plan's own gate and norm. So no row has to stand beside others of its plan, nor plans be of one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal_cmp.edit import ALWAYS, LowRankEdit, length, plus
from refusal_cmp.plan import Place, Plan


class MixedEdit:
    """The edits of g plans at one place, for rows that are each under one of them; None edits nothing.

    All that is written is one product, of what each row reads and the rows A, B, r and b of all plans.

    Parameters
    ----------
    edits
        All on one device, in the precision that they are applied in.
    """

    def __init__(self, edits: Sequence[LowRankEdit | None]) -> None:
        present = [edit for edit in edits if edit is not None and edit.tensors()]
        some = next(term for edit in present for term in edit.tensors().values())
        reading = [edit for edit in present if edit.V is not None]
        ranks = torch.tensor([0 if edit is None or edit.V is None else len(edit.V) for edit in edits])
        self.dtype = some.dtype
        self.owner = torch.repeat_interleave(torch.arange(len(edits)), ranks).to(some.device)
        self.plans = torch.eye(len(edits), dtype=some.dtype, device=some.device)
        self.read = {name: torch.cat([_own(edit, name) for edit in reading]) for name in _names("Vt", reading)}
        written = {name: torch.cat([_own(edit, name) for edit in reading]) for name in _names("AB", reading)}
        written |= {name: torch.stack([_of_plan(edit, name, some) for edit in edits]) for name in _names("rb", present)}
        self.terms = tuple(written)
        self.written = torch.cat(list(written.values()))
        self.of_plans = {
            name: torch.stack([_of_plan(edit, name, some) for edit in edits])
            for name in _names(("c", "tau", "keep"), present)
        }
        self.broken = _broken(edits, some) if not self.written.isfinite().all() else None
        if self.broken is not None:
            self.written = self.written.nan_to_num(0, 0, 0)

    def __call__(self, x: Float[Tensor, "n *t d"], of: Int[Tensor, " n"]) -> Float[Tensor, "n *t d"]:
        """The rows, each edited as its plan says: a new tensor of x's dtype.

        Rows and tokens may be one dimension of x, as in a mixture of experts.
        """
        rows = x.to(self.dtype).reshape(len(of), -1, x.shape[-1])
        edited = plus(rows, torch.cat(self._factors(rows, of), -1), self.written)
        if self.broken is not None:
            edited = edited + self.broken[of, None, None]
        own = {name: term[of, None] for name, term in self.of_plans.items()}
        if "keep" in own:
            scale = length(rows) / length(edited).clamp_min(torch.finfo(rows.dtype).tiny)
            edited = torch.where(own["keep"][..., None] > 0, edited * scale, edited)
        if "c" in own:
            along = (rows * own["c"]).sum(-1, keepdim=True)
            edited = torch.where(along > own["tau"][..., None] * length(rows), edited, rows)
        return edited.reshape(x.shape).to(x.dtype)

    def _factors(self, rows: Float[Tensor, "n t d"], of: Int[Tensor, " n"]) -> list[Float[Tensor, "n t _"]]:
        """What the rows that are written are multiplied with: zero where they are another plan's."""
        own = self.plans[of, None].expand(-1, rows.shape[1], -1)
        if not self.read:
            return [own]
        others = (self.owner != of[:, None])[:, None]
        read = rows @ self.read["V"].mT
        coordinates = read.masked_fill(others, 0)
        found = {"A": coordinates, "b": own}
        if "B" in self.terms:
            offsets = coordinates if "t" not in self.read else (read - self.read["t"]).masked_fill(others, 0)
            found["B"] = offsets.abs()
        if "r" in self.terms:
            found["r"] = own * length(coordinates)
        return [found[name] for name in self.terms]


class PlansByRow:
    """Which plan each row of the next passes is under, and what those plans do at a place.

    Parameters
    ----------
    dtype
        What the edits are applied in.
    """

    def __init__(self, plans: Sequence[Plan], dtype: torch.dtype) -> None:
        self.plans = plans
        self.dtype = dtype
        self._present: list[int] = []
        self._generated = False
        self._of: dict[torch.device, Tensor] = {}
        self._moved: dict[tuple[int, torch.device], LowRankEdit] = {}
        self._mixed: dict[tuple[tuple[int | None, ...], torch.device], MixedEdit] = {}

    def now(self, of: Sequence[int], *, generated: bool) -> None:
        """The rows of the passes that follow are under these plans, by index.

        Parameters
        ----------
        generated
            Whether their tokens are generated ones; otherwise they are the prompts'.
        """
        present = sorted(set(of))
        if present != self._present:
            self._mixed.clear()
        self._present, self._generated = present, generated
        at = {plan: index for index, plan in enumerate(present)}
        self._of = {torch.device("cpu"): torch.tensor([at[plan] for plan in of])}

    def at(self, place: Place) -> Callable[[Tensor], Tensor]:
        """The edit of a place."""
        return lambda x: self._apply(place, x)

    def _apply(self, place: Place, x: Float[Tensor, "n *t d"]) -> Float[Tensor, "n *t d"]:
        edits = [self._edit(self.plans[index], place) for index in self._present]
        if all(edit is None for edit in edits):
            return x
        key = tuple(None if edit is None else id(edit) for edit in edits), x.device  # places share edits
        if key not in self._mixed:
            self._mixed[key] = MixedEdit([edit and self._on(x.device, edit) for edit in edits])
        if x.device not in self._of:
            self._of[x.device] = self._of[torch.device("cpu")].to(x.device)
        return self._mixed[key](x, self._of[x.device])

    def _edit(self, plan: Plan, place: Place) -> LowRankEdit | None:
        """What a plan does there to the tokens of this pass."""
        acts = plan.tokens in ("all", "generated" if self._generated else "prompt")
        edit = plan.edits.get(place) if acts else None
        return edit if edit is not None and edit.tensors() else None

    def _on(self, device: torch.device, edit: LowRankEdit) -> LowRankEdit:
        key = id(edit), device
        if key not in self._moved:
            self._moved[key] = edit.to(device, self.dtype)
        return self._moved[key]


def _names(terms: Iterable[str], edits: Sequence[LowRankEdit]) -> list[str]:
    """The terms that any of the edits has."""
    return [name for name in terms if any(getattr(edit, name) is not None for edit in edits)]


def _broken(edits: Sequence[LowRankEdit | None], some: Tensor) -> Float[Tensor, " g"]:
    """NaN for a plan that has something else than numbers, which would spoil the rows of all in a product; else 0."""
    is_whole = [edit is None or all(bool(term.isfinite().all()) for term in edit.tensors().values()) for edit in edits]
    return some.new_tensor([0.0 if whole else torch.nan for whole in is_whole])


def _own(edit: LowRankEdit, name: str) -> Tensor:
    """A term of the rows that an edit reads: zeros where it has none."""
    term, rows = getattr(edit, name), edit.V
    assert rows is not None
    if term is None:
        return rows.new_zeros(len(rows)) if name == "t" else torch.zeros_like(rows)
    return term


def _of_plan(edit: LowRankEdit | None, name: str, some: Tensor) -> Tensor:
    """A term that a plan has one of: without a gate, one that is always open."""
    term = None if edit is None else getattr(edit, name)
    if term is not None:
        return term
    shape = () if name in ("tau", "keep") else some.shape[-1:]
    return some.new_full(shape, ALWAYS if name == "tau" else 0.0)
