"""Attribution: the bypass of all components at once, from the slopes of one pass forward and one back.

    bypass(e) ≈ m + Σ_p Σ_t ∇_{p,t} m · (e(x_{p,t}) − x_{p,t})

m is the refusal metric of a harmful validation prompt, p the places where the removal edit e acts (the sites of the
component's own layer, or of every layer), t the prompt's tokens, x what stands there in the unedited pass. It is the
first term of the expansion of bypass in the size of the edit, as attribution patching has it for activations that are
swapped (Syed et al. 2024, arXiv:2310.10348): exact where the metric is linear in what is edited, and wrong
where an edit is so large that it saturates. The rank is by its mean over prompts; lower is better.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal_cmp.model import ChatModel, refusal_metric
from refusal_cmp.model.gradients import Slope, over_slopes
from refusal_cmp.plan import Place
from refusal_cmp.planning import Setting
from refusal_cmp.progress import Progress, silent
from refusal_cmp.selection.scoring import Edits, Reach, candidate_edits
from refusal_cmp.subspace import SubspaceField

PASSES = 2.0
"""What it costs, in passes over the harmful validation prompts: one forward, and one back through activations alone."""


def attribution(
    model: ChatModel,
    harmful: Sequence[str],
    refusal_tokens: Sequence[int],
    field: SubspaceField,
    reach: Reach,
    *,
    setting: Setting | None = None,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> Float[Tensor, "c n"]:
    """The estimated bypass of every component of a field on each prompt, float64."""
    edits = [candidate_edits("nullspace", field, component, reach, setting) for component in field]
    rows = _rows(edits, model.device, torch.promote_types(model.model.dtype, torch.float32))
    found = torch.empty(len(edits), len(harmful), dtype=torch.float64)
    with progress(f"attributing {field.method}, {reach}", len(harmful)) as advance:

        def read(prompts: list[int], metric: Float[Tensor, " n"], slopes: list[Slope]) -> None:
            change = sum_of_changes(slopes, rows, len(edits))
            found[:, prompts] = (metric.to(change.device) + change).cpu()
            advance(len(prompts))

        over_slopes(model, harmful, lambda logits: refusal_metric(logits, refusal_tokens), rows, read, batch_size)
    return found


class Rows(NamedTuple):
    """The rows of all edits at a place: what is read, what is written, and which edit each belongs to."""

    V: Float[Tensor, "r d"]
    A: Float[Tensor, "r d"]
    owner: Int[Tensor, " r"]


def _rows(edits: Sequence[Edits], device: torch.device, dtype: torch.dtype) -> dict[Place, Rows]:
    """The rows at each place; places with the same edits, as those of every layer are, share the tensors."""
    shared: dict[tuple[int, ...], Rows] = {}
    found = {}
    for place in {place for one in edits for place in one}:
        here = {index: one[place] for index, one in enumerate(edits) if place in one}
        key = tuple(map(id, here.values()))
        if key not in shared:
            V, A = (
                torch.cat([one.tensors()[name] for one in here.values()]).to(device, dtype) for name in ("V", "A")
            )  # a removal is linear: it has no other term
            k = torch.tensor([one.tensors()["V"].shape[0] for one in here.values()])
            shared[key] = Rows(V, A, torch.tensor(list(here)).repeat_interleave(k).to(device))
        found[place] = shared[key]
    return found


def sum_of_changes(slopes: Iterable[Slope], rows: Mapping[Place, Rows], n_edits: int) -> Float[Tensor, "c n"]:
    """Σ ∇ · (e(x) − x) = Σ (x Vᵀ) · (∇ Aᵀ) over the places and tokens of each prompt, for every edit."""
    total: Float[Tensor, "c n"] | None = None
    for place, x, gradient in slopes:
        V, A, owner = (one.to(x.device) for one in rows[place])
        along = ((x.to(V.dtype) @ V.mT) * (gradient.to(A.dtype) @ A.mT)).sum(1, dtype=torch.float64)  # (n, r)
        if total is None:
            total = along.new_zeros(n_edits, len(along))
        total.index_add_(0, owner.to(total.device), along.mT.to(total.device))
    if total is None:
        raise ValueError("there is no place at which an edit acts")
    return total
