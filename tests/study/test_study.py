"""A whole study on the embedded model: its cells are runs, what they share is made once, and what it says is theirs."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from refusal_cmp.commands.compare import compare_runs
from refusal_cmp.commands.study import How, open_study, plan_study, run_study
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.report.seeds import pooled
from refusal_cmp.run.contents import read_results
from refusal_cmp.run.directory import RunDir
from refusal_cmp.study.driver import Progress, ended_before, owned, run_tasks, tasks_of
from refusal_cmp.study.executors import Devices, Task
from refusal_cmp.study.local import LocalExecutor
from refusal_cmp.study.place import Url
from refusal_cmp.study.receipts import read_receipt
from refusal_cmp.study.report import write_report
from refusal_cmp.study.report.collect import line
from refusal_cmp.study.report.conclusions import Conclusions
from refusal_cmp.study.sizes import resources
from refusal_cmp.study.spec import Cell, Resources, read_study
from refusal_cmp.study.work import run_cell
from refusal_cmp.terminal import Terminal

from support.pipeline import start
from support.study import SETTINGS, run, written


def test_every_cell_is_the_run_that_its_settings_make(whole, tiny, tmp_path):
    study, home, failed, _ = whole
    assert not failed
    cell = study.cells[-1]
    alone = start(tmp_path / cell.label, tiny, study.stages, **cell.settings)[0]
    assert compare_runs(home / cell.label, alone.run.path).agrees
    assert (home / cell.label / "results.csv").read_bytes() == (alone.run.path / "results.csv").read_bytes()


def test_what_cells_have_in_common_is_one_file(whole):
    study, home, _, _ = whole
    for seed in (1, 2):
        folders = [home / cell.label for cell in study.cells if cell.keys["seed"] == seed]
        for name in ("extract/diff-in-means.safetensors", "select/diff-in-means.local.safetensors"):
            assert len({(folder / name).stat().st_ino for folder in folders}) == 1
        assert len({(folder / "results.csv").stat().st_ino for folder in folders}) == 2
    read = [log.read_text().count("a subspace at") for log in sorted((home / "logs").iterdir())]
    assert sum(read) == 2  # of four cells, two found the subspaces of a seed


def test_the_table_has_the_results_of_every_cell_with_its_keys(whole):
    study, home, _, _ = whole
    table = pd.read_csv(home / "study.csv")
    assert table["cell"].unique().tolist() == sorted((cell.label for cell in study.cells), key=lambda one: one[:4])
    for cell in study.cells:
        rows = table[table["cell"] == cell.label]
        own = pd.read_csv(home / cell.label / "results.csv")
        pd.testing.assert_frame_equal(rows[own.columns].reset_index(drop=True), own, check_dtype=False)
        assert set(rows["cell_name"]) == {cell.name}
        assert set(rows["cell_seed"]) == {cell.keys["seed"]}


def test_calibrated_plans_are_one_over_seeds_by_the_budget_that_they_meet(tmp_path):
    more = {"calibrate": "kl=0.001", "interventions": "ablation", "evals": "refusal"}
    file = written(tmp_path / "small.yaml", cells={"best": {}}, settings=SETTINGS | more)
    study, home, failed, _ = run(file, tmp_path / "runs")
    assert not failed
    own = {cell.keys["seed"]: read_receipt(home / cell.label).called for cell in study.cells}
    name = "diff-in-means/ablation:kl=0.001@single"
    assert [set(called.values()) for called in own.values()] == [{name}] * 2
    assert len({plan for called in own.values() for plan in called}) == 2  # each has a strength of its own
    over = pd.read_csv(home / "report/over_seeds.csv")
    assert set(over["plan"]) == {"baseline", name}
    assert set(over["n_seeds"]) == {2}
    table = pd.read_csv(home / "study.csv")
    assert set(table["plan"]) == {"baseline", *own[1], *own[2]}  # as the runs have them
    assert name in (home / "report/index.html").read_text()


def test_numbers_over_seeds_are_those_of_several_seeds(whole):
    """The same statistics as `run --seeds`, which the tests of those hold against the plain formula."""
    study, home, _, _ = whole
    table = pd.read_csv(home / "report/over_seeds.csv")
    cells = [cell for cell in study.cells if cell.name == "best"]
    expected = pooled([read_results(RunDir(home / cell.label)) for cell in cells])
    found = table[table["cell_name"] == "best"]
    keys = ["plan", "dataset", "metric"]
    both = found.merge(expected, on=keys, suffixes=("", "_of_seeds"))
    assert len(both) == len(found) == len(expected)
    for column in ("value", "ci_low", "ci_high", "sd", "n", "n_seeds"):
        np.testing.assert_allclose(both[column], both[f"{column}_of_seeds"], rtol=1e-9, atol=1e-12)


def test_the_page_and_the_tables_say_what_the_receipts_say(whole):
    study, home, _, _ = whole
    page, latex = (home / "report/index.html").read_text(), (home / "report/tables.tex").read_text()
    standings = [read_receipt(home / cell.label).standings for cell in study.cells]
    best = [ranked[0]["plan"] for ranked in standings]
    most = max(set(best), key=best.count)
    assert f"Most often named is {most}, in {best.count(most)} of 4 cells" in page
    assert "In every cell harmful test prompts are too few to know it of any plan." in page, (
        "two prompts decide nothing"
    )
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") > 3
    assert "http" not in page.replace("http://www.w3.org", "")  # self-contained
    for cell in study.cells:
        assert cell.label in page


def test_a_second_start_does_nothing_and_a_new_seed_runs_that_alone(whole, tmp_path):
    _, home, _, _ = whole
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file() and path.name[0] != "."}
    again = run(written(tmp_path / "small.yaml"), home.parent)
    assert again[3] == [f"All 4 cells are done. The page: {home / 'report/index.html'}"]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    more = read_study(written(tmp_path / "more.yaml", seeds=(3, 1, 2)))
    done = ended_before(more, home)
    left = [cell for cell in more.cells if cell.label not in done]
    assert [cell.keys["seed"] for cell in left] == [3, 3]
    console = Terminal(file=io.StringIO(), width=200)
    plan_study(more, home, How(workers=2), console)
    said = console.file.getvalue()
    assert "6 cells: 4 done, 2 to do." in said
    assert "estimated from 4 finished cells" in said
    assert "found 3 times" in said


def test_a_cell_that_fails_stops_no_other_and_says_why(tmp_path):
    cells = {"good": {}, "bad": {"layers": "90"}}
    file = written(tmp_path / "small.yaml", seeds=(1,), cells=cells)
    study, home, failed, said = run(file, tmp_path / "runs")
    assert [one.label for one in failed] == ["bad,seed=1"]
    assert "layer" in failed[0].error
    assert failed[0].error.endswith(".")
    assert read_receipt(home / "good,seed=1").state == "done"
    assert "1 of 2 cells failed" in said[-1]
    assert "1 of 2 cells are done" in (home / "report/index.html").read_text()
    again = open_study(home, None, tmp_path)  # by its folder
    assert again[0].cells == study.cells
    assert ended_before(study, home).keys() == {"good,seed=1"}


def test_results_that_were_changed_are_not_reported(whole, tmp_path):
    study, home, _, _ = whole
    copy = tmp_path / "small"
    for cell in study.cells:
        (copy / cell.label).mkdir(parents=True)
        for name in ("cell.json", "results.csv"):
            (copy / cell.label / name).write_bytes((home / cell.label / name).read_bytes())
    table = copy / study.cells[0].label / "results.csv"
    table.write_bytes(table.read_bytes().replace(b"harmful", b"harmfuk", 1))
    with pytest.raises(RefusalCmpError, match="not what the cell wrote"):
        write_report(study, copy)
    table.write_bytes(b"")  # is seen at once: the cell is to be run again
    assert study.cells[0].label not in ended_before(study, copy)


def test_a_second_driver_and_a_run_directory_are_refused(whole, tmp_path):
    study, home, _, _ = whole
    with owned(home, study), pytest.raises(RefusalCmpError, match="Another process is at work on the study"):
        run_study(study, home, How(), Terminal(file=io.StringIO()), print)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(RefusalCmpError, match="is a run, and no study's folder"):
        run_study(study, tmp_path, How(), Terminal(file=io.StringIO()), print)


def test_a_cell_goes_on_from_a_url_on_another_machine(whole, tmp_path, monkeypatch, capsys):
    """Two folders that share nothing but a URL stand for two machines, of which the first is lost."""
    study, home, _, _ = whole
    cell, url = study.cells[0], f"file://{tmp_path}/kept"

    def task(machine):
        lends = study.lends()[cell.label]
        return Task(cell.label, cell.settings, str(tmp_path / machine), study.stages, cell.bases, lends, results=url)

    def lost(session):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("refusal_cmp.stages.evaluate.evaluate_stage", lost)
        with pytest.raises(SystemExit):
            run_cell(task("one"))
    assert "a subspace at" in capsys.readouterr().out
    assert not ended_before(replace(study, cells=[cell]), tmp_path / "three", url)
    assert run_cell(task("two")) == ""
    assert "a subspace at" not in capsys.readouterr().out
    expected = (home / cell.label / "results.csv").read_bytes()
    assert (tmp_path / "two" / cell.label / "results.csv").read_bytes() == expected
    assert (tmp_path / "kept" / cell.label / "results.csv").read_bytes() == expected
    assert ended_before(replace(study, cells=[cell]), tmp_path / "three", url).keys() == {cell.label}


def test_a_url_keeps_what_changed_and_fetches_what_is_missing(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    place = Url("memory://studies/a", here)
    for home, content in ((here, b"1"), (here, b"2")):
        (home / "cell/extract").mkdir(parents=True, exist_ok=True)
        (home / "cell/extract/x.json").write_bytes(content)
        (home / "cell/manifest.json").write_text(json.dumps({"files": {"extract/x.json": content.decode()}}))
        place.keep("cell")
    Url("memory://studies/a", there).fetch("cell")
    assert (there / "cell/extract/x.json").read_bytes() == b"2"
    Url("memory://studies/a", there).fetch("nothing-there")
    with pytest.raises(RefusalCmpError, match="Results cannot be kept at nonsense://a"):
        Url("nonsense://a", here)


def test_devices_are_handed_out_one_by_one_and_large_models_span_several():
    def task(label, gpus=0, cpus=1):
        return Task(label, {}, "", (), {}, (), cpus=cpus, gpus=gpus)

    devices = Devices(8, ["0", "1", "2"])
    assert devices.take(task("a", gpus=1)) == ["0"]
    assert devices.has(task("b", gpus=2))
    assert devices.take(task("b", gpus=2)) == ["1", "2"]
    assert not devices.has(task("c", gpus=1))
    assert devices.has(task("c"))
    devices.give_back("a")
    assert devices.take(task("c", gpus=1)) == ["0"]
    assert not devices.has(task("d", cpus=7))
    alone = Devices(2, ["0"])
    assert alone.has(task("huge", gpus=9, cpus=64))  # gets all that there is, and may fail by itself
    assert not (alone.take(task("huge", gpus=9, cpus=64)) == ["0"] and alone.has(task("more")))
    assert not Devices(8, [], most=1, held={"a": (1, [])}).has(task("b"))


def test_what_a_cell_takes_goes_by_the_size_of_its_model(tmp_path):
    (tmp_path / "large").mkdir()
    with (tmp_path / "large/model.safetensors").open("wb") as file:
        file.truncate(100 * 2**30)
    (tmp_path / "large/pytorch_model.bin").write_bytes(b"the same, as a pickle")

    def needs(model, gpu_bytes, **given):
        cell = Cell("", {}, {"model": model, "offline": True})
        return resources(cell, Resources(**given), cpus=16, gpu_bytes=gpu_bytes)

    assert needs("tiny-refuser", None) == (1, 0)
    assert needs("tiny-refuser", 80 * 2**30) == (1, 1)
    assert needs(str(tmp_path / "large"), 80 * 2**30) == (8, 2)
    assert needs(str(tmp_path / "large"), 24 * 2**30) == (8, 6)
    assert needs("org/unknown", 80 * 2**30) == (8, 1)
    assert needs("org/unknown", 80 * 2**30, gpus=4, cpus=3) == (3, 4)


def test_conclusions_count_cells_and_models():
    def cell(*plans):
        return [
            {
                "plan": p,
                "method": p.split("/")[0],
                "intervention": p.split("/")[1],
                "suppresses": i == 0,
                "broken": False,
            }
            for i, p in enumerate(plans)
        ]

    found = Conclusions()
    found.add("m1", "m1", cell("a/x", "b/x", "a/y"))
    found.add("m1", "m1", cell("b/x", "a/y", "a/x"))
    found.add("m2", "m2", cell("a/x", "b/x", "a/y"))
    (pair,) = found.ordered("method")
    assert (pair[0], pair[1], pair[2].holds, pair[2].cells) == ("a", "b", 2, 3)
    assert (pair[2].throughout, pair[2].models) == (1, 2)
    assert (found.suppresses["a/x"].holds, found.suppresses["a/x"].throughout) == (2, 1)
    assert found.ordered("intervention")[0][:2] == ("x", "y")
    assert found.ordered("intervention")[0][2].throughout == 2


def test_agreement_is_kendalls_w():
    """Against the textbook: 12 S / (m² (n³ − n)), S the squares of the sums of ranks about their mean."""
    rng = np.random.default_rng(0)
    found = Conclusions()
    orders = [rng.permutation(6) for _ in range(4)]
    for subject, order in enumerate(orders):
        plans = [
            {"plan": f"p{i}", "method": "a", "intervention": "x", "suppresses": False, "broken": False} for i in order
        ]
        found.add("m", str(subject), plans)
    agreement = found.agreement()
    ranks = np.array([np.argsort(order) for order in orders])
    s = ((ranks.sum(0) - ranks.sum(0).mean()) ** 2).sum()
    assert agreement.kendall == pytest.approx(12 * s / (4**2 * (6**3 - 6)))
    assert agreement.rho(0, 1) == pytest.approx(np.corrcoef(ranks[0], ranks[1])[0, 1])


def test_a_cell_that_is_killed_again_and_again_is_given_up_and_said(whole, tmp_path):
    study, _, _, _ = whole
    cell = study.cells[0]
    executor = LocalExecutor(2, [], retries=1)
    tasks = tasks_of(replace(study, cells=[cell]), tmp_path, [cell], lambda _: (1, 0))
    progress = Progress(replace(study, cells=[cell]), tmp_path)
    killed = []

    def watch(_):
        for one in executor.running.values():
            one.process.kill()
            killed.append(one.process.pid)

    run_tasks(progress, tasks, executor, watch)
    assert len(set(killed)) == 2
    assert "was killed 2 times" in progress.receipts[cell.label].error
    assert read_receipt(tmp_path / cell.label) is None


def test_the_table_is_csv_whatever_keys_hold():
    cells = ["a,b", 'say "x"', None, ["p", "q"], True, 1.5, {"k": [1]}]
    (read,) = csv.reader([line(cells)])
    assert read == ["a,b", 'say "x"', "", '["p", "q"]', "true", "1.5", '{"k": [1]}']
