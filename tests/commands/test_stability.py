"""`refusal-cmp stability`: the model is read once, what is found is kept, noticed when outdated, on the page."""

from __future__ import annotations

import io
import shutil

import pytest
from rich.console import Console

from refusal_cmp.commands import stability as command
from refusal_cmp.commands.stability import measure, print_stability
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.methods import EXTRACTORS
from refusal_cmp.report.data import read_run
from refusal_cmp.report.figures import stability as figure
from refusal_cmp.report.page.stability import stability_section
from refusal_cmp.run.contents import (
    SCORES,
    read_fields,
    read_selections,
    read_stability,
    stability_file,
    stability_files,
)
from refusal_cmp.run.session import open_run
from refusal_cmp.selection import Rule, ranked_table

DRAWS = 20


@pytest.fixture(scope="module")
def done(judged, tiny, tmp_path_factory):
    """A copy of the run, what was found in it, and how often the model was read."""
    path, reads = tmp_path_factory.mktemp("runs") / "tiny-refuser", []
    shutil.copytree(judged, path)
    session = other(path, tiny)
    with pytest.MonkeyPatch.context() as patch:
        collect = command.collect
        patch.setattr(command, "collect", lambda *args, **options: reads.append(1) or collect(*args, **options))
        found = measure(session, DRAWS, None)
    assert len(reads) == 1
    return session, found


def other(path, tiny):
    session = open_run(path)
    session.loaded = tiny
    return session


def test_a_second_start_does_nothing_and_other_draws_are_other_results(done, tiny, monkeypatch):
    before, found = done
    session = other(before.run.path, tiny)
    monkeypatch.setattr(command, "collect", None)
    monkeypatch.setattr(command, "images", lambda drawn: {})
    again = measure(session, DRAWS, None)
    assert [str(one) for one in again.rows] == [str(one) for one in found.rows]
    with pytest.raises(TypeError, match="not callable"):  # it would read the model
        measure(session, DRAWS, 1)


def test_what_it_finds_is_shown_by_the_terminal_the_figure_and_the_page(done):
    session, found = done
    console = Console(file=io.StringIO(), width=120)
    print_stability(console, session, found)
    shown = console.file.getvalue()
    data = read_run(session)
    (drawn,) = figure.draw(data)
    section = stability_section(data)
    assert section["draws"] == DRAWS
    for selection in data.selections:
        assert selection.method in shown
        assert str(selection.selected) in shown
        assert selection.method in drawn.says
    assert {row["method"] for row in section["directions"]} == {"diff-in-means", "inlp"}
    assert (session.run.path / "report/figures/stability.png").read_bytes().startswith(b"\x89PNG")


def test_without_drawing_anew_the_choice_is_the_run_s(session):
    for field, selection in zip(read_fields(session), read_selections(session), strict=True):
        those, scores = command._scored(session, field, ["local"])
        table = ranked_table(those, scores, Rule.of(session.config, field.extracted_by))
        row = table[table["selected"]].iloc[0]
        assert (row["position"], row["layer"]) == selection.selected


def test_a_new_choice_outdates_it(done, tiny, tmp_path):
    shutil.copytree(done[0].run.path, tmp_path / "run")
    session = other(tmp_path / "run", tiny)
    assert read_stability(session) is not None
    scores = session.run.read_table(SCORES)
    session.run.write_table(SCORES, scores.assign(rank=0))
    session.run.save()
    assert read_stability(session) is None
    assert stability_section(read_run(session)) is None
    assert stability_file("inlp") in stability_files(session), "directions do not depend on scores"


def test_another_model_is_noticed(session, monkeypatch):
    monkeypatch.setattr(command, "_is_by_chance", lambda method, pool: False)
    monkeypatch.setattr(command, "SAME", 1.1)
    with pytest.raises(RefusalCmpError, match="does not give .* again"):
        measure(session, DRAWS, None)


def test_methods_that_need_the_model_are_left_out_and_say_why(session, monkeypatch):
    class Seeing(command.ModelMethod):
        def fit_seeing(self, sight, method, progress=None):
            raise AssertionError("it is not asked")

    known = command.configured
    monkeypatch.setattr(command, "images", lambda drawn: {})
    monkeypatch.setattr(command, "configured", lambda config, name: Seeing() if name == "inlp" else known(config, name))
    found = measure(session, DRAWS, None)
    assert {one.method for one in found.rows} == {"diff-in-means"}
    assert "what the model does under edits" in found.left_out["inlp"]


def test_too_few_draws_are_refused(session):
    with pytest.raises(RefusalCmpError, match="takes 20 draws or more"):
        measure(session, 5, None)


def test_a_control_that_draws_by_chance_is_left_out_and_is_not_read_for_again(session, tiny, monkeypatch):
    known = command.configured
    random = EXTRACTORS.create("random")
    monkeypatch.setattr(command, "images", lambda drawn: {})
    monkeypatch.setattr(command, "configured", lambda config, name: random if name == "inlp" else known(config, name))
    found = measure(session, DRAWS, None)
    assert {one.method for one in found.rows} == {"diff-in-means"}
    assert "by chance" in found.left_out["inlp"]
    monkeypatch.setattr(command, "collect", None)
    assert "by chance" in measure(other(session.run.path, tiny), DRAWS, None).left_out["inlp"]
