"""Interventions: a subspace and a scope → the edits of a plan. One file each; see `Intervention`.

In the equations of the files x is a column vector, V the orthonormal basis (k, d), û the unit direction. Where a
subspace is oblique, the V and the û that stand next to x, those that read, are its dual D (D Vᵀ = I) and the row of
it that reads û; those that write stay.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Annotated, Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from refusal_cmp.config import SITES, Site
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.plan import Place, Tokens
from refusal_cmp.planning import INTERVENTIONS, Edits, Scope, Setting, Target
from refusal_cmp.registry import parse_spec
from refusal_cmp.subspace import VANISHING, Subspace, unit

__all__ = [
    "INTERVENTIONS",
    "Edits",
    "Intervention",
    "Scope",
    "Setting",
    "Target",
    "along_basis",
    "along_direction",
    "edits_whole_subspace",
    "register_intervention",
    "remove",
]


Threshold = Annotated[float, Field(ge=-1, le=1)] | Literal["midpoint"]
"""Of a gate: a cosine."""
Share = Annotated[float, Field(gt=0, le=1)]


class Intervention(ABC):
    """Makes the edits of a plan. A strength is what its label has after the colon, or None.

    One that has no strengths of its own can be done in part, and the share s of it is its strength:

        x ↦ x + s (e(x) − x)          e(x): all of it, at s = 1, which labels leave out; s = 0 changes nothing

    Every intervention can be had in other forms, by options that a run gives in brackets:
    `ablation[keep-norm=true]`. One with hyper-parameters of its own hands these on.

    Parameters
    ----------
    share
        Of one that has strengths of its own, how much of it is done, as above.
    keep_norm
        Whether every edited vector is rescaled to the norm that it had: the stream, or what a site adds to it.
    when
        Edit where the cosine of the stream with the harmful minus the harmless mean of the layer is above this
        threshold; `midpoint`: the middle between the cosines of the two means. It acts on the stream alone, at
        `resid_pre`, and not in a layer where the means coincide (conditional steering, Lee et al. 2025).
    tokens
        Which tokens it acts on: `all`, those of the `prompt`, or those `generated` after it.
    """

    strengths: tuple[float, ...] | None = None
    """Default strengths, one plan each; None: it has none of its own, and is done in whole or in part."""
    neutral: float | None = None
    """The strength at which it changes nothing, to the last bit; None where there is none. Of one without strengths of
    its own, 0."""
    farthest: float = 4.0
    """How far from its neutral strength calibration goes at most, in steps to its default strength; what is calibrated
    by its share ends with the whole."""
    uses: tuple[str, ...] = tuple(field.name for field in fields(Setting))
    """The fields of `Setting` that matter to it; where one differs from its default, the label says so."""

    keep_norm: bool = False
    share: Share = 1.0
    when: Threshold | None = None
    tokens: Tokens = "all"
    needs_covariances: bool = False
    """Whether its targets have to have the class covariances along the subspace."""
    whole_subspace: bool = False
    """Whether it edits along every direction of a subspace, and not along the one `direction` alone."""

    def __init__(
        self, *, keep_norm: bool = False, when: Threshold | None = None, tokens: Tokens = "all", share: Share = 1.0
    ) -> None:
        self.keep_norm, self.when, self.tokens, self.share = keep_norm, when, tokens, share
        if share != 1 and self.strengths is None:
            raise RefusalCmpError(
                "The option share is of interventions that have strengths of their own, and the strength of any other "
                f"is its share; write it behind a colon, or set strengths, as in {{ablation: [{share:g}]}}."
            )

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.strengths is None:
            cls.neutral = 0.0

    def reach(self, scope: Scope, setting: Setting) -> Scope:
        """Where it acts in a plan of this scope: the scope itself."""
        return scope

    @abstractmethod
    def edits(self, targets: Sequence[Target], strength: float | None, setting: Setting) -> Edits:
        """The edit for each place, given the layers in scope from the first block to the last."""

    def formed(self, targets: Sequence[Target], strength: float | None, setting: Setting) -> Edits:
        """The edits in the form that the options ask for."""
        share = self.share
        if self.strengths is None and strength is not None:
            share, strength = strength, None
        edits = self.edits(targets, strength, setting)
        if share != 1:
            edits = _each(edits, lambda edit: _in_part(edit, share))
        if self.when is not None:
            edits = _gated(edits, targets, self.when)
        if self.keep_norm:
            edits = _each(edits, lambda edit: replace(edit, keep=torch.ones((), dtype=torch.float64)))
        return edits

    def check(self, setting: Setting, *, several: bool) -> None:
        """RefusalCmpError if there is no such form over several layers, or in one; asked before any work."""
        if self.when is not None:
            self.sites(setting, 2 if several else 1)

    def sites(self, setting: Setting, n_layers: int = 1) -> list[tuple[Site, ...]]:
        """Where it acts in each of `n_layers` layers in scope, as its edits of a made-up subspace say."""
        places = self.formed([_made_up(layer) for layer in range(n_layers)], None, setting)
        return [tuple(site for site in SITES if Place(layer, site) in places) for layer in range(n_layers)]


def _made_up(layer: int) -> Target:
    """A subspace of two directions in three dimensions, and what goes with it."""
    first, second, other = torch.eye(3, dtype=torch.float64)
    subspace = Subspace(torch.stack([first, second]), first, 1.0, torch.ones(2, dtype=torch.float64))
    spread = torch.eye(2, dtype=torch.float64)
    return Target(layer, subspace, first + other, second + other, 1.0, 1, spread, spread)


def _gated(edits: Edits, targets: Sequence[Target], when: Threshold) -> Edits:
    """The edits of the stream behind a gate; a layer whose class means coincide is left as it is."""
    gated = {}
    for target in targets:
        sites = [site for site in SITES if Place(target.layer, site) in edits]
        if sites and "resid_pre" not in sites:
            raise RefusalCmpError(
                f"Layer {target.layer} would be edited at {' and '.join(sites)} alone, and a gate looks at the stream, "
                "at resid_pre; have resid_pre among the sites, and for a reflection compose repeat or scope single."
            )
        apart = target.harmful_mean - target.harmless_mean
        scale = float(torch.linalg.vector_norm(target.harmless_mean))
        if sites and float(torch.linalg.vector_norm(apart)) > VANISHING * scale:
            condition, at = unit(apart), Place(target.layer, "resid_pre")
            gated[at] = replace(edits[at], c=condition, tau=_threshold(target, condition, when))
    return gated


def _threshold(target: Target, condition: Float[Tensor, " d"], when: Threshold) -> Float[Tensor, ""]:
    if when != "midpoint":
        return condition.new_tensor(when)
    means = torch.stack([target.harmful_mean, target.harmless_mean])
    return torch.cosine_similarity(means, condition[None]).mean()


def _in_part(edit: LowRankEdit, share: float) -> LowRankEdit:
    """x + s (e(x) − x): what is written, times the share."""
    written = {name: share * term for name, term in edit.tensors().items() if name in ("A", "B", "r", "b")}
    return replace(edit, **written)


def _each(edits: Edits, change: Callable[[LowRankEdit], LowRankEdit]) -> Edits:
    """The edits with each of them changed; places that share one share what it becomes."""
    changed = {id(edit): change(edit) for edit in edits.values()}
    return {place: changed[id(edit)] for place, edit in edits.items()}


def edits_whole_subspace(spec: str) -> bool:
    """Whether an intervention edits along every direction of a subspace; one that is not installed does not say."""
    name, _ = parse_spec(spec)
    return name in INTERVENTIONS and INTERVENTIONS.get(name).whole_subspace


class Rows(NamedTuple):
    """Rows that read a vector's coordinates, and rows that write along them; the same unless oblique."""

    read: Float[Tensor, "k d"]
    written: Float[Tensor, "k d"]


def along_direction(subspace: Subspace) -> Rows:
    """The one direction of a subspace."""
    return Rows(subspace.reading[None], subspace.direction[None])


def along_basis(subspace: Subspace) -> Rows:
    """All directions of a subspace."""
    return Rows(subspace.dual, subspace.basis)


def remove(
    targets: Sequence[Target],
    setting: Setting,
    rows: Callable[[Subspace], Rows],
    towards: Callable[[Target], Float[Tensor, " d"]] | None = None,
) -> Edits:
    """x ↦ x − Wᵀ R x at every site of every layer in scope, (R, W) = rows(subspace); with `towards`, + Wᵀ R μ.

    The offset acts at `resid_pre` only, whatever the sites are, or it would be added three times.
    """
    edits: Edits = {}
    projections: dict[int, LowRankEdit] = {}  # by subspace: layers that share one share the tensors
    for target in targets:
        read, written = rows(target.subspace)
        edit = projections.setdefault(id(target.subspace), LowRankEdit(V=read, A=-written))
        edits |= {Place(target.layer, site): edit for site in setting.sites}
        if towards is not None:
            offset = (read @ towards(target)) @ written
            edits[Place(target.layer, "resid_pre")] = LowRankEdit(V=read, A=-written, b=offset)
    return edits


INTERVENTIONS.base = Intervention  # the registry is known where plans are made, which know no class of it
register_intervention = INTERVENTIONS.register
