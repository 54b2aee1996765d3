"""INLP: scikit-learn and the textbook algorithm are the oracles; planted subspaces and chance are the claims."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import orth, subspace_angles
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import train_test_split

from refusal_cmp.activations import Labelled, balanced_accuracy
from refusal_cmp.errors import NoSubspaceError, RefusalCmpError
from refusal_cmp.methods._classifiers import CLASSIFIERS
from refusal_cmp.methods.inlp import INLP
from refusal_cmp.subspace import ClassMeans, Component, Subspace, SubspaceField

EVERYTHING = "0.0001"
"""A stopping accuracy that every classifier reaches."""


def planted(n: int, d: int, k: int, *, gap: float = 4.0, seed: int = 0):
    """A component whose classes differ along k planted rows and nowhere else, and a stratified dev split.

    The spread along the rows differs, so that no one direction holds all of the difference.
    """
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((d, k)))[0].T
    y = np.arange(n) < n // 2
    planted = gap / 2 * np.where(y, 1, -1)[:, None] + np.linspace(0.5, 2, k) * rng.standard_normal((n, k))
    x = rng.standard_normal((n, d))
    x += (planted - x @ basis.T) @ basis + 5 * rng.standard_normal(d)
    return split(x, y, seed), basis


def split(x: np.ndarray, y: np.ndarray, seed: int = 0) -> tuple[Labelled, Labelled]:
    train, dev = train_test_split(np.arange(len(y)), test_size=0.2, random_state=seed, stratify=y)
    return tuple(Labelled(torch.tensor(x[rows]).double(), torch.tensor(y[rows])) for rows in (train, dev))


def converged(x: np.ndarray, y: np.ndarray, c: float) -> np.ndarray:
    """Weights and intercept of scikit-learn's classifier, polished by Newton steps in d dimensions."""
    model = LogisticRegression(C=c, tol=1e-8, solver="newton-cholesky").fit(x, y)
    theta = np.append(model.coef_[0], model.intercept_)
    design, penalty = np.hstack([x, np.ones((len(x), 1))]), np.append(np.ones(x.shape[1]), 0)
    for _ in range(3):
        p = expit(design @ theta)
        hessian = np.diag(penalty) + c * (design.T * (p * (1 - p))) @ design
        theta = theta - np.linalg.solve(hessian, penalty * theta - c * design.T @ (y - p))
    return theta


def textbook(train: Labelled, dev: Labelled, c: float, iterations: int) -> list[float]:
    """Dev accuracies of algorithm 1 in d dimensions, the projection re-formed from all classifiers each time."""
    x, y, x_dev, y_dev = train.x.numpy(), train.y.numpy(), dev.x.numpy(), dev.y.numpy()
    d = x.shape[1]
    projection, rowspaces, accuracies = np.eye(d), np.zeros((d, d)), []
    for _ in range(iterations):
        *w, b = converged(x @ projection, y, c)
        accuracies.append(float(np.mean((x_dev @ projection @ w + b > 0) == y_dev)))
        rowspaces += np.outer(w, w) / np.dot(w, w)
        rowspace = orth(rowspaces)
        projection = np.eye(d) - rowspace @ rowspace.T
    return accuracies


@pytest.mark.parametrize(("n", "d", "iterations"), [(120, 300, 12), (120, 40, 25)])
def test_dev_accuracies_are_those_of_the_textbook_algorithm(n, d, iterations):
    """With n < d the weights halve at each iteration: after 12, float64 no longer determines the classifiers."""
    data, _ = planted(n, d, 3)
    accuracies = textbook(*data, c=0.1, iterations=iterations)
    found = INLP(stop=EVERYTHING, max_k=iterations).fit(*data)
    assert found.evidence.tolist() == pytest.approx(accuracies, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-2, 1, 10])
@pytest.mark.parametrize("c", [0.01, 0.1, 10])
def test_first_direction_is_that_of_scikit_learn(c, scale):
    (train, dev), _ = planted(100, 150, 2)
    train, dev = (Labelled(part.x * scale, part.y) for part in (train, dev))
    weights = LogisticRegression(C=c, tol=1e-12, solver="newton-cholesky", max_iter=1000)
    weights = weights.fit(train.x.numpy(), train.y.numpy()).coef_[0]
    direction = INLP(c=c, max_k=1).fit(train, dev).direction.numpy()
    assert direction @ weights / np.linalg.norm(weights) > 1 - 1e-8


def test_rank_is_the_number_of_accepted_classifiers_and_rows_are_orthonormal():
    data, _ = planted(200, 100, 4)
    found = INLP().fit(*data)
    everything = INLP(stop=EVERYTHING, max_k=90).fit(*data)
    first_failure = next(i for i, correct in enumerate(everything.evidence * 40) if round(float(correct)) < 26)
    assert found.k == first_failure == len(found.evidence)  # 26 of 40 is the least that chance reaches below 5 %
    for subspace in (found, everything):
        assert (subspace.basis @ subspace.basis.mT - torch.eye(subspace.k)).abs().max() < 1e-10
    torch.testing.assert_close(everything.basis[: found.k], found.basis)
    torch.testing.assert_close(found.direction, found.basis[0])


def test_a_fixed_threshold_stops_where_the_dev_accuracy_falls_below_it():
    data, _ = planted(200, 100, 4)
    everything = INLP(stop=EVERYTHING, max_k=30).fit(*data).evidence
    below = int((everything < 0.75).nonzero()[0])
    assert INLP(stop="0.75").fit(*data).k == below


def unequal(gap: float, seed: int = 0) -> tuple[Labelled, Labelled]:
    """18 harmful and 90 harmless prompts that differ by the gap along one direction."""
    rng = np.random.default_rng(seed)
    y = np.arange(108) < 18
    x = rng.standard_normal((108, 200))
    x[:, 0] += gap * y
    return split(x, y, seed)


@pytest.mark.parametrize("stop", ["binomial", "0.55"])
def test_saying_the_larger_class_throughout_is_no_better_than_chance(stop):
    """A plain accuracy of 0.55 is met by it: on noise alone the rank is 60 and more."""
    ranks = [getattr(found, "k", 0) for seed in range(10) for found in INLP(stop=stop).fit_many([unequal(0, seed)])]
    assert max(ranks) <= 6
    assert np.mean(ranks) < 2
    assert INLP(stop=stop).fit(*unequal(8)).evidence[0] > 0.9


@given(st.lists(st.booleans(), min_size=2, max_size=30))
def test_balanced_accuracy_of_equal_classes_is_the_plain_one_to_the_last_bit(said):
    said = torch.tensor([*said, *said][: len(said) // 2 * 2])
    y = torch.arange(len(said)) < len(said) // 2
    assert float(balanced_accuracy(said, y)) == int((said == y).sum()) / len(said)


def test_balanced_accuracy_is_scikit_learns():
    rng = np.random.default_rng(0)
    y, said = rng.random(40) < 0.2, rng.random((5, 40)) < 0.5
    theirs = [balanced_accuracy_score(y, one) for one in said]
    assert balanced_accuracy(torch.from_numpy(said), torch.from_numpy(y)).tolist() == pytest.approx(theirs)


def test_no_more_directions_than_there_are_dimensions():
    for d, most in ((20, 20), (100, 48)):  # 48 of 60 prompts are for training
        data, _ = planted(60, d, 1)
        found = INLP(stop=EVERYTHING).fit(*data)
        assert most - 1 <= found.k <= most
        assert (found.basis @ found.basis.mT - torch.eye(found.k)).abs().max() < 1e-10


def test_random_labels_are_accepted_no_more_often_than_the_level():
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2 == 0
    data = [split(rng.standard_normal((200, 64)), y) for _ in range(400)]
    results = [result for start in range(0, 400, 20) for result in INLP(max_k=1).fit_many(data[start : start + 20])]
    assert sum(not isinstance(result, NoSubspaceError) for result in results) <= 0.07 * 400


def largest_angle(n: int, seed: int) -> float:
    """In degrees, between two planted directions and the two first found in n prompts."""
    data, basis = planted(n, 24, 2, gap=8, seed=seed)
    return float(np.degrees(subspace_angles(INLP(max_k=2).fit(*data).basis.numpy().T, basis.T).max()))


def test_planted_directions_are_recovered_the_better_the_more_prompts():
    angles = [np.mean([largest_angle(n, seed) for seed in range(5)]) for n in (80, 320, 1280)]
    assert angles[0] > angles[1] > angles[2]
    assert angles[2] < 20


def test_many_components_at_a_time_are_as_one_at_a_time():
    data = [planted(80, 60, k, gap=gap)[0] for k, gap in ((1, 2.0), (2, 3.0), (5, 4.0), (3, 0.5), (4, 2.5))]
    together = INLP().fit_many(data)
    for one, (train, dev) in zip(together, data, strict=True):
        alone = INLP().fit_many([(train, dev)])[0]
        assert type(one) is type(alone)
        if not isinstance(one, NoSubspaceError):
            torch.testing.assert_close(one.basis, alone.basis, atol=1e-9, rtol=0)
            assert one.evidence.tolist() == alone.evidence.tolist()


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_every_classifier_finds_the_planted_direction(classifier):
    data, basis = planted(300, 20, 1, gap=4)
    found = INLP(classifier=classifier, n_jobs=1).fit(*data)
    assert abs(found.direction.numpy() @ basis[0]) > 0.8
    assert (found.basis @ found.basis.mT - torch.eye(found.k)).abs().max() < 1e-10


def test_newton_is_scikit_learns_logistic_regression():
    data, _ = planted(100, 150, 3)
    ours, theirs = (INLP(classifier=name, n_jobs=1, max_k=5).fit(*data) for name in ("newton", "logistic"))
    assert ours.k == theirs.k
    torch.testing.assert_close(ours.basis, theirs.basis, atol=1e-3, rtol=0)


def test_scikit_learn_gives_the_same_whatever_the_number_of_workers():
    data = [planted(60, 30, 2, seed=0)[0]] * 2
    one, two = (INLP(classifier="linear-svc", n_jobs=n_jobs).fit_many(data) for n_jobs in (1, 2))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a.basis, b.basis, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("policy", "evidence", "k"),
    [
        ("full", (1, 0.6), 2),
        ("1", (1, 0.6), 1),
        ("3", (1, 0.6), 2),
        ("acc99", (1, 0.995, 0.98, 1), 2),
        ("acc99", (0.98, 1), 1),
        ("acc99", (1, 99 / 100, 0.989), 2),
        ("acc95", (1, 19 / 20, 0.94), 2),
        ("acc95", (1, 19 / 20), 2),
    ],
)
def test_a_k_policy_keeps_the_leading_directions_after_save_and_load(policy, evidence, k):
    basis = torch.eye(len(evidence), 5, dtype=torch.float64)
    means = ClassMeans((-1,), torch.zeros(1, 1, 5), torch.zeros(1, 1, 5))
    where = Component(-1, 0)
    subspace = Subspace(basis, basis[0], 1.0, torch.tensor(evidence, dtype=torch.float64))
    field = SubspaceField("inlp", means, {where: subspace})
    kept = SubspaceField.from_tensors(*field.to_tensors(), means).leading(policy)[where]
    assert torch.equal(kept.basis, basis[:k])
    assert len(kept.evidence) == k


# Degenerate inputs


def test_one_class_alone_is_an_error():
    with pytest.raises(RefusalCmpError, match="need both classes, and all 20 are harmful"):
        Labelled(torch.randn(20, 5), torch.ones(20, dtype=torch.bool))


def test_a_nan_is_an_error():
    x = torch.randn(20, 5)
    x[3, 2] = torch.nan
    with pytest.raises(RefusalCmpError, match="1 of 20 activations hold a NaN"):
        Labelled(x, torch.arange(20) < 10)


def test_too_few_prompts_are_an_error():
    train, dev = (
        Labelled(torch.randn(6, 5).double(), torch.arange(6) < 3),
        Labelled(torch.randn(2, 5).double(), torch.arange(2) < 1),
    )
    with pytest.raises(RefusalCmpError, match="at least 10 prompts, and there are 8"):
        INLP().fit(train, dev)


def test_a_dev_split_that_can_show_nothing_is_an_error():
    train, dev = (
        Labelled(torch.randn(16, 5).double(), torch.arange(16) < 8),
        Labelled(torch.randn(4, 5).double(), torch.arange(4) < 2),
    )
    INLP(stop="0.5").fit_many([(train, dev)])
    train, dev = train, Labelled(torch.randn(4, 5).double(), torch.arange(4) < 3)
    with pytest.raises(RefusalCmpError, match="no classifier can be better than chance"):
        INLP().fit(train, dev)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_activations_that_coincide_have_no_subspace(classifier):
    x = np.ones((60, 1)) * np.random.default_rng(0).standard_normal(30)
    jitter = 1e-9 * np.random.default_rng(1).standard_normal((60, 30))
    for activations in (x, x + jitter, 0 * x):
        with pytest.raises(NoSubspaceError, match="coincide"):
            INLP(classifier=classifier, n_jobs=1).fit(*split(activations, np.arange(60) < 30))


def test_features_that_do_not_vary_change_nothing():
    (train, dev), _ = planted(100, 30, 2)
    wider = [Labelled(torch.cat([part.x, torch.full((len(part), 4), 7.0)], 1), part.y) for part in (train, dev)]
    found, padded = INLP().fit(train, dev), INLP().fit(*wider)
    torch.testing.assert_close(padded.basis[:, :30], found.basis)
    assert padded.basis[:, 30:].abs().max() < 1e-10


def test_repeated_activations_are_weights_not_a_new_direction():
    (train, dev), _ = planted(60, 40, 1)
    doubled = train + train
    found = INLP(c=0.1, max_k=1).fit(doubled, dev)
    torch.testing.assert_close(found.direction, INLP(c=0.2, max_k=1).fit(train, dev).direction)


def test_unknown_settings_are_errors():
    with pytest.raises(RefusalCmpError, match="Did you mean 'newton'"):
        INLP(classifier="newtom")
    with pytest.raises(RefusalCmpError, match="inlp-stop must be"):
        INLP(stop="never")
