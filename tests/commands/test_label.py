"""`refusal-cmp label`: blind sheets, weights, and every mistake in one sentence with nothing lost."""

from __future__ import annotations

import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from refusal_cmp.commands import label
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.judges.people import COLUMNS, WENT_ALONG, Shown, _rows, guarded, read_sheet, sheet, unguarded
from refusal_cmp.report.data import read_run
from refusal_cmp.report.page.labels import labels_table
from refusal_cmp.run.contents import KEY, LABELS, SHEET, answers_file, read_labels_agreement
from refusal_cmp.run.session import open_run

N = 30


@pytest.fixture
def drawn(session):
    label.draw(session, N, None)
    return session


def rows_of(session):
    return _rows(session.run.path / SHEET)


def write(path, rows, delimiter=","):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def said_by(session, judge):
    """The sheet as somebody fills it in who always says what a judge does."""
    key = session.run.read_table(KEY)
    along = {at: WENT_ALONG[said] for at, said in zip(key["id"], key[f"judge {judge}"], strict=True)}
    return [{**row, "verdict": "complied" if along[row["id"]] else "refused"} for row in rows_of(session)]


def test_the_sheet_is_blind_and_the_key_has_the_rest(drawn):
    rows, key = rows_of(drawn), drawn.run.read_table(KEY)
    assert tuple(rows[0]) == COLUMNS
    assert len(key) == N
    assert {row["id"] for row in rows} == set(key["id"])
    assert len({(row["instruction"], row["completion"]) for row in rows}) == len(rows), "nobody reads a text twice"
    assert not any(row["verdict"] for row in rows)
    text = (drawn.run.path / SHEET).read_text(encoding="utf-8-sig")
    assert not [plan for plan in set(key["plan"]) if plan in text]
    by_plan = drawn.run.read_lines(answers_file(key["plan"][0], key["dataset"][0]))
    shown = next(row for row in rows if row["id"] == key["id"][0])
    assert by_plan[key["row"][0]]["completion"] == shown["completion"]


def test_weights_are_of_all_completions_and_disputed_ones_are_drawn_four_times_as_often(drawn):
    key, units = drawn.run.read_table(KEY), label._units(drawn)
    total = sum(1 for _ in units)
    assert key["weight"].sum() == pytest.approx(
        total, rel=0.35
    )  # Horvitz and Thompson's estimate of how many there are
    disputed = {(one.plan, one.dataset, one.row) for one in units if one.disputed}
    of = [tuple(row) in disputed for row in key[["plan", "dataset", "row"]].values.tolist()]
    weights = {flag: set(key["weight"][[one == flag for one in of]].round(6)) for flag in set(of)}
    assert all(len(found) == 1 for found in weights.values())
    if len(weights) == 2:
        assert weights[False].pop() == pytest.approx(4 * weights[True].pop())


def test_a_person_who_says_what_a_judge_does_agrees_with_it(drawn, tmp_path):
    found = label.read(drawn, [write(tmp_path / "anna.csv", said_by(drawn, "refusal"))])
    over = found[(found["judge"] == "refusal") & (found["plan"] == "all")].iloc[0]
    assert (over["agreement"], over["kappa"], over["n"]) == (1, 1, N)
    guard = found[(found["judge"] == "guard") & (found["plan"] == "all")].iloc[0]
    assert guard["n"] == (drawn.run.read_table(KEY)["dataset"] == "harmful").sum()
    console = Console(file=io.StringIO(), width=100)
    label.print_labels(console, found)
    assert "100" in console.file.getvalue()
    assert labels_table(read_run(drawn).labels)["judges"][0]["judge"] == "refusal"


def test_raters_are_joined_and_those_before_stay(drawn, tmp_path):
    rows = said_by(drawn, "refusal")
    other = [{**row, "verdict": "neither" if row["verdict"] == "refused" else "c"} for row in rows]
    label.read(drawn, [write(tmp_path / "anna.csv", rows)])
    found = label.read(open_run(drawn.run.path), [write(tmp_path / "bo.csv", other, ";")])
    assert set(drawn.run.__class__(drawn.run.path).read_table(LABELS)["rater"]) == {"anna", "bo"}
    people = found[found["judge"] == "people"].iloc[0]
    assert (people["raters"], people["kappa"]) == (2, 1), "neither and refused are both no answer"
    split = [{**row, "verdict": "refused" if row["verdict"] == "complied" else "complied"} for row in rows]
    tied = label.read(open_run(drawn.run.path), [write(tmp_path / "bo.csv", split)])
    assert set(tied["judge"]) == {"people"}, "where people disagree there is nothing to agree with"


def test_a_sheet_is_never_written_over(drawn):
    path = drawn.run.path / SHEET
    write(path, said_by(drawn, "refusal"))
    before = path.read_bytes()
    with pytest.raises(RefusalCmpError, match=r"is there already, with \d+ verdicts"):
        label.draw(drawn, N, None)
    assert path.read_bytes() == before


def test_another_seed_is_another_sample(session):
    label.draw(session, N, None)
    one = session.run.read_table(KEY)
    (session.run.path / SHEET).unlink()
    label.draw(session, N, 7)
    assert list(session.run.read_table(KEY)["id"]) != list(one["id"])


MISTAKES = {
    "half": (lambda rows: [{**rows[0], "verdict": ""}, *rows[1:]], "has no verdict in 1 of"),
    "foreign": (lambda rows: [{**row, "id": "x0"} for row in rows], "were not drawn from this run"),
    "word": (lambda rows: [{**rows[0], "verdict": "well"}, *rows[1:]], "which is none of complied, refused"),
    "twice": (lambda rows: [*rows, {**rows[0], "verdict": "unsure"}], "has two verdicts of"),
    "lost": (lambda rows: rows[2:], "lacks 2 of the"),
    "columns": (lambda rows: [{"name": row["id"]} for row in rows], "it has name"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_sheet_is_one_sentence_and_nothing_is_lost(session, mistake, tmp_path):
    label.draw(session, N, None)
    label.read(session, [write(tmp_path / "anna.csv", said_by(session, "refusal"))])
    before = (session.run.path / LABELS).read_bytes()
    change, says = MISTAKES[mistake]
    with pytest.raises(RefusalCmpError, match=says):
        label.read(session, [write(tmp_path / "bo.csv", change(said_by(session, "refusal")))])
    assert (session.run.path / LABELS).read_bytes() == before


def test_labels_of_completions_that_are_no_more_are_not_shown_nor_read(drawn, tmp_path):
    sheet = write(tmp_path / "anna.csv", said_by(drawn, "refusal"))
    label.read(drawn, [sheet])
    assert read_labels_agreement(drawn) is not None
    key = drawn.run.read_table(KEY)
    name = answers_file(key["plan"][0], key["dataset"][0])
    drawn.run.write_lines(name, [{**row, "completion": "other"} for row in drawn.run.read_lines(name)])
    drawn.run.save()
    assert read_labels_agreement(drawn) is None
    with pytest.raises(RefusalCmpError, match="completed or judged again since"):
        label.read(drawn, [sheet])


def test_what_cannot_be_drawn_or_read_is_said(session, tmp_path):
    with pytest.raises(RefusalCmpError, match="No completions were drawn"):
        label.read(session, [tmp_path / "anna.csv"])
    with pytest.raises(RefusalCmpError, match="takes 10 completions or more"):
        label.draw(session, 3, None)
    session.config = session.config.model_copy(update={"evals": ("perplexity",)})
    with pytest.raises(RefusalCmpError, match="has no verdicts of judges"):
        label.draw(session, N, None)


@given(st.text(st.sampled_from("=+-@'\t\r\na,\""), max_size=5))
def test_no_cell_is_a_formula_to_a_spreadsheet_and_each_reads_back_as_it_was(text):
    assert not re.match(r"[=+\-@\t\r\n]", guarded(text))
    assert unguarded(guarded(text)) == text


def test_a_sheet_of_formulas_reads_back_as_it_was(tmp_path):
    shown = [Shown('=HYPERLINK("x")', "- no\n- never"), Shown("'+1", "@me"), Shown("plain = text", "'tis -1")]
    (tmp_path / "sheet.csv").write_bytes(sheet(shown))
    assert [(row["instruction"], row["completion"]) for row in _rows(tmp_path / "sheet.csv")] == shown


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b'id,verdict\n"x', b"id,verdict\nx\n"])
def test_any_file_is_a_sentence(tmp_path, content):
    path = tmp_path / "sheet.csv"
    path.write_bytes(content)
    with pytest.raises(RefusalCmpError):
        read_sheet(path, ["x"])
