"""INLP: ours and the textbook algorithm side by side, growth in d and n, and all components of an 8B model.

The textbook form fits scikit-learn's logistic regression in d dimensions and, after each classifier, re-forms
the projection onto the intersection of the nullspaces from the sum of all classifiers' rank-one projections,
by one d × d SVD. (Implementations differ: some run two, and take that much longer.) A full run of it takes
hours at d = 4096, so it gets a budget; what is reported is the mean over the classifiers that fit into it.
Agreement is measured against classifiers in d dimensions that are solved to convergence by Newton steps, since
the L-BFGS of the timed form stops with up to some degrees to go.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from _measure import growth, in_own_process, write
from safetensors.torch import save
from scipy.linalg import orth, subspace_angles
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from refusal_cmp.activations import Activations, Labelled
from refusal_cmp.methods.inlp import INLP

EVERYTHING = "0.0001"
"""A stopping accuracy that every classifier reaches: full INLP."""
DETERMINED = 5
"""Leading classifiers whose span is compared."""


def synthetic(n: int, d: int, planted: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Activations whose classes differ along `planted` random directions of different spread, and labels."""
    basis = np.linalg.qr(rng.standard_normal((d, planted)))[0].T
    y = np.arange(n) < n // 2
    along = 4 * np.where(y, 1, -1)[:, None] + np.linspace(0.5, 2, planted) * rng.standard_normal((n, planted))
    x = rng.standard_normal((n, d))
    return x + (along - x @ basis.T) @ basis + 2 * rng.standard_normal(d), y


def component(n: int, d: int) -> tuple[Labelled, Labelled]:
    """One synthetic component, its training and its dev part."""
    x, y = synthetic(n, d, 5, np.random.default_rng(0))
    parts = train_test_split(np.arange(n), test_size=0.2, random_state=0, stratify=y)
    train, dev = (Labelled(torch.from_numpy(x[rows]), torch.from_numpy(y[rows])) for rows in parts)
    return train, dev


def ours(n: int, d: int, max_k: int) -> dict[str, Any]:
    """Full INLP, one component by itself."""
    data = component(n, d)
    INLP(max_k=1).fit(*component(64, 64))  # libraries load at first use
    started = time.perf_counter()
    found = INLP(stop=EVERYTHING, max_k=max_k).fit(*data)
    taken = time.perf_counter() - started
    leading = found.basis[:DETERMINED].tolist()
    return {"classifiers": found.k, "seconds": taken, "seconds_per_classifier": taken / found.k, "leading": leading}


def textbook(n: int, d: int, budget: float, most: int) -> dict[str, Any]:
    """As many classifiers as fit into the budget, at least one."""
    train, dev = component(n, d)
    x, y, x_dev, y_dev = train.x.numpy(), train.y.numpy(), dev.x.numpy(), dev.y.numpy()
    x_now, x_dev_now, summed = x, x_dev, np.zeros((d, d))
    rows, accuracies, projecting = [], [], 0.0  # the algorithm measures accuracy at each iteration
    started = time.perf_counter()
    while len(rows) < most and (not rows or time.perf_counter() - started < budget):
        model = LogisticRegression(C=0.1, tol=1e-8, max_iter=100_000).fit(x_now, y)
        if not model.coef_.any():
            break  # all that is left is below the optimiser's tolerance
        accuracies.append(model.score(x_dev_now, y_dev))
        rows.append(model.coef_[0] / np.linalg.norm(model.coef_))
        formed = time.perf_counter()
        summed += np.outer(rows[-1], rows[-1])
        rowspace = orth(summed)
        projection = np.eye(d) - rowspace @ rowspace.T
        x_now, x_dev_now = x @ projection, x_dev @ projection
        projecting += time.perf_counter() - formed
    taken = time.perf_counter() - started
    return {
        "classifiers": len(rows),
        "seconds": taken,
        "seconds_per_classifier": taken / len(rows),
        "seconds_of_projection": projecting / len(rows),
    }


def converged(n: int, d: int) -> dict[str, Any]:
    """The leading classifiers in d dimensions, solved to convergence and not timed."""
    train, _ = component(n, d)
    x, y = train.x.numpy(), train.y.numpy()
    rows: list[np.ndarray] = []
    for _ in range(DETERMINED):
        model = LogisticRegression(C=0.1, tol=1e-10, max_iter=1000, solver="newton-cholesky").fit(x, y)
        rows.append(model.coef_[0] / np.linalg.norm(model.coef_))
        x = x - np.outer(x @ rows[-1], rows[-1])
    return {"leading": np.stack(rows).tolist()}


def side_by_side(n: int, d: int, budget: float, max_k: int) -> dict[str, Any]:
    """Both forms on the same component."""
    mine, theirs = in_own_process(ours, n, d, max_k), in_own_process(textbook, n, d, budget, max_k)
    a, b = np.array(mine.pop("leading")), np.array(in_own_process(converged, n, d)["leading"])
    angles = subspace_angles(a.T, b.T)
    row = {
        "d": d,
        "n": n,
        "ours": mine,
        "textbook": theirs,
        "ratio": theirs["seconds_per_classifier"] / mine["seconds_per_classifier"],
        "compared": DETERMINED,
        "largest_angle_degrees": float(np.degrees(angles.max())),
    }
    print(
        f"d {d:5}  ours {mine['seconds_per_classifier'] * 1e3:7.2f} ms  "
        f"textbook {theirs['seconds_per_classifier'] * 1e3:10.1f} ms ({theirs['classifiers']} measured)  "
        f"{row['ratio']:8.0f} ×  angle {row['largest_angle_degrees']:.1e}°",
        flush=True,
    )
    return row


def alone(n: int, d: int, max_k: int) -> dict[str, Any]:
    """Ours by itself."""
    result = in_own_process(ours, n, d, max_k)
    del result["leading"]
    print(f"n {n:5}  d {d:5}  ours {result['seconds_per_classifier'] * 1e3:7.2f} ms", flush=True)
    return {"n": n, "d": d, **result}


def whole_model(n_layers: int, n_positions: int, d: int, n: int, device: str) -> dict[str, Any]:
    """Every component of a model, from the activation store to the artifact's bytes."""
    positions = tuple(range(-n_positions, 0))
    rng = np.random.default_rng(0)
    y = np.arange(n) < n // 2
    dev = torch.zeros(n, dtype=torch.bool)
    dev[train_test_split(np.arange(n), test_size=0.2, random_state=0, stratify=y)[1]] = True
    activations = Activations(positions, n_layers, d, torch.from_numpy(y), dev)
    for layer in range(n_layers):
        values = np.stack([synthetic(n, d, 5, rng)[0] for _ in positions], axis=1)
        activations.add(range(n), layer, torch.from_numpy(values))
    activations.done(range(n))
    method = INLP(device=device, batch_size=4 if device == "cpu" else 32)
    if device != "cpu":
        method.fit_many([activations.at(next(activations.components()))])  # the device starts at first use
    started = time.perf_counter()
    field = method.fit_field(activations, "inlp")
    artifact = save(*field.to_tensors())
    taken = time.perf_counter() - started
    ranks = [subspace.k for subspace in field.subspaces.values()]
    return {
        "components": n_layers * n_positions,
        "d": d,
        "n": n,
        "device": device,
        "seconds": taken,
        "classifiers": sum(ranks),
        "rank": [min(ranks), max(ranks)],
        "artifact_mb": len(artifact) / 1e6,
        "dense_gb": n_layers * n_positions * d * d * 4 / 1e9,
    }


def main() -> None:
    """Measure, print and write results/inlp.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--d", type=int, nargs="+", default=[256, 896, 2048, 4096], help="widths to compare at")
    parser.add_argument("--n", type=int, nargs="+", default=[128, 256, 512, 1024], help="prompts for the growth in n")
    parser.add_argument("--budget", type=float, default=60, help="seconds for the textbook form at each width")
    parser.add_argument("--max-k", type=int, default=100, help="most classifiers")
    parser.add_argument("--layers", type=int, default=32, help="of the whole model; 0 leaves it out")
    parser.add_argument("--positions", type=int, default=5, help="of the whole model")
    parser.add_argument("--width", type=int, default=4096, help="of the whole model")
    parser.add_argument("--device", default="cpu", help="where the whole model's iterations run")
    parser.add_argument("--name", default="inlp", help="of the result file")
    args = parser.parse_args()

    rows = [side_by_side(256, d, args.budget, args.max_k) for d in args.d]
    by_n = [alone(n, 896, args.max_k) for n in args.n]
    results: dict[str, Any] = {"side_by_side": rows, "by_n": by_n}
    if len(rows) > 1:
        results["growth_in_d"] = {
            form: growth(args.d, [row[form]["seconds_per_classifier"] for row in rows]) for form in ("ours", "textbook")
        }
    if len(by_n) > 1:
        results["growth_in_n"] = growth(args.n, [row["seconds_per_classifier"] for row in by_n])
    if args.layers:
        whole = in_own_process(whole_model, args.layers, args.positions, args.width, 256, args.device)
        print(
            f"{whole['components']} components, d {whole['d']}: {whole['seconds']:.1f} s, {whole['classifiers']} "
            f"classifiers, peak {whole['peak_gib']:.2f} GiB, artifact {whole['artifact_mb']:.1f} MB",
            flush=True,
        )
        results["whole_model"] = whole
    print(f"wrote {write(args.name, results)}")


if __name__ == "__main__":
    main()
