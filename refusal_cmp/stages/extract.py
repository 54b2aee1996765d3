"""extract: prompts → activations → one file of subspaces for each method."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import pandas as pd

from refusal_cmp.activations import MIN_PROMPTS, Activations
from refusal_cmp.data import Prompt
from refusal_cmp.data.sampling import to_raise
from refusal_cmp.errors import NoSubspaceError, RefusalCmpError
from refusal_cmp.judges.completion import refuses
from refusal_cmp.methods import Extractor, Method, ModelMethod, configured
from refusal_cmp.model.reading import collect
from refusal_cmp.model.sight import ModelSight
from refusal_cmp.report.wording import counted, span
from refusal_cmp.run.contents import MEANS, PROMPTS, means_file, ranks_file, read_prompts, subspace_file
from refusal_cmp.run.session import Session
from refusal_cmp.selection.among import chosen
from refusal_cmp.selection.stability import other_splits
from refusal_cmp.stages.prompts import KINDS, draw_prompts
from refusal_cmp.subspace import Subspace, SubspaceField

OTHER_SPLITS = 5
"""Dev splits beside the run's own that a rank is found by, where it depends on the split."""
SPLIT_COMPONENTS = 6
"""Components at which it is."""


def extract_stage(session: Session) -> None:
    """Sample and filter the prompts, and run every method on the same activations."""
    config, run = session.config, session.run
    settings = config.binding("extract")
    methods = {name: configured(config, name) for name in config.methods}
    inputs = {name: method.inputs() for name, method in methods.items()}
    draw_prompts(session)
    drawn = {PROMPTS: run.digest(PROMPTS)}
    sources = {name: drawn | inputs[name] for name in methods}
    has_means = run.is_fresh(MEANS, settings, drawn)
    methods = {
        name: method
        for name, method in methods.items()
        if not run.is_fresh(subspace_file(name), settings, sources[name])
    }
    if has_means and not methods:
        return
    model, post = session.model, session.model.positions
    beyond = {at for name in config.methods for at in configured(config, name).positions(post)} - set(post)
    chosen(config, post, model.n_layers, sorted(beyond))  # select's choice, before there is any work
    for method in methods.values():
        method.check(post, model.n_layers, model.d_model)
    _check_enough(session)
    train = [read_prompts(session, f"{kind}_train") for kind in KINDS]
    activations = collect(
        model,
        *[[prompt.instruction for prompt in prompts] for prompts in train],
        positions=(*sorted({at for method in methods.values() for at in method.positions(post)} - set(post)), *post),
        needs="means" if all(method.needs == "means" for method in methods.values()) else "activations",
        dev_share=config.dev_share,
        seed=config.seed,
        batch_size=config.batch_size,
        categories={prompt.instruction: prompt.category for prompts in train for prompt in prompts},
        folder=run.path,
        progress=session.progress,
    )
    if not has_means:
        run.write_tensors(MEANS, activations.only(post).means().to_tensors(), {})
        run.record(MEANS, settings, drawn)
    for name, method in methods.items():
        seen = activations.only(method.positions(post))
        field = _fitted(session, method, name, seen, train)
        if not len(field):
            reasons = ", ".join(sorted(set(field.missing.values())))
            raise RefusalCmpError(f"{name} found no subspace at any component ({reasons}); give other or more prompts.")
        run.write_tensors(subspace_file(name), *field.to_tensors())
        session.say(_summary(field, seen))
        also = []
        if seen.positions != post:
            run.write_tensors(means_file(name), field.means.to_tensors(), {})
            also.append(means_file(name))
        if isinstance(method, Extractor) and method.rank_by_dev:
            ranks = _ranks(method, field, seen, config.dev_share, config.seed)
            run.write_table(ranks_file(name), ranks)
            also.append(ranks_file(name))
            session.say(_spread(name, ranks))
        run.record(subspace_file(name), settings, sources[name], also)


def _fitted(
    session: Session, method: Method, name: str, activations: Activations, train: Sequence[Sequence[Prompt]]
) -> SubspaceField:
    if not isinstance(method, ModelMethod):
        return method.fit_field(activations, name, session.progress)
    prompts = [prompt.instruction for prompts in train for prompt in prompts]
    return method.fit_seeing(
        ModelSight(session.model, prompts, activations, refuses, session.say), name, session.progress
    )


def _check_enough(session: Session) -> None:
    """RefusalCmpError where too few training prompts are left, with what would give more of those that are short."""
    counts = session.run.read_json(PROMPTS)["counts"]
    left = {kind: len(read_prompts(session, f"{kind}_train")) for kind in KINDS}
    short = {kind: counts[f"{kind}_train"] for kind in KINDS if left[kind] < MIN_PROMPTS}
    if not short:
        return
    config, settings = session.config, []
    for kind, one in short.items():
        there = one["available"] - one["duplicates"] - one["near_duplicates"]
        needed = one["sampled"] + MIN_PROMPTS - left[kind]
        settings.append(to_raise(there, needed, n_train=config.n_train, limit=config.limit))
    dropped = sum(one["dropped"] for one in short.values())
    mend = dict.fromkeys(chain.from_iterable(settings), "") if all(settings) else {"split": ""}
    ways = [
        "take more of those that there are" if all(settings) else "give more, or of one list a larger training part"
    ]
    if dropped:
        mend["no_filter_prompts"] = ""
        those = "one that was" if dropped == 1 else f"{dropped} that were"
        ways.append(f"keep the {those} dropped by the refusal metric")
    there = " and ".join(f"{left[kind]} {kind}" for kind in KINDS)
    raise RefusalCmpError(
        f"Extraction needs at least {MIN_PROMPTS} different training prompts of each kind, and there are {there} ones; "
        f"{', or '.join(ways)}.",
        **mend,
    )


def _ranks(
    method: Extractor, field: SubspaceField, activations: Activations, dev_share: float, seed: int
) -> pd.DataFrame:
    """The rank at some components, from the first to the last, by the run's dev split and by those of other seeds."""
    among = list(field)
    chosen = [among[i] for i in np.unique(np.linspace(0, len(among) - 1, SPLIT_COMPONENTS).round().astype(int))]
    found: dict[int, Sequence[Subspace | NoSubspaceError]] = {seed: [field[component] for component in chosen]}
    for other, dev in other_splits(activations.harmful, dev_share, seed, OTHER_SPLITS):
        found[other] = method.fit_many([activations.at(component, dev) for component in chosen])
    return pd.DataFrame(
        {**component._asdict(), "seed": of_split, "k": one.k if isinstance(one, Subspace) else 0}
        for of_split, subspaces in found.items()
        for component, one in zip(chosen, subspaces, strict=True)
    )


def _spread(method: str, ranks: pd.DataFrame) -> str:
    by_component = ranks.groupby(["layer", "position"])["k"]
    spans = [f"({position}, {layer}) {span(k.min(), k.max())}" for (layer, position), k in by_component]
    return f"{method}: rank over {ranks['seed'].nunique()} dev splits of the same prompts: {', '.join(spans)}."


def _summary(field: SubspaceField, activations: Activations) -> str:
    ranks = [subspace.k for subspace in field.subspaces.values()]
    total = len(list(activations.components()))
    rank = span(min(ranks), max(ranks))
    return f"{field.method}: a subspace at {len(field)} of {counted(total, 'component')}, rank {rank}."
