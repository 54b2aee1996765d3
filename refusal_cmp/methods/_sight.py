"""What a method that sees the model is given, as it is asked for here: methods know no model.

The stage that fits a method fills it in (`refusal_cmp.model.sight`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from jaxtyping import Float, Int
from torch import Tensor

from refusal_cmp.activations import Activations
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.plan import Place

Edits = Mapping[Place, LowRankEdit]


class Said(NamedTuple):
    """An instruction and an answer to it."""

    instruction: str
    answer: str


class Foreseen(NamedTuple):
    """The tokens of an answer, and what the model foresees in the place of each."""

    logits: Float[Tensor, "n vocab"]
    """float32; differentiable in the tensors of the edits."""
    tokens: Int[Tensor, " n"]


class Sight(Protocol):
    """The model, the training prompts, and their activations."""

    @property
    def activations(self) -> Activations:
        """At the positions of the method; they say which prompts are harmful, and which are held out."""

    @property
    def prompts(self) -> Sequence[str]:
        """The instructions, in the order of the activations."""

    def answers(self, instructions: Sequence[str], edits: Edits, max_new_tokens: int) -> list[str]:
        """What the model answers under the edits, greedily."""

    @property
    def say(self) -> Callable[[str], None]:
        """Tells the user what was found."""

    def refuses(self, answer: str) -> bool:
        """Whether an answer is a refusal."""

    def foresees(self, said: Sequence[Said], edits: Edits) -> list[Foreseen]:
        """What the model under the edits foresees of each answer, in one pass."""
