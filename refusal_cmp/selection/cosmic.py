"""COSMIC: how far opposite edits invert the concept in the stream, whatever tokens follow (Siu et al. 2025).

    comply = cos(mean of harmful states with the subspace removed,   mean of harmless states)
    refuse = cos(mean of harmless states with the direction added,   mean of harmful states)
    score  = comply + refuse                                          higher is better

Siu et al. 2025, arXiv:2506.00085, and their code. A state is the residual stream at a prompt's last token; a mean is
over the validation prompts and over the layers in which the class means of the training prompts are least alike by
their cosine: a tenth of all, rounded down, at least one. Removal is that of the bypass score, addition that of the
induce score at multiplier 1, at the component's own layer. At global reach, with difference in means, that is the
published rule; but states are read on entry to blocks, so that what the last block writes is none, and filters are
those of all rank keys.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from refusal_cmp.model.reading import last_streams
from refusal_cmp.planning import Setting
from refusal_cmp.progress import Progress, silent
from refusal_cmp.selection.scoring import PART_SIZE, Edits, Part, Reach, Scorer, batches, by_start, candidate_edits
from refusal_cmp.subspace import ClassMeans, SubspaceField

SHARE = 0.1
"""Of the layers, whose states are compared."""


def least_alike(means: ClassMeans) -> list[int]:
    """The layers in which the class means at the last token are least alike; the first holds embeddings alone."""
    last = means.positions.index(-1)
    alike = cosine_similarity(means.harmful[last, 1:], means.harmless[last, 1:], dim=-1)
    return sorted((alike.argsort()[: max(1, int(SHARE * means.n_layers))] + 1).tolist())


def cosmic(
    scorer: Scorer,
    field: SubspaceField,
    reach: Reach,
    *,
    setting: Setting | None = None,
    selected_norm: float | None = None,
    done: MutableMapping[int, list[float]] | None = None,
    progress: Progress = silent,
) -> Float[Tensor, "c 2"]:
    """`comply` and `refuse` of every component of a field, float64.

    Parameters
    ----------
    selected_norm
        The unit of additions where `setting.norm` is `selected`; by default each component's own.
    done
        Scores of components by index, from earlier calls with the same arguments; see `Scorer.score`.
    """
    finished: MutableMapping[int, list[float]] = {} if done is None else done
    components, layers = list(field), least_alike(field.means)
    unedited = {id(part): last_streams(scorer.model, part.batch, layers) for part in scorer.harmful + scorer.harmless}
    harmful, harmless = (_mean([unedited[id(p)] for p in parts]) for parts in (scorer.harmful, scorer.harmless))

    def removal(index: int) -> Edits:
        return candidate_edits("nullspace", field, components[index], reach, setting)

    def addition(index: int) -> Edits:
        return candidate_edits("actadd", field, components[index], "local", setting, 1.0, selected_norm)

    def mean_under(
        parts: Sequence[Part], start: int, some: Sequence[int], edits_of: Callable[[int], Edits]
    ) -> Float[Tensor, "c d"]:
        """The mean state under each candidate; layers up to the first that is edited are as they were."""
        later = [layer for layer in layers if layer > start]
        before, row = len(layers) - len(later), {index: i for i, index in enumerate(some)}
        total = torch.zeros(len(some), field.means.harmful.shape[-1], dtype=torch.float64)
        for part in parts:
            total += unedited[id(part)][:, :before].double().sum((0, 1)).cpu()
            read = partial(last_streams, layers=later)
            for keys, states in scorer.passes(start, some, edits_of, part, read) if later else ():
                total[[row[key] for key in keys]] += states.double().sum((1, 2)).cpu()
        return total / (len(layers) * sum(len(part.batch) for part in parts))

    with progress(f"comparing states, {field.method}, {reach}", len(components)) as advance:
        for start, some in batches(by_start(components, "local"), max(1, scorer.rows.limit // PART_SIZE)):
            if any(index not in finished for index in some):
                removed = mean_under(scorer.harmful, start if reach == "local" else 0, some, removal)
                added = mean_under(scorer.harmless, start, some, addition)
                comply, refuse = cosine_similarity(removed, harmless), cosine_similarity(added, harmful)
                for index, *both in zip(some, comply.tolist(), refuse.tolist(), strict=True):
                    finished[index] = both
            advance(len(some))
    return torch.tensor([finished[index] for index in range(len(components))], dtype=torch.float64).view(-1, 2)


def passes(field: SubspaceField, reach: Reach) -> float:
    """What it costs, in passes of a class's validation prompts through all blocks, with those for unedited states."""
    last = max(least_alike(field.means))
    added = sum(max(0, last - component.layer) for component in field)
    removed = added if reach == "local" else last * len(field)
    return (2 * last + added + removed) / field.means.n_layers


def _mean(states: Sequence[Float[Tensor, "n l d"]]) -> Float[Tensor, " d"]:
    """The mean over prompts and layers."""
    return torch.cat([one.double() for one in states]).mean((0, 1)).cpu()
