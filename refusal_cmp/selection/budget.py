"""The k policy `budget`: of each component the most leading directions whose removal stays within the KL budget.

    k = max {i : kl_i ≤ budget}, or 1 where there is none          kl_i: local KL score of the first i directions

KL need not grow with i: at 17 of the 28 components of tiny-refuser it falls somewhere on the way. A bisection would
miss prefixes, so that they are scored one after the other, from the whole subspace down to the first that is within.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import replace

import pandas as pd

from refusal_cmp.planning import Setting
from refusal_cmp.progress import Progress, silent
from refusal_cmp.selection.scoring import Scorer
from refusal_cmp.subspace import SubspaceField


def within_budget(
    scorer: Scorer,
    field: SubspaceField,
    budget: float,
    *,
    setting: Setting | None = None,
    done: MutableMapping[int, list[float]] | None = None,
    progress: Progress = silent,
) -> pd.DataFrame:
    """A row for each prefix that was scored: `position`, `layer`, `k`, `kl`. The last k of a component is its policy's.

    The components of a layer share passes; one that is settled is in none of those that follow.

    Parameters
    ----------
    done
        KL of the prefixes of each length k, from earlier calls with the same arguments; what is missing is added.
    """
    finished: MutableMapping[int, list[float]] = {} if done is None else done
    rows, left = [], dict(field.subspaces)
    ranks = [subspace.k for subspace in left.values()]
    with progress(f"KL budget of {field.method}", sum(ranks)) as advance:
        for k in range(max(ranks), 0, -1):
            tried = {component: subspace.leading(k) for component, subspace in left.items() if subspace.k >= k}
            if k not in finished:
                finished[k] = scorer.local_kl(replace(field, subspaces=tried), setting).mean(-1).tolist()
            kl = finished[k]
            rows += [(*component, k, value) for component, value in zip(tried, kl, strict=True)]
            settled = [component for component, value in zip(tried, kl, strict=True) if value <= budget]
            for component in settled:
                del left[component]
            advance(len(tried) + (k - 1) * len(settled))
    return pd.DataFrame(rows, columns=["position", "layer", "k", "kl"])
