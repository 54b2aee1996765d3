"""Scores of every component: bypass, induce and KL, locally or globally (Arditi et al. 2024, section 2.3).

    bypass = mean refusal metric on harmful validation prompts under the removal edit
    induce = mean refusal metric on harmless validation prompts under activation addition, for each multiplier
    kl     = mean KL(baseline ‖ edited) of the last position's distribution on harmless prompts, removal edit

Local scores edit the component's own layer, global ones every layer with the same subspace. The edits are
those of the plans themselves. Many candidates share one forward pass, one edit for each group of rows, and
a local candidate's pass starts from the residual stream at its layer, which is kept of one layer at a time.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_cmp.model import Batch, ChatModel, refusal_metric
from refusal_cmp.model.batching import RowBudget
from refusal_cmp.model.linear import prepacked
from refusal_cmp.model.passes import Edits, edited_pass
from refusal_cmp.model.reading import stream_at
from refusal_cmp.planning import Chosen, Scope, Setting, make_plan
from refusal_cmp.progress import Progress, silent
from refusal_cmp.subspace import Component, SubspaceField

_Key = TypeVar("_Key", bound=int | tuple[int, int])

Reach = Literal["local", "global"]
SCOPES = {"local": Scope("single"), "global": Scope("all")}
PART_SIZE = 16
"""Prompts of a part: of like length, so that little is padding, and several candidates fit in one pass."""


@dataclass(frozen=True)
class PromptScores:
    """Per-prompt scores of the candidates of one method, in the order of the field's components."""

    bypass: Float[Tensor, "c n"]
    """Refusal metric on harmful prompts under the removal edit."""
    induce: Float[Tensor, "c m n"]
    """Refusal metric on harmless prompts under activation addition, for each multiplier."""
    kl: Float[Tensor, "c n"]
    """KL(baseline ‖ edited) on harmless prompts under the removal edit, nats."""

    def at(self, rows: Sequence[int]) -> PromptScores:
        """The scores of some candidates."""
        return PromptScores(self.bypass[rows], self.induce[rows], self.kl[rows])

    def __add__(self, other: PromptScores) -> PromptScores:
        """The scores of these candidates and of others on the same prompts."""
        pairs = ((self.bypass, other.bypass), (self.induce, other.induce), (self.kl, other.kl))
        return PromptScores(*map(torch.cat, pairs))


@dataclass
class Part:
    """A batch of validation prompts with what every candidate needs of the unedited pass."""

    rows: list[int]
    batch: Batch
    metric: Float[Tensor, " n"]
    logits: Float[Tensor, "n vocab"]
    """Kept of prompts on which divergence from them is measured; empty of others."""
    layer: int = 0
    stream: Float[Tensor, "r t d"] | None = None
    """On entry to that layer's block."""

    @property
    def log_probs(self) -> Float[Tensor, "n vocab"]:
        """Of the unedited model, float64."""
        return self.logits.double().log_softmax(-1)


def _last_logits(model: ChatModel, batch: Batch) -> Float[Tensor, "n vocab"]:
    return model.last_logits(batch)


class Scorer:
    """Scores candidates on fixed validation prompts; the unedited passes are done once.

    Parameters
    ----------
    refusal_tokens
        The set R of the refusal metric.
    kl_epsilon
        Inside the logs of the KL; see `kl_divergence`.
    max_rows
        Most rows (candidates × prompts) in one forward pass; by default what memory and speed suggest, halved
        whenever memory runs out.
    """

    def __init__(
        self,
        model: ChatModel,
        harmful: Sequence[str],
        harmless: Sequence[str],
        refusal_tokens: Sequence[int],
        *,
        kl_epsilon: float = 0.0,
        max_rows: int | None = None,
    ) -> None:
        self.model = model
        self.kl_epsilon = kl_epsilon
        self.refusal_tokens = refusal_tokens
        self.rows = RowBudget(model.device, max_rows)
        self.bypass_seconds = 0.0
        """That the bypass scores of the last call of `score` took, without induce and KL."""
        self.harmful = self._parts(harmful, with_logits=False)
        self.harmless = self._parts(harmless, with_logits=True)

    def baseline(self, kind: Literal["harmful", "harmless"]) -> Float[Tensor, " n"]:
        """Refusal metric of the unedited model on each validation prompt."""
        parts = self.harmful if kind == "harmful" else self.harmless
        metric = torch.empty(sum(len(part.batch) for part in parts), dtype=torch.float64)
        for part in parts:
            metric[part.rows] = part.metric
        return metric

    @prepacked()
    def score(
        self,
        field: SubspaceField,
        reach: Reach,
        *,
        multipliers: Sequence[float],
        setting: Setting | None = None,
        selected_norm: float | None = None,
        done: MutableMapping[int, list[Any]] | None = None,
        progress: Progress = silent,
    ) -> PromptScores:
        """The per-prompt scores of every component of a field.

        Parameters
        ----------
        selected_norm
            The unit of additions where `setting.norm` is `selected`; by default each component's own.
        done
            Scores of components by index, from earlier calls with the same arguments; those that are missing are added
            in batches. A batch of which any is missing is scored as a whole: its composition decides the last bits.
        """
        finished: MutableMapping[int, list[Any]] = {} if done is None else done
        components = list(field)
        bypass, kl = self._unknown(self.harmful, len(components)), self._unknown(self.harmless, len(components))
        induce = self._unknown(self.harmless, len(components), len(multipliers))

        def removal(index: int) -> Edits:
            return candidate_edits("nullspace", field, components[index], reach, setting)

        def addition(pair: tuple[int, int]) -> Edits:
            component, multiplier = components[pair[0]], multipliers[pair[1]]
            return candidate_edits("actadd", field, component, reach, setting, multiplier, selected_norm)

        self.bypass_seconds = 0.0
        with progress(f"scoring {field.method}, {reach}", len(components)) as advance:
            for start, removed in batches(by_start(components, reach), max(1, self.rows.limit // PART_SIZE)):
                if any(index not in finished for index in removed):
                    added = [(index, column) for index in removed for column in range(len(multipliers))]
                    began = time.monotonic()
                    self._fill(bypass, self.harmful, start, removed, removal, self._metric)
                    self.bypass_seconds += time.monotonic() - began
                    self._fill(kl, self.harmless, start, removed, removal, self._kl)
                    self._fill(induce, self.harmless, start, added, addition, self._metric)
                    for index in removed:
                        finished[index] = [scores[index].tolist() for scores in (bypass, induce, kl)]
                for index in removed:
                    bypass[index], induce[index], kl[index] = map(bypass.new_tensor, finished[index])
                advance(len(removed))
        return PromptScores(bypass, induce, kl)

    @prepacked()
    def local_kl(self, field: SubspaceField, setting: Setting | None = None) -> Float[Tensor, "c n"]:
        """The local KL scores alone."""
        components = list(field)
        kl = self._unknown(self.harmless, len(components))

        def removal(index: int) -> Edits:
            return candidate_edits("nullspace", field, components[index], "local", setting)

        for start, removed in by_start(components, "local").items():
            self._fill(kl, self.harmless, start, removed, removal, self._kl)
        return kl

    def _parts(self, instructions: Sequence[str], with_logits: bool) -> list[Part]:
        parts = []
        for rows, batch in self.model.batches(instructions, self.rows.at_most(PART_SIZE)):
            with self.rows.measured(len(batch)):
                logits = self.model.last_logits(batch)
                metric = refusal_metric(logits, self.refusal_tokens).cpu()
            parts.append(Part(rows, batch, metric, logits if with_logits else logits.new_empty(0)))
        return parts

    def _stream(self, part: Part, layer: int) -> Float[Tensor, "r t d"]:
        """The unedited stream on entry to a layer, read on from where the part's last one was if that is before it."""
        known = part.stream
        if known is not None and part.layer == layer:
            return known
        begun = nullcontext() if known is None or part.layer > layer else self.model.resumed(part.layer, known)
        with self.rows.halving(len(part.batch), least=len(part.batch)), begun:
            stream = stream_at(self.model, part.batch, layer)
        part.layer, part.stream = layer, stream
        return stream

    @staticmethod
    def _unknown(parts: Sequence[Part], *shape: int) -> Float[Tensor, "*shape n"]:
        """Scores on the prompts of these parts that are still to be filled in."""
        return torch.full((*shape, sum(len(part.batch) for part in parts)), torch.nan, dtype=torch.float64)

    def _fill(
        self,
        scores: Float[Tensor, "*shape n"],
        parts: Sequence[Part],
        start: int,
        candidates: Sequence[_Key],
        edits_of: Callable[[_Key], Edits],
        measure: Callable[[Part, Float[Tensor, "g n vocab"]], Float[Tensor, "g n"]],
    ) -> None:
        """Measure candidates, which are indices into `scores`, on every prompt."""
        for part in parts:
            for keys, logits in self.passes(start, candidates, edits_of, part):
                at = torch.tensor(keys).view(len(keys), -1, 1)
                scores[(*at.unbind(1), torch.tensor(part.rows))] = measure(part, logits)

    def passes(
        self,
        start: int,
        candidates: Sequence[_Key],
        edits_of: Callable[[_Key], Edits],
        part: Part,
        read: Callable[[ChatModel, Batch], Float[Tensor, "gn ..."]] = _last_logits,
    ) -> Iterator[tuple[list[_Key], Float[Tensor, "g n ..."]]]:
        """Last-position logits of as many candidates at a time as fit in memory; there are no edits but theirs.

        Parameters
        ----------
        read
            What is read of a pass instead.
        """
        done, stream = 0, self._stream(part, start)
        row = self.model.row_bytes(math.ceil(part.batch.ids.numel() / len(part.batch)))
        while done < len(candidates):
            chunk = list(candidates[done : done + max(1, self.rows.within(row) // len(part.batch))])
            edits = [edits_of(key) for key in chunk]
            with self.rows.halving(len(chunk) * len(part.batch), least=len(part.batch)) as attempt:
                found = edited_pass(self.model, start, edits, part.batch, stream, read)
            if attempt.failed:
                continue
            yield chunk, found
            done += len(chunk)

    def _kl(self, part: Part, logits: Float[Tensor, "g n vocab"]) -> Float[Tensor, "g n"]:
        """One group at a time: the vocabulary is the large dimension."""
        unedited = part.log_probs
        rows = [kl_divergence(unedited, one.double().log_softmax(-1), self.kl_epsilon) for one in logits]
        return torch.stack(rows).cpu()

    def _metric(self, _: Part, logits: Float[Tensor, "g n vocab"]) -> Float[Tensor, "g n"]:
        return refusal_metric(logits.flatten(0, 1), self.refusal_tokens).view(logits.shape[:2]).cpu()


def by_start(components: Sequence[Component], reach: Reach) -> dict[int, list[int]]:
    """Indices of components by the block that their passes start from: the first that their edits change."""
    candidates: dict[int, list[int]] = defaultdict(list)
    for index, component in enumerate(components):
        candidates[component.layer if reach == "local" else 0].append(index)
    return candidates


def passes_of_bypass(field: SubspaceField, reach: Reach) -> float:
    """What the bypass of a field costs, in passes of the harmful validation prompts through all blocks."""
    n_layers = field.means.n_layers
    return sum(len(of) * (n_layers - start) for start, of in by_start(list(field), reach).items()) / n_layers


def batches(candidates: Mapping[int, Sequence[int]], size: int) -> Iterator[tuple[int, Sequence[int]]]:
    """The candidates of every start, so many at a time."""
    for start, indices in candidates.items():
        for first in range(0, len(indices), size):
            yield start, indices[first : first + size]


def candidate_edits(
    intervention: str,
    field: SubspaceField,
    component: Component,
    reach: Reach,
    setting: Setting | None,
    strength: float | None = None,
    selected_norm: float | None = None,
) -> Edits:
    """The edits of the plan that scores a component by an intervention."""
    chosen = Chosen(field, component, (component,))
    return make_plan(
        intervention, chosen, SCOPES[reach], strength=strength, setting=setting, selected_norm=selected_norm
    ).edits


def kl_divergence(
    baseline: Float[Tensor, "n vocab"], edited: Float[Tensor, "n vocab"], epsilon: float = 0.0
) -> Float[Tensor, " n"]:
    """KL(baseline ‖ edited) of log-probabilities, nats, exact in log space.

    Parameters
    ----------
    epsilon
        Added to the probabilities inside the logs, as published (1e-6): it makes the divergence smaller the larger
        the vocabulary is.
    """
    if epsilon:
        ratio = (baseline.exp() + epsilon).log() - (edited.exp() + epsilon).log()
        return (baseline.exp() * ratio).sum(-1)
    return torch.nn.functional.kl_div(edited, baseline, reduction="none", log_target=True).sum(-1)
