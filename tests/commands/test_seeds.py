"""Several seeds: a run for each on the same test prompts, and what holds over all of them."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser

import pandas as pd
import pytest

from refusal_cmp.commands.another_seed import chance, compare_seeds, print_agreement
from refusal_cmp.commands.compare import compare_runs
from refusal_cmp.commands.seeds import run_seeds
from refusal_cmp.commands.show import print_answer_over_seeds
from refusal_cmp.config import STAGES, load_config
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.plan import FACTS
from refusal_cmp.report.latex import seeds_tables
from refusal_cmp.report.method_text import method_text_over_seeds
from refusal_cmp.report.page.seeds import seeds_answer
from refusal_cmp.report.seeds import pooled, read_seeds
from refusal_cmp.run.contents import read_results
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.seeds import open_seeds
from refusal_cmp.run.session import Session, open_run
from refusal_cmp.statistics import Estimate, over_seeds, rate
from refusal_cmp.terminal import Terminal

from support.pipeline import SMALL, start

GRID = {"interventions": "ablation,actadd", "scope": "single", "n_test": 12, "evals": "refusal,coherence,kl"}


def several(home, model, seeds, **flags):
    """The command, with the model that is loaded already."""
    said = []
    sessions = {
        seed: Session(
            load_config(None, SMALL | GRID | {"test_seed": 42} | flags | {"seed": seed}),
            RunDir(home / f"seed-{seed}"),
            say=said.append,
            loaded=model,
        )
        for seed in seeds
    }
    run = RunDir(home)
    run.say = said.append
    run_seeds(run, sessions, STAGES, said.append)
    return run, said


@pytest.fixture(scope="module")
def home(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "seeds"
    several(path, tiny, (1, 2, 3))
    return path


@pytest.fixture(scope="module")
def data(home):
    return read_seeds("seeds", open_seeds(home))


def test_the_seeds_have_the_same_test_prompts_and_others_to_learn_from(home):
    prompts = [json.loads((home / f"seed-{seed}/extract/prompts.json").read_text())["prompts"] for seed in (1, 2, 3)]
    for kind in ("harmful", "harmless"):
        assert prompts[0][f"{kind}_test"] == prompts[1][f"{kind}_test"] == prompts[2][f"{kind}_test"]
        assert prompts[0][f"{kind}_train"] != prompts[1][f"{kind}_train"]
    assert RunDir(home).seeds == (1, 2, 3)


def test_results_over_seeds_are_what_each_number_says_by_the_plain_formula(home):
    results = read_results(RunDir(home))
    each = [read_results(RunDir(home / f"seed-{seed}")) for seed in (1, 2, 3)]
    assert len(results) == len(each[0])
    row, *same = (
        table.set_index(["plan", "dataset", "metric"]).loc[("diff-in-means/actadd:1@single", "harmless", "refusal")]
        for table in (results, *each)
    )
    values = [one["value"] for one in same]
    assert row["value"] == pytest.approx(sum(values) / 3)
    assert row["sd"] == pytest.approx(pd.Series(values).std())
    assert row["n_seeds"] == 3
    found = over_seeds([Estimate(*one[["value", "ci_low", "ci_high", "n"]]) for one in same], bounded=True).mean
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((found.low, found.high))
    by_seed = pd.read_csv(home / "by_seed.csv")
    assert len(by_seed) == sum(map(len, each))
    assert set(by_seed["seed"]) == {1, 2, 3}


def test_no_interval_over_seeds_is_below_zero_where_no_value_can_be(home):
    results = read_results(RunDir(home))
    for metric in ("kl", "unedited_loss"):
        found = results[(results["metric"] == metric) & results["ci_low"].notna()]
        assert len(found)
        assert (found["ci_low"] >= 0).all()
    facts = dict.fromkeys(("model", *FACTS))
    row = {**facts, "plan": "inlp/ablation@all", "dataset": "harmless", "metric": "kl", "n": 40}
    apart = [pd.DataFrame([{**row, "value": value, "ci_low": value, "ci_high": value}]) for value in (0.05, 0.09)]
    assert 0 < pooled(apart)["ci_low"].item() < 0.05


def test_intervals_over_seeds_end_at_one_for_shares_alone():
    facts = dict.fromkeys(("model", *FACTS))
    row = {**facts, "plan": "inlp/ablation@all", "dataset": "harmless", "n": 40}

    def over(metric, *values):
        apart = [{**row, "metric": metric, "value": one, "ci_low": one - 0.1, "ci_high": one + 0.1} for one in values]
        (found,) = pooled([pd.DataFrame([one]) for one in apart]).to_dict("records")
        return found["ci_low"], found["value"], found["ci_high"]

    assert over("distinct_trigrams", 0.95, 0.99)[2] == 1
    assert over("rubric_score", 0.95, 0.99)[2] == 1
    assert over("magnitude_pearson:inlp", -0.95, -0.99)[0] == -1
    low, value, high = over("compression", 1.1, 1.2)
    assert low < value < high
    assert high > 1


def test_the_page_says_what_each_seed_says_and_shows_every_plan(home, data):
    text = (home / "report/index.html").read_text()
    HTMLParser().feed(text)
    for seed in (1, 2, 3):
        assert f"../seed-{seed}/report/index.html" in text
    assert text.count('<th scope="row" class="plan"') == len(data.as_run.plans)
    assert f"{data.verdicts[0].suppresses} of 3" in text
    assert "{{" not in text


def test_the_plan_that_is_named_suppresses_with_the_most_seeds_at_the_least_cost(data):
    best = data.verdicts[0]
    assert best.suppresses == max(one.suppresses for one in data.verdicts)
    for one in data.verdicts:
        alone = [standing for ranked in data.standings.values() for standing in ranked if standing.plan == one.plan]
        assert one.suppresses == sum(standing.suppresses for standing in alone)
        assert one.measured == len(alone) == 3


def test_latex_has_mean_spread_and_interval(data):
    found = seeds_tables(data)
    assert r"$\pm$" in found["plans"]
    assert "Means over the seeds 1, 2 and 3" in found["plans"]
    assert found["selection"].count("seed ") >= 3
    assert "dev split (seeds 1, 2 and 3)" in method_text_over_seeds(data)


def test_what_is_finished_is_not_done_again(home, tiny, monkeypatch):
    before = {path: path.read_bytes() for path in home.rglob("*.csv")}
    monkeypatch.setattr(type(tiny), "generate", lambda *_, **__: pytest.fail("something was generated"))
    _, said = several(home, tiny, (1, 2, 3))
    assert {path: path.read_bytes() for path in home.rglob("*.csv")} == before
    assert not [one for one in said if "made again" in one]


def test_a_seed_can_join(tiny, tmp_path):
    small = {"evals": "refusal", "methods": "diff-in-means", "interventions": "ablation"}
    several(tmp_path / "seeds", tiny, (1, 2), **small)
    run, said = several(tmp_path / "seeds", tiny, (1, 2, 3), **small)
    assert set(read_results(run)["n_seeds"]) == {3}
    assert [one for one in said if "made again" in one] == [
        "report/index.html is made again: seed-3/results.csv is new."
    ]


def test_a_run_of_one_seed_is_no_place_for_several(tiny, tmp_path):
    start(tmp_path / "one", tiny, ("extract",), **GRID)
    with pytest.raises(RefusalCmpError, match="is a run with one seed"):
        several(tmp_path / "one", tiny, (1, 2))


def test_a_plan_that_only_some_seeds_have_counts_those():
    def results(plans, value):
        facts = dict.fromkeys(("method", "k", "intervention", "strength", "scope", "n_components", "n_layers"))
        facts |= dict.fromkeys(("direction", "position", "layer"))
        row = {"model": "m", **facts, "dataset": "harmful", "metric": "refusal", "value": value}
        return pd.DataFrame([{**row, "plan": plan, "ci_low": value, "ci_high": value, "n": 9} for plan in plans])

    found = pooled([results(["a", "b"], 0.25), results(["a"], 0.75)]).set_index("plan")
    assert (found.loc["a", "value"], found.loc["a", "n_seeds"]) == (0.5, 2)
    assert (found.loc["b", "value"], found.loc["b", "n_seeds"]) == (0.25, 1)
    assert pd.isna(found.loc["b", "sd"])


def test_another_seed_says_the_same_within_chance(home):
    found = compare_seeds(home / "seed-1", home / "seed-2")
    assert found.tested > 20
    assert found.outside <= found.tested * 0.2
    assert not found.apart
    assert not found.made
    console = Terminal(file=io.StringIO(), width=140)
    print_agreement(console, found, 20)
    text = console.file.getvalue()
    assert "Seed 1 names" in text
    assert "ρ of bypass" in text


def test_what_chance_does_not_explain_is_named(home, tiny, tmp_path):
    start(
        tmp_path / "other",
        tiny,
        seed=5,
        test_seed=42,
        **GRID | {"actadd_multipliers": "-1,1"},
        induce_aggregate="median",
    )
    other = RunDir(tmp_path / "other")
    results = read_results(other)
    moved = (results["metric"] == "refusal") & (results["plan"] == "diff-in-means/actadd:1@single")
    for column, value in zip(("value", "ci_low", "ci_high"), rate(0, 12)[:3], strict=True):
        results.loc[moved, column] = value
    with other.locked():
        other.write_table("results.csv", results)
        other.save()
    found = compare_seeds(home / "seed-1", tmp_path / "other")
    assert {one.key[0] for one in found.apart} == {"diff-in-means/actadd:1@single"}
    assert ("induce-aggregate", "max", "median") in found.made


def test_the_same_seed_is_another_question(home):
    with pytest.raises(RefusalCmpError, match="Both runs have the seed 1"):
        compare_seeds(home / "seed-1", home / "seed-1")


def test_chance_is_one_for_equals_and_half_the_way_at_joint_intervals():
    one = Estimate(0.5, 0.4, 0.6, 50)
    assert chance(one, one) == 1
    apart = Estimate(0.5 + 0.2 / 2**0.5, 0.4 + 0.2 / 2**0.5, 0.9, 50)
    assert chance(one, apart) == pytest.approx(0.05, abs=1e-3)
    assert chance(one, apart) == chance(apart, one)


def test_of_plans_that_do_the_same_the_first_in_the_table_is_named_as_each_seed_alone_does(data, home):
    named = {ranked[0].plan for ranked in data.standings.values()}
    assert {data.verdicts[0].plan} == named == {"diff-in-means/ablation@single"}
    assert data.too_few
    assert "Too few harmful test prompts to decide" in (home / "report/index.html").read_text()


def test_the_folder_of_all_is_no_run_and_says_which_are(home):
    says = "it holds those of the seeds 1, 2, 3; name one of them, such as .*seed-1"
    for opened in (lambda: open_run(home), lambda: compare_runs(home, home), lambda: compare_seeds(home, home)):
        with pytest.raises(RefusalCmpError, match=says):
            opened()


def test_methods_and_scopes_can_be_left_out(data):
    one = data.only(["inlp"])
    assert one.as_run.methods == ["inlp"]
    assert {verdict.method for verdict in one.verdicts} == {"inlp"}
    with pytest.raises(RefusalCmpError, match="Did you mean 'inlp'"):
        data.only(["inpl"])


def test_a_run_over_seeds_ends_in_its_answer_and_what_each_seed_says_alone(data):
    shown = Terminal(file=io.StringIO(), width=1000)
    print_answer_over_seeds(shown, data)
    text = shown.file.getvalue()
    answer = seeds_answer(data)
    assert text.startswith(answer["headline"].replace("{plan}", answer["plan"]))
    for seed in data.seeds:
        assert f"Seed {seed} alone: {data.standings[seed][0].plan} " in text
