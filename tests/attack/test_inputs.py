"""Configuration and data files of any content: read, or refused in one sentence; and nothing is written."""

from __future__ import annotations

import json
import math
import os
import random
import string
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from refusal_cmp.config import SETTING_FILES, STAGES, SUFFIXES, RunConfig, load_config
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals.rubric import read_template
from refusal_cmp.files import plain_yaml
from refusal_cmp.judges.formats import choose_format
from refusal_cmp.judges.phrases import Phrases
from refusal_cmp.methods.given import GivenDirection
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import Session
from refusal_cmp.stages import check_stages, run_stages
from refusal_cmp.subspace import ClassMeans, Component, Subspace, SubspaceField

from support.attack import FUZZ

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
SETTINGS = [*SETTING_FILES, *(path for path in EXAMPLES if not path.stem.startswith(("study-", "ray-")))]
NAMES = sorted(RunConfig.model_fields)

texts = st.text(max_size=20) | st.sampled_from(
    [
        "",
        "none",
        "all",
        "inlp",
        "a,b",
        "x[a=1]",
        "top:50",
        "a/b.csv",
        "d.safetensors",
        "-1,2",
        "1e400",
        "../..",
        "\0",
        "0.5",
    ]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)


class ModelNeededError(Exception):
    """What a run gets to when its configuration and its data are in order."""


class Unloaded:
    def __getattr__(self, name: str) -> Any:
        raise ModelNeededError


def outcome(folder: Path, config: RunConfig) -> str | None:
    """Begin a run without a model: None if it comes to need one, else its one sentence; no file is left."""
    run = folder / "run"
    session = Session(config, RunDir(run))
    session.__dict__["model"] = Unloaded()
    said = None
    try:
        run_stages(session, ("extract",))
    except ModelNeededError:
        pass
    except RefusalCmpError as error:
        said = str(error)
        assert said
    assert not [path for path in run.rglob("*") if path.is_file()]
    return said


def load(path: Path | None, flags: dict[str, Any]) -> RunConfig | None:
    try:
        return load_config(path, flags)
    except RefusalCmpError:
        return None


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: Path(path).stem)
def test_what_is_shipped_and_shown_is_valid(path, tmp_path, tiny):
    config = load_config(path, {}).model_copy(update={"layers": None, "positions": None})  # those of another model
    check_stages(Session(config, RunDir(tmp_path), loaded=tiny), ("extract",))


def test_settings_go_by_name_and_win_over_a_folder_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "published").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_config("published", {}).harmful == "published-sample-harmful"
    with pytest.raises(RefusalCmpError, match=r"no configuration publishd; .*: demo, .*, published, .*, real\.$"):
        load_config("publishd", {})


def test_the_two_published_settings_differ_where_the_references_say():
    comparison, original = load_config("published", {}), load_config("published-arditi", {})
    of_selection = [(one.rank_by, one.induce_multipliers, one.induce_aggregate) for one in (comparison, original)]
    assert of_selection == [("local", (0.5, 1, 2), "max"), ("global", (1,), "one")]
    assert (comparison.compose, comparison.pool, comparison.actadd_norm) == ("component", "all", "selected")
    for one in (comparison, original):
        assert (one.kl_threshold, one.kl_epsilon, one.prune_layers, one.induce_threshold) == (0.1, 1e-6, 0.8, 0)
        assert (one.loss_texts, one.loss_tokens, one.max_new_tokens, one.seed) == (2 * 2048, None, 512, 42)
        assert (one.actadd_layers, one.eval_datasets) == ("selected", ("harmful", "harmless"))


@FUZZ
@given(st.text(max_size=60) | st.text(alphabet="abc:-[]{}#&*!|>'\"%@`,?\n \t0123456789.~<=", max_size=60))
@example("2020-13-45")
@example("a: 1\na: 2")
@example("&a [*a]")
@example("[" * 400)
@example("? {a: b}\n: c")
@example("!!python/object/apply:os.getcwd []")
@example("<<: *x")
@example("methods: !!set {inlp}")
@example("seed: " + "9" * 5000)
@example('system: "\\ud800"')
@example("model: !!binary x")
@example("methods: &m [inlp, *m]")
def test_any_text_as_configuration(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    load(path, {})


@FUZZ
@given(st.dictionaries(st.sampled_from(NAMES) | texts, values, max_size=3), st.booleans())
@example({"model": []}, True)
def test_any_values_of_settings(tmp_path_factory, chosen, as_file):
    path = None
    if as_file:
        path = tmp_path_factory.getbasetemp() / "values.yaml"
        path.write_text(yaml.safe_dump(chosen), encoding="utf-8", errors="replace")
    config = load(path, {} if as_file else chosen)
    if config is not None:
        again = tmp_path_factory.getbasetemp() / "again.yaml"
        again.write_text(config.to_yaml(), encoding="utf-8", errors="surrogatepass")


@FUZZ
@given(st.dictionaries(st.sampled_from([n for n in NAMES if n not in ("alias", "runs_dir")]), texts, max_size=2))
def test_any_flags_end_in_a_sentence_or_in_work(tmp_path_factory, flags):
    config = load(None, flags)
    if config is not None:
        outcome(tmp_path_factory.mktemp("flags"), config)


@settings(max_examples=50, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "seed": st.integers(0, 99),
            "kl_epsilon": st.floats(0, 1e-3),
            "methods": st.sampled_from(["inlp", ["diff-in-means"], "inlp[c=1.0],inlp"]),
            "direction": st.sampled_from(["own", "x.safetensors", "own,a/b.safetensors"]),
            "direction_at": st.sampled_from(["-1,3", [-2, 0]]),
            "eval_datasets": st.sampled_from(["harmful", "xstest,my/own set.csv", "harmful=xstest,harmless=a/b.csv"]),
            "chat_template": st.sampled_from(["qwen-1", "my/own.jinja"]),
            "loss_texts": st.just(7),
            "column": st.sampled_from(["goal", "a,b"]),
            "method_options": st.just({"diff-in-means": {"data": "all"}}),
            "strengths": st.just({"affine": [1, 2]}),
            "system": st.text(string.printable + "äß🙂", max_size=20),
            "refusal_tokens": st.just([1, 2]),
        },
    )
)
def test_the_written_configuration_gives_the_same_run(tmp_path_factory, chosen):
    config = load_config(None, chosen)
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_bytes(config.to_yaml().encode())
    assert load_config(path, {}) == config


@given(
    st.integers(0, 30), st.sampled_from([("methodz: 1", "'methods'"), ("n_val: none", "n-val"), ("seed: [", "YAML")])
)
def test_a_mistake_is_located(tmp_path_factory, line, mistake):
    text, says = mistake
    fillers = [f"# {n}" if n % 3 else "" for n in range(line)]
    path = tmp_path_factory.getbasetemp() / "mistake.yaml"
    path.write_text("\n".join([*fillers, text]))
    with pytest.raises(RefusalCmpError, match=rf"line {line + 1}\b") as caught:
        load_config(path, {})
    assert says in str(caught.value)


def test_a_setting_twice_is_located(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("seed: 1\nlimit: 3\nseed: 2\n")
    with pytest.raises(RefusalCmpError, match="sets 'seed' twice, on lines 1 and 3"):
        load_config(path, {})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[[[[", r"line 1, is not YAML .*\(expected the node content, but found '<stream end>'\); mend it\.$"),
        ("- inlp", r"must be a list of `setting: value` lines, and is not"),
        ("# a\nseed: !!python/name:os.getcwd x", r"line 2, .*\(leave out the tag .*python/name:os.getcwd\)"),
        ("methods: !!set {inlp}", r"line 1, .*leave out the tag"),
        ("\nmethods: &m [inlp, *m]", r"line 2, .*\(write out what \*m stands for\)"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", r"line 2, .*\(write out what \*a stands for\)"),
        ("limit: 3\nseed: " + "9" * 5000, r"line 2, .*\(a number has too many digits\)"),
        ("method_options:\n  inlp: {c: 1}\n  inlp: {c: 2}", r"sets 'inlp' twice, on lines 2 and 3; keep one"),
        ("? [seed]\n: 1", r"line 1, .*\(a name must be text\)"),
        ("seed: 1\nlimit: \x07", r"line 2, .*special characters are not allowed"),
        ("seed: 1\n---\nseed: 2", r"line 2, .*another document"),
        ("[" * 10_000, "is not YAML .*recursion"),
        ("seed: 1\0", r"Line 1 of .*run\.yaml holds a NUL character"),
        ("seed: 1".encode("utf-16"), r"run\.yaml is not UTF-8 text"),
        (b"# \xff", r"run\.yaml is not UTF-8 text .* at byte 2"),
        ("#" * 300_000, r"Cannot read the configuration .*it has 300000 bytes, and may have 262144; give a YAML file"),
        ("seed: 2020-13-45", r"seed in .* is '2020-13-45' \(line 1\).*valid integer"),
        ("seed: yes", r"seed in .* is 'yes' \(line 1\).*valid integer"),
        ("x" * 500 + ": 1", r"Unknown setting in .*x\.\.\.'.* \(line 1\)"),
        ("seed: 1\n1: 2", r"Unknown setting in .* '1'.* \(line 2\)"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_configuration_is_one_sentence_with_its_line(tmp_path, content, says):
    path = tmp_path / "run.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RefusalCmpError, match=says) as caught:
        load_config(path, {})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_a_configuration_may_begin_with_a_byte_order_mark_or_hold_nothing(tmp_path):
    path = tmp_path / "run.yaml"
    for content in ("\ufeffseed: 7\n", "# nothing\n", ""):
        path.write_text(content, encoding="utf-8")
        assert load_config(path, {}).seed == (7 if content[:1] == "\ufeff" else 42)


@pytest.mark.parametrize("name", ["none.yaml", "folder", "pipe.yaml", "/dev/zero", "a" * 300, "a/" * 3000, "a\0b"])
def test_what_is_no_file_is_not_opened(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.yaml")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RefusalCmpError, match="There is no configuration|it is a directory|it is a pipe or a device"):
        load_config(name, {})
    readers = {
        "chat_template": lambda one: Session(one, RunDir(tmp_path / "run")).source,
        "phrases": lambda one: Phrases.load(one.phrases),
        "guard_prompt": lambda one: choose_format("auto", one.guard, one.guard_prompt),
        "rubric_prompt": lambda one: read_template(one.rubric_prompt),
        "direction": lambda one: GivenDirection(one.given[0]).rows(),
    }
    os.mkfifo("pipe.safetensors")
    for setting, read in readers.items():
        given = {"direction": "pipe.safetensors"} if setting == "direction" else {"guard": "harmbench", setting: name}
        with pytest.raises(RefusalCmpError):
            read(load_config(None, given))


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("2020-01-02", "2020-01-02"), ("2020-13-45", "2020-13-45"), ("1:30", "1:30"), ("010", "010"), ("no", "no"),
        ("on", "on"), ("0x10", "0x10"), ("1_000", "1_000"), ("=", "="), ("<<", "<<"), ("'1'", "1"), ("~", None),
        ("Null", None), ("true", True), ("False", False), ("-7", -7), ("1.5", 1.5), (".5e+2", 50.0),
        ("-.inf", -math.inf),        ("1e5", "1e5"), ("[a, {b: [1]}]", ["a", {"b": [1]}]), ("", None),
    ],
)  # fmt: skip
def test_yaml_invents_nothing(text, read):
    assert plain_yaml.load(text, "It") == read
    assert isinstance(plain_yaml.load(text, "It"), type(read))


@FUZZ
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(st.characters(codec="utf-8"), max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=9), inner, max_size=3)
        ),
        max_leaves=6,
    )
)
@example(
    [
        "1e5",
        "010",
        "no",
        "~",
        "",
        "=",
        "2020-01-02",
        "\x85",
        "a\u2028b",
        " \ufeff",
        ".inf",
        "0x1f",
        "1:30",
        "a: b",
        "\0",
    ]
)
def test_what_is_dumped_is_read_back(value):
    assert plain_yaml.load(plain_yaml.dump(value), "It") == value


def test_one_list_in_two_places_is_written_twice(tmp_path):
    sites = ["resid_pre"]
    config = load_config(None, {"score_sites_of": {"inlp": sites, "diff-in-means": sites},
                                "method_options": {"inlp": {"a": sites, "b": sites}}})  # fmt: skip
    (tmp_path / "run.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(tmp_path / "run.yaml", {}) == config


def test_secrets_are_not_written():
    assert "hush" not in load_config(None, {"openai_key": "hush"}).to_yaml()


# Data files


def begin(folder: Path, name: str, content: bytes) -> str | None:
    (folder / name).write_bytes(content)
    files = {"harmful": str(folder / name), "eval_datasets": ["harmful", str(folder / name)]}
    said = outcome(folder, load_config(None, files))
    assert (folder / name).read_bytes() == content
    return said


@FUZZ
@given(
    st.sampled_from(SUFFIXES),
    st.binary(max_size=80) | st.text(max_size=80).map(lambda text: text.encode("utf-8", "replace")),
)
@example(".json", b"[" * 3000)
@example(".json", b"9" * 5000)
@example(".json", b"[NaN, 1e999]")
@example(".jsonl", b'{"prompt": "a", "prompt": 1}')
@example(".csv", b"a,b\r\n\x00,1")
@example(".csv", b"goal\n" + b"x" * 200_000)
@example(".txt", b"\xff\xfe")
@example(".parquet", b"PAR1PAR1")
def test_any_bytes_as_prompts(tmp_path_factory, suffix, content):
    begin(tmp_path_factory.mktemp("bytes"), f"mine{suffix}", content)


cells = st.none() | st.text(max_size=6) | st.integers() | st.lists(st.integers(), max_size=1)
tables = st.lists(
    st.text(max_size=9) | st.dictionaries(st.sampled_from(["prompt", "Goal", "split", "type", "x"]), cells, max_size=3),
    max_size=12,
)


@FUZZ
@given(tables)
@example([{"prompt": "\ud800"}] * 6)
@example(["?", "!", "...", "??", "!!", "-", "+", "*"])
@example([f"{n} 🙂" for n in range(9)])
def test_any_rows_as_prompts(tmp_path_factory, rows):
    begin(tmp_path_factory.mktemp("rows"), "mine.json", json.dumps(rows).encode())


@FUZZ
@given(st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
@example(b'{"checksum": 1, "artifacts": []}')
def test_any_bytes_as_a_manifest(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "hand-made"
    path.mkdir(exist_ok=True)
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(RefusalCmpError, match="not what was written there"):
        RunDir(path)
    assert RunDir(path, STAGES).manifest == {}


@FUZZ
@given(st.binary(max_size=120))
@example(b"\x08\0\0\0\0\0\0\0{}      ")
@example(b'\x1f\0\0\0\0\0\0\0{"a":{"dtype":"F32","shape":[],')
def test_any_bytes_as_a_direction(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(content)
    with pytest.raises(RefusalCmpError):
        GivenDirection(path).rows()


def test_a_damaged_file_of_subspaces_is_one_sentence(tmp_path):
    """Any byte of a run's own file turned over: the file is read, or refused in one sentence."""
    run = RunDir(tmp_path)
    means = ClassMeans((-2, -1), torch.ones(2, 3, 4), torch.zeros(2, 3, 4))
    row = torch.eye(4)[0]
    subspaces = {Component(-1, layer): Subspace(row[None], row, 1.0, torch.ones(1)) for layer in range(3)}
    run.write_tensors("a.safetensors", *SubspaceField("diff-in-means", means, subspaces).to_tensors())
    whole = (tmp_path / "a.safetensors").read_bytes()
    header = int.from_bytes(whole[:8], "little")
    rng = random.Random(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.randrange(8 + header)] ^= 1 << rng.randrange(8)
        (tmp_path / "b.safetensors").write_bytes(bytes(damaged))
        try:
            GivenDirection(tmp_path / "b.safetensors").rows()
        except RefusalCmpError as error:
            refused += "b.safetensors" in str(error)
    assert refused > 30
