"""The model and the prompts as methods ask for them that see the model; see `refusal_cmp.methods.ModelMethod`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from refusal_cmp.activations import Activations
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.methods import Foreseen, Said
from refusal_cmp.model.batching import Batch
from refusal_cmp.model.chat import Turns
from refusal_cmp.model.chat_model import ChatModel
from refusal_cmp.plan import Place


@dataclass(frozen=True)
class ModelSight:
    """A `Sight` of a `ChatModel`."""

    model: ChatModel
    prompts: Sequence[str]
    activations: Activations
    judged: Callable[[str, Turns], bool]
    """Whether an answer is a refusal, given what the template writes around answers."""
    say: Callable[[str], None]
    """Tells the user what was found."""

    def answers(
        self, instructions: Sequence[str], edits: Mapping[Place, LowRankEdit], max_new_tokens: int
    ) -> list[str]:
        """What the model answers under the edits, greedily."""
        with self.model.edited(edits):
            return [one.text for one in self.model.generate(instructions, max_new_tokens=max_new_tokens)]

    def refuses(self, answer: str) -> bool:
        """Whether an answer is a refusal."""
        return self.judged(answer, self.model.turns)

    def foresees(self, said: Sequence[Said], edits: Mapping[Place, LowRankEdit]) -> list[Foreseen]:
        """What the model under the edits foresees of each answer, in one pass."""
        prompts = self.model.tokenize([one.instruction for one in said])
        answers = self.model.tokenizer([one.answer for one in said], add_special_tokens=False)["input_ids"]
        batch = _padded_behind(
            [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)], self.model
        )
        size = batch.ids.shape[1]
        wanted = [
            torch.arange(len(answer)) + row * size + len(prompt) - 1
            for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        ]
        with self.model.edited(edits), _frozen(self.model):
            logits = self.model.forward_at(batch, torch.cat(wanted), use_cache=False).logits.float()
        tokens = [torch.tensor(answer, dtype=torch.long, device=logits.device) for answer in answers]
        return [Foreseen(*of) for of in zip(logits.split([len(one) for one in answers]), tokens, strict=True)]


def _padded_behind(sequences: Sequence[Sequence[int]], model: ChatModel) -> Batch:
    """A batch that is padded on the right: a padding token in front reads nothing, and its gradient is not a number."""
    length = max(map(len, sequences))
    ids = torch.full((len(sequences), length), model.tokenizer.pad_token_id or 0)
    mask = torch.zeros((len(sequences), length), dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = True
    return Batch(ids.to(model.device), mask.to(model.device))


@contextmanager
def _frozen(model: ChatModel) -> Iterator[None]:
    """The weights ask for no gradient: what is needed for theirs would be kept of every pass."""
    asking: list[Tensor] = [weight for weight in model.model.parameters() if weight.requires_grad]
    for weight in asking:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in asking:
            weight.requires_grad_(True)
