"""Extractors in closed form: scikit-learn, scipy and concept-erasure are the oracles, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from concept_erasure import LeaceEraser
from scipy.stats import mstats
from sklearn.covariance import LedoitWolf, ledoit_wolf_shrinkage
from sklearn.decomposition import TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier

from refusal_cmp.activations import Activations, Labelled, numbered
from refusal_cmp.errors import NoSubspaceError, RefusalCmpError
from refusal_cmp.methods import EXTRACTORS
from refusal_cmp.methods._covariance import ledoit_wolf
from refusal_cmp.methods.diff_in_means import DiffInMeans
from refusal_cmp.methods.inlp import INLP
from refusal_cmp.subspace import Component

SHAPES = [(160, 20), (60, 150)]
"""More prompts than dimensions, and fewer."""
RANK_ONE = ("leace", "lda", "projected", "pca", "median", "winsorised", "logistic", "ridge")
ALL = (*RANK_ONE, "som", "mean-shift-k")


def classes(n: int, d: int, *, gap: float = 3.0, seed: int = 0, scale: float = 1.0) -> Labelled:
    """Two thirds harmful, apart along the first coordinate; correlated, of unequal spread, away from the origin."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((d, d)) / d**0.5 + np.diag(np.linspace(0.5, 2, d))
    y = np.arange(n) < 2 * n // 3
    x = rng.standard_normal((n, d)) @ mixing + rng.standard_normal(d)
    x[:, 0] += gap * y
    group = torch.from_numpy(np.where(y, np.arange(n) % 3, -1))
    return Labelled(torch.from_numpy(scale * x), torch.from_numpy(y), group)


def find(name: str, data: Labelled, **options):
    return EXTRACTORS.create(name, **options).fit(data, data)


def cosine(a, b) -> float:
    a, b = torch.as_tensor(a).flatten(), torch.as_tensor(b).flatten()
    return float(a @ b / (a.norm() * b.norm()))


def erased(data: Labelled, found) -> torch.Tensor:
    """x ↦ x − basisᵀ dual (x − μ)."""
    return data.x - (data.x - data.x.mean(0)) @ found.dual.mT @ found.basis


# LEACE


def test_leace_is_that_of_concept_erasure():
    data = classes(160, 20)
    found = find("leace", data, shrinkage="none")
    theirs = LeaceEraser.fit(data.x, data.y.long(), shrinkage=False, constrain_cov_trace=False, svd_tol=1e-12)
    assert (torch.eye(20) - found.basis.mT @ found.dual - theirs.P).abs().max() < 1e-8
    assert (erased(data, found) - theirs(data.x)).abs().max() < 1e-8


@pytest.mark.parametrize("shape", SHAPES)
def test_leace_reads_along_the_inverse_of_the_shrunk_covariance(shape):
    data = classes(*shape)
    harmful, harmless = data.means()
    expected = np.linalg.solve(LedoitWolf().fit(data.x.numpy()).covariance_, (harmful - harmless).numpy())
    found = find("leace", data)
    assert cosine(found.dual, expected) == pytest.approx(1, abs=1e-12)
    assert float(found.dual @ found.basis.mT) == pytest.approx(1)
    assert cosine(found.basis, harmful - harmless) == pytest.approx(1)


@pytest.mark.parametrize("shrinkage", ["ledoit-wolf", "none"])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_linear_classifier_beats_chance_after_leace(shape, shrinkage):
    """In sample, whatever the covariance; balanced, or classifiers would say the larger class."""
    data = classes(*shape)
    x, y = erased(data, find("leace", data, shrinkage=shrinkage)).numpy(), data.y.numpy()
    assert LogisticRegression(class_weight="balanced").fit(data.x.numpy(), y).score(data.x.numpy(), y) > 0.9
    after = LogisticRegression(class_weight="balanced", tol=1e-10).fit(x, y)
    assert np.abs(after.coef_).max() < 1e-6
    assert np.abs(RidgeClassifier(alpha=1e-3).fit(x, y).coef_).max() < 1e-8


def test_leace_changes_least_of_all_linear_erasers():
    data = classes(160, 20)
    centred = data.x - data.x.mean(0)
    harmful, harmless = data.means()
    found, unit = find("leace", data, shrinkage="none"), DiffInMeans().fit(data, data).basis

    def change(matrix):
        assert ((harmful - harmless) @ matrix.mT).allclose(harmful - harmless), "erases"
        return float((centred @ matrix.mT).square().sum(1).mean())

    least = change(unit.mT @ found.dual)
    rng = torch.Generator().manual_seed(0)
    away = torch.eye(20) - unit.mT @ unit
    others = [change(unit.mT @ unit)]
    for size in (0.01, 0.1, 1.0):
        for _ in range(20):
            noise = size * torch.randn(20, 20, generator=rng, dtype=torch.float64) @ away
            others.append(change(unit.mT @ found.dual + noise))
    assert min(others) > least
    assert others[0] > 1.2 * least, "orthogonal projection changes more"


# Covariances


@pytest.mark.parametrize("shape", [*SHAPES, (12, 400)])
def test_the_shrinkage_is_scikit_learns(shape):
    x = classes(*shape).x
    assert ledoit_wolf(x - x.mean(0)) == pytest.approx(ledoit_wolf_shrinkage(x.numpy()), rel=1e-10)


@pytest.mark.parametrize("solver", ["lsqr", "eigen"])
@pytest.mark.parametrize("shape", SHAPES)
def test_lda_is_scikit_learns(shape, solver):
    data = classes(*shape)
    data = Labelled(torch.cat([data.x, torch.full((len(data), 1), 7.0)], 1), data.y)  # and what does not vary
    theirs = LinearDiscriminantAnalysis(solver=solver, shrinkage="auto").fit(data.x.numpy(), data.y.numpy())
    assert cosine(find("lda", data).direction, theirs.coef_) == pytest.approx(1, abs=1e-10)


# Means and their like


@pytest.mark.parametrize("shape", SHAPES)
def test_projected_is_orthogonal_to_the_harmless_mean_and_nearest_to_the_difference(shape):
    data = classes(*shape)
    harmful, harmless = data.means()
    found = find("projected", data)
    assert abs(cosine(found.direction, harmless)) < 1e-12
    best = np.linalg.lstsq(harmless.numpy()[:, None], (harmful - harmless).numpy(), rcond=None)[0]
    assert cosine(found.direction, harmful - harmless - best[0] * harmless) == pytest.approx(1)
    from_sums = EXTRACTORS.create("projected").fit(data.moments(), data)
    assert cosine(from_sums.direction, found.direction) == pytest.approx(1)


@pytest.mark.parametrize("shape", SHAPES)
def test_medians_and_winsorised_means_are_scipys(shape):
    data = classes(*shape)
    harmful, harmless = data.x[data.y].numpy(), data.x[~data.y].numpy()
    medians = [mstats.mquantiles(one, 0.5, axis=0)[0] for one in (harmful, harmless)]
    found = find("median", data)
    assert cosine(found.direction, medians[0] - medians[1]) == pytest.approx(1, abs=1e-12)
    assert found.norm == pytest.approx(np.linalg.norm(medians[0] - medians[1]))
    for share in (0.0, 0.1, 0.4):
        means = [mstats.winsorize(one, limits=share, axis=0).mean(0) for one in (harmful, harmless)]
        assert cosine(find("winsorised", data, share=share).direction, means[0] - means[1]) == pytest.approx(1)


@pytest.mark.parametrize("name", ["median", "winsorised"])
def test_a_few_outliers_move_the_mean_and_not_what_is_robust(name):
    """A twentieth of the harmful prompts far out, away from harmful."""
    data = classes(300, 20)
    clean = DiffInMeans().fit(data, data).direction
    x = data.x.clone()
    x[:10, :5] -= 200
    planted = Labelled(x, data.y)
    assert cosine(DiffInMeans().fit(planted, data).direction, clean) < 0
    found = find(name, planted)
    assert cosine(found.direction, clean) > 0.9
    assert cosine(found.direction, find(name, data).direction) > 0.95


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("penalty", [0.1, 1.0, 100.0])
def test_the_ridge_residual_is_that_of_scikit_learns_ridge_regression(shape, penalty):
    """Of the difference on the harmless activations about their mean."""
    data = classes(*shape)
    harmful, harmless = data.means()
    columns = ((data.x[~data.y] - harmless) / float((~data.y).sum()) ** 0.5).mT.numpy()
    strength = penalty * np.square(columns).sum() / columns.shape[1]
    ridge = Ridge(alpha=strength, fit_intercept=False, solver="svd").fit(columns, (harmful - harmless).numpy())
    residual = (harmful - harmless).numpy() - ridge.predict(columns)
    assert cosine(find("ridge", data, penalty=penalty).direction, residual) == pytest.approx(1, abs=1e-10)


def test_a_large_penalty_leaves_the_difference_in_means_and_a_small_one_what_harmless_prompts_lack():
    data = classes(60, 150)
    spread = data.x[~data.y] - data.x[~data.y].mean(0)
    assert cosine(find("ridge", data, penalty=1e9).direction, DiffInMeans().fit(data, data).direction) > 1 - 1e-12
    assert (spread @ find("ridge", data, penalty=1e-9).direction).abs().max() < 1e-6
    assert find("ridge", data, penalty=1).norm < find("ridge", data).norm


# Components, maps, categories


@pytest.mark.parametrize("centre", ["pairs", "classes"])
@pytest.mark.parametrize("shape", SHAPES)
def test_components_are_scikit_learns(shape, centre):
    data = classes(*shape)
    found = find("pca", data, centre=centre, max_k=3)
    harmful, harmless = data.x[data.y].numpy(), data.x[~data.y].numpy()
    if centre == "classes":
        differences = np.concatenate([harmful - harmless.mean(0), harmless - harmful.mean(0)])
    else:
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randperm(len(one), generator=generator)[: len(harmless)] for one in (harmful, harmless)]
        differences = harmful[drawn[0]] - harmless[drawn[1]]
    theirs = TruncatedSVD(3, algorithm="arpack", random_state=0).fit(differences).components_
    assert np.abs(found.basis.numpy() @ theirs.T) == pytest.approx(np.eye(3), abs=1e-8)
    assert (found.basis @ (data.means()[0] - data.means()[1]) > 0).all()


def test_pairs_are_drawn_by_the_seed_and_the_first_component_is_near_the_difference():
    data = classes(160, 20, gap=8)
    one, again, other = (find("pca", data, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.basis, again.basis)
    assert not torch.allclose(one.basis, other.basis)
    for found in (one, other, find("pca", data, centre="classes")):
        assert cosine(found.direction, DiffInMeans().fit(data, data).direction) > 0.9


@pytest.mark.parametrize("shape", SHAPES)
def test_a_map_of_one_neuron_is_the_difference_in_means(shape):
    data = classes(*shape)
    for clusters in ("som", "k-means"):
        found = find("som", data, side=1, clusters=clusters)
        assert found.k == 1
        assert cosine(found.direction, DiffInMeans().fit(data, data).direction) == pytest.approx(1)
        torch.testing.assert_close(found.basis[0], found.direction)


def grouped() -> tuple[Labelled, torch.Tensor]:
    """Harmful prompts in four groups, the largest first, and harmless ones at the origin; and where the groups are."""
    rng, sizes, d = np.random.default_rng(0), (40, 25, 15, 10), 30
    centres = 6 * np.eye(4, d)
    x = np.concatenate([np.repeat(centres, sizes, axis=0), np.zeros((60, d))]) + 0.1 * rng.standard_normal((150, d))
    return Labelled(torch.from_numpy(x), torch.arange(150) < 90), torch.from_numpy(centres)


def test_clusters_are_the_groups_of_harmful_prompts_the_largest_first():
    data, centres = grouped()
    found = find("som", data, side=2, clusters="k-means")
    assert found.k == 4
    for k in range(1, 5):  # the first k rows span the k largest groups
        within = torch.linalg.vector_norm(found.basis[:k] @ centres.mT, dim=0)
        assert (within[:k] > 5.9).all()
        assert (within[k:] < 0.5).all()
    assert cosine(found.direction, centres.sum(0)) > 0.99


def test_a_map_with_room_has_a_neuron_at_every_group():
    data, centres = grouped()
    found = find("som", data)
    assert (torch.linalg.vector_norm(found.basis @ centres.mT, dim=0) > 5.9).all()


def test_a_map_does_not_depend_on_the_axes_or_the_order_of_prompts():
    data = classes(60, 150)
    rotation = torch.linalg.qr(torch.randn(150, 150, generator=torch.Generator().manual_seed(1)).double()).Q
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    found = find("som", data)
    turned = find("som", Labelled(data.x[shuffled] @ rotation, data.y[shuffled]))
    assert found.k == turned.k > 1
    torch.testing.assert_close(turned.basis, found.basis @ rotation, atol=1e-8, rtol=0)


def test_categories_give_their_means_the_farthest_first():
    rng = np.random.default_rng(0)
    sizes, d = {"fraud": 8, "theft": 20, "": 5}, 12
    shifts = {"fraud": 5 * np.eye(d)[0], "theft": 2 * np.eye(d)[1], "": 9 * np.eye(d)[2]}
    categories = [name for name, size in sizes.items() for _ in range(size)] + ["cooking"] * 30
    x = 0.01 * rng.standard_normal((len(categories), d)) + [shifts.get(name, np.zeros(d)) for name in categories]
    y = torch.arange(len(categories)) < 33
    data = Labelled(torch.from_numpy(x), y, numbered(categories))
    found = find("mean-shift-k", data)
    assert (found.basis @ torch.from_numpy(np.eye(d)[:2].T)).allclose(torch.eye(2).double(), atol=0.02)
    assert found.basis.shape == (2, d), "what has no category has no direction"
    assert cosine(found.direction, shifts["fraud"] + shifts["theft"]) == pytest.approx(1, abs=1e-3)
    assert find("mean-shift-k", data, least=9).k == 1


def test_without_categories_one_sentence_says_so():
    data = classes(60, 20)
    for group in (None, torch.full((60,), -1)):
        with pytest.raises(RefusalCmpError, match="the harmful training prompts have none; give a file with a column"):
            find("mean-shift-k", Labelled(data.x, data.y, group))
    with pytest.raises(RefusalCmpError, match="needs a category with 50 .* the largest of 3 has 14; give more"):
        find("mean-shift-k", data, least=50)


def test_categories_reach_the_method_whichever_prompts_are_held_out():
    names = ["fraud", "theft"] * 10 + ["cooking"] * 20
    harmful, dev = torch.arange(40) < 20, torch.arange(40) % 4 == 0
    activations = Activations((-1,), 1, 6, harmful, dev, group=numbered(names))
    x = torch.randn(40, 1, 6, generator=torch.Generator().manual_seed(0))
    x[torch.tensor([name == "fraud" for name in names])] += 3
    activations.add(range(40), 0, x)
    activations.done(range(40))
    train, held_out = activations.at(Component(-1, 0))
    assert train.group.tolist() == numbered(names)[~dev].tolist()
    assert held_out.group.tolist() == numbered(names)[dev].tolist()
    assert (train + held_out).group.tolist() == [*train.group.tolist(), *held_out.group.tolist()]
    direct = x[harmful & ~dev & (numbered(names) == 1), 0].double().mean(0) - train.means()[1]
    assert cosine(find("mean-shift-k", train).basis[0], direct) == pytest.approx(1)


def test_logistic_is_scikit_learns_and_inlps_first_row():
    data = classes(60, 150)
    weights = LogisticRegression(C=0.1, tol=1e-12, solver="newton-cholesky").fit(data.x.numpy(), data.y.numpy()).coef_
    found = find("logistic", data)
    assert cosine(found.direction, weights) == pytest.approx(1, abs=1e-9)
    assert cosine(found.direction, INLP(max_k=1).fit(data, data).direction) == pytest.approx(1, abs=1e-9)


# All of them


@pytest.mark.parametrize("name", ALL)
def test_the_unit_of_the_activations_is_of_no_matter(name):
    """But to a penalty, which has a unit."""
    if name == "logistic":
        pytest.skip("its penalty has a unit")
    one, other = (find(name, classes(60, 150, scale=scale)) for scale in (1.0, 1e3))
    torch.testing.assert_close(one.basis, other.basis, atol=1e-6, rtol=0)
    assert other.norm == pytest.approx(1e3 * one.norm)


@pytest.mark.parametrize("name", ALL)
def test_prompts_that_coincide_within_a_class_give_the_difference_or_a_reason(name):
    """There is no variance to weigh a difference by."""
    rows = torch.randn(2, 30, generator=torch.Generator().manual_seed(0)).double()
    y = torch.arange(40) < 20
    data = Labelled(rows[y.long()], y, torch.where(y, 0, -1))
    if name == "lda":
        with pytest.raises(NoSubspaceError, match="do not vary"):
            find(name, data)
        return
    found, expected = find(name, data), rows[1] - rows[0]
    if name == "projected":
        expected = expected - expected @ rows[0] / rows[0].square().sum() * rows[0]
    assert cosine(found.direction, expected) == pytest.approx(1)
    assert found.evidence.tolist() == [1]
