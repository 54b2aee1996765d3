"""Prompts drawn anew: against plain loops, a closed form, and methods fitted alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from refusal_cmp.activations import Labelled, dev_split
from refusal_cmp.methods import EXTRACTORS, Extractor
from refusal_cmp.methods.diff_in_means import DiffInMeans
from refusal_cmp.methods.inlp import INLP
from refusal_cmp.selection import Rule
from refusal_cmp.selection.scoring import PromptScores
from refusal_cmp.selection.stability import (
    KINDS,
    Pool,
    alike,
    apart,
    bootstrap,
    chosen_again,
    overlap,
    planned,
    refitted,
    sizes,
)
from refusal_cmp.subspace import ClassMeans, Component, Subspace, SubspaceField

SHARE = 0.2


def gaussian(n, d, shift, seed=0, group=False):
    """Two Gaussian classes of unit covariance whose means are `shift` apart, n prompts each."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * n, d, generator=rng, dtype=torch.float64)
    x[:n, 0] += shift
    y = torch.arange(2 * n) < n
    return Pool(Labelled(x, y, torch.arange(2 * n) % 3 if group else None), dev_split(y, SHARE, seed))


def basis(rows):
    return torch.linalg.qr(torch.as_tensor(rows, dtype=torch.float64).mT)[0].mT


@pytest.fixture(scope="module")
def pool():
    return gaussian(40, 12, 6.0, group=True)


def parts(pool, draw):
    return [set(rows.tolist()) for rows in draw]


def test_every_draw_keeps_its_classes_and_its_parts(pool):
    strata = pool.strata()
    plans = planned(pool, SHARE, 7, 20)
    assert {plan.by for plan in plans} == set(KINDS)
    for by, _, those in plans:
        for several in those:
            for draw in several:
                if by != "splits":
                    assert all(one <= there for one, there in zip(parts(pool, draw), parts(pool, strata), strict=True))
                train, dev = parts(pool, draw)[:2], parts(pool, draw)[2:]
                assert not set.union(*train) & set.union(*dev)
                held, left = pool.drawn(draw)
                assert (int(held.y.sum()), int(left.y.sum())) == (len(draw[0]), len(draw[2]))
            if len(several) == 2:
                first, second = (set().union(*parts(pool, draw)) for draw in several)
                assert not first & second


def test_sizes_are_of_both_parts_together(pool):
    for by, n, those in planned(pool, SHARE, 7, 20):
        draw = those[0][0]
        assert n == len(draw[0]) + len(draw[2]) == len(draw[1]) + len(draw[3]), by
    assert [n for by, n, _ in planned(pool, SHARE, 7, 20) if by == "subsample"] == [8, 16, 32] == sizes(40)


def test_draws_are_those_of_the_seed(pool):
    def rows(seed):
        return [draw for plan in planned(pool, SHARE, seed, 20) for several in plan.those for draw in several]

    def same(one, other):
        return all(np.array_equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))

    assert same(rows(1), rows(1))
    assert not same(rows(1), rows(2))


def test_cosines_are_those_of_a_plain_loop(pool):
    own = DiffInMeans().fit(*pool.drawn(pool.strata()))
    plans = planned(pool, SHARE, 3, 20)
    table = alike(DiffInMeans(), pool, own, plans)
    expected = []
    for _, _, those in plans:
        for several in those:
            found = []
            for draw in several:
                harmful, harmless = np.zeros(12), np.zeros(12)
                for row in draw[0]:
                    harmful += pool.of.x[row].numpy() / len(draw[0])
                for row in draw[1]:
                    harmless += pool.of.x[row].numpy() / len(draw[1])
                found.append(harmful - harmless)
            one, other = (*found, own.direction.numpy())[:2]
            expected.append(one @ other / np.sqrt(one @ one) / np.sqrt(other @ other))
    assert np.allclose(table["cosine"], expected, atol=1e-12)
    assert np.allclose(table["overlap"], np.square(expected), atol=1e-12)
    assert set(table["k"]) == {1}


@pytest.mark.parametrize(("n", "d", "shift"), [(10, 50, 2.0), (40, 50, 2.0), (20, 10, 1.5)])
def test_the_cosine_grows_with_prompts_as_the_closed_form_says(n, d, shift):
    """E cos between two estimates is 1 / (1 + 2 d σ² / (n δ²)), to first order in the spread of both lengths."""
    pool = gaussian(2000, d, shift)
    strata, rng = pool.strata(), np.random.default_rng(0)
    draws = [draw for _ in range(300) for draw in apart(strata, (n, n, 1, 1), 2, rng)]
    found = refitted(DiffInMeans(), pool, draws)
    cosines = np.array([float(a.direction @ b.direction) for a, b in zip(found[::2], found[1::2], strict=True)])
    truth = torch.eye(d, dtype=torch.float64)[0]
    with_truth = np.array([float(one.direction @ truth) for one in found])
    expected = 1 / np.sqrt(1 + 2 * d / (n * shift**2))
    error = 4 * cosines.std() / np.sqrt(len(cosines)) + 0.02  # of sampling, and of the expansion
    assert cosines.mean() == pytest.approx(expected**2, abs=error)
    assert with_truth.mean() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("method", [INLP(), INLP(batch_size=1), DiffInMeans()], ids=["inlp", "alone", "means"])
def test_a_draw_gives_what_the_method_finds_in_its_rows_alone(pool, method):
    rng = np.random.default_rng(0)
    draws = [bootstrap(pool.strata(), rng) for _ in range(6)]
    for draw, found in zip(draws, refitted(method, pool, draws), strict=True):
        x = pool.of.x.numpy()
        train, dev = (
            Labelled(torch.from_numpy(np.concatenate([x[a], x[b]])), torch.arange(len(a) + len(b)) < len(a))
            for a, b in (draw[:2], draw[2:])
        )
        alone = method.fit(train, dev)
        assert found.k == alone.k
        assert overlap(found, alone) == pytest.approx(1, abs=1e-9)
        assert float(found.direction @ alone.direction) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("j", "k"), [(1, 1), (2, 5), (4, 4)])
def test_the_overlap_is_the_mean_squared_cosine_of_scipy_s_angles(j, k):
    rng = np.random.default_rng(j + k)
    one, other = (
        Subspace(rows, rows[0], 1.0, torch.ones(len(rows))) for rows in (basis(rng.normal(size=(m, 9))) for m in (j, k))
    )
    angles = subspace_angles(one.basis.numpy().T, other.basis.numpy().T)
    assert overlap(one, other) == pytest.approx(np.mean(np.cos(angles) ** 2), abs=1e-12)


def test_a_method_that_finds_nothing_says_why():
    pool = gaussian(40, 12, 6.0)
    own = INLP().fit(*pool.drawn(pool.strata()))
    table = alike(INLP(), pool, own, planned(pool, SHARE, 0, 20))
    small = table[table["n"] == 8]
    assert (small["k"] == 0).all()
    assert small["cosine"].isna().all()
    assert small["why"].str.contains("no classifier can be better than chance").all()
    assert (table.loc[table["by"] == "bootstrap", "why"] == "").all()


class _Moments(Extractor):
    needs = "means"

    def fit(self, train, dev):
        assert not isinstance(train, Labelled)
        return DiffInMeans().fit(train, dev)


def test_a_method_that_asks_for_means_is_given_moments(pool):
    draw = pool.strata()
    (found,) = refitted(_Moments(), pool, [draw])
    assert found.direction.allclose(DiffInMeans().fit(*pool.drawn(draw)).direction)


def scored(bypass):
    """A field of as many components as rows, and scores that leave the choice to bypass."""
    n, m = bypass.shape
    ones = torch.ones(1, dtype=torch.float64)
    components = [Component(-1, layer) for layer in range(n)]
    means = ClassMeans((-1,), torch.ones(1, n, 1).double(), torch.zeros(1, n, 1).double())
    field = SubspaceField("one", means, {at: Subspace(ones[None], ones, 1.0, ones) for at in components})
    return field, {"local": PromptScores(bypass, torch.ones(n, 1, m).double(), torch.zeros(n, m).double())}


def test_a_clear_choice_is_made_every_time_and_a_tie_half_of_the_time():
    rule = Rule(prune_layers=1.0, multipliers=(1.0,))
    clear = torch.tensor([[1.0] * 8, [-1.0] * 8, [0.0] * 8]).double()
    table = chosen_again(*scored(clear), rule, 0, 20)
    assert table.values.tolist() == [[-1, 1, 1.0]]
    noise = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0)).double()
    even = torch.cat([noise - noise.mean(1, keepdim=True), torch.full((1, 4000), 9.0).double()])
    table = chosen_again(*scored(even), rule, 0, 100)
    assert set(table["layer"]) == {0, 1}
    assert table["share"].to_numpy() == pytest.approx(0.5, abs=0.2)  # four standard errors of 100 draws
    assert table["share"].sum() == pytest.approx(1)


@pytest.mark.parametrize("name", [name for name in EXTRACTORS if issubclass(EXTRACTORS.get(name), Extractor)])
def test_every_method_gives_the_run_s_own_direction_again_and_one_for_a_draw(name, pool):
    """With the rows as they stand it is what extract found, whatever the method makes of their order."""
    method, strata = EXTRACTORS.create(name), pool.strata()
    rows = np.concatenate(strata[:2]), np.concatenate(strata[2:])
    parts = [
        Labelled(pool.of.x[index], pool.of.y[index], pool.of.group[index]) for index in map(torch.from_numpy, rows)
    ]
    (own,) = method.fit_many([tuple(parts)])
    (again,) = refitted(method, pool, [strata])
    if name != "random":  # which draws anew each time
        assert float(own.direction @ again.direction) == pytest.approx(1, abs=1e-9)
    table = alike(method, pool, own, planned(pool, SHARE, 0, 4)[:1])
    assert table["cosine"].notna().all()
