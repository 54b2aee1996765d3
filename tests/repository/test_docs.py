"""The documentation builds, and what it tells people to type works when it is typed."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from html import unescape
from pathlib import Path
from textwrap import dedent
from urllib.parse import urlparse

import pandas as pd
import pytest
import typer
import yaml

from refusal_cmp.cli import app
from refusal_cmp.config import load_config
from refusal_cmp.evals import all_measures, measure_of
from refusal_cmp.methods import EXTRACTORS

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
ADDING = {
    "adding-an-extractor": "fisher",
    "adding-an-intervention": "rectify",
    "adding-an-evaluator": "echo",
}
"""Pages that add something, and what it is called."""
HOW_TO = ("own-data", "against-its-base", "reasoning-models", "citing", "several-seeds")
"""Pages whose commands are typed as they stand there; what a page's blocks with a title hold is put beside them."""
FENCE = re.compile(r"^ *```(\w+)(?: title=\"(.+?)\")?\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z_-]+")
TYPED = """
import json, shlex, sys
from refusal_cmp.cli import main
for line in json.loads(sys.argv[1]):
    print("$", line, flush=True)
    sys.argv = shlex.split(line)
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""
"""Runs commands one after the other in one process: torch is imported once."""


def blocks(page: str, language: str) -> list[tuple[str, str]]:
    """(title, code) of the fenced blocks in a language."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    return [(title, dedent(code)) for name, title, code in FENCE.findall(text) if name == language]


def commands(page: str) -> list[str]:
    """What the page says to type behind a prompt."""
    lines = "".join(code for _, code in blocks(page, "console")).splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def python(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    """The output of Python on arguments, in a folder, with another folder to import from."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NO_MKDOCS_2_WARNING": "1", "COLUMNS": "200"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The documentation, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    python("-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder), cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of the quick start's run, and of one with every evaluator that needs no endpoint."""
    folder = tmp_path_factory.mktemp("quick-start")
    everything = (
        "refusal-cmp run --limit 10 --methods diff-in-means --interventions ablation --scope single --max-new-tokens 8 "
        "--evals refusal,coherence,guard,perplexity,capability,kl,magnitude,geometry --benchmark-limit 4 "
        "--loss-tokens 200 --compare-rankings --until evaluate --alias everything"
    )
    python("-c", TYPED, json.dumps([*commands("quick-start"), everything]), cwd=folder)
    return folder / "runs"


def test_every_page_is_built_and_everything_is_inserted(site):
    for page in PAGES:
        html = (site / f"{page.stem}.html").read_text(encoding="utf-8")
        assert "insert:" not in html, page
    table = (site / "command-line.html").read_text(encoding="utf-8")
    assert "--inlp-stop TEXT" in table
    assert "tiny-contrast" in table


def test_what_is_inserted_into_the_pages_is_what_the_program_says():
    """So that they are read without being built; `make docs` writes it."""
    spec = importlib.util.spec_from_file_location("docs_pages", ROOT / "scripts" / "docs_pages.py")
    assert spec is not None
    assert spec.loader is not None
    docs_pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docs_pages)
    behind = [page.name for page in PAGES if docs_pages.written(text := page.read_text(encoding="utf-8")) != text]
    assert behind == []


def test_pages_fetch_nothing_from_elsewhere(site):
    for page in site.glob("*.html"):
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"?(https?:[^\s\">]+)", html)
        assert [url for url in loaded if "canonical" not in url] == [], page


@pytest.mark.parametrize("page", ADDING)
def test_what_a_page_adds_works_when_followed_to_the_letter(page, tmp_path):
    name, installed = ADDING[page], tmp_path / "installed"
    for title, code in [*blocks(page, "python"), *blocks(page, "toml")]:
        if title:
            (tmp_path / title).write_text(code, encoding="utf-8")
    typed = commands(page)
    assert typed[0] == "pip install ."
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--target", str(installed))
    python("-m", "pip", "install", "--quiet", *offline, ".", cwd=tmp_path)
    listing = python("-c", TYPED, json.dumps(typed[1:]), cwd=tmp_path, path=installed)
    assert re.search(rf"^ *{name} .*refusal_{name}", listing, re.MULTILINE)
    results = pd.read_csv(tmp_path / "runs" / "tiny-refuser" / "results.csv")
    assert results[["method", "intervention", "metric"]].eq(name).any().sum() == 1
    (test,) = [code for title, code in blocks(page, "python") if not title]
    python("-c", test, cwd=tmp_path, path=installed)


@pytest.mark.parametrize("page", HOW_TO)
def test_a_how_to_works_when_followed_to_the_letter(page, tmp_path):
    for language in ("python", "jinja"):
        for title, code in blocks(page, language):
            (tmp_path / title).write_text(code, encoding="utf-8")
            if language == "python":
                python(title, cwd=tmp_path)
    for line in commands(page):
        command, _, comment = line.partition("   # ")
        typed = [sys.executable, "-c", TYPED, json.dumps([command])]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        done = subprocess.run(typed, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == int(comment.removeprefix("exit code ") or 0), done.stdout + done.stderr


def test_the_job_of_a_cluster_runs_and_goes_on(tmp_path):
    ((title, code),) = blocks("clusters", "sh")
    (tmp_path / title).write_text(code, encoding="utf-8")
    (tmp_path / "refusal-cmp").write_text(
        f"#!{sys.executable}\nfrom refusal_cmp.cli import main\nmain()\n", encoding="utf-8"
    )
    (tmp_path / "refusal-cmp").chmod(0o755)
    options = (
        "--limit 10 --methods diff-in-means --interventions ablation --scope single --max-new-tokens 4 --evals refusal"
    )
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OPTIONS": options, "OMP_NUM_THREADS": "1"}
    said = []
    for _ in range(2):
        done = subprocess.run(
            ["bash", title], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stderr)
    assert (tmp_path / "runs/job/report/index.html").is_file()
    assert "Offline: nothing is downloaded" in said[0]


def test_the_quick_start_shows_what_it_says(runs):
    results = pd.read_csv(runs / "first-look" / "results.csv").fillna({"intervention": "none", "strength": 0})
    row = results.set_index(["intervention", "strength", "dataset", "metric"])
    value = row["value"]
    assert value["none", 0, "harmful", "refusal"] > 0.9
    assert value["ablation", 0, "harmful", "compliance"] > 0.9
    assert value["actadd", -1, "harmful", "compliance"] > 0.9
    assert value["actadd", 1, "harmless", "refusal"] > 0.5
    assert value["clamp", 1, "harmless", "refusal"] > 0.5, "the second command adds an intervention"
    assert row.loc[("none", 0, "harmful", "refusal"), ["value", "n"]].tolist() == [1, 24]
    assert row.loc[("none", 0, "harmful", "refusal"), "ci_low"] == pytest.approx(0.86, abs=0.005)


def test_every_number_is_defined(site, runs):
    page = (site / "results.html").read_text(encoding="utf-8")
    results = pd.read_csv(runs / "everything" / "results.csv")
    names = {measure_of(metric).name for metric in results["metric"]} | set(results.columns)
    for table in ("comparisons.csv", "select/scores.csv", "evaluate/agreement.csv"):
        names |= set(pd.read_csv(runs / "everything" / table).columns)
    rankings = json.loads((runs / "everything" / "select" / "rankings.json").read_text())
    names |= set(rankings[0]["pools"]["all"]) - {"n", "why"}
    names |= set(rankings[0]) - {"method", "notes", "pools"}
    local = {name for name in names if re.fullmatch(r"(local|global)_\w+(@.*)?", name)}  # one line says it of all
    assert sorted(name for name in names - local if f"<code>{name}</code>" not in page) == []


def test_what_a_metric_is_stands_in_the_documentation_as_at_its_evaluator(site):
    page = unescape((site / "results.html").read_text(encoding="utf-8"))
    for measure in all_measures():
        row = f"<td><code>{measure.name}</code></td>\n<td>{measure.meaning}</td>\n<td>{measure.unit}</td>"
        assert row in page, measure.name


@pytest.mark.parametrize("name", sorted(EXTRACTORS))
def test_a_method_says_what_it_costs_and_when_to_use_it(name):
    """At the end of its module's docstring, from where the page on methods has it."""
    text = inspect.getdoc(sys.modules[EXTRACTORS.get(name).__module__]) or ""
    cost, use = (re.search(rf"^{word}.+", text, re.MULTILINE) for word in ("Cost:", "Use it"))
    assert cost is not None
    assert use is not None
    assert cost.start() < use.start()


def test_the_python_example_runs(capsys):
    names: dict[str, object] = {}
    for _, code in blocks("python-api", "python"):  # from top to bottom, each after the others
        exec(compile(code, "python-api.md", "exec"), names)
    shown = capsys.readouterr().out
    assert "sorry" not in shown, "the ablated model answers"
    assert "diff-in-means/affine:0." in shown, "done in part, to meet a budget"


def test_every_option_that_is_named_exists():
    known = {
        "--help",
        "--address",
        "--gpus",
        "--head",
        "--job-name",
        "--time",
        "--signal",
        "--requeue",
        "--export",
        "--out",
        "--venue",
        "--width",
    }
    for command in typer.main.get_command(app).commands.values():
        for parameter in command.params:
            known |= {*parameter.opts, *parameter.secondary_opts}
    named = {(path.name, option) for path in TEXTS for option in OPTION.findall(path.read_text(encoding="utf-8"))}
    assert sorted((path, option) for path, option in named if option.replace("_", "-") not in known) == []


SETTING = re.compile(r"`(--[^`]+|\w+: [^`]+)`")
CHOICE = re.compile(r"^\| (?!choice|---)(?:[^|]+ \| ){4}[^|]+ \|$", re.MULTILINE)


def choices() -> list[list[str]]:
    """The rows of choices: what it is, the comparison's, the original's, where it stands, how it was verified."""
    page = (ROOT / "docs" / "published-setting.md").read_text(encoding="utf-8")
    return [row.strip("| ").split(" | ") for row in CHOICE.findall(page)]


def settings_in(cell: str) -> dict[str, object]:
    """The settings that a cell names, as options or as lines of a file."""
    found: dict[str, object] = {}
    for code in SETTING.findall(cell):
        if code.startswith("--"):
            name, _, value = code.removeprefix("--").replace("=", " ", 1).partition(" ")
            found[name.removeprefix("no-").replace("-", "_")] = value or not name.startswith("no-")
        else:
            found |= yaml.safe_load(code)
    return found


@pytest.mark.parametrize(("name", "column"), [("published", 1), ("published-arditi", 2)])
def test_a_published_setting_is_the_one_in_the_file(name, column):
    rows = choices()
    assert len(rows) > 30
    published = load_config(name, {})
    named: dict[str, object] = {"model": published.model}
    for row in rows:
        named |= settings_in(row[1] if row[column] == "same" else row[column])
    assert load_config(None, named) == published


def test_what_verifies_a_choice_is_there():
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = {test for row in choices() for test in re.findall(r"`(test_\w+)`", row[4])}
    assert len(named) > 15
    assert [test for test in sorted(named) if f"def {test}(" not in tests] == []


def test_links_are_well_formed_and_files_are_there():
    for path in TEXTS:
        for link in LINK.findall(path.read_text(encoding="utf-8")):
            parts = urlparse(link)
            if parts.scheme:
                assert (parts.scheme, "." in parts.netloc) == ("https", True), (path, link)
                if parts.netloc == "arxiv.org":
                    assert re.fullmatch(r"/abs/\d{4}\.\d{5}", parts.path), (path, link)
            elif parts.path:
                assert (path.parent / parts.path).exists(), (path, link)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
