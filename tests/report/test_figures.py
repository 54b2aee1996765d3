"""Figures: every one says what it shows, shows all of it, and comes out of its script in every format."""

from __future__ import annotations

import runpy
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from refusal_cmp.report.geometry import KINDS, WHERE, Landing, measure
from scipy.linalg import subspace_angles

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.report.data import read_run
from refusal_cmp.report.figures import FIGURES, Drawn, Skipped, draw_all, rendered
from refusal_cmp.report.figures._style import FORMATS, INK, method_colours
from refusal_cmp.report.figures.plans import across
from refusal_cmp.report.figures.similarity import principal_angles
from refusal_cmp.report.latex import escaped, tables
from refusal_cmp.report.page import render
from refusal_cmp.run.contents import read_plans, read_prompts, read_selected
from refusal_cmp.run.session import open_run
from refusal_cmp.stages.report import measure_geometry
from refusal_cmp.subspace import Subspace

from support.finished_run import make_run

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def session(tiny, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "small", tiny, inlp_k="full,1", compare_rankings=True)


@pytest.fixture(scope="module")
def data(session):
    return read_run(session, measure_geometry(session))


@pytest.fixture(scope="module")
def outcomes(data):
    return draw_all(data)


def test_every_figure_is_drawn_and_says_what_it_shows(outcomes):
    assert not [one for one in outcomes if isinstance(one, Skipped)]
    names = [one.name for one in outcomes]
    assert len(set(names)) == len(names)
    for name in FIGURES:
        assert any(one.split("-")[0] == name for one in names), name
    for one in outcomes:
        assert one.says.endswith("."), one.name
        assert any(character.isdigit() for character in one.says), one.name
        assert "nan" not in one.says, one.name


def test_nothing_is_cut_off_and_no_tick_labels_overlap(outcomes):
    for one in outcomes:
        canvas = FigureCanvasAgg(one.figure)
        canvas.draw()
        width, height = one.figure.get_size_inches()
        taken = one.figure.get_tightbbox(canvas.get_renderer())
        assert min(taken.x0, taken.y0) > -0.02, one.name
        assert taken.x1 < width + 0.02, one.name
        assert taken.y1 < height + 0.02, one.name
        for ax in one.figure.axes:
            low, high = sorted(ax.get_xlim())
            shown = [tick.label1 for tick in ax.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
            boxes = [label.get_window_extent() for label in shown if label.get_visible() and label.get_text()]
            ends = sorted((box.x0, box.x1) for box in boxes)
            for (_, end), (start, _) in pairwise(ends):
                assert end <= start + 1, (one.name, ax.get_title())


def test_every_figure_fits_a_paper(outcomes):
    for one in outcomes:
        width, height = one.figure.get_size_inches()
        assert width <= 7, one.name
        assert height <= 9.5, one.name


def test_a_figure_has_the_same_bytes_every_time(data):
    (one,), (again,) = FIGURES["tradeoff"](data), FIGURES["tradeoff"](data)
    for kind in ("png", "svg", "pdf"):
        assert rendered(one.figure, kind) == rendered(again.figure, kind), kind


def test_what_was_not_measured_is_said_not_drawn(data):
    without = replace(
        data,
        results=data.results[data.results["metric"] == "kl"],
        rankings=None,
        magnitude=None,
        geometry=None,
        fields={"diff-in-means": data.fields["diff-in-means"]},
    )
    skipped = {one.name: one.why for one in draw_all(without) if isinstance(one, Skipped)}
    assert set(skipped) == set(FIGURES) - {"scores"}
    assert "--compare-rankings" in skipped["rankings"]
    assert "magnitude" in skipped["magnitude"]


def test_effects_by_k_are_drawn_only_where_they_were_measured(data):
    without = replace(data, results=data.results[data.results["metric"] == "kl"])
    (one,) = FIGURES["inlp"](without)
    assert len(one.figure.axes) == 1


@pytest.mark.parametrize("baseline", [True, False])
def test_what_is_not_finite_is_said_not_drawn(data, baseline):
    results = data.results.copy()
    broken = (results["metric"] == "loss") & (baseline | (results["plan"] != "baseline"))
    results.loc[broken, ["value", "ci_low", "ci_high"]] = np.nan
    nowhere = tuple(Landing(where, np.nan, np.nan, np.nan) for where in WHERE)
    landings = dict.fromkeys(data.geometry.landings, nowhere)
    planes = {key: plane if key[1] == "baseline" else plane * np.nan for key, plane in data.geometry.planes.items()}
    run = replace(data, results=results, geometry=replace(data.geometry, landings=landings, planes=planes))
    outcomes = draw_all(run)
    assert {one.name for one in outcomes if isinstance(one, Skipped)} == {"tradeoff", "plane"}
    drawn = [one for one in outcomes if isinstance(one, Drawn)]
    assert not any("nan" in one.says for one in drawn)
    text = render(run, outcomes, {(one.name, kind): rendered(one.figure, kind) for one in drawn for kind in FORMATS})
    assert "no plan has a finite cost" in text


def test_identical_plans_count_once_in_the_sentences(data):
    labels = [plan.label for plan in data.edited]
    run = replace(data, run_as=dict.fromkeys(labels, labels[0]) | {"baseline": "baseline"})
    assert " of 1 cost at most" in FIGURES["tradeoff"](run)[0].says
    assert "1 plan of 1 " in (said := FIGURES["plans"](run)[0].says) or "none of the 1 plans" in said


def test_the_means_of_the_landings_have_no_method_s_colour(outcomes):
    (landing,) = (one for one in outcomes if one.name == "landing")
    for ax in landing.figure.axes:
        means = [line for line in ax.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2]
        assert {line.get_color() for line in means} == {INK}
        assert len({line.get_linestyle() for line in means}) == 2
        assert {"harmless", "harmful"} <= {text.get_text() for text in ax.texts}


def test_the_title_of_the_magnitude_study_has_the_correlation_within_kinds_first(outcomes):
    (one,) = (one for one in outcomes if one.name == "magnitude")
    for ax in one.figure.axes:
        _, numbers = ax.get_title().split("\n", 1)
        assert numbers.startswith("r within harmful")
        assert numbers.index("harmless") < numbers.index("all together")


def test_a_rank_correlation_of_few_components_has_no_interval(data):
    pool = {"n": 7, "rho": -0.2, "ci_low": -0.4, "ci_high": -0.25, "p": 0.8, "tau": 0.0, "top1_match": False}
    study = {"method": "inlp", "regret": 0.25, "pools": {"all": pool}}
    run = replace(data, rankings=[study])
    (one,) = FIGURES["rankings"](run)
    for text in (one.says, one.figure.axes[0].get_title(), tables(run)["rankings"]):
        assert "too few" in text
        assert "0.25]" not in text


def test_methods_keep_their_colours_and_differ():
    methods = ["diff-in-means", "inlp", "inlp[k=1]", "inlp[k=2]", "random", "random[seed=1]", "shuffled", "given-x"]
    colours = method_colours(methods)
    assert len(set(colours.values())) == len(methods)
    assert method_colours(["inlp"])["inlp"] == colours["inlp"]


def test_a_run_can_be_narrowed_to_some_methods(data):
    one = data.only(["inlp"])
    assert one.methods == ["inlp"]
    assert list(one.fields) == ["inlp"]
    assert one.plans[0].label == "baseline"
    assert set(one.results["plan"]) == {plan.label for plan in one.plans}
    with pytest.raises(RefusalCmpError, match="Did you mean 'inlp'"):
        data.only(["inpl"])


def test_principal_angles_are_scipys():
    generator = torch.Generator().manual_seed(0)
    bases = [torch.linalg.qr(torch.randn(12, k, generator=generator, dtype=torch.float64)).Q.mT for k in (3, 5)]
    one, other = (Subspace(basis, basis[0], 1.0, torch.ones(len(basis))) for basis in bases)
    expected = np.sort(np.rad2deg(subspace_angles(bases[0].mT.numpy(), bases[1].mT.numpy())))
    assert principal_angles(one, other).numpy() == pytest.approx(expected)


def test_activations_land_where_the_equations_say(session, tiny):
    """On the training prompts: subtracting the difference of the means takes one mean to the other; ablation leaves
    nothing along the direction; and activations of harmless prompts move like those of harmful ones."""
    prompts = {kind: [prompt.instruction for prompt in read_prompts(session, f"{kind}_train")] for kind in KINDS}
    n = min(map(len, prompts.values()))
    plans = [plan for plan, _ in read_plans(session) if plan.scope == "single" and plan.method == "diff-in-means"]
    selected = read_selected(session)
    geometry = measure(tiny, {kind: texts[:n] for kind, texts in prompts.items()}, selected, plans, None)
    at = {plan.label.split("/")[1]: geometry.landings[plan.label][0] for plan in plans}
    planes = {plan.label.split("/")[1]: geometry.planes["diff-in-means", plan.label] for plan in plans}
    unedited = geometry.planes["diff-in-means", "baseline"]
    assert at["actadd:-1@single"].along == pytest.approx(0, abs=0.1)
    assert at["actadd:-1@single"].word == "harmless"
    assert at["actadd:1@single"].along == pytest.approx(2, abs=0.1)
    assert at["actadd:1@single"].word == "past"
    along = planes["ablation@single"][..., 0]
    assert float(along.max() - along.min()) < 1e-3 * float(unedited[..., 0].max() - unedited[..., 0].min())
    moved = planes["actadd:1@single"] - unedited
    assert moved.reshape(-1, 2).std(0).max() < 1e-3 * moved.norm(dim=-1).mean()


def test_geometry_survives_its_file(session, data):
    kept = measure_geometry(session)
    for key, plane in data.geometry.planes.items():
        assert torch.equal(kept.planes[key], plane)
    assert kept.landings == data.geometry.landings
    assert kept.components == data.geometry.components


def test_latex_tables_are_whole(data):
    found = tables(data)
    assert set(found) == {"plans", "selection", "rankings"}
    for source in found.values():
        rows = [line for line in source.splitlines() if line.endswith(r"\\")]
        assert len({row.count(" & ") for row in rows}) == 1
        assert len(rows) > 2
    assert found["plans"].count(r"\\") == len(data.plans) + 1


def test_latex_prints_what_it_is_given():
    assert escaped("a_b & 5 % {#1} ~^\\") == (
        r"a\_b \& 5 \% \{\#1\} \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )


@pytest.fixture
def script(session, monkeypatch, tmp_path):
    """Runs a script on the run, in this process, writing PNG alone."""
    monkeypatch.syspath_prepend(str(SCRIPTS / "figures"))
    import _script

    def run(name, *args):
        runs = [str(arg) for arg in args] or [str(session.run.path)]
        monkeypatch.setattr(sys, "argv", [name, *runs, "--out", str(tmp_path)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        return end.value.code

    monkeypatch.setattr(_script, "FORMATS", ("png",))
    return run


@pytest.mark.parametrize("name", sorted(path.name for path in (SCRIPTS / "figures").glob("[a-z]*.py")))
def test_every_figure_script_draws_its_figure(name, script, tmp_path, capsys):
    assert script(f"figures/{name}") == 0
    written = [path.stem for path in (tmp_path / "small").glob("*.png")]
    assert written
    assert name.removesuffix(".py") in {stem.split("-")[0] for stem in written}
    assert "not drawn" not in capsys.readouterr().out


def test_a_script_refuses_a_folder_that_is_no_run(script, tmp_path, capsys):
    assert script("figures/scores.py", tmp_path) == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_all_figures_at_once_as_a_stranger_types_it(session, tmp_path):
    command = [sys.executable, str(SCRIPTS / "make_all_figures.py"), str(session.run.path), "--methods", "inlp"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    written = {path.name for path in (tmp_path / "small").iterdir()}
    for name in ("tradeoff.png", "tradeoff.svg", "tradeoff.pdf", "plane-inlp-single.pdf", "plans.tex", "selection.tex"):
        assert name in written
    assert (tmp_path / "small/tradeoff.pdf").read_bytes().startswith(b"%PDF")


def test_runs_stand_side_by_side(data):
    outcomes = across([data, replace(data, name="other")])
    assert all(isinstance(one, Drawn) for one in outcomes)
    assert [one.name for one in outcomes] == ["runs-single", "runs-all"]
    assert {ax.get_title() for ax in outcomes[0].figure.axes} == {"small", "other"}


def test_a_finished_run_is_opened_by_its_folder(session):
    opened = open_run(session.run.path)
    assert opened.config.digest == session.config.digest
