"""Would other prompts have given the same? Directions and choices from prompts that are drawn anew.

Every draw is within class and within the training and the dev part, so that no prompt is in both, and all methods and
components see the same draws. A method is fitted to each, from activations that were read once. There are five kinds:

- `bootstrap`: as many prompts as there are, with replacement (Efron 1979, Ann. Stat. 7:1): beside the run's own;
- `halves`: two halves without a prompt in common, beside each other: what a replication with half of them would see;
- `splits`: the same prompts in other training and dev parts, beside the run's own;
- `subsample`: n prompts of each class without replacement, beside the run's own; it shares prompts with that, so that
  its cosine goes to 1 as n does to all;
- `disjoint`: two such draws without a prompt in common, beside each other, where there are enough prompts.

Two subspaces A (j, d) and B (k, d) of orthonormal rows are compared by the *overlap* ‖A Bᵀ‖² / min(j, k), the mean
squared cosine of their principal angles (Björck and Golub 1973, Math. Comp. 27:579): 1 if one holds the other, and
max(j, k) / d on average if one is random.

For two Gaussian classes of covariance σ² I in d dimensions, whose means are δ apart, the difference of the means of n
prompts each has with δ a cosine of about 1 / √(1 + 2 d σ² / (n ‖δ‖²)), and with that of another n the square of this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from refusal_cmp.activations import Activations, Labelled, dev_split
from refusal_cmp.config.values import LARGEST
from refusal_cmp.errors import NoSubspaceError, RefusalCmpError
from refusal_cmp.methods import Extractor
from refusal_cmp.selection.rule import HIGHEST, Rule, Ruled, ranked_table
from refusal_cmp.selection.scoring import PromptScores, Reach
from refusal_cmp.subspace import Component, Subspace, SubspaceField

KINDS = ("bootstrap", "halves", "splits", "subsample", "disjoint")
"""In which ways prompts are drawn."""
OTHER_SPLITS = 20
"""Dev splits beside the run's own, at most."""
SMALLEST = 8
"""Prompts of each class that the sample-size curve begins with; it goes on with twice as many."""
OF_A_SIZE = 4
"""Draws of one size are this part of those of the bootstrap."""

Array = np.ndarray
Draw = tuple[Int[Array, " a"], Int[Array, " b"], Int[Array, " c"], Int[Array, " e"]]
"""Rows of the harmful and the harmless training prompts, and of the harmful and the harmless dev prompts."""


class Pool(NamedTuple):
    """The activations of one component, and which of them are of the dev part."""

    of: Labelled
    dev: Bool[Tensor, " n"]

    @classmethod
    def at(cls, activations: Activations, component: Component) -> Pool:
        """The training part first."""
        train, dev = activations.at(component)
        return cls(train + dev, torch.arange(len(train) + len(dev)) >= len(train))

    def strata(self, dev: Bool[Tensor, " n"] | None = None) -> Draw:
        """All rows, by part and class; by another dev split if one is given."""
        dev, y = self.dev if dev is None else dev, self.of.y
        among = (y & ~dev, ~y & ~dev, y & dev, ~y & dev)
        one, other, third, fourth = (rows.nonzero().flatten().numpy() for rows in among)
        return one, other, third, fourth

    def drawn(self, draw: Draw) -> tuple[Labelled, Labelled]:
        """The training and the dev part of a draw."""
        return self._rows(draw[0], draw[1]), self._rows(draw[2], draw[3])

    def _rows(self, *rows: Int[Array, " n"]) -> Labelled:
        index = torch.from_numpy(np.concatenate(rows))
        return Labelled(self.of.x[index], self.of.y[index], None if self.of.group is None else self.of.group[index])


class Draws(NamedTuple):
    """Draws of one kind and size; those of a pair are compared with each other, a single one with the run's own."""

    by: str
    n: int
    """Prompts of the smaller class in a draw, both parts together."""
    those: list[tuple[Draw, ...]]


def planned(pool: Pool, dev_share: float, seed: int, repeats: int) -> list[Draws]:
    """All that is drawn: by kind, and by size from 8 prompts of a class on to all, doubled each time."""
    strata = pool.strata()
    whole = _size(strata)
    some = max(2, repeats // OF_A_SIZE)

    def rng(by: str, n: int) -> np.random.Generator:
        return np.random.default_rng([seed, KINDS.index(by), n])

    def many(by: str, n: int, times: int, draw: Callable[[np.random.Generator], tuple[Draw, ...]]) -> Draws:
        one = rng(by, n)
        return Draws(by, n, [draw(one) for _ in range(times)])

    plans = [many("bootstrap", whole, repeats, lambda one: (bootstrap(strata, one),))]
    half = (len(strata[0]) // 2, len(strata[1]) // 2, len(strata[2]) // 2, len(strata[3]) // 2)
    if min(half):
        size = min(half[0] + half[2], half[1] + half[3])
        plans.append(many("halves", size, repeats, lambda one: apart(strata, half, 2, one)))
    splits = other_splits(pool.of.y, dev_share, seed, min(OTHER_SPLITS, repeats))
    plans.append(Draws("splits", whole, [(pool.strata(dev),) for _, dev in splits]))
    for n in sizes(whole):
        dev = max(1, round(dev_share * n))
        each = (n - dev, n - dev, dev, dev)
        for by, copies in (("subsample", 1), ("disjoint", 2)):
            if all(copies * least <= len(there) for least, there in zip(each, strata, strict=True)):
                plans.append(many(by, n, some, lambda one, each=each, m=copies: apart(strata, each, m, one)))  # type: ignore[misc]
    return plans


def sizes(n: int) -> list[int]:
    """8, 16, 32, … below n."""
    found = [SMALLEST]
    while found[-1] < n:
        found.append(2 * found[-1])
    return found[:-1]


def other_splits(
    harmful: Bool[Tensor, " n"], share: float, seed: int, n: int
) -> Iterator[tuple[int, Bool[Tensor, " n"]]]:
    """Dev splits of the same prompts by the next n seeds, with the seed of each."""
    for other in ((seed + step) % (LARGEST + 1) for step in range(1, 1 + n)):
        yield other, dev_split(harmful, share, other)


def bootstrap(strata: Draw, rng: np.random.Generator) -> Draw:
    """As many rows of each stratum as it has, with replacement."""
    one, other, third, fourth = (rng.choice(rows, len(rows)) for rows in strata)
    return one, other, third, fourth


def apart(strata: Draw, each: tuple[int, ...], copies: int, rng: np.random.Generator) -> tuple[Draw, ...]:
    """Draws without replacement that have no row in common, of so many rows of each stratum."""
    mixed = [rng.permutation(rows) for rows in strata]
    return tuple(
        tuple(rows[copy * n : (copy + 1) * n] for rows, n in zip(mixed, each, strict=True))  # type: ignore[misc]
        for copy in range(copies)
    )


def refitted(
    method: Extractor, pool: Pool, draws: Sequence[Draw], advance: Callable[[int], None] = lambda _: None
) -> list[Subspace | str]:
    """The subspace that a method finds in each draw, or why it finds none; draws are of the same sizes."""
    found: list[Subspace | str] = []
    for start in range(0, len(draws), method.batch_size):
        batch = draws[start : start + method.batch_size]
        found += _fitted(method, [pool.drawn(draw) for draw in batch])
        advance(len(batch))
    return found


def _fitted(method: Extractor, parts: list[tuple[Labelled, Labelled]]) -> list[Subspace | str]:
    data = [(train.moments(), dev) for train, dev in parts] if method.needs == "means" else parts
    try:
        results = method.fit_many(data)  # type: ignore[arg-type]
    except RefusalCmpError as error:  # too few prompts for it
        return [str(error)] * len(parts)
    return [str(one) if isinstance(one, NoSubspaceError) else one for one in results]


def overlap(one: Subspace, other: Subspace) -> float:
    """The mean squared cosine of the principal angles between two subspaces."""
    return float((one.basis @ other.basis.mT).square().sum()) / min(one.k, other.k)


def alike(
    method: Extractor,
    pool: Pool,
    own: Subspace,
    plans: Sequence[Draws],
    advance: Callable[[int], None] = lambda _: None,
) -> pd.DataFrame:
    """A row per draw: `by`, `n`, `draw`, `cosine` of the directions, `overlap`, `k` (of the first of two), `why`.

    Parameters
    ----------
    own
        The run's own subspace at this component.

    Where a method finds nothing in a draw, k is 0, cosine and overlap are NaN, and `why` says it.
    """
    rows = []
    for by, n, those in plans:
        copies = len(those[0])
        found = refitted(method, pool, [draw for several in those for draw in several], advance)
        for index in range(len(those)):
            one, *rest = found[index * copies : (index + 1) * copies]
            rows.append({"by": by, "n": n, "draw": index, **_alike(one, rest[0] if rest else own)})
    return pd.DataFrame(rows)


def _alike(one: Subspace | str, other: Subspace | str) -> dict[str, object]:
    if isinstance(one, str) or isinstance(other, str):
        why = next(side for side in (one, other) if isinstance(side, str))
        k = 0 if isinstance(one, str) else one.k
        return {"cosine": np.nan, "overlap": np.nan, "k": k, "why": why}
    cosine = float(one.direction @ other.direction)
    return {"cosine": cosine, "overlap": overlap(one, other), "k": one.k, "why": ""}


def _size(strata: Draw) -> int:
    """Prompts of the smaller class."""
    return min(len(strata[0]) + len(strata[2]), len(strata[1]) + len(strata[3]))


def choices(
    field: SubspaceField,
    scores: Mapping[Reach, PromptScores],
    rule: Rule,
    rng: np.random.Generator,
    repeats: int,
    ruled: Ruled | None = None,
) -> Iterator[int]:
    """The row of the component that is selected when the validation prompts of both kinds are drawn anew.

    Parameters
    ----------
    ruled
        Scores by other rules, where one of them ranks; these stay as they are.
    """
    for _ in range(repeats):
        harmful, harmless = (
            rng.integers(n, size=n) for n in (scores["local"].bypass.shape[1], scores["local"].kl.shape[1])
        )
        drawn = {
            reach: PromptScores(one.bypass[:, harmful], one.induce[..., harmless], one.kl[:, harmless])
            for reach, one in scores.items()
        }
        yield int(ranked_table(field, drawn, rule, ruled)["selected"].to_numpy().argmax())


def chosen_again(
    field: SubspaceField, scores: Mapping[Reach, PromptScores], rule: Rule, seed: int, repeats: int
) -> pd.DataFrame:
    """How often each component is selected: `position`, `layer`, `share`, the most often first."""
    times = Counter(choices(field, scores, rule, np.random.default_rng(seed), repeats))
    components = list(field.subspaces)
    rows = sorted(times, key=lambda row: (-times[row], row))
    return pd.DataFrame([{**components[row]._asdict(), "share": times[row] / repeats} for row in rows])


def is_by_prompt(rule: Rule) -> bool:
    """Whether all that a rule selects by is a mean over prompts, so that these can be drawn anew."""
    return rule.rank_key not in (*HIGHEST, "attribution")
