"""The command line as a stranger meets it: one sentence for every mistake, exit code 2, nothing written."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from refusal_cmp import cli
from refusal_cmp.config import STAGES, load_config
from refusal_cmp.run.directory import RunDir

from support.pipeline import start

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def run(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from refusal_cmp.cli import main; main()", *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=ENVIRONMENT,
        timeout=120,
        check=False,
    )


EMBEDDED = ["--harmful", "tiny-harmful", "--harmless", "tiny-harmless", "--contrast", "tiny-contrast"]
EMBEDDED += ["--guard", "tiny-guard"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["run", "no-such/model", *EMBEDDED], "Cannot load model 'no-such/model'"),
        (["run", "--methods", "diff-in-mean"], "Did you mean 'diff-in-means'?"),
        (["run", "--methods", "dim"], "Did you mean 'diff-in-means'?"),
        (["run", "--methods", "shuf"], "Did you mean 'shuffled'?"),
        (["run", "--interventions", "ablate"], "Did you mean 'ablation'?"),
        (["run", "--evals", "refusals"], "Did you mean 'refusal'?"),
        (["run", "--scope", "some"], "A scope is single, top:PERCENT or all"),
        (["run", "--top-percentage", "0"], "above 0 and at most 100"),
        (["run", "--top_percentage", "101"], "above 0 and at most 100"),
        (["run", "--limit", "-1"], "The setting limit is '-1'"),
        (["run", "--inlp-stop", "soon"], "inlp-stop"),
        (["run", "--inlp-k", "many"], "inlp-k"),
        (["run", "--dtype", "int8"], "The setting dtype is 'int8'"),
        (["run", "--induce-aggregate", "one", "--induce-multipliers", "2"], "do not go together"),
        (["run", "--from", "infer", "--until", "extract"], "comes after"),
        (["run", "--from", "inference"], "Did you mean 'infer'?"),
        (["run", "--harmful", "tiny-harmfull"], "Did you mean 'tiny-harmful'?"),
        (["run", "--config", "none.yaml"], "There is no configuration none.yaml; give a file, or a name"),
        (
            ["run", "--chat-template", "none.jinja"],
            "There is no chat template none.jinja; give a file, or a name of these: llama-2, qwen-1",
        ),
        (["run", "--device", "tpu"], "device"),
        (["select"], "run `refusal-cmp extract` first"),
        (["infer"], "run `refusal-cmp extract` first"),
        (["evaluate"], "run `refusal-cmp infer` first"),
        (["report"], "run `refusal-cmp evaluate` first"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence(args, says, tmp_path):
    result = run(*args, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert says in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--layers", "40:50"], "what is no layer of the model's 10, 0 to 9"),
        (["--component=-1,45"], "the model has no such component"),
        (["--positions=-40"], "the model has 4 post-instruction tokens"),
        (["--layers", "40:50", "--seeds", "1,2"], "what is no layer of the model's 10, 0 to 9"),
        (["--component", "3,12"], "The setting component is '3,12', and this does not hold"),
        (["--component", "3,12"], "positions are negative, -1 the last"),
    ],
)
def test_a_component_that_the_model_has_not_is_refused_before_a_folder_is_made(args, says, tmp_path):
    result = run("run", *args, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert says in " ".join(result.stderr.split())
    assert "Loading" not in result.stderr
    assert not [*tmp_path.iterdir()]


def test_it_runs_as_a_module(tmp_path):
    command = [sys.executable, "-m", "refusal_cmp", "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"refusal-cmp {version('refusal-cmp')}\n"


def test_the_version_is_shown(tmp_path):
    assert run("--version", cwd=tmp_path).stdout == f"refusal-cmp {version('refusal-cmp')}\n"


def test_a_model_without_chat_template_is_refused(tmp_path):
    from refusal_cmp.model import model_path

    shutil.copytree(model_path("tiny-refuser"), tmp_path / "base")
    (tmp_path / "base/chat_template.jinja").unlink()
    result = run("run", "./base", *EMBEDDED, cwd=tmp_path)
    assert result.returncode == 2
    assert "has no chat template" in " ".join(result.stderr.split())
    assert not (tmp_path / "runs").exists()


def test_debug_shows_the_traceback(tmp_path):
    assert "Traceback" in run("run", "--methods", "none", "--debug", cwd=tmp_path).stderr


def test_a_prompt_that_reads_like_an_option_is_a_prompt(tmp_path):
    result = run("inspect", "no-run", "--", "--debug", cwd=tmp_path)
    assert result.returncode == 2
    assert "no-run is not a run directory" in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


FILES = sorted(Path(cli.__file__).parent.rglob("*.py"))


def raised(file: Path) -> list[ast.Call]:
    """The errors that a file makes."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return [call for call in calls if call.func.id == "RefusalCmpError"]


def test_a_run_that_is_named_without_a_model_goes_on_with_its_settings(tiny, tmp_path, capsys):
    start(tmp_path / "mine", tiny, ("extract",), n_train=24)
    where = {"alias": "mine", "runs_dir": str(tmp_path)}
    session = cli._session(None, {**where, "limit": 5}, STAGES, False)
    assert (session.config.n_train, session.config.limit) == (24, 5)
    assert f"Going on with the settings of {tmp_path / 'mine'}, a run of tiny-refuser." in (
        " ".join(capsys.readouterr().err.split())
    )
    for other in ({**where, "model": "tiny-refuser"}, {**where, "alias": "new"}):
        assert cli._session(None, other, STAGES, False).config.n_train != 24
    assert session.run.command("select") == f"`refusal-cmp select --alias mine --runs-dir {tmp_path}`"
    assert RunDir(Path("runs/tiny-refuser")).command("infer") == "`refusal-cmp infer`"
    assert RunDir(Path("runs/two words")).command("infer") == "`refusal-cmp infer --alias 'two words'`"


def test_errors_name_options_at_the_door_only():
    """Callers from Python have none; the command line adds those of the settings that an error names."""
    library = [file for file in FILES if file.name != "cli.py" and file.parent.name != "commands"]
    texts = [ast.unparse(argument) for file in library for call in raised(file) for argument in call.args]
    assert len(texts) > 50
    assert [text for text in texts if re.search(r"(?<![\w-])--[a-z]", text)] == []


def test_what_errors_advise_are_options():
    advised = {keyword.arg for file in FILES for call in raised(file) for keyword in call.keywords if keyword.arg}
    commands = typer.main.get_command(cli.app).commands
    params = [param for name in ("run", "study", "stability", "label") for param in commands[name].params]
    options = {option for param in params for option in (*param.opts, *param.secondary_opts)}
    assert len(advised) > 20
    assert {f"--{name.replace('_', '-')}" for name in advised} - options == set()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--device", "tpu"], "There is no device 'tpu' here; give one of auto, cpu (--device)."),
        (["--refusal-tokens", "999999"], "0 to 2047; give others, or none (--refusal-tokens)."),
    ],
)
def test_the_settings_that_mend_a_mistake_are_shown_as_options(args, says, tmp_path):
    result = run("run", *args, "--n-train", "10", "--n-val", "1", "--n-test", "1", cwd=tmp_path)
    assert result.returncode == 2
    assert says in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("yaml", "says"),
    [
        ("methodz: [inlp]", "Unknown setting in run.yaml 'methodz'"),
        ("limit: [", "run.yaml, line"),
        ("- a", "must be"),
        ("n_val: none", "The setting n-val in run.yaml is 'none'"),
    ],
)
def test_a_mistake_in_the_file_is_located(yaml, says, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml)
    result = run("run", "--config", "run.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert says in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_top_percentage_is_short_for_a_scope(monkeypatch):
    given = []
    monkeypatch.setattr(cli, "_execute", lambda path, flags, *_: given.append(load_config(path, flags)))
    for option in (["--top-percentage", "50"], ["--scope", "top:50"]):
        monkeypatch.setattr(sys, "argv", ["refusal-cmp", "infer", *option])
        with pytest.raises(SystemExit, match="0"):
            cli.main()
    assert given[0] == given[1]
    assert given[0].scope == ("top:50",)


HELP = """
import sys
sys.argv = ["refusal-cmp", "--help"]
import refusal_cmp.cli
try:
    refusal_cmp.cli.main()
except SystemExit:
    print([name for name in ("torch", "transformers", "lm_eval", "vllm", "pandas") if name in sys.modules])
"""


def test_help_does_not_import_torch():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


HEAVY = """
import sys
from refusal_cmp.cli import main
try:
    main()
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--harmful", "none.csv"], "Cannot read the prompts none.csv"),
        (["--harmless", "mine.csv:goal"], "mine.csv has no column called goal; its columns are text, kind"),
        (["--harmful", "mine.csv", "--label-column", "sort", "--harmful-label", "bad"], "has no column called sort"),
        (["--harmful", "mine.csv", "--label-column", "kind", "--harmful-label", "worse"], "whose kind is worse"),
        (["--contrast", "none.txt"], "Cannot read the prompts none.txt"),
    ],
)
def test_a_prompt_file_that_cannot_be_read_is_told_before_torch_is_imported(options, says, tmp_path):
    (tmp_path / "mine.csv").write_text("text,kind\nHow?,bad\nWhy?,fine\n")
    done = subprocess.run(
        [sys.executable, "-c", HEAVY, "run", *options],
        capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT, check=True,
    )  # fmt: skip
    assert says in " ".join(done.stderr.split())
    assert done.stdout.split() == ["2", "False"]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["", *typer.main.get_command(cli.app).commands])
def test_help_cuts_no_name_at_80_columns(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["refusal-cmp", *filter(None, [name]), "--help"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    shown = capsys.readouterr().out
    group = typer.main.get_command(cli.app)
    command = group.commands[name] if name else group
    options = [option for param in command.params for option in (*param.opts, *param.secondary_opts)]
    names = [*options, "--help", *([] if name else group.commands)]
    words = shown.replace(",", " ").split()
    assert [one for one in names if one not in words] == []
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("…") == sum((param.help or "").count("…") for param in command.params)
    assert "..." not in shown.replace("[ARGS]...", "")
    if name == "run":
        headings = [line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
        assert {"Extraction:", "Selection:", "Evaluation:", "Machine:"} <= set(headings)


@pytest.mark.parametrize(
    ("command", "name"),
    [("methods", "inlp"), ("interventions", "alterrep"), ("evals", "refusal"), ("datasets", "tiny-harmful")],
)
def test_what_is_registered_is_listed(command, name):
    assert name in run(command).stdout


def test_stages_one_by_one_with_underscores(tmp_path):
    small = "--n_train 40 --n-val 4 --n_test 3 --max_new_tokens 6 --loss_tokens 60 --benchmark-limit 3".split()
    small += "--methods diff-in-means --positions=-1 --layers 5:9".split()
    grid = ["--interventions", "ablation,actadd", "--scope", "all", "--actadd_multipliers", "-1,1"]
    assert run("extract", *small, cwd=tmp_path).returncode == 0
    for args in (["select", "--compare_rankings"], ["infer", *grid], ["evaluate"]):
        result = run(*args, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    assert "diff-in-means/actadd:-1@all" in result.stdout
    assert (tmp_path / "runs/tiny-refuser/select/rankings.json").is_file()
    assert not (tmp_path / "runs/tiny-refuser/report").exists()
    assert run("report", cwd=tmp_path).stdout == result.stdout


def test_help_for_a_model_shows_the_defaults_that_hold_for_it():
    own, ours, small = (
        run("extract", "--help-for", name).stdout for name in ("me/mine", "tiny-refuser", "smol-refuser")
    )
    for text, harmful in ((own, "published-harmful"), (ours, "tiny-harmful"), (small, "everyday-harmful")):
        assert f"(default: {harmful})" in " ".join(text.split())
    general = " ".join(run("extract", "--help").stdout.split())
    assert "(default: published-harmful; with tiny-refuser: tiny-harmful)" in general


def test_offline_takes_what_comes_with_us_and_says_so(tmp_path):
    done = run("run", "no-such/model", "--offline", "--texts", "python-docs", cwd=tmp_path)
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert "Offline: nothing is downloaded; by default: harmful everyday-harmful, harmless everyday-harmless" in said
    assert "texts" not in said.partition("Cannot")[0]
    config = load_config(None, {"model": "no-such/model", "offline": True})
    assert "guard" not in config.evals
    assert config.tasks == ("everyday_questions",)


def test_what_would_be_downloaded_is_refused_offline(tmp_path):
    done = run("extract", "--offline", "--harmful", "advbench", cwd=tmp_path)
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert "nothing is downloaded, as $HF_HUB_OFFLINE asks" in said
    assert "no-offline" not in said  # it would be of no use


def test_offline_by_the_option_alone_is_called_by_its_name_and_a_like_named_folder_is_offered(tmp_path):
    (tmp_path / "smol-careful").mkdir()
    (tmp_path / "smol-careful/config.json").write_text("{}")
    (tmp_path / "smol-carefully").mkdir()  # of no model
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", "from refusal_cmp.cli import main; main()", "run", "smol-carefull", "--offline"],
        capture_output=True, text=True, cwd=tmp_path, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert "the setting offline keeps from asking the hub; do without that, or give the folder smol-careful," in said
    assert said.endswith("(--no-offline).")
    assert "HF_HUB_OFFLINE" not in said


def test_extract_reads_no_test_set_that_it_would_have_to_download(tmp_path):
    options = [
        "--eval-datasets",
        "harmful,xstest",
        "--limit",
        "12",
        "--methods",
        "diff-in-means",
        "--offline",
        "--evals",
        "refusal",
    ]
    assert run("extract", *options, cwd=tmp_path).returncode == 0
    assert "xstest" in " ".join(run("run", *options, "--alias", "whole", cwd=tmp_path).stderr.split()).lower()


def test_cite_prints_bibtex(tmp_path):
    assert run("cite").stdout.startswith("@software{refusalcmp,")
    assert run("cite", str(tmp_path)).returncode == 2
