"""On a terminal whatever comes from outside is text: seen whole, obeyed never, escaped once."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path
from unicodedata import category

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from refusal_cmp.commands.compare import Diff, Entry, print_diff
from refusal_cmp.commands.inspect import Inspection, Reading, Response, print_inspection
from refusal_cmp.commands.show import live_progress, print_ranking_rules, print_rankings, print_summary
from refusal_cmp.run.directory import RunDir
from refusal_cmp.subspace import Component
from refusal_cmp.terminal import JOINERS, LAYOUT, SIGNS, UNSEEN, Terminal, line, lines, visible

EVIL = (
    "\x1b[31mred\x07\x00\x7f\x9b2J\r\x85 \u202egnp\u2066\u2069\u200e\u061c \u200b\ufeff\u2028\u2029\ud800 [bold]x[/] "
    ":bomb:"
)
SHOWN = (
    r"\x1b[31mred\x07\x00\x7f\x9b2J\r\x85 \u202egnp\u2066\u2069\u200e\u061c \u200b\ufeff\u2028\u2029\ud800 [bold]x[/] "
    ":bomb:"
)
NAME = "r\x1b[2J\u202e\n[red]é"
NAME_SHOWN = r"r\x1b[2J\u202e\n[red]é"
RUN = Path(__file__).parents[1] / "runs/tiny-refuser"
FOREIGN = [
    "Ça coûte 5 €, naïve – “so”",
    "面包和水，好。",
    "السلام عليكم ١٢٣ ۝",
    "שלום עולם",
    "می‌خواهم نان بپزم",
    "क्‍ष श्री‌मान",
    "👩‍👩‍👧 ❤️‍🔥 🏳️‍🌈 👍🏽 🧑🏽‍⚕️ 🙂‍↔️ 🇫🇷",
    "e\u0301 \u00a0\u202f\u3000",
    "C:\\x1b\\new",
]


def test_what_would_be_obeyed_is_told():
    assert visible(EVIL) == SHOWN
    assert visible("a\nb\tc") == r"a\nb\tc"
    assert visible("a\nb\tc\r", LAYOUT) == "a\nb\tc\\r"


@pytest.mark.parametrize("text", FOREIGN)
def test_what_is_language_stays(text):
    assert visible(text) == text


@pytest.mark.parametrize("text", ["pass\u200dword", "a\u200c", "\u200db", "\u200d", "👍\u200d", "\u202f\u200d👍"])
def test_a_joiner_that_joins_nothing_is_told(text):
    assert not set(JOINERS) & set(visible(text))


@given(st.text(st.characters()))
def test_nothing_unseen_is_left_and_nothing_is_escaped_twice(text):
    shown = visible(text)
    assert not [one for one in shown if category(one) in UNSEEN and one not in SIGNS + JOINERS]
    assert visible(shown) == shown
    assert shown.encode("utf-8", "surrogatepass").decode() == shown


def printed(*things, **options):
    console = Terminal(file=io.StringIO(), width=200, **options)
    for thing in things:
        console.print(thing)
    return console.file.getvalue()


def table(cell):
    found = Table(title=cell)
    found.add_column(cell)
    found.add_row(cell)
    return found


@pytest.mark.parametrize(
    "thing",
    [EVIL, table(EVIL), line(EVIL), lines(EVIL), Text(EVIL.replace("\r", "\\r")), Panel(EVIL, title=line(EVIL))],
    ids=["string", "table", "line", "lines", "text", "panel"],
)
def test_whatever_is_printed_is_escaped_once(thing):
    shown = printed(thing)
    # rich itself drops the bell from a bare Text
    assert SHOWN in shown or SHOWN.replace(r"\x07", "") in shown
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)


def test_styles_and_progress_are_still_obeyed():
    console = Terminal(file=io.StringIO(), width=200, force_terminal=True, color_system="truecolor")
    console.print(Text("bold", "bold"))
    with live_progress(console) as progress, progress(EVIL, 2) as advance:
        advance(2)
    shown = console.file.getvalue()
    assert "\x1b[1mbold\x1b[0m" in shown
    assert "\x1b[?25l" in shown
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert SHOWN in plain
    assert not re.search("[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", plain)


def test_plans_with_options_in_brackets_are_shown_in_progress():
    console = Terminal(file=io.StringIO(), width=200, force_terminal=True)
    with live_progress(console) as progress, progress("guard: inlp[k=1]/nullspace@all", 1) as advance:
        advance(1)
    assert "guard: inlp[k=1]/nullspace@all" in console.file.getvalue()


def test_without_a_terminal_long_work_prints_a_line_a_minute_with_progress_and_time_left(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    console = Terminal(file=io.StringIO(), width=40)
    with live_progress(console) as progress:
        with progress("a moment", 3) as advance:
            advance(3)
        with progress("plans", 10) as advance:
            for _ in range(10):
                with progress("prompts", 50) as part:
                    part(25)
                    now += 25
                    part(25)
                advance(1)
    assert console.file.getvalue().splitlines() == [
        "plans: 2 of 10, prompts: 50 of 50; 0:01:15 gone, about 0:05:00 left",
        "plans: 5 of 10, prompts: 50 of 50; 0:02:30 gone, about 0:02:30 left",
        "plans: 8 of 10, prompts: 50 of 50; 0:03:45 gone, about 0:00:56 left",
        "plans: 10 of 10 in 0:04:10",
    ]


def test_work_without_steps_prints_nothing_however_long_it_takes(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    console = Terminal(file=io.StringIO(), width=80)
    with live_progress(console) as progress, progress("reading the model's files", 0) as advance:
        now += 90
        advance(1)
    assert console.file.getvalue() == ""


@pytest.mark.parametrize("console", [Console, Terminal])
def test_what_differs_between_runs_is_escaped_on_any_console(console):
    name = f"{EVIL}\n"
    shown = console(file=io.StringIO(), width=400)
    entries = [
        Entry("completions", (name, "harmful"), "beyond", name, "[/]", 1.0),
        Entry("metrics", (name, "harmful", "refusal"), "only in A"),
    ]
    print_diff(shown, Diff(entries, [(name, name, "[link=http://x]y[/link]")]), 5)
    text = shown.file.getvalue()
    assert text.count(rf"{SHOWN}\n") >= 4
    assert "[link=http://x]y[/link]" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("console", [Console, Terminal])
def test_a_prompt_and_an_answer_are_escaped_on_any_console(console):
    means = torch.tensor([[0.0], [1.0]])
    reading = Reading(f"{EVIL}\n", Component(-1, 0), torch.tensor([[0.2], [0.4]]), means, torch.ones(1))
    answers = [Response(f"{EVIL}\n", 0.0, text, "complied") for text in (f"{EVIL}\nnext", "")]
    shown = console(file=io.StringIO(), width=400)
    print_inspection(shown, Inspection([" \x1b[2J\n", "\u2028"], 0, [reading], torch.zeros(2), torch.ones(2), answers))
    text = shown.file.getvalue()
    assert text.count(rf"{SHOWN}\n") == 3
    assert text.count(SHOWN) == 4
    assert r"\x1b[2J⏎" in text
    assert r"\u2028" in text
    assert re.search("^next", text, re.MULTILINE)
    assert "(nothing)" in text
    assert not re.search("[\x00-\x09\x0b-\x1f\u2028]", text)


@pytest.mark.parametrize("console", [Console, Terminal])
def test_a_summary_says_where_it_is_as_text(console, tmp_path):
    run = RunDir(tmp_path / NAME)
    for file in ("results.csv", "select/rankings.json"):
        run.write_bytes(file, (RUN / file).read_bytes())
    shown = console(file=io.StringIO(), width=400)
    print_summary(shown, run)
    print_rankings(shown, run)
    text = shown.file.getvalue()
    assert text.count(rf"{NAME_SHOWN}") == 2
    assert "\x1b" not in text


def test_other_ranking_rules_are_a_table_with_costs(tmp_path):
    run, few = RunDir(tmp_path / "run"), {"n": 2, "rho": None, "why": "too few components, or all the same"}
    pool = {"n": 8, "rho": 0.5, "says_little": False, "tau": 0.4, "top1_match": True, "top5_overlap": 0.8}
    own = {"pools": {"kept": few, "within_kl": pool, "all": pool | {"rho": -0.5}}, "regret": 0.25}
    one = {"method": "inlp", "rule": "cosmic", "reach": "local", "passes": 2.5, "exact_passes": 18.0,
           "against": {"local": own}}  # fmt: skip
    run.write_json("select/ranking-rules.json", [one])
    shown = Console(file=io.StringIO(), width=120)
    print_ranking_rules(shown, run)
    rows = [line.split() for line in shown.file.getvalue().splitlines()]
    assert ["inlp", "cosmic", "local", "–", "0.50", "-0.50", "0.25", "2.5", "18.0"] in rows


# Commands


COMMAND = [sys.executable, "-c", "from refusal_cmp.cli import main; main()"]


def on_a_terminal(*args, cwd, **environment):
    """The bytes that a command writes to a terminal, with exit code."""
    reader, writer = pty.openpty()
    settings = {**os.environ, "COLUMNS": "100", "TERM": "xterm", **environment}
    process = subprocess.Popen([*COMMAND, *args], stdin=writer, stdout=writer, stderr=writer, cwd=cwd, env=settings)
    os.close(writer)
    shown = b""
    try:
        while piece := os.read(reader, 65536):
            shown += piece
    except OSError:  # Linux says so that nobody holds the other end any more
        pass
    os.close(reader)
    return process.wait(), shown


def unstyled(shown):
    return re.sub(rb"\x1b\[[0-9;]*m", b"", shown).replace(b"\r\n", b" ")


def test_a_path_on_a_terminal_is_text(tmp_path):
    (tmp_path / NAME).mkdir()
    code, shown = on_a_terminal("compare", NAME, NAME, cwd=tmp_path)
    assert code == 2
    assert f"Error: {NAME_SHOWN} is not a run directory".encode() in unstyled(shown)
    assert b"\x1b[2J" not in shown
    assert b"Traceback" not in shown


def test_debug_shows_no_more_than_text(tmp_path):
    code, shown = on_a_terminal("compare", NAME, NAME, "--debug", cwd=tmp_path)
    assert code == 2
    assert b"Traceback" in shown
    assert b"\x1b[2J" not in shown
    assert "\u202e".encode() not in shown


@pytest.mark.parametrize(
    "args",
    [
        ["--\x1b[2J\u202e"],
        ["\x1b[2J\u202e"],
        ["compare", "a", "b", "--\x1b[2J\u202e"],
        ["compare", "a", "b", "\x1b[2J\u202e"],
        ["compare", "a", "b", "--details", "\x1b[2J\u202e"],
        ["compare", "a", "b", "--tolerance=\x1b[2J\u202e"],
    ],
)
def test_what_was_typed_is_text_in_mistakes_of_usage(args, monkeypatch, capsys):
    from refusal_cmp import cli

    monkeypatch.setattr(sys, "argv", ["refusal-cmp", *args])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert r"\x1b[2J\u202e" in said or "Invalid value for" in said
    assert "\x1b" not in said
    assert "\u202e" not in said


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_few_characters_is_written_to(encoding, tmp_path):
    environment = {"PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code, shown = on_a_terminal("compare", "日本", os.fsdecode(b"\xff"), cwd=tmp_path, **environment)
    assert code == 2
    assert b"Traceback" not in shown
    assert b"is not a run directory" in unstyled(shown)
    code, shown = on_a_terminal("interventions", cwd=tmp_path, **environment)
    assert code == 0
    assert b"alterrep" in shown


def test_a_warning_is_a_sentence(tmp_path, monkeypatch, capsys):
    import warnings

    from refusal_cmp import cli

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(cli, "app", lambda: warnings.warn(f"{EVIL}.", stacklevel=1))
    cli.main()
    assert capsys.readouterr().err == f"Warning: {SHOWN}.\n"


def test_a_fault_of_ours_is_shown_as_text(monkeypatch, capsys):
    from refusal_cmp import cli

    def fail():
        raise KeyError(EVIL) from OSError("\x1b[2J")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    said = capsys.readouterr().err
    assert said.startswith("OSError: \\x1b[2J\n")
    assert 'raise KeyError(EVIL) from OSError("\\x1b[2J")' in said
    assert "\x1b" not in said


def test_a_key_among_the_options_is_warned_of_and_not_shown(tmp_path):
    key = "sk-very-secret-0123"
    environment = {**os.environ, "COLUMNS": "400"}
    command = [*COMMAND, "run", "--openai-key", key, "--methods", "none"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 2
    assert "other users of this machine can see a key that is given as an option" in done.stderr
    assert "OPENAI_API_KEY" in done.stderr
    assert key not in done.stdout + done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
