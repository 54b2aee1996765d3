"""The class covariances of coordinates along subspaces, for the interventions that need them.

They are read when plans are made, as only then it is known along which subspaces and at which layers. What was read
before is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from refusal_cmp.interventions import INTERVENTIONS
from refusal_cmp.model.reading import class_covariances
from refusal_cmp.planning import Chosen, where_read
from refusal_cmp.run.contents import PROMPTS, covariances_file, read_prompts, subspace_file
from refusal_cmp.run.session import Session
from refusal_cmp.stages.prompts import KINDS
from refusal_cmp.subspace import ClassCovariances


def with_covariances(session: Session, chosen: Sequence[Chosen]) -> list[Chosen]:
    """What selection leaves for planning, with the covariances where an intervention needs them."""
    if not any(INTERVENTIONS.create(name).needs_covariances for name in session.config.interventions):
        return list(chosen)
    methods = dict.fromkeys(one.field.extracted_by for one in chosen)
    found = {method: _read(session, [one for one in chosen if one.field.extracted_by == method]) for method in methods}
    return [replace(one, covariances=found[one.field.extracted_by]) for one in chosen]


def _read(session: Session, chosen: Sequence[Chosen]) -> ClassCovariances:
    """The covariances along the subspaces of one method, which are those of the leading directions too."""
    config, run, method = session.config, session.run, chosen[0].field.extracted_by
    name, settings = covariances_file(method), {"seed": config.seed, "dev_share": config.dev_share}
    sources = {file: run.digest(file) for file in (PROMPTS, subspace_file(method))}
    known = ClassCovariances({})
    if run.is_fresh(name, settings, sources):
        known = ClassCovariances.from_tensors(run.read_tensors(name)[0])
    wanted = {
        (at, one.field[at].k, layer): one.field[at].dual
        for one in chosen
        for at, layer in where_read(one, config.direction)
    }
    missing = {key: rows for key, rows in wanted.items() if key not in known.of}
    if missing:
        harmful, harmless = (
            [prompt.instruction for prompt in read_prompts(session, f"{kind}_train")] for kind in KINDS
        )
        known = known | class_covariances(
            session.model,
            harmful,
            harmless,
            missing,
            dev_share=config.dev_share,
            seed=config.seed,
            batch_size=config.batch_size,
            progress=session.progress,
        )
        run.write_tensors(name, known.to_tensors(), {"method": method})
        run.record(name, settings, sources)
        known = ClassCovariances.from_tensors(run.read_tensors(name)[0])  # the same bits as when it goes on
    return known
