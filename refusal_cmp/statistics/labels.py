"""People and judges: which completions people are asked about, and how far judges agree with them.

**Drawing.** Completion i is drawn with probability π_i ∝ a_i, at most 1, where a_i is larger if the judges disagree.
They are drawn at equal steps along a list in the order of the strata (systematic sampling: Madow 1949, Ann. Math. Stat.
20:333), so that each stratum has its share to within one completion. What is said of all completions weighs each drawn
one by 1 / π_i (Hájek's estimator).

**Agreement.** With W the weighted counts of who says that the model went along: raw agreement is the share of W in
which both say the same, and Cohen's κ = (observed − chance) / (1 − chance), chance from the margins of W. People among
themselves are compared by Krippendorff's α = 1 − observed / expected disagreement (Krippendorff 2011, *Computing
Krippendorff's alpha-reliability*), nominal, of any number of raters, who need not all rate everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import permutations

import numpy as np
from jaxtyping import Float, Int

from refusal_cmp.statistics.intervals import Estimate, rate, resampled

Array = np.ndarray
ROUNDING = 1e-9
"""Shares that are no further apart are the same."""
CELLS = ("both", "judge_only", "people_only", "neither")
"""Who says that the model went along."""


def inclusion(sizes: Float[Array, " m"], n: int) -> Float[Array, " m"]:
    """π of each: proportional to its size and adding up to n; those that would be above 1 are drawn for certain."""
    chances = np.ones(len(sizes))
    if n >= len(sizes):
        return chances
    certain = np.zeros(len(sizes), dtype=bool)
    while True:
        chances = np.where(certain, 1.0, (n - certain.sum()) * sizes / sizes[~certain].sum())
        more = chances > 1
        if not more.any():
            return chances
        certain |= more


def systematic(chances: Float[Array, " m"], rng: np.random.Generator) -> Int[Array, " n"]:
    """Rows that are drawn with these probabilities, at equal steps along their sum, in the order of the list."""
    ends = np.cumsum(chances)
    n = round(float(ends[-1]))
    return np.searchsorted(ends, (rng.random() + np.arange(n)) * (ends[-1] / n), side="right").clip(max=len(ends) - 1)


def tables(
    judge: Sequence[bool], people: Sequence[bool], weights: Sequence[float], prompts: Sequence[Hashable]
) -> Float[Array, "prompts 4"]:
    """The weights of each prompt's completions by `CELLS`, prompts in the order in which they come."""
    index = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    found = np.zeros((len(index), len(CELLS)))
    for one, other, weight, prompt in zip(judge, people, weights, prompts, strict=True):
        found[index[prompt], 2 * (not one) + (not other)] += weight
    return found


def raw_agreement(cells: Float[Array, "prompts 4"]) -> float:
    """The share of the weight in which judge and people say the same."""
    both, _, _, neither = cells.sum(0)
    return float((both + neither) / cells.sum())


def kappa(cells: Float[Array, "prompts 4"]) -> float:
    """Cohen's κ of weighted counts; NaN where both say one and the same throughout."""
    both, judge, people, neither = cells.sum(0) / cells.sum()
    chance = (both + judge) * (both + people) + (people + neither) * (judge + neither)
    return float((both + neither - chance) / (1 - chance)) if 1 - chance > ROUNDING else float("nan")


def clustered(cells: Float[Array, "prompts 4"]) -> tuple[Estimate, Estimate]:
    """Raw agreement and κ, with intervals from drawing prompts anew: the completions of one are alike.

    Where all agree, or none, every draw says the same, which is no certainty: the interval of raw agreement is then
    Wilson's for so many prompts, and κ has none.
    """
    raw, n = resampled(raw_agreement, cells), len(cells)
    if raw.high - raw.low < ROUNDING:
        wilson = rate(round(raw.value * n), n)
        return wilson._replace(value=raw.value), Estimate(kappa(cells), np.nan, np.nan, n)
    with np.errstate(invalid="ignore"):
        return raw, resampled(kappa, cells)


def krippendorff(ratings: Sequence[Sequence[Hashable | None]]) -> float:
    """α of nominal ratings, a row per unit and None where a rater says nothing; NaN where all are the same."""
    coincidences: Counter[tuple[Hashable, Hashable]] = Counter()
    for unit in ratings:
        there = [value for value in unit if value is not None]
        for pair in permutations(range(len(there)), 2):
            coincidences[there[pair[0]], there[pair[1]]] += 1 / (len(there) - 1)  # type: ignore[assignment]
    of_value: Counter[Hashable] = Counter()
    for (value, _), count in coincidences.items():
        of_value[value] += count
    n = sum(of_value.values())
    observed = sum(count for (one, other), count in coincidences.items() if one != other)
    expected = n * n - sum(count * count for count in of_value.values())
    return float(1 - (n - 1) * observed / expected) if expected > ROUNDING else float("nan")
