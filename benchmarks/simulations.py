"""Do the intervals hold what they promise? Coverage and size by simulation, where the truth is known.

Writes results/simulations.json: a list of rows for each question, which docs/statistics.md shows as tables. Coverage is
a share of `REPEATS` simulated samples, with a standard error of 0.7 points at 95 %; of κ, ρ and r of 250, 100 and 200.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from _measure import write
from scipy.special import expit
from scipy.stats import bootstrap, t

from refusal_cmp.activations import Labelled, dev_split
from refusal_cmp.methods.inlp import INLP
from refusal_cmp.statistics import (
    Estimate,
    holm,
    mean,
    over_seeds,
    paired_difference,
    rate,
    rate_among,
    weighted_mean,
)
from refusal_cmp.statistics.agreement import agreements
from refusal_cmp.statistics.ranks import RESAMPLES, rank_agreement, spearman

REPEATS = 1000
SEED = 0
SIZES = (24, 48, 100)
COMPARED_AT = 48
"""Size of the samples on which other intervals are tried, too."""

Array = np.ndarray
Row = dict[str, Any]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]


def lognormal(sigma: float) -> tuple[Draw, float]:
    """Values and their mean, as everywhere below."""
    return lambda rng, shape: rng.lognormal(0, sigma, shape), float(np.exp(sigma**2 / 2))


def rare(share: float) -> tuple[Draw, float]:
    """KL of prompts: next to nothing on most, half a nat on some."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        far, near = 0.5 * rng.lognormal(0, 0.5, shape), 0.02 * rng.lognormal(0, 1, shape)
        return np.where(rng.random(shape) < share, far, near)

    return draw, share * 0.5 * np.exp(0.125) + (1 - share) * 0.02 * np.exp(0.5)


VALUES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, shape: rng.normal(1, 1, shape), 1.0),
    "exponential": (lambda rng, shape: rng.exponential(1, shape), 1.0),
    "lognormal, σ = 1": lognormal(1.0),
    "lognormal, σ = 1.25": lognormal(1.25),
    "lognormal, σ = 1.5": lognormal(1.5),
    "KL, 30 % of prompts far": rare(0.3),
    "KL, 15 % of prompts far": rare(0.15),
    "KL, 5 % of prompts far": rare(0.05),
    "shares near one, beta(8, 1)": (lambda rng, shape: rng.beta(8, 1, shape), 8 / 9),
}


def means(rng: np.random.Generator) -> Iterator[Row]:
    """Coverage of the mean, ours beside Student's and, at one size, two bootstraps."""
    for name, (draw, true) in VALUES.items():
        for n in SIZES:
            samples = draw(rng, (REPEATS, n))
            ours = np.array([mean(x)[1:3] for x in samples])
            students = _students(samples)
            row = {"values": name, "n": n, "ours": _covered(ours, true), "Student’s t": _covered(students, true)}
            if n == COMPARED_AT:
                row |= {"BCa": _covered(_bca(samples), true), "bootstrap-t": _covered(_bootstrap_t(samples, rng), true)}
            yield row | {"times as wide as Student’s": float(np.median(np.ptp(ours, 1) / np.ptp(students, 1)))}


def losses(rng: np.random.Generator) -> Iterator[Row]:
    """Coverage of the loss a token over documents of 5 to 60 tokens, and of differences of such losses."""
    for sigma in (0.5, 1.0, 1.25):
        held = []
        for _ in range(REPEATS):
            tokens = rng.integers(5, 61, COMPARED_AT).astype(float)
            held.append(
                _holds(weighted_mean(tokens * rng.lognormal(0, sigma, COMPARED_AT), tokens), np.exp(sigma**2 / 2))
            )
        yield {"what": f"loss, lognormal, σ = {sigma}", "n": COMPARED_AT, "covered": float(np.mean(held))}


PAIRS: dict[str, tuple[Callable[[np.random.Generator, int], tuple[Array, Array]], float]] = {
    "same losses, lognormal": (lambda rng, n: tuple(rng.lognormal(0, 1, (2, n))), 0.0),
    "losses around the same text’s": (
        lambda rng, n: tuple(rng.lognormal(0, 1, n) + rng.standard_t(3, (2, n))),
        0.0,
    ),
    "losses of unequal spread": (
        lambda rng, n: (rng.lognormal(0, 1.2, n), rng.lognormal(0, 0.8, n)),
        float(np.exp(0.72) - np.exp(0.32)),
    ),
}


def differences(rng: np.random.Generator) -> Iterator[Row]:
    """Coverage of paired differences, and how often equal plans are called different."""
    for name, (draw, true) in PAIRS.items():
        found = [paired_difference(*draw(rng, COMPARED_AT), np.ones(COMPARED_AT)) for _ in range(REPEATS)]
        covered = float(np.mean([one.ci_low <= true <= one.ci_high for one in found]))
        yield {
            "pairs": name,
            "n": COMPARED_AT,
            "covered": covered,
            "p ≤ 0.05 where equal": float(np.mean([one.p <= 0.05 for one in found])) if true == 0 else None,
        }
    judged = []
    for _ in range(REPEATS):
        likely = rng.random(COMPARED_AT)
        one, other = (rng.random((2, COMPARED_AT)) < likely).astype(float)
        judged.append(paired_difference(one, other, np.ones(COMPARED_AT)))
    yield {
        "pairs": "judgements",
        "n": COMPARED_AT,
        "covered": float(np.mean([one.ci_low <= 0 <= one.ci_high for one in judged])),
        "p ≤ 0.05 where equal": float(np.mean([one.p <= 0.05 for one in judged])),
    }
    families = [holm(np.array([one.p for one in judged[i : i + 20]])).min() for i in range(0, REPEATS, 20)]
    yield {
        "pairs": "any of 20 judgements’, after Holm",
        "n": COMPARED_AT,
        "covered": None,
        "p ≤ 0.05 where equal": float(np.mean([p <= 0.05 for p in families])),
    }


def best_of_many(rng: np.random.Generator) -> Iterator[Row]:
    """How often the lower end of the best of 50 plans, all of which answer 90 %, lies above that."""
    for n in (48, 100, 200):
        own = np.array([rate(k, n).low > 0.9 for k in range(n + 1)])
        at_once = np.array([rate_among(k, n, 50).low > 0.9 for k in range(n + 1)])
        for same in (0.0, 0.5, 0.9):
            best = [_best(rng, n, same) for _ in range(REPEATS)]
            yield {
                "prompts": n,
                "plans answer alike on": same,
                "too high by its own interval": float(own[best].mean()),
                "too high by ours": float(at_once[best].mean()),
            }


def kappas(rng: np.random.Generator) -> Iterator[Row]:
    """Coverage of κ of two judges over 40 plans: the units are prompts, or, as it must not be done, completions."""
    repeats = REPEATS // 4
    for errors in (0.12, 0.27):
        for clustered in (0.0, 1.5):
            world = _judged(rng, 40, 2000, errors, clustered)
            true = _agreement(world)
            held: dict[str, list[bool]] = {"within plans": [], "pooled": [], "pooled, units completions": []}
            for _ in range(repeats):
                sample = world[:, :, rng.integers(world.shape[2], size=COMPARED_AT)]
                found = _agreement(sample)
                low, high = _of_completions(sample, rng)
                held["within plans"].append(_holds(found.within, true.within.value))
                held["pooled"].append(_holds(found.pooled, true.pooled.value))
                held["pooled, units completions"].append(low <= true.pooled.value <= high)
            yield {
                "judges err on": errors,
                "prompts are alike in it": "yes" if clustered else "no",
                "κ within": true.within.value,
                "κ pooled": true.pooled.value,
                **{name: float(np.mean(one)) for name, one in held.items()},
            }


def rank_correlations(rng: np.random.Generator) -> Iterator[Row]:
    """Coverage of the rank correlation without noise, ours and by the percentiles of resampled prompts alone."""
    repeats = REPEATS // 10
    for things, rho, reliability, shared in (
        *((36, rho, one, shared) for rho in (0.6, 0.95) for one in (0.7, 0.9, 0.98) for shared in (0.0, 0.7)),
        *((8, 0.95, one, 0.0) for one in (0.7, 0.9, 0.98)),
    ):
        ours, percentile, off, off_corrected = [], [], [], []
        for _ in range(repeats):
            x, y, true = _noisy(rng, things, 32, rho, reliability, shared)
            found = rank_agreement(x, y, rng)
            times = rng.multinomial(32, np.full(32, 1 / 32), size=RESAMPLES)
            low, high = np.percentile(spearman(times @ x.T, times @ y.T), (2.5, 97.5))
            ours.append(found.ci_low <= true <= found.ci_high)
            percentile.append(low <= true <= high)
            off.append(found.rho - true)
            off_corrected.append((found.noise_free or 0.0) - true)
        yield {
            "components": things,
            "true ρ": rho,
            "reliability": reliability,
            "noise in common": shared,
            "bias of ρ": float(np.mean(off)),
            "of ρ without noise": float(np.mean(off_corrected)),
            "covered by ours": float(np.mean(ours)),
            "by percentiles": float(np.mean(percentile)),
        }


def seeds(rng: np.random.Generator) -> Iterator[Row]:
    """Coverage of a share over seeds on the same prompts: ours, of prompts alone, and by redrawing both."""
    for spread in (0.0, 0.5, 1.0):
        true = float(_answered(rng, 2000, 2000, spread).mean())
        for n in (3, 5, 10):
            ours, prompts, redrawn, widths = [], [], [], []
            for _ in range(REPEATS):
                answered = _answered(rng, n, COMPARED_AT, spread)
                found, _, _ = over_seeds([rate(int(one.sum()), COMPARED_AT) for one in answered], bounded=True)
                alone = mean(answered.mean(0))
                low, high = _redrawn(answered, rng)
                ours.append(_holds(found, true))
                prompts.append(_holds(alone, true))
                redrawn.append(low <= true <= high)
                widths.append(found.high - found.low)
            yield {
                "seeds apart by (logits)": spread,
                "seeds": n,
                "ours": float(np.mean(ours)),
                "width": float(np.mean(widths)),
                "of prompts alone": float(np.mean(prompts)),
                "seeds and prompts redrawn": float(np.mean(redrawn)),
            }


def inlp_on_noise(rng: np.random.Generator) -> Iterator[Row]:
    """Directions that INLP finds in noise where there are 18 harmful and 90 harmless prompts, and where 54 of each."""
    for harmful in (18, 54):
        y = torch.arange(108) < harmful
        for stop in ("binomial", "0.55"):
            ranks = []
            for seed in range(REPEATS // 20):
                x = torch.from_numpy(rng.standard_normal((108, 256)))
                dev = dev_split(y, 0.2, seed)
                (found,) = INLP(stop=stop).fit_many([(Labelled(x[~dev], y[~dev]), Labelled(x[dev], y[dev]))])
                ranks.append(getattr(found, "k", 0))
            yield {
                "harmful, harmless": f"{harmful}, {108 - harmful}",
                "stop": stop,
                "mean rank": float(np.mean(ranks)),
                "largest": max(ranks),
            }


QUESTIONS: dict[str, Callable[[np.random.Generator], Iterator[Row]]] = {
    "means": means,
    "losses": losses,
    "differences": differences,
    "best": best_of_many,
    "kappa": kappas,
    "rho": rank_correlations,
    "inlp": inlp_on_noise,
    "seeds": seeds,
}


def _covered(intervals: Array, true: float) -> float:
    return float(((intervals[:, 0] <= true) & (true <= intervals[:, 1])).mean())


def _holds(one: Estimate, true: float) -> bool:
    return one.low <= true <= one.high


def _students(samples: Array) -> Array:
    n = samples.shape[1]
    half = t.ppf(0.975, n - 1) * samples.std(1, ddof=1) / np.sqrt(n)
    return np.stack([samples.mean(1) - half, samples.mean(1) + half], 1)


def _bca(samples: Array) -> Array:
    found = [
        bootstrap((part,), np.mean, axis=-1, n_resamples=999, batch=100, rng=np.random.default_rng(SEED))
        for part in np.split(samples, 20)
    ]
    return np.concatenate([np.stack(one.confidence_interval, 1) for one in found])


def _bootstrap_t(samples: Array, rng: np.random.Generator) -> Array:
    n = samples.shape[1]
    times = rng.multinomial(n, np.full(n, 1 / n), size=1999) / n
    centre, error = samples.mean(1), samples.std(1, ddof=1) / np.sqrt(n)
    drawn = samples @ times.T
    spread = np.sqrt(np.maximum(samples**2 @ times.T - drawn**2, 1e-18) / (n - 1))
    low, high = np.quantile((drawn - centre[:, None]) / spread, (0.025, 0.975), axis=1)
    return np.stack([centre - high * error, centre - low * error], 1)


def _best(rng: np.random.Generator, n: int, same: float) -> int:
    """Most prompts that one of 50 plans answers; on a share of the prompts a plan does as all do."""
    common, shared = rng.random(n) < 0.9, rng.random((50, n)) < same
    return int(np.where(shared, common, rng.random((50, n)) < 0.9).sum(1).max())


def _judged(rng: np.random.Generator, plans: int, prompts: int, errors: float, clustered: float) -> Array:
    """(2, plans, prompts): what two judges say of completions; prompts differ in how hard it is to judge them."""
    along = expit(rng.uniform(-2.5, 2.5, plans)[:, None] + clustered * rng.standard_normal(prompts))
    truth = rng.random((plans, prompts)) < along
    odds = np.log(errors / (1 - errors))
    wrong = [rng.random((plans, prompts)) < expit(odds + clustered * rng.standard_normal(prompts)) for _ in range(2)]
    return np.stack([truth ^ one for one in wrong])


def _agreement(judged: Array) -> Any:
    words = {"a": ("safe", "unsafe"), "b": ("refused", "complied")}
    verdicts = {
        name: np.array(said)[one.astype(int)].tolist() for (name, said), one in zip(words.items(), judged, strict=True)
    }
    (found,) = agreements(verdicts)
    return found


def _of_completions(judged: Array, rng: np.random.Generator) -> Array:
    """The percentile interval of κ over all completions as if each were of a prompt of its own."""
    pairs = judged.reshape(2, -1).astype(int)
    counts = np.bincount(2 * pairs[0] + pairs[1], minlength=4)
    n = counts.sum()
    neither, second, first, both = rng.multinomial(n, counts / n, size=RESAMPLES).T / n
    chance = (both + first) * (both + second) + (neither + first) * (neither + second)
    return np.percentile((both + neither - chance) / (1 - chance), (2.5, 97.5))


def _answered(rng: np.random.Generator, seeds: int, prompts: int, spread: float) -> Array:
    """(seeds, prompts): whether a prompt is answered; prompts differ in how hard they are, seeds in how good."""
    hard, good = 1.5 * rng.standard_normal(prompts), spread * rng.standard_normal((seeds, 1))
    own = 0.5 * spread * rng.standard_normal((seeds, prompts))
    return (rng.random((seeds, prompts)) < expit(1.5 + hard + good + own)).astype(float)


def _redrawn(answered: Array, rng: np.random.Generator) -> Array:
    """The percentile interval of means whose seeds and prompts are both drawn anew."""
    seeds, prompts = answered.shape
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    of_prompts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES) / prompts
    return np.percentile(((of_seeds @ answered) * of_prompts).sum(1), (2.5, 97.5))


def _noisy(
    rng: np.random.Generator, things: int, prompts: int, rho: float, reliability: float, shared: float
) -> tuple[Array, Array, float]:
    """Two scores of things on prompts, and the rank correlation of what is behind them."""
    truth = rng.standard_normal(things)
    other = rho * truth + np.sqrt(1 - rho**2) * rng.standard_normal(things)
    noise, own = rng.standard_normal((2, things, prompts))
    size = np.sqrt(prompts * (1 - reliability) / reliability)
    others = shared * noise + np.sqrt(1 - shared**2) * own
    return truth[:, None] + size * noise, other[:, None] + size * others, float(spearman(truth, other))


def main() -> None:
    """Simulate, print and write results/simulations.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=list(QUESTIONS), help="questions to ask")
    parser.add_argument("--name", default="simulations", help="of the result file")
    args = parser.parse_args()

    torch.set_num_threads(1)
    results: dict[str, list[Row]] = {}
    for name in args.only:
        started = time.perf_counter()
        results[name] = list(QUESTIONS[name](np.random.default_rng(SEED)))
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
        for row in results[name]:
            print("  ", ", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    print(f"wrote {write(args.name, results)}")


if __name__ == "__main__":
    main()
