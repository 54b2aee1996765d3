"""The k policy `budget`: as many leading directions as stay within the KL budget, and a run that knows how many."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import log_softmax

from refusal_cmp.api import plan_intervention
from refusal_cmp.run.contents import budget_file, read_fields, read_selections, scores_file
from refusal_cmp.selection.budget import within_budget
from refusal_cmp.selection.scoring import Scorer
from refusal_cmp.stages import run_stages
from refusal_cmp.subspace import SubspaceField

from support.finished_run import make_run, session_on
from support.models import instructions

TIGHT = {"methods": "inlp", "kl_threshold": 0.01}
"""A budget that few prefixes stay within."""


def of_layers(field: SubspaceField, *layers: int) -> SubspaceField:
    """The field of the components at these layers and the last position."""
    return replace(field, subspaces={c: field[c] for c in field if c.layer in layers and c.position == -1})


def log_probs(model, plan, prompts) -> np.ndarray:
    with torch.inference_mode(), model.edited(plan):
        logits = [model.last_logits(model.batch(model.tokenize([prompt]))) for prompt in prompts]
    return log_softmax(torch.cat(logits).double().numpy(), axis=-1)


def kl_of_prefixes(model, field, component, prompts) -> list[float]:
    """The plain loop: one prefix, one prompt, a full forward pass."""
    unedited, at = log_probs(model, {}, prompts), {"position": component.position, "layer": component.layer}
    edited = [
        log_probs(model, plan_intervention("nullspace", field.leading(str(k)), scope="single", **at), prompts)
        for k in range(1, field[component].k + 1)
    ]
    return [float((np.exp(unedited) * (unedited - one)).sum(-1).mean()) for one in edited]


def test_the_most_leading_directions_within_the_budget_are_used(tiny, tiny_fields):
    """Against the plain loop, at budgets between the KLs of all prefixes; KL does not grow with k everywhere."""
    field, prompts = of_layers(tiny_fields["inlp"], 6, 9), instructions("tiny-harmless", "val", 5)
    kl = {component: kl_of_prefixes(tiny, field, component, prompts) for component in field}
    assert any(np.diff(values).min() < 0 for values in kl.values())
    scorer = Scorer(tiny, instructions("tiny-harmful", "val", 1), prompts, [0])
    values = sorted(value for of_component in kl.values() for value in of_component)
    for budget in (values[0] / 2, *(np.sqrt(np.array(values[1:]) * values[:-1])[::3]), values[-1] * 2):
        tried = within_budget(scorer, field, budget)
        for component, rows in tried.groupby(["position", "layer"]):
            within = [k for k, value in enumerate(kl[component], 1) if value <= budget]
            assert rows["k"].iloc[-1] == rows["k"].min() == max(within, default=1)
            assert rows["kl"].tolist() == pytest.approx([kl[component][k - 1] for k in rows["k"]], abs=1e-4)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "budget", tiny, "infer", inlp_k="budget,full", **TIGHT)


def test_a_run_uses_what_stays_within_the_budget_and_says_so(run):
    within, full = read_fields(run)
    assert (within.method, full.method) == ("inlp", "inlp[k=full]")
    tried = run.run.read_table(budget_file("inlp"))
    scores = run.run.read_table("select/scores.csv").set_index(["method", "position", "layer"])
    assert any(within[component].k < full[component].k for component in within)
    for component in within:
        rows = tried[(tried["position"] == component.position) & (tried["layer"] == component.layer)]
        k = int(rows["k"].min())
        assert within[component].k == scores.loc[("inlp", *component), "k"] == k
        assert torch.equal(within[component].basis, full[component].basis[:k])
        kl = scores.loc[("inlp", *component), "local_kl"]
        assert kl == pytest.approx(rows.set_index("k").loc[k, "kl"], rel=1e-3)
        assert kl <= 0.01 or k == 1


def test_the_plans_of_the_budget_are_made_of_so_many_directions(run):
    plans = {row["label"]: row for row in run.run.read_json("infer/plans.json")}
    chosen = dict(zip(("inlp", "inlp[k=full]"), read_selections(run), strict=True))
    for method, field in zip(chosen, read_fields(run), strict=True):
        assert plans[f"{method}/nullspace@all"]["k"] == field[chosen[method].selected].k


def test_scores_of_other_directions_are_not_taken_for_those_of_the_budget(run, tiny, tmp_path):
    """As a run of an older version has them: there `inlp` meant all directions."""
    old = make_run(tmp_path / "old", tiny, "select", inlp_k="full", **TIGHT)
    name, whole = scores_file("inlp", "local"), scores_file("inlp[k=full]", "local")
    old.run.write_tensors(name, *old.run.read_tensors(whole))
    record = dict(old.run.manifest["artifacts"][whole])
    old.run.record(name, record["settings"], {k: v for k, v in record["sources"].items() if k != "k"})
    session = session_on(tmp_path / "old", tiny, **TIGHT)
    run_stages(session, ("select",))
    found, expected = (pd.read_csv(one.run.path / "select/scores.csv") for one in (session, run))
    expected = expected[expected["method"] == "inlp"]
    assert found["local_kl"].tolist() == pytest.approx(expected["local_kl"].tolist(), rel=1e-6)


def test_a_finished_budget_is_not_scored_again_and_belongs_to_its_threshold(run, tiny, monkeypatch):
    monkeypatch.setattr("refusal_cmp.stages.select.Scorer", None)
    run_stages(session_on(run.run.path, tiny, **TIGHT), ("select",))
    with pytest.raises(TypeError, match="not callable"):  # another budget needs scores
        run_stages(session_on(run.run.path, tiny, **TIGHT | {"kl_threshold": 0.002}), ("select",))
