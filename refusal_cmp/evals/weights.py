"""What another checkpoint changed: of every weight how much, in how many directions, and along which of ours.

See `refusal_cmp.model.differences` for what is computed. The cosine is that of the leading direction of a change, on
the side of the residual stream, with the direction of each method at its selected component: 1 in what writes to the
stream means that this direction is written no more, or more. A run with other checkpoints has this evaluator unasked.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals import Evaluation, Evaluator, Measure, Metric, Subject, register_evaluator
from refusal_cmp.model import ChatModel
from refusal_cmp.model.differences import Difference, Weight, differences, weights_of
from refusal_cmp.statistics import Estimate

DATASET, EXAMPLES = "weights", "modules"
"""What results call the weights, and what the examples are of: a row for each."""


@register_evaluator("weights")
class Weights(Evaluator):
    """Where the weights of another checkpoint differ from the model's, and along which directions."""

    reads = ("model", "subspaces")
    measures = (
        Measure(
            "weight_change",
            "Weights changed by",
            "size of all changes of weights beside the size of the weights (Frobenius norms)",
            shown="never",
            positive=True,
        ),
    )
    order = 0

    def __init__(self) -> None:
        self._base: _Kept | None = None

    def evaluate(self, subject: Subject) -> Evaluation:
        """The size of all changes, and as examples every weight; nothing of plans that are edits."""
        if not subject.plan.checkpoint:
            return Evaluation([])
        if self._base is None:
            self._base = _Kept(subject.base())
        found = []
        model = subject.model()
        if not self._base or not all(map(_is_plain, weights_of(model).values())):
            subject.say(
                f"The weights of {subject.plan.label} are not compared: they are quantised, or not all in memory."
            )
            return Evaluation([])
        directions = {one.field.method: one.field[one.component].direction for one in subject.selected()}
        with subject.progress("weights", len(self._base)) as advance:
            for one in differences(self._base, model):
                found.append((one, _row(one, directions)))
                advance(1)
        sizes = [torch.tensor([getattr(one, name) for one, _ in found]) for name in ("change", "before")]
        value = float(sizes[0].norm() / sizes[1].norm())
        estimate = Estimate(value, math.nan, math.nan, len(found))
        return Evaluation([Metric(DATASET, "weight_change", estimate)], {EXAMPLES: [row for _, row in found]})

    def close(self) -> None:
        """Delete the copy of the model's weights."""
        if self._base is not None:
            self._base.close()
        self._base = None


class _Kept(Mapping[Weight, Tensor]):
    """A model's weights in a temporary file, so that another model has the memory; none if they are quantised."""

    def __init__(self, model: ChatModel) -> None:
        weights = weights_of(model)
        plain = weights if all(map(_is_plain, weights.values())) else {}
        self._folder = tempfile.TemporaryDirectory(prefix="refusal-cmp-")
        file = Path(self._folder.name) / "weights.safetensors"
        tied: set[int] = set()  # what is there twice, a file takes as a copy
        whole = {}
        for place, tensor in plain.items():
            one = tensor.cpu().contiguous()
            whole[json.dumps(place)] = one.clone() if one.data_ptr() in tied else one
            tied.add(one.data_ptr())
        try:
            save_file(whole, file)
        except (OSError, SafetensorError) as error:
            raise RefusalCmpError(
                f"The weights of {model.name} cannot be kept in {file.parent} while a checkpoint is compared with them "
                f"({error}); free space there, or name another place in the environment as TMPDIR."
            ) from None
        self._file = safe_open(file, framework="pt")
        self._names = {Weight(*json.loads(name)): name for name in whole}

    def __getitem__(self, place: Weight) -> Tensor:
        return self._file.get_tensor(self._names[place])

    def __iter__(self) -> Iterator[Weight]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def close(self) -> None:
        """Delete the file."""
        del self._file
        self._folder.cleanup()


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds the numbers that count; codes of eight bits do not without their scales."""
    return tensor.is_floating_point() and tensor.element_size() > 1 and not tensor.is_meta


def _row(one: Difference, directions: Mapping[str, Tensor]) -> dict[str, Any]:
    """A weight as the run keeps it; shares and cosines to four digits."""
    energy = {f"energy_{k}": one.energy[min(k, len(one.energy)) - 1] if one.energy else None for k in (1, 8)}
    axis = one.axis
    cosine = {} if axis is None else {name: abs(float(axis @ of.double())) for name, of in directions.items()}
    return {
        "layer": one.weight.layer,
        "module": one.weight.module,
        "shape": list(one.shape),
        "relative": one.change / one.before if one.before else None,
        "rank": one.rank,
        **{name: share if share is None else round(share, 4) for name, share in energy.items()},
        "stream": one.side,
        "cosine": {name: round(value, 4) for name, value in cosine.items()},
    }
