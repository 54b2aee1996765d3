"""The published settings: what they select from published scores, and what they do on the embedded model."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from refusal_cmp.config import load_config
from refusal_cmp.run.contents import PLANS, read_fields, read_plans, read_selections, scores_file
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import Session
from refusal_cmp.selection import Rule, select
from refusal_cmp.stages import run_stages

# (position, layer), bypass, induce, KL: of each published table the selected component, some of those that are better
# by bypass and must be dropped, and the next of those that are kept (andyrdt/refusal_direction,
# pipeline/runs/MODEL/select_direction/direction_evaluations.json).
PUBLISHED = {
    ("gemma-2b-it", 18): [
        ((-3, 1), -18.4207, -13.9560, 13.1445),
        ((-2, 10), -14.4193, 6.7886, 0.0659),
        ((-1, 12), -14.2960, 6.4455, 0.0904),
        ((-2, 12), -14.1950, 6.5925, 0.1251),
    ],
    ("llama-2-7b-chat", 32): [
        ((-6, 30), math.nan, -8.5054, math.nan),
        ((-2, 11), -10.5733, 4.0365, 0.1872),
        ((-6, 29), -9.5468, -8.7389, 9.9001),
        ((-5, 14), -6.6588, 4.4215, 0.1249),
        ((-1, 13), -5.9580, 3.9631, 0.1320),
        ((-1, 14), -5.6169, 5.9863, 0.0712),
        ((-4, 15), -4.2709, 3.3886, 0.0946),
    ],
    ("llama-3-8b-instruct", 32): [
        ((-5, 12), -9.8551, 7.6757, 0.0588),
        ((-2, 12), -9.5877, 7.9620, 0.0258),
        ((-1, 12), -9.2236, 9.1297, 0.0275),
        ((-3, 12), -9.1363, 3.1546, 0.0751),
    ],
    ("qwen-1.8b-chat", 24): [
        ((-4, 1), -8.5429, -6.5259, 7.7260),
        ((-1, 1), -8.3688, -6.5376, 9.1694),
        ((-2, 14), -5.0783, 1.4903, 0.1073),
        ((-2, 15), -5.0575, 1.6514, 0.0658),
        ((-1, 15), -5.0224, 1.7627, 0.0688),
    ],
    ("yi-6b-chat", 32): [
        ((-5, 18), -6.9940, 2.2115, 0.3236),
        ((-5, 19), -6.9285, 1.7529, 0.1276),
        ((-5, 20), -6.7479, 1.6392, 0.0472),
        ((-1, 22), -6.3112, 1.8395, 0.0431),
    ],
}
SELECTED = dict(zip(PUBLISHED, [(-2, 10), (-1, 14), (-5, 12), (-2, 15), (-5, 20)], strict=True))

EMBEDDED = {
    "model": "tiny-refuser",
    "dtype": "float32",
    "harmful": "tiny-harmful",
    "harmless": "tiny-harmless",
    "guard": "tiny-guard",
    "texts": "tiny-answers,tiny-general,on-distribution",
    "tasks": "world_cloze/4",
    "n_train": 48,
    "n_val": 6,
    "n_test": 4,
    "max_new_tokens": 4,
}


@pytest.mark.parametrize("model", PUBLISHED, ids=lambda model: model[0])
def test_published_scores_give_the_published_choice(model):
    rule = Rule.of(load_config("published-arditi", {}), "diff-in-means")
    rows = [
        {
            "method": "diff-in-means",
            "position": position,
            "layer": layer,
            "global_bypass": bypass,
            "local_induce": induce,
            "global_kl": kl,
        }
        for (position, layer), bypass, induce, kl in PUBLISHED[model]
    ]
    table = select(pd.DataFrame(rows), rule, model[1])
    chosen = table[table["selected"]].iloc[0]
    assert (chosen["position"], chosen["layer"]) == SELECTED[model]


@pytest.fixture(scope="module")
def comparison(tiny, tmp_path_factory):
    config = load_config("published", {**EMBEDDED, "compare_rankings": False})
    session = Session(config, RunDir(tmp_path_factory.mktemp("published") / "run"), loaded=tiny)
    run_stages(session, ("extract", "select", "infer"))
    return session


def test_candidates_of_inlp_are_scored_by_the_norm_of_the_selected_difference_in_means(comparison):
    means, inlp = read_fields(comparison)
    made = [comparison.run.manifest["artifacts"][scores_file(one.method, "local")] for one in (means, inlp)]
    assert "selected norm" not in made[0]["sources"]
    norm = means.means.distance(read_selections(comparison)[0].selected)
    assert made[1]["sources"]["selected norm"] == pytest.approx(norm)


def test_additions_are_the_same_whatever_the_scope(comparison):
    selected = {one.method: one.selected.layer for one in read_selections(comparison)}
    added = [(plan, same_as) for plan, same_as in read_plans(comparison) if plan.intervention == "actadd"]
    assert len(added) == 2 * 3 * 6
    assert len({same_as for _, same_as in added}) == 2 * 6
    assert all({place.layer for place in plan.edits} == {selected[plan.method]} for plan, _ in added)


def test_just_one_acts_at_the_first_of_the_unfiltered_ranking(comparison):
    plans = {plan.label: plan for plan, _ in read_plans(comparison)}
    for one, field in zip(read_selections(comparison), read_fields(comparison), strict=True):
        plan = plans[f"{one.method}/nullspace[pool=all]@top0.1"]
        assert {place.layer for place in plan.edits} == {one.ranking[0].layer}
        removed = next(iter(plan.edits.values())).V
        assert removed is not None
        basis = field[one.selected].basis.float()
        assert (removed @ basis.mT @ basis - removed).abs().max() < 1e-5, "the selected component's subspace"


def test_every_plan_says_how_it_differs_from_the_defaults(comparison):
    labels = [row["label"] for row in comparison.run.read_json(PLANS)]
    assert "inlp[k=full]/reflection[pool=all,compose=component]:2@top100" in labels
    assert "inlp[k=full]/actadd[pool=all,spread=false,norm=selected,layers=selected]:-1@top100" in labels


def test_the_original_runs_on_the_embedded_model(tiny, tmp_path):
    session = Session(load_config("published-arditi", EMBEDDED), RunDir(tmp_path / "run"), loaded=tiny)
    run_stages(session, ("extract", "select", "infer"))
    (selection,) = read_selections(session)
    plans = {plan.label: {place.layer for place in plan.edits} for plan, _ in read_plans(session)}
    everywhere = set(range(tiny.n_layers))
    added = {selection.selected.layer}
    assert plans == {
        "baseline": set(),
        "diff-in-means/ablation@all": everywhere,
        "diff-in-means/actadd[layers=selected]:-1@all": added,
        "diff-in-means/actadd[layers=selected]:1@all": added,
    }
