"""How much an edit changes what the model says by itself: on its own unedited answers to harmless prompts.

For a prompt x and the first n tokens y of the unedited model's greedy answer, which is forced on the edited model,

    kl       = mean over t of KL(p(· | x, y_<t) ‖ p'(· | x, y_<t)), nats           p: unedited, p': edited
    first-kl = KL(p(· | x) ‖ p'(· | x)), nats: kl with n = 1, what the evaluator kl measures on test prompts
    loss     = mean over t of log p(y_t | x, y_<t) − log p'(y_t | x, y_<t), nats: what the evaluator perplexity
               measures on `on-distribution`
    change   = mean over t of ‖h'_t − h_t‖ / ‖h_t‖                                 h: what leaves the last block

An answer that ends before n tokens has one position more: that at which it ends. The damage of a plan is the mean over
prompts. The first token alone is easily gamed: an edit that spares it may still change all that follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal_cmp.config.values import DAMAGES
from refusal_cmp.data import Document
from refusal_cmp.model import Batch, ChatModel
from refusal_cmp.model.hooks import after, installed
from refusal_cmp.model.losses import encode
from refusal_cmp.model.passes import Passes, Row
from refusal_cmp.plan import Plan
from refusal_cmp.selection.scoring import kl_divergence

Values = Float[Tensor, "s w"]
"""Logits of the tokens that are read, or the stream there."""


@dataclass(frozen=True)
class Damage:
    """A measure of damage."""

    name: str
    meaning: str
    """What it is, with the number of tokens left open: `{n}`."""
    unit: str
    per_token: Callable[[Values, Values, Int[Tensor, " s"]], Float[Tensor, " s"]]
    """Of unedited and edited values, and the tokens that the answer goes on with."""
    reads: str = "logits"
    first_only: bool = False
    """Whether it is of the first token alone."""

    def said(self, n: int) -> str:
        """What it is, on answers of n tokens."""
        return self.meaning.format(n=n)


def _kl(unedited: Values, edited: Values, _: Int[Tensor, " s"]) -> Float[Tensor, " s"]:
    before, now = (logits.double().log_softmax(-1) for logits in (unedited, edited))
    return kl_divergence(before, now).clamp(min=0)  # NaN stays NaN


def _loss(unedited: Values, edited: Values, targets: Int[Tensor, " s"]) -> Float[Tensor, " s"]:
    n = len(targets)  # the position at which the answer ends has none
    losses = (torch.nn.functional.cross_entropy(x[:n].double(), targets, reduction="none") for x in (edited, unedited))
    now, before = losses
    return now - before


def _change(unedited: Values, edited: Values, _: Int[Tensor, " s"]) -> Float[Tensor, " s"]:
    before, now = unedited.double(), edited.double()
    return (now - before).norm(dim=-1) / before.norm(dim=-1)


MEASURES = {
    one.name: one
    for one in (
        Damage("kl", "mean KL to the unedited model over the first {n} tokens of its own answers", "nats", _kl),
        Damage("first-kl", "KL to the unedited model at the first token of the answer", "nats", _kl, first_only=True),
        Damage("loss", "rise of the loss on the first {n} tokens of the unedited model’s own answers", "nats", _loss),
        Damage(
            "change",
            "mean change of the stream that leaves the last block, relative to its length, over the first {n} tokens "
            "of the unedited model’s own answers",
            "",
            _change,
            reads="stream",
        ),
    )
}
"""By name, those of the setting `calibrate`."""
assert tuple(MEASURES) == DAMAGES


class Meter:
    """Measures the damage of plans on the same prompts; the unedited passes are done once.

    Parameters
    ----------
    instructions
        Harmless prompts that nothing is tested on.
    n_tokens
        Of each answer.
    answers
        The unedited model's answers, where they are known; by default it is asked.
    some_tokens
        Whether plans will edit the tokens of prompts, or of answers, alone.
    """

    def __init__(
        self,
        model: ChatModel,
        instructions: Sequence[str],
        measure: str = "kl",
        n_tokens: int = 16,
        *,
        answers: Sequence[str] | None = None,
        batch_size: int | None = None,
        some_tokens: bool = False,
    ) -> None:
        self.measure = MEASURES[measure]
        n_tokens = 1 if self.measure.first_only else n_tokens
        if answers is None:
            done = model.generate(instructions, max_new_tokens=n_tokens, batch_size=batch_size)
            answers = [one.text for one in done]
        self.answers = list(answers)
        scored = [encode(model, Document(text, of)) for text, of in zip(answers, instructions, strict=True)]
        self.targets: list[list[int]] = []
        rows = []
        for ids, n in scored:
            answer = ids[len(ids) - n :][:n_tokens]
            shown = answer[: n_tokens - 1]
            self.targets.append(answer)
            rows.append(Row((*ids[: len(ids) - n], *shown), 1 + len(shown), written=len(shown)))
        self.passes = Passes(model, rows, batch_size, some_tokens=some_tokens)
        self._unedited: list[Values] = [torch.empty(0)] * len(rows)
        self.passes.unedited(self._keep)

    def groups(self, plans: Sequence[Plan]) -> list[list[int]]:
        """Which plans go through passes together."""
        return self.passes.groups(plans)

    def __call__(self, plans: Sequence[Plan]) -> Float[Tensor, "p n"]:
        """The damage on every prompt under each plan of a group, float64; NaN where numbers break."""
        return self.passes.measure(plans, self._read)

    def _keep(self, model: ChatModel, batch: Batch, at: Int[Tensor, " m"], indices: list[int]) -> None:
        for index, values in zip(indices, self._values(model, batch, at, indices), strict=True):
            self._unedited[index] = values

    def _read(self, model: ChatModel, batch: Batch, at: Int[Tensor, " m"], indices: list[int]) -> Float[Tensor, " n"]:
        found = []
        for index, values in zip(indices, self._values(model, batch, at, indices), strict=True):
            targets = torch.tensor(self.targets[index], dtype=torch.long, device=values.device)
            per_token = self.measure.per_token(self._unedited[index], values, targets)
            found.append(per_token.mean() if len(per_token) else per_token.new_zeros(()))
        return torch.stack(found)

    def _values(self, model: ChatModel, batch: Batch, at: Int[Tensor, " m"], indices: list[int]) -> list[Values]:
        """What is read of each prompt: the logits of its tokens, or what leaves the last block there."""
        left: list[Tensor] = []
        handles = [] if self.measure.reads == "logits" else [after(model.blocks[-1].module, left.append)]
        with installed(handles):
            logits = model.forward_at(batch, at[:1] if handles else at, use_cache=False).logits
        values = left[0].flatten(0, 1)[at.to(left[0].device)] if handles else logits
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        return list(values.split([self.passes.rows[index].n for index in indices]))
