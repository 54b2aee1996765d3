"""`scripts/figures.py`: one figure or all of them, of one run or several, and a mistake in one sentence."""

from __future__ import annotations

import importlib.util
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from refusal_cmp.report.figures import FIGURES
from refusal_cmp.report.seeds import SeedsData

from support.finished_run import ON_REQUEST

SCRIPT = Path(__file__).parents[2] / "scripts" / "figures.py"


@pytest.fixture
def script(monkeypatch):
    """The script as a module that writes PNG alone."""
    spec = importlib.util.spec_from_file_location("figures_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "FORMATS", ("png",))
    return module


@pytest.mark.parametrize("name", [name for name in FIGURES if name not in ON_REQUEST])
def test_every_figure_can_be_drawn_alone(name, script, finished, tmp_path, capsys):
    script.main(name, [finished.run.path], tmp_path)
    written = {path.stem.split("-")[0] for path in (tmp_path / "small").iterdir()}
    assert name in written
    assert written <= {name, "landing"}
    assert "not drawn" not in capsys.readouterr().out


def test_a_run_is_narrowed_to_methods_and_to_a_scope(script, finished, tmp_path):
    script.main("plane", [finished.run.path], tmp_path, methods="inlp", scope="all")
    assert {path.stem for path in (tmp_path / "small").iterdir()} == {"landing", "plane-inlp-all"}


def test_several_runs_are_also_drawn_side_by_side(script, finished, tmp_path):
    other = shutil.copytree(finished.run.path, tmp_path / "other")
    script.main("plans", [finished.run.path, other], tmp_path / "out", scope="single")
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")}
    assert written == {"small/plans-single.png", "other/plans-single.png", "runs-single.png"}


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("tradeof", [], "Error: Unknown figure 'tradeof'; known are all, curves, frontier, inlp, magnitude, "),
        ("plans", ["--methods", "inpl"], "Error: Unknown method 'inpl'; known are diff-in-means, inlp, inlp[k=full]."),
        ("plans", ["--venue", "nips"], "Error: Unknown venue 'nips'; known are acl, any, iclr, icml, neurips."),
        ("plans", ["--width", "half"], "Error: Unknown width 'half'; known are column, page."),
        ("plans", ["--scope", "top:50"], "Error: Unknown scope 'top:50'; known are all, single."),
    ],
)
def test_a_name_that_is_not_known_is_answered_by_those_that_are(name, options, said, finished, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["figures.py", name, str(finished.run.path), *options])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(("size", "width"), [("any", 6.9), ("icml", 6.75), ("neurips", 5.5)])
def test_figures_are_as_wide_as_a_venue_wants(size, width, script, finished, tmp_path):
    script.main("plans", [finished.run.path], tmp_path, scope="single", size=size)
    assert Image.open(tmp_path / "small" / "plans-single.png").width == round(150 * width)


@pytest.mark.parametrize(("name", "file"), [("plans", "plans-all"), ("tradeoff", "tradeoff"), ("scores", "scores")])
def test_the_main_result_fits_a_column(name, file, script, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "FORMATS", ("pdf",))
    script.main(name, [finished.run.path], tmp_path, scope="all", size="acl", width="column")
    assert b"MediaBox [ 0 0 218.16 " in (tmp_path / "small" / f"{file}.pdf").read_bytes()


def test_a_folder_that_is_no_run_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["figures.py", "scores", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert end.value.code == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_what_is_written_over_seeds_is_of_all_seeds(script, data, tmp_path):
    runs = {seed: replace(data, manifest={"config": {**data.config, "seed": seed}}) for seed in (1, 2)}
    script.write_over_seeds(SeedsData("seeds", runs), list(FIGURES), tmp_path)
    assert "(seeds 1 and 2)" in (tmp_path / "seeds" / "method.tex").read_text(encoding="utf-8")


def test_all_figures_at_once_as_a_stranger_types_it(finished, tmp_path):
    command = [sys.executable, str(SCRIPT), "all", str(finished.run.path), "--methods", "inlp"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    written = {path.name for path in (tmp_path / "small").iterdir()}
    for name in ("tradeoff.png", "tradeoff.svg", "tradeoff.pdf", "plane-inlp-single.pdf", "plans.tex", "selection.tex",
                 "method.tex", "references.bib"):  # fmt: skip
        assert name in written
    assert (tmp_path / "small/tradeoff.pdf").read_bytes().startswith(b"%PDF")
