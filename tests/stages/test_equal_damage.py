"""A run at equal damage: calibrated plans, a sweep of strengths, and what its files and its page say of them."""

from __future__ import annotations

import html
import shutil

import numpy as np
import pytest

from refusal_cmp.calibration.damage import Meter
from refusal_cmp.calibration.search import TOLERANCE
from refusal_cmp.commands.seeds import run_seeds
from refusal_cmp.config import STAGES, load_config
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.report.data import read_run
from refusal_cmp.report.method_text import method_text_over_seeds
from refusal_cmp.report.seeds import read_seeds
from refusal_cmp.report.seeds_at_equal_damage import areas_over
from refusal_cmp.run.contents import (
    CALIBRATION,
    CALIBRATION_PASSES,
    COMPARISONS,
    CURVES,
    FRONTIER,
    PAGE,
    RESULTS,
    read_curve,
    read_plans,
    read_prompts,
    read_results,
)
from refusal_cmp.run.directory import RunDir
from refusal_cmp.stages import run_stages

from support.finished_run import make_run, session_on

SETTINGS = {
    "methods": "diff-in-means,leace",
    "interventions": "ablation,actadd,clamp",
    "actadd_multipliers": "-1",
    "scope": "all",
    "calibrate": "kl=0.02",
    "calibrate_tokens": 6,
    "curve": True,
    "curve_limit": 0.2,
    "evals": "refusal,kl",
    "max_new_tokens": 4,
}


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "equal", tiny, "report", **SETTINGS)


def again(run, tiny, stage, **settings):
    session = session_on(run.run.path, tiny, **{**SETTINGS, **settings})
    run_stages(session, (stage,))
    return session


def test_plans_have_the_strength_that_meets_the_budget(run, tiny):
    found = run.run.read_json(CALIBRATION)
    assert (found["measure"], found["budget"], found["n"]) == ("kl", 0.02, 6)
    plans = {plan.label: plan for plan, _ in read_plans(run)}
    meter = Meter(tiny, [one.instruction for one in read_prompts(run, "harmless_val")], "kl", 6)
    statuses = {}
    for row in found["plans"]:
        damage = float(meter([plans[row["plan"]]]).mean())
        assert damage == pytest.approx(row["damage"], rel=1e-3)
        assert len(row["tried"]) <= 12
        statuses[row["method"], row["cell"]] = row["status"]
        if row["status"] == "met":
            assert abs(damage - 0.02) <= 1.1 * TOLERANCE * 0.02
            assert row["plan"] != f"{row['method']}/{row['cell']}@all"
        else:
            assert (row["status"], row["times"]) == ("below", 1)
    assert statuses["diff-in-means", "ablation"] == "below"
    assert statuses["leace", "ablation"] == "met"
    labels = set(plans)
    assert "diff-in-means/ablation@all" in labels, "all of it is what it was"
    assert any(label.startswith("leace/clamp[share=0.") and label.endswith("]:-1@all") for label in labels)
    table = run.run.read_table(CALIBRATION_PASSES)
    assert len(table) == sum(len(row["tried"]) for row in found["plans"])
    assert set(table.loc[table["chosen"], "plan"]) == {row["plan"] for row in found["plans"]}


def test_methods_are_compared_where_their_strengths_differ(run):
    pairs = run.run.read_table(COMPARISONS)
    methods = pairs[pairs["against"] != "baseline"]
    found = {tuple(label.partition("/")[2][:7] for label in pair) for pair in methods[["plan", "against"]].to_numpy()}
    assert ("ablatio", "ablatio") in found
    assert ("clamp:-", "clamp[s") in found or ("clamp[s", "clamp[s") in found
    assert all(one[:5] == other[:5] for one, other in found)


def test_a_sweep_has_the_strengths_and_what_they_do(run, tiny):
    unedited, *rows = read_curve(run)
    assert unedited["plan"] == "baseline"
    assert not any(unedited["damage"])
    lines = {(row["method"], row["cell"]) for row in rows}
    assert len(rows) == 6 * len(lines) == 6 * 2 * 4
    for row in rows:
        assert [len(row["refused"][name]) for name in ("harmful", "harmless")] == [6, 6]
    ends = [np.mean(row["damage"]) for row in rows[5::6]]
    assert max(ends) <= 0.2 * 1.2
    table = run.run.read_table(CURVES)
    assert len(table) == 2 * (len(rows) + len(lines))
    areas = run.run.read_table(FRONTIER)
    assert list(areas["method"]) == ["diff-in-means", "leace", "diff-in-means"]
    assert areas["ci_low"].le(areas["area"]).all()


def test_the_page_says_who_answers_most_at_equal_damage(run):
    page = (run.run.path / PAGE).read_text(encoding="utf-8")
    assert "At equal damage" in page
    assert "The area under a method" in page
    assert "Plans have the strength at which their damage is 0.02 nats" in page
    assert (run.run.path / "report/figures/frontier.png").is_file()
    assert (run.run.path / "report/figures/curves-all.svg").is_file()
    assert not list((run.run.path / "report/figures").glob("strengths*")), "calibrated strengths are no sweep"
    assert read_run(run).only(methods=["leace"]).sweep.methods == ["leace"]


def test_what_is_finished_is_not_done_again_and_more_can_be_added(run, tiny, monkeypatch):
    before = run.run.read_json(CALIBRATION)
    monkeypatch.setattr("refusal_cmp.stages.calibration.Meter", None)
    again(run, tiny, "infer")
    monkeypatch.undo()
    more = again(run, tiny, "infer", interventions="ablation,actadd,clamp,reflection", curve=False)
    after = more.run.read_json(CALIBRATION)
    assert len(after["plans"]) == len(before["plans"]) + 2
    assert all(after["cells"][digest] == row for digest, row in before["cells"].items())


def test_killed_calibration_goes_on(run, tiny, tmp_path, monkeypatch):
    """Each pass stands in a journal: what was measured before the kill is not measured again."""
    shutil.copytree(run.run.path, tmp_path / "run")
    measured, measure = [], Meter.__call__

    def stopping(self, plans):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append({plan.label for plan in plans})
        return measure(self, plans)

    def start():
        run_stages(session_on(tmp_path / "run", tiny, force=("infer",), **SETTINGS | {"curve": False}), ("infer",))

    monkeypatch.setattr(Meter, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        start()
    before, measured[:] = list(measured), [set()] * 4
    start()
    assert before
    assert len(measured) > 4
    assert not any(one in before for one in measured[4:])
    assert not list((tmp_path / "run" / "infer").glob("*part"))


def test_the_number_of_directions_is_searched_and_then_the_strength(tiny, tmp_path):
    settings = {**SETTINGS, "methods": "diff-in-means,inlp", "interventions": "ablation,alterrep", "curve": False}
    settings |= {"calibrate": "kl=0.05", "calibrate_over": "k", "inlp_k": "1"}
    run = make_run(tmp_path / "over-k", tiny, "report", **settings)
    meter = Meter(tiny, [one.instruction for one in read_prompts(run, "harmless_val")], "kl", 6)
    rows = {(row["method"], row["cell"]): row for row in run.run.read_json(CALIBRATION)["plans"]}
    assert [rows[key]["k"] for key in rows if key[1] == "ablation" or key[0] == "diff-in-means"] == [None] * 3
    row = rows["inlp[k=1]", "alterrep:1"]
    assert row["status"] == "met"
    assert f"[k={row['k']},share={row['times']:g}]:1@all" in row["plan"]
    plan = next(plan for plan, _ in read_plans(run) if plan.label == row["plan"])
    assert plan.k == row["k"] > 1, "more than select was told to use"
    assert float(meter([plan]).mean()) == pytest.approx(0.05, rel=1.1 * TOLERANCE)
    (_, less, fewer), (_, more, larger) = row["beside"]
    assert (fewer, larger) == (row["k"] - 1, row["k"])
    assert less < 0.05 < more
    table = run.run.read_table(CALIBRATION_PASSES)
    assert set(table.loc[table["chosen"], "plan"]) == {row["plan"] for row in rows.values()}
    page = (run.run.path / PAGE).read_text(encoding="utf-8")
    assert f"with k = {fewer}" in page
    before = run.run.read_json(CALIBRATION)
    again_ = session_on(run.run.path, tiny, **settings)
    run_stages(again_, ("infer",))
    assert again_.run.read_json(CALIBRATION) == before


def test_what_is_varied_needs_a_budget():
    with pytest.raises(RefusalCmpError, match="calibrate-over k says what is calibrated to a budget of damage"):
        load_config(None, {"calibrate_over": "k"})


@pytest.mark.parametrize("value", ["kl", "kl=0", "kl=-1", "kl=x", "kll=0.1", "kl=inf", "nan"])
def test_a_budget_that_is_none_is_refused_in_a_sentence(value):
    with pytest.raises(RefusalCmpError, match=r"it must be MEASURE=BUDGET as in kl=0.1"):
        load_config(None, {"calibrate": value})


@pytest.mark.parametrize(("value", "read"), [("0.1", "kl=0.1"), (0.1, "kl=0.1"), ("first-kl=1e-2", "first-kl=0.01")])
def test_a_budget_may_be_short(value, read):
    assert load_config(None, {"calibrate": value}).calibrate == read


def test_another_budget_is_another_run(run, tiny):
    with pytest.raises(RefusalCmpError, match=r"calibrate was 'kl=0.02' and is now 'kl=0.05'"):
        again(run, tiny, "infer", calibrate="kl=0.05")


def test_each_seed_calibrates_its_own_and_the_table_over_seeds_takes_them(tiny, tmp_path):
    settings = {**SETTINGS, "interventions": "nullspace,actadd,clamp", "test_seed": 42}
    sessions = {seed: session_on(tmp_path / f"seed-{seed}", tiny, seed=seed, **settings) for seed in (1, 2)}
    home = RunDir(tmp_path)
    run_seeds(home, sessions, STAGES, lambda _: None)
    rows = {seed: session.run.read_json(CALIBRATION)["plans"] for seed, session in sessions.items()}
    strengths = [[row["times"] for row in of_seed] for of_seed in rows.values()]
    assert strengths[0] != strengths[1], "their strengths differ"
    data = read_seeds("seeds", sessions)
    names = [row["to"] for row in rows[1]]
    assert names == [row["to"] for row in rows[2]]
    assert len(set(names)) == len(names) == 2 * 4
    assert {"leace/nullspace:kl=0.02@all", "leace/actadd:-,kl=0.02@all", "leace/clamp:-1,kl=0.02@all"} <= set(names)
    pooled = home.read_table(RESULTS)
    assert set(pooled["plan"]) == {"baseline", *names}
    assert (pooled["n_seeds"] == 2).all()
    for to in names:
        one = pooled[(pooled["plan"] == to) & (pooled["dataset"] == "harmful") & (pooled["metric"] == "refusal")]
        values = []
        for seed, session in sessions.items():
            label = next(row["plan"] for row in rows[seed] if row["to"] == to)
            results = read_results(session.run)
            of_seed = results[results["plan"] == label]
            values += list(of_seed.loc[(of_seed["dataset"] == "harmful") & (of_seed["metric"] == "refusal"), "value"])
        assert one["value"].item() == pytest.approx(np.mean(values))
    assert {one.plan for one in data.verdicts} == set(names)
    page = html.unescape((home.path / PAGE).read_text(encoding="utf-8"))
    for row in (*rows[1], *rows[2]):
        assert f"{row['times']:.4g} <small>{row['damage']:.3g}</small>" in page
    areas = [session.run.read_table(FRONTIER) for session in sessions.values()]
    expected = np.mean([table.loc[table["against"].isna(), "area"] for table in areas], axis=0)
    found = areas_over(list(data.runs.values()))
    assert sorted(over.mean.value for over, _ in found.values()) == pytest.approx(sorted(expected))
    assert "The area under a method" in page
    assert "same damage to 6 harmless validation prompts" in " ".join(method_text_over_seeds(data).split())
