"""How INLP's first direction and rank depend on C and on the activations' scale: docs/inlp-sensitivity.md.

The L2 penalty ½‖w‖² is not free of units: scaling the activations by s is scaling C by s². So the table over
one is the table over the other, and a C that is right for one layer, whose activations are long, is not for
another. On the embedded model, at the last prompt token.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from refusal_cmp.activations import Labelled
from refusal_cmp.data import DATASETS
from refusal_cmp.errors import NoSubspaceError
from refusal_cmp.methods.diff_in_means import DiffInMeans
from refusal_cmp.methods.inlp import INLP
from refusal_cmp.model import ChatModel
from refusal_cmp.model.reading import collect
from refusal_cmp.subspace import Component

DOCUMENT = Path(__file__).parents[1] / "docs" / "inlp-sensitivity.md"
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 10, 100)
SCALES = (0.01, 0.1, 1, 10, 100)
PERTURBATION = 1e-15

HEAD = """# How INLP depends on C and on the activations' scale

INLP's classifier is L2-regularised: it minimises ½‖w‖² + C Σ log(1 + exp(−s (w·x + b))), on the activations as
they are. Three things follow.

**The first direction turns with C.** For C → 0 the classifier is the difference of the class means, to the
letter: every prompt of a class pulls alike. As C grows, prompts far from the boundary stop pulling, and
w turns towards the direction that separates the classes with the widest margin. So *diff-in-means against INLP* is
a question of degree, and C is the dial.

**The rank grows with C.** A strongly regularised classifier takes most of the difference of the means with it, and
there is little left for the next. A weakly regularised one takes a direction of small spread that separates the
prompts, and leaves the difference of the means nearly where it was.

**Scale and C are one setting.** Scaling the activations by σ does exactly what multiplying C by σ² does (with w
scaled by 1/σ). Residual streams grow from layer to layer, and their lengths differ between models by orders of
magnitude, so one C is many different regularisations: longer activations are regularised less. The default
C = 0.1 is that of the published comparison; results that hinge on INLP's directions should be looked at over C.

The tables are of `{model}`, {n} + {n} prompts, position {position}, made by `python benchmarks/sensitivity.py`.
Each cell is the angle between INLP's first direction and difference in means, then the rank (the number of
classifiers accepted under the default stopping rule). **—** is no classifier better than chance.
"""

TAIL = """
## How many classifiers are there?

The weights of successive classifiers shrink, because the class means have less and less to differ by; what is left
is a difference of nearly equal numbers. From some classifier on, float64 does not determine the next: changing the
activations by one part in 10¹⁵ turns it. At layer {layer} and C = 0.1, the first classifier that such a change
turns by more than 1° is number {undetermined}; the default stopping rule accepts {rank}. Run with a stopping
rule that goes on into the undetermined ones, INLP gives subspaces that differ between machines.
"""


def main() -> None:
    """Write the document."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny-refuser", help="Hugging Face id or folder")
    parser.add_argument("--prompts", type=int, default=128, help="of each kind")
    args = parser.parse_args()
    model = ChatModel.load(args.model)
    prompts = [
        list(dict.fromkeys(prompt.instruction for prompt in DATASETS.get(name)("train")))[: args.prompts]
        for name in ("tiny-harmful", "tiny-harmless")
    ]
    activations = collect(model, *prompts)
    layers = range(1, model.n_layers)
    data = {layer: activations.at(Component(-1, layer)) for layer in layers}
    lengths = "| length | " + " | ".join(f"{data[layer][0].scale:.1f}" for layer in layers) + " |"
    head = ["| {} | " + " | ".join(f"layer {layer}" for layer in layers) + " |", "|---" * (len(layers) + 1) + "|"]
    over_c = [f"| {c:g} | " + " | ".join(cell(*data[layer], c, 1.0) for layer in layers) + " |" for c in STRENGTHS]
    over_scale = [
        f"| × {scale:g} | " + " | ".join(cell(*data[layer], 0.1, scale) for layer in layers) + " |" for scale in SCALES
    ]
    middle = model.n_layers // 2
    lines = [
        HEAD.format(model=model.name, n=len(prompts[0]), position=-1),
        "## Over C, activations as they are\n",
        head[0].format("C"), head[1], *over_c, lengths,
        "\nLength is the root mean square length of the activations.\n",
        "## Over the activations' scale, at C = 0.1\n",
        head[0].format("scale"), head[1], *over_scale,
        TAIL.format(layer=middle, undetermined=undetermined(*data[middle]), rank=rank(*data[middle])),
    ]  # fmt: skip
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text("\n".join(lines))
    print(f"wrote {DOCUMENT}")


def cell(train: Labelled, dev: Labelled, c: float, scale: float) -> str:
    """Angle to difference in means, and rank."""
    train, dev = (Labelled(part.x * scale, part.y) for part in (train, dev))
    try:
        found = INLP(c=c).fit(train, dev)
    except NoSubspaceError:
        return "—"
    cosine = float(found.direction @ DiffInMeans().fit(train, dev).direction)
    return f"{math.degrees(math.acos(min(1.0, cosine))):.0f}°, {found.k}"


def rank(train: Labelled, dev: Labelled) -> int:
    """How many classifiers the default stopping rule accepts."""
    return INLP().fit(train, dev).k


def undetermined(train: Labelled, dev: Labelled) -> str:
    """The first classifier that a perturbation in the last digits turns."""
    import torch

    torch.manual_seed(0)
    near = Labelled(train.x * (1 + PERTURBATION * torch.randn_like(train.x)), train.y)
    a, b = (INLP(stop="0.0001").fit(part, dev).basis for part in (train, near))
    k = min(len(a), len(b))
    turned = ((a[:k] * b[:k]).sum(1).abs() < math.cos(math.radians(1))).nonzero()
    return str(int(turned[0]) + 1) if len(turned) else f"none of {k}"


if __name__ == "__main__":
    main()
