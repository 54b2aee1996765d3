"""Prompt sets: public ones from local copies in the same layout, local files, splits, duplicates, and mistakes."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from refusal_cmp import load_prompts
from refusal_cmp.config import KINDS, file_label, is_path, load_config
from refusal_cmp.data import CARDS, DATASETS, SPLITS, TEXTS, Columns, Label, Prompt, sources
from refusal_cmp.data.files import digests, read_splits
from refusal_cmp.data.sampling import Sampled, check_apart, draw, normal
from refusal_cmp.data.sets import load_split, load_test
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.run.contents import PROMPTS, read_prompts
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import Session
from refusal_cmp.stages import run_stages
from refusal_cmp.stages.extract import _check_enough
from refusal_cmp.stages.prompts import _check_labels, _draw, _report_few, read_test_prompts
from refusal_cmp.statistics import fewest

ALL = {"train": 999, "val": 999, "test": 999}
MISSPELT = ["How do I mispell a sign?", "How do I skip a queue?", "How do I hide a teapot?", "How do I tip a boat?"]


def silent(message: str) -> None:
    pass


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def instructions(prompts: list[Prompt]) -> list[str]:
    return [prompt.instruction for prompt in prompts]


# Public sets


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """A folder of copies of the public repositories, in their layout and with prompts of our own."""
    monkeypatch.setenv("REFUSAL_CMP_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "data"


def test_published_splits_are_read_as_stored(copies):
    for kind in ("harmful", "harmless"):
        for split in SPLITS:
            rows = [{"instruction": f"{kind} {split} {n}", "category": None if n else "a"} for n in range(3)]
            write(copies / sources.PUBLISHED.name / f"dataset/splits/{kind}_{split}.json", json.dumps(rows))
    prompts = DATASETS.get("published-harmful")("val")
    assert prompts == [Prompt("harmful val 0", "a"), Prompt("harmful val 1"), Prompt("harmful val 2")]
    assert instructions(DATASETS.get("published-harmless")("train")) == [f"harmless train {n}" for n in range(3)]


@pytest.fixture
def splits(copies):
    """Splits of the published sizes, in their layout, with stand-ins for the prompts."""
    sizes = {"harmful": (260, 39, 572), "harmless": (18793, 6264, 6266)}
    for kind, of_kind in sizes.items():
        for split, size in zip(SPLITS, of_kind, strict=True):
            rows = [{"instruction": f"{kind} {split} {n}", "category": None} for n in range(size)]
            write(copies / sources.PUBLISHED.name / f"dataset/splits/{kind}_{split}.json", json.dumps(rows))
    return copies


def test_the_published_sample_is_what_the_published_calls_draw(splits):
    """The oracle is the published order of calls on the global generator."""
    found = {kind: {s: instructions(DATASETS.get(f"published-sample-{kind}")(s)) for s in SPLITS} for kind in KINDS}
    random.seed(42)
    for kind, split, n in (
        ("harmful", "train", 128),
        ("harmless", "train", 128),
        ("harmful", "val", 32),
        ("harmless", "val", 32),
        ("harmless", "test", 100),
    ):
        whole = instructions(DATASETS.get(f"published-{kind}")(split))
        assert found[kind][split] == random.sample(whole, n), (kind, split)
    assert found["harmful"]["test"] == [f"harmful test {n}" for n in range(100)]


def test_the_published_sample_is_the_one_that_was_published(splits):
    """Rows of the published harmless completions (fifth of the file: row 1955) and first draws, worked out once."""
    drawn = {split: instructions(DATASETS.get("published-sample-harmless")(split)) for split in SPLITS}
    assert drawn["test"][:5] == [f"harmless test {n}" for n in (1673, 5486, 5867, 2573, 1955)]
    assert drawn["train"][:2] == ["harmless train 4532", "harmless train 16696"]


def test_a_run_takes_the_whole_published_sample(splits):
    sizes = {"train": 128, "val": 32, "test": 100}
    for kind in KINDS:
        drawn = draw(f"published-sample-{kind}", sizes, 42, columns=Columns(), near_duplicates=None, say=silent)
        assert {split: len(drawn.prompts[split]) for split in SPLITS} == sizes


def test_a_part_of_a_published_split_is_refused(splits):
    write(splits / sources.PUBLISHED.name / "dataset/splits/harmful_val.json", json.dumps(["why?"] * 31))
    with pytest.raises(RefusalCmpError, match="harmful_val has 31 prompts here, and 32 are drawn"):
        DATASETS.get("published-sample-harmless")("test")


def test_published_losses_shuffle_alpaca_as_datasets_does(copies):
    rows = [{"instruction": f"{n}?", "input": "" if n % 3 else "x", "output": f"{n}."} for n in range(40)]
    write_parquet(copies / "tatsu-lab/alpaca/data/train-00000-of-00001.parquet", rows)
    theirs = [row for row in Dataset.from_list(rows).shuffle(seed=42) if not row["input"]]
    found = list(TEXTS.get("published-alpaca")())
    assert [document.text for document in found] == [row["output"] for row in theirs]
    assert [document.instruction for document in found] == [row["instruction"] for row in theirs]


def test_sets_of_one_list_are_test_sets(copies):
    write_csv(copies / "llm-attacks/llm-attacks/data/advbench/harmful_behaviors.csv",
              [{"goal": text, "target": "Sure"} for text in MISSPELT])  # fmt: skip
    write(copies / "Princeton-SysML/Jailbreak_LLM/data/MaliciousInstruct.txt", "\n".join(MISSPELT) + "\n")
    for phase, texts in (("dev", MISSPELT[:2]), ("test", MISSPELT[2:])):
        write(copies / sources.TDC.name / f"red_teaming/data/{phase}/behaviors.json", json.dumps(texts))
    write_csv(copies / "alexandrasouly/strongreject/strongreject_dataset/strongreject_dataset.csv",
              [{"category": "Fraud", "source": "x", "forbidden_prompt": text} for text in MISSPELT])  # fmt: skip
    for name in ("advbench", "malicious-instruct", "tdc2023", "strongreject"):
        assert instructions(DATASETS.get(name)("test")) == MISSPELT, name
        assert DATASETS.get(name)("train") == DATASETS.get(name)("val") == [], name
    assert DATASETS.get("strongreject")("test")[0].category == "Fraud"


def test_harmbench_keeps_standard_behaviours_and_xstest_safe_prompts(copies):
    for split, texts in (("val", MISSPELT[:2]), ("test", MISSPELT[2:])):
        rows = [
            {"Behavior": text, "FunctionalCategory": functional, "SemanticCategory": "misinformation", "Tags": ""}
            for text, functional in [(one, "standard") for one in texts] + [("x", "copyright"), ("y", "contextual")]
        ]
        write_csv(
            copies / sources.HARMBENCH.name / f"data/behavior_datasets/harmbench_behaviors_text_{split}.csv", rows
        )
    harmbench = DATASETS.get("harmbench")
    assert harmbench("train") == []
    assert harmbench("val") == [Prompt(text, "misinformation") for text in MISSPELT[:2]]
    assert instructions(harmbench("test")) == MISSPELT[2:]

    kinds = ["homonyms", "contrast_homonyms"]
    rows = [
        {"id": "1", "prompt": text, "type": kind, "label": label, "focus": "", "note": ""}
        for text, kind, label in zip(["How do I kill time?", "no"], kinds, ["safe", "unsafe"], strict=True)
    ]
    write_csv(copies / sources.XSTEST.name / "xstest_prompts.csv", rows)
    assert DATASETS.get("xstest")("test") == [Prompt("How do I kill time?", "homonyms")]


def test_sets_of_the_hub(copies):
    columns = [{"Index": str(n), "Goal": text, "Category": "Fraud"} for n, text in enumerate(MISSPELT)]
    write_csv(copies / sources.JBB.name / "data/harmful-behaviors.csv", columns)
    write_csv(copies / sources.JBB.name / "data/benign-behaviors.csv", columns[:1])
    files = [{"split": split, "path": f"data/{split}-behaviors.csv"} for split in ("harmful", "benign")]
    card = yaml.safe_dump({"configs": [{"config_name": "behaviors", "data_files": files}]})
    write(copies / sources.JBB.name / "README.md", f"---\n{card}---\n")
    assert DATASETS.get("jailbreakbench")("test") == [Prompt(text, "Fraud") for text in MISSPELT]
    assert len(DATASETS.get("jailbreakbench-benign")("test")) == 1

    rows = [{"instruction": f"Say {n}", "input": "" if n % 2 else "x", "output": f"It is {n}."} for n in range(6)]
    write_parquet(copies / sources.ALPACA.name / "data/train-00000-of-00001.parquet", rows)
    assert instructions(DATASETS.get("alpaca")("test")) == ["Say 1", "Say 3", "Say 5"]
    documents = list(TEXTS.get("alpaca")())
    assert (documents[1].instruction, documents[1].text) == ("Say 3", "It is 3.")


def test_the_pile_is_read_only_as_far_as_needed(copies):
    write(
        copies / sources.PILE.name / "train/00.jsonl",
        "".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(5)),
    )
    write(copies / sources.PILE.name / "train/01.jsonl", "no JSON\n")
    documents = iter(TEXTS.get("pile")())
    assert [document.text for document in islice(documents, 5)] == [f"text {n}" for n in range(5)]
    with pytest.raises(RefusalCmpError, match="monology/pile-uncopyrighted"):
        next(documents)


def test_another_layout_is_told(copies):
    write_csv(copies / "llm-attacks/llm-attacks/data/advbench/harmful_behaviors.csv", [{"behaviour": "x"}])
    with pytest.raises(RefusalCmpError, match=r"no column goal; its columns are behaviour"):
        DATASETS.get("advbench")("test")


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("Dataset 'JailbreakBench/JBB-Behaviors' is a gated dataset on the Hub.", "is gated; accept its terms"),
        (
            "Couldn't reach 'JailbreakBench/JBB-Behaviors' on the Hub (ConnectionError)",
            "check the connection, or put a",
        ),
    ],
)
def test_a_set_that_cannot_be_had_is_one_sentence(copies, monkeypatch, reason, says):
    def load_dataset(**where):
        raise ConnectionError(f"{reason}\nmore")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(RefusalCmpError, match=says) as caught:
        DATASETS.get("jailbreakbench")("test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("registry", [DATASETS, TEXTS], ids=["prompts", "texts"])
def test_cards_of_embedded_sets_are_true(registry):
    for name in registry:
        card = CARDS[registry][name]
        assert card.source
        if card.source == "embedded":
            plugin = registry.get(name)
            found = {split: len(plugin(split)) for split in card.sizes} if registry is DATASETS else len(plugin())
            assert found == (dict(card.sizes) if registry is DATASETS else card.sizes["documents"])


# Local files


ROWS = [{"prompt": f"Ask, {n}\nplease “now”", "category": f"kind {n % 2}"} for n in range(4)]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet", "CSV"])
def test_every_format_gives_the_same_prompts(tmp_path, suffix):
    path = tmp_path / f"my.{suffix}"
    writers = {"parquet": write_parquet, "csv": write_csv}
    if suffix.lower() in writers:
        writers[suffix.lower()](path, ROWS)
    else:
        write(path, json.dumps(ROWS) if suffix == "json" else "\n".join(map(json.dumps, ROWS)))
    splits = read_splits(path, Columns(), silent)
    assert splits == {"train": [], "val": [], "test": [Prompt(row["prompt"], row["category"]) for row in ROWS]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("my.txt", "One?\r\n\r\n  Two?\r\n"),
        ("my.json", '["One?", "Two?"]'),
        ("my.jsonl", '"One?"\n"Two?"\n'),
        ("my.csv", "\ufeffQuestion\nOne?\nTwo?\n"),
        ("my.csv", "Text,Goal\na,One?\nb,Two?\n"),
        ("my.csv", "GOAL,goal\na,One?\nb,Two?\n"),
        ("my.csv", "a, Goal ,,\n1,One?,,\n2,Two?,,\n"),
        ("my.csv", f"x,goal\n{'long' * 50_000},One?\n,Two?\n"),
        ("my.txt", "One?\rTwo?\r"),
        ("my.json", '[{"behavior": "One?"}, {"behavior": null}, {"behavior": "Two?"}]'),
    ],
)
def test_prompts_are_found_by_the_usual_names(tmp_path, name, content):
    assert instructions(read_splits(write(tmp_path / name, content), Columns(), silent)["test"]) == ["One?", "Two?"]


def test_columns_can_be_named(tmp_path):
    path = write(tmp_path / "my.csv", "a,b,c\nno,Yes?,kind\n")
    assert read_splits(path, Columns(("z", "B"), "c"), silent)["test"] == [Prompt("Yes?", "kind")]


def test_a_column_can_be_named_behind_the_file(tmp_path, monkeypatch):
    path = write(tmp_path / "my.csv", "goal,other one\nno,Yes?\n")
    assert load_split(f"{path}:other one", "test", Columns(("goal",)), silent) == [Prompt("Yes?")]
    assert load_prompts(f"{path}:GOAL") == load_prompts(str(path), column="goal") == ["no"]
    with pytest.raises(RefusalCmpError, match="no column called what; its columns are goal, other one"):
        load_prompts(f"{path}:what")
    monkeypatch.chdir(tmp_path)
    assert load_prompts("my.csv:goal") == ["no"]
    assert [file_label(name) for name in ("a/My.CSV:Other one", "a/my.csv")] == ["my-other-one", "my"]
    assert is_path(r"C:\my.csv:goal")


BOTH = "prompt,kind,part\nA?,Bad,train\nB?,ok,dev\nC?, bad ,test\nD?,,test\nE?,1,test\n"


@pytest.mark.parametrize(
    ("label", "found"),
    [(Label("kind", frozenset(["bad"])), "AC"), (Label("KIND", frozenset(["bad"]), others=True), "BDE"),
     (Label("kind", frozenset(["1", "ok"])), "BE")],
)  # fmt: skip
def test_one_file_holds_both_kinds_told_apart_by_a_label(tmp_path, label, found):
    splits = read_splits(write(tmp_path / "my.csv", BOTH), Columns(label=label, split="part"), silent)
    assert "".join(sorted(text[0] for split in splits.values() for text in instructions(split))) == found


def test_a_column_of_splits_can_be_named(tmp_path):
    splits = read_splits(write(tmp_path / "my.csv", BOTH), Columns(split="part"), silent)
    assert {split: instructions(found) for split, found in splits.items()} == {
        "train": ["A?"], "val": ["B?"], "test": ["C?", "D?", "E?"]}  # fmt: skip


def test_labels_of_json_are_numbers_and_truth_too(tmp_path):
    rows = [{"prompt": "A?", "harmful": True}, {"prompt": "B?", "harmful": False}, {"prompt": "C?", "harmful": 1}]
    path = write(tmp_path / "my.json", json.dumps(rows))
    label = Label("harmful", frozenset(["true", "1"]))
    assert instructions(read_splits(path, Columns(label=label), silent)["test"]) == ["A?", "C?"]


def test_a_run_learns_from_one_file_with_a_label(tmp_path, tiny):
    rows = [{"goal": text, "kind": kind} for kind, name in (("bad", "tiny-harmful"), ("fine", "tiny-harmless"))
            for text in load_prompts(name, "train", 20)]  # fmt: skip
    path = write_csv(tmp_path / "mine.csv", rows)
    given = {"harmful": f"{path}:goal", "label_column": "kind", "harmful_label": "bad", "split": "50/25/25",
             "methods": "diff-in-means"}  # fmt: skip
    session = Session(load_config(None, given), RunDir(tmp_path / "run"), loaded=tiny)
    run_stages(session, ("extract",))
    assert session.config.harmless == session.config.harmful
    for kind in ("harmful", "harmless"):
        known = set(load_prompts(f"tiny-{kind}", "train", 20))
        found = [prompt.instruction for split in SPLITS for prompt in read_prompts(session, f"{kind}_{split}")]
        assert set(found) <= known
        counts = session.run.read_json("extract/prompts.json")["counts"]
        assert [counts[f"{kind}_{split}"]["available"] for split in SPLITS] == [10, 5, 5]


@pytest.mark.parametrize(
    ("given", "says"),
    [({"harmful_label": "bad"}, "name it as label-column"),
     ({"label_column": "kind"}, "give harmful-label or harmless-label"),
     ({"label_column": "kind", "harmful_label": "a,b", "harmless_label": "b"}, "give each value once"),
     ({"split": "60/40"}, "three parts of 100"), ({"split": "60/30/20"}, "three parts of 100"),
     ({"split": "100/0/0"}, "three parts of 100"), ({"split": "a/b/c"}, "number")],
)  # fmt: skip
def test_labels_and_parts_that_say_nothing_are_one_sentence(given, says):
    with pytest.raises(RefusalCmpError, match=says):
        load_config(None, given)


@pytest.mark.parametrize(
    ("name", "content", "columns", "says"),
    [
        ("my.csv", BOTH, Columns(split="Teil"), r"no column called Teil; its columns are prompt, kind, part"),
        ("my.csv", BOTH, Columns(label=Label("art", frozenset("x"))), r"no column called art; its columns are"),
        (
            "my.csv",
            BOTH,
            Columns(label=Label("kind", frozenset(["worse"]))),
            r"no row whose kind is worse; what it is: bad \(2\), ok \(1\), nothing \(1\), 1 \(1\)\. Name one of them",
        ),
        (
            "my.csv",
            "a,b\n1,2\n",
            Columns(),
            r"no column called one of instruction, .*; its columns are a, b: name one of them",
        ),
        ("my.csv", "a,b\n1,2\n", Columns(("x", "y")), r"no column called x or y; its columns are a, b"),
        ("my.csv", "goal,b\n1,2\n", Columns(category="kind"), r"no column called kind; .* name one of them"),
        ("my.csv", "goal\nShould I, or not?\n", Columns(), r"Row 1 of .* has more fields .* in quotes"),
        (
            "my.csv",
            "goal,b\nHow do I\nbake?,1\n",
            Columns(),
            r"Row 1 of .*\(line 2\) has fewer fields \(1\) .* in quotes",
        ),
        ("my.csv", 'goal\n"open\n', Columns(), r"Line 2 of .* is not CSV"),
        ("my.csv", "goal,x,goal\na,b,c\n", Columns(), "has 2 columns called goal; rename or remove all but one"),
        ("my.csv", "Goal,GOAL\na,b\n", Columns(), "has 2 columns called goal"),
        ("my.csv", "goal,type,type\na,b,c\n", Columns(), "has 2 columns called type"),
        ("my.csv", "goal\na\0\n", Columns(), r"Line 2 of .*my\.csv holds a NUL character"),
        ("my.json", '[{"goal": "a", "goal": "b"}]', Columns(), "has 'goal' twice in one object"),
        ("my.jsonl", '{"goal": "a"}\n{"goal": "a", "x": {"y": 1, "y": 2}}', Columns(), "Line 2 of .* has 'y' twice"),
        ("my.json", '["a\\u0000"]', Columns(), "The instruction of row 1 of .* holds a NUL character"),
        ("my.json", '[{"goal": "a", "type": "\\ud800"}]', Columns(), "The type of row 1 of .* half a character"),
        ("my.json", '[{"instruction": "a", "input": [1]}]', Columns(), "The input of row 1 of .* is a list"),
        ("my.json", "[" * 100_000, Columns(), r"my\.json is not JSON"),
        ("my.json", "[" + "9" * 5000 + "]", Columns(), r"my\.json is not JSON"),
        ("my.txt", "One?\n".encode("utf-16"), Columns(), "is not UTF-8 text"),
        (
            "my.txt",
            "One?\n".encode("utf-16-le"),
            Columns(),
            r"Line 1 of .*my\.txt holds a NUL character; save it as UTF-8",
        ),
        ("my.csv", "", Columns(), "holds no prompt"),
        ("my.csv", "goal\n", Columns(), "holds no prompt"),
        ("my.json", "[]", Columns(), "holds no prompt"),
        ("my.json", '["", " "]', Columns(), "holds no prompt"),
        ("my.json", '{"prompt": "x"}', Columns(), "must hold a list of strings or of rows, and holds an object"),
        (
            "my.json",
            "[1]",
            Columns(),
            "Row 1 of .* is a number, and must be a string, an object, or a list of messages",
        ),
        ("my.json", '[{"prompt": ["x"]}]', Columns(), "The prompt of row 1 of .* is a list, and must be text"),
        ("my.json", '["\\ud800"]', Columns(), "half a character"),
        ("my.json", "[", Columns(), r"my\.json is not JSON"),
        ("my.jsonl", '"x"\n{\n', Columns(), r"Line 2 of .*my\.jsonl is not JSON"),
        ("my.txt", b"caf\xe9\n", Columns(), "is not UTF-8 text .* at byte 3"),
        ("my.parquet", b"PAR1", Columns(), "is not Parquet"),
        ("my.xlsx", "x", Columns(), r"must end in \.json, \.jsonl, \.csv, \.parquet, \.txt"),
        (
            "my.csv",
            "goal,split\nx,train\ny,elsewhere\n",
            Columns(),
            "says 'elsewhere', and must say train, val or test",
        ),
    ],
)
def test_a_mistake_in_a_file_is_one_sentence(tmp_path, name, content, columns, says):
    path = write(tmp_path / name, content)
    with pytest.raises(RefusalCmpError, match=says):
        read_splits(path, columns, silent)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none.csv", "No such file"),
        ("folder.csv", "directory"),
        ("pipe.csv", "pipe or a device"),
        ("device.json", "pipe or a device"),
        ("huge.parquet", "it has 2147483648 bytes, and may have 1073741824"),
        ("a\0b.csv", "no file can be called that"),
        ("\ud800.csv", "no file can be called that"),
        (f"{'a' * 300}.csv", "File name too long"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path, name, says):
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "device.json").symlink_to("/dev/zero")
    with (tmp_path / "huge.parquet").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(RefusalCmpError, match=f"Cannot read the prompts .*{says}"):
        read_splits(tmp_path / name, Columns(), silent)


ALPACA_ROWS = [
    {"instruction": "Name a fruit.", "input": "", "output": "An apple."},
    {"instruction": "Translate.", "input": "The cow is blue.", "output": "La vache est bleue."},
    {"instruction": "Sort.", "input": None, "output": ""},
    {"instruction": "", "input": "without a question", "output": ""},
]


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_what_an_instruction_is_about_is_a_part_of_the_prompt(tmp_path, suffix):
    path, said = tmp_path / f"alpaca.{suffix}", []
    write_parquet(path, ALPACA_ROWS) if suffix == "parquet" else write(path, json.dumps(ALPACA_ROWS))
    prompts = instructions(read_splits(path, Columns(), said.append)["test"])
    assert prompts == ["Name a fruit.", "Translate.\n\nThe cow is blue.", "Sort."]
    assert said == [
        f"{path}: 1 of 4 rows have no prompt and are left out.",
        f"{path}: input is put after instruction in the 1 of 4 rows that have both; to read instruction alone, name it "
        "in the setting column.",
    ]
    prompts = instructions(read_splits(path, Columns(("instruction",)), said.append)["test"])
    assert prompts == ["Name a fruit.", "Translate.", "Sort."]
    assert said[-1] == f"Warning: {path}: instruction is read without input, which 1 of 4 rows have."


@pytest.mark.parametrize(
    ("header", "prompt"),
    [
        ("Instruction,Context", "a\n\nb"),
        ("Behavior,ContextString", "a\n\nb"),
        ("question,context", "a\n\nb"),
        ("goal,input", "a"),
    ],
)
def test_columns_of_context_are_those_of_known_layouts(tmp_path, header, prompt):
    path = write(tmp_path / "my.csv", f"{header}\na,b\n")
    assert instructions(read_splits(path, Columns(), silent)["test"]) == [prompt]


def test_what_is_amiss_in_columns_that_nobody_reads_does_no_harm(tmp_path):
    """A date of the year 60000, which Parquet holds and Python does not, in columns that are named like a prompt's."""
    days = pa.array([21_000_000, None], pa.date32())
    nested = pa.array([{"x": [1]}, None])
    table = pa.table({"text": days, "made": days, "prompt": ["One?", "Two?"], "Meta": nested, "topic": days})
    path = tmp_path / "my.parquet"
    pq.write_table(table, path)
    with pytest.raises(RefusalCmpError, match=r"my\.parquet is not Parquet that can be read \(.*date"):
        read_splits(path, Columns(), silent)
    pq.write_table(table.drop_columns("topic"), path)
    assert instructions(read_splits(path, Columns(), silent)["test"]) == ["One?", "Two?"]
    with pytest.raises(RefusalCmpError, match="no column called goal; its columns are text, made, prompt, Meta: name"):
        read_splits(path, Columns(("goal",)), silent)
    with pytest.raises(RefusalCmpError, match="The Meta of row 1 of .* is an object, and must be text"):
        read_splits(path, Columns(("meta",)), silent)


def test_a_parquet_file_is_read_whatever_its_folder_is_called(tmp_path):
    """A folder `split=val` is no column."""
    path = write_parquet(tmp_path / "split=val" / "my.parquet", [{"goal": "One?"}])
    assert instructions(read_splits(path, Columns(), silent)["test"]) == ["One?"]


def test_a_column_of_a_parquet_file_that_stands_twice(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["goal", "goal"])
    pq.write_table(table, tmp_path / "my.parquet")
    with pytest.raises(RefusalCmpError, match="has 2 columns called goal"):
        read_splits(tmp_path / "my.parquet", Columns(), silent)


@pytest.mark.parametrize("cut", [4, 50, -1, -9])
def test_a_parquet_file_that_is_cut_off(tmp_path, cut):
    whole = write_parquet(tmp_path / "my.parquet", ROWS).read_bytes()
    with pytest.raises(RefusalCmpError, match="is not Parquet"):
        read_splits(write(tmp_path / "my.parquet", whole[:cut]), Columns(), silent)


def test_categories_are_text_in_one_line(tmp_path):
    rows = [{"goal": str(n), "type": value} for n, value in enumerate(["nan", " a\nb ", 2, None, "NULL", ["x"]])]
    text = json.dumps(rows)[:-1] + ', {"goal": "x", "type": NaN}]'
    prompts = read_splits(write(tmp_path / "my.json", text), Columns(), silent)["test"]
    assert [prompt.category for prompt in prompts] == ["nan", "a b", "2", "", "NULL", "", ""]


def test_rows_without_a_prompt_are_told(tmp_path):
    said: list[str] = []
    read_splits(write(tmp_path / "my.csv", "goal,x\nOne?,1\n,2\n"), Columns(), said.append)
    assert said == [f"{tmp_path / 'my.csv'}: 1 of 2 rows have no prompt and are left out."]


# Splits


def many(n: int) -> list[str]:
    return [f"How do I paint the {n} of {one}?" for one in range(n)]


def test_one_list_is_split_60_20_20_whatever_its_order(tmp_path):
    texts, said = many(50), []
    first = draw(str(write(tmp_path / "a.json", json.dumps(texts))), ALL, 0, columns=Columns(), near_duplicates=None,
                 say=said.append)  # fmt: skip
    assert [len(first.prompts[split]) for split in SPLITS] == [30, 10, 10]
    assert said[0].endswith("is one list; its 50 prompts are split 30/10/10 into train, val and test.")
    random.Random(0).shuffle(texts)
    again = draw(str(write(tmp_path / "b.json", json.dumps(texts))), ALL, 1, columns=Columns(), near_duplicates=None,
                 say=silent)  # fmt: skip
    for split in SPLITS:
        assert set(instructions(first.prompts[split])) == set(instructions(again.prompts[split]))


def test_splits_of_a_column_and_of_files_are_kept(tmp_path):
    rows = [{"goal": f"{split} {n}", "split": name} for split, name in
            (("train", "Train"), ("val", "validation"), ("test", "test")) for n in range(3)]  # fmt: skip
    by_column = read_splits(write_csv(tmp_path / "my.csv", rows), Columns(), silent)
    for name in ("train", "dev", "test"):
        texts = [f"{'val' if name == 'dev' else name} {n}" for n in range(3)]
        for path in (f"set_{name}.json", f"Set-{name.upper()}.JSON", f"folder/{name}.json"):
            write(tmp_path / path, json.dumps(texts))
    for together in ("set", "Set", "folder", "folder/"):
        assert read_splits(tmp_path / together, Columns(), silent) == by_column
        assert len(digests(tmp_path / together)) == 3
    assert instructions(by_column["val"]) == ["val 0", "val 1", "val 2"]


@pytest.mark.parametrize(
    ("name", "start", "split"),
    [
        ("set_val.json", "set_", "val"),
        ("set-dev.json", "set-", "val"),
        ("a.b.test.json", "a.b.", "test"),
        ("train.json", "", "train"),
    ],
)
def test_a_file_named_for_a_split_is_that_file_whatever_lies_beside_it(tmp_path, name, start, split):
    for other in set(SPLITS) - {split}:
        write(tmp_path / f"{start}{other}.json", json.dumps([f"of {other}?"]))
    path, said = write(tmp_path / name, '["Mine?"]'), []
    splits = read_splits(path, Columns(), said.append)
    assert splits == {"train": [], "val": [], "test": [Prompt("Mine?")]}
    assert list(digests(path)) == [str(path)]
    assert load_test(str(path), Columns(), silent) == [Prompt("Mine?")]
    (word,) = said
    assert f"{name} is read alone; " in word
    together = read_splits(Path(word.split("; ")[1].split(" is the set")[0]), Columns(), silent)
    assert {one: instructions(together[one]) for one in SPLITS} == {
        one: ["Mine?"] if one == split else [f"of {one}?"] for one in SPLITS
    }


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "There are no prompts at .*set: neither a file, nor files such as .*set_train.json or .*set/train.json"),
        ({"set_val.json": '["a"]', "set_dev.json": '["b"]'}, "has two val files, .*set_dev.json and .*set_val.json"),
        ({"set_test.json": '["a"]', "set_test.csv": "goal\na"}, "has two test files"),
        ({"set/test.json": '["a"]', "set_test.json": '["a"]'}, "has two test files"),
        ({"set_test.csv": "goal,split\na,train"}, "says 'train', and the file is named for test; mend one"),
    ],
)
def test_files_that_do_not_make_a_set(tmp_path, files, says):
    for name, content in files.items():
        write(tmp_path / name, content)
    with pytest.raises(RefusalCmpError, match=says):
        read_splits(tmp_path / "set", Columns(), silent)


def test_a_set_without_one_of_its_splits_is_not_learned_from(tmp_path):
    for split in ("val", "test"):
        write(tmp_path / f"{split}.txt", "One?\n")
    with pytest.raises(RefusalCmpError, match=r"The train split of .* is empty.*to test on only"):
        draw(str(tmp_path), ALL, 0, columns=Columns(), near_duplicates=None, say=silent)


def test_too_few_prompts_to_split(tmp_path):
    path = write(tmp_path / "few.txt", "\n".join(many(4)))
    with pytest.raises(RefusalCmpError, match="has 4 prompts, too few to split; give more, at least 5"):
        draw(str(path), ALL, 0, columns=Columns(), near_duplicates=None, say=silent)


WORDS = st.lists(st.sampled_from("a cake Cake cow COW bird ? ! red".split()), min_size=1, max_size=3).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries({split: st.lists(WORDS, min_size=1, max_size=8) for split in SPLITS}),
    st.sampled_from([None, 0.5, 0.9]),
)
def test_no_prompt_is_in_two_splits_and_test_loses_none(tmp_path_factory, texts, threshold):
    folder = tmp_path_factory.mktemp("sets")
    for split, prompts in texts.items():
        write(folder / f"{split}.json", json.dumps(prompts))
    try:
        drawn = draw(str(folder), ALL, 0, columns=Columns(), near_duplicates=threshold, say=silent)
    except RefusalCmpError:  # a split is empty
        reject()
    kept = [normal(prompt.instruction) for split in SPLITS for prompt in drawn.prompts[split]]
    assert len(kept) == len(set(kept))
    assert {normal(text) for text in texts["test"]} == {normal(text) for text in instructions(drawn.prompts["test"])}
    for split in SPLITS:
        count = drawn.counts[split]
        assert count["available"] == len(texts[split])
        assert count["sampled"] == count["available"] - count["duplicates"] - count["near_duplicates"]


def test_near_duplicates_are_those_of_plain_tf_idf(tmp_path):
    """Counts and removals agree with one dense similarity matrix."""
    rng = random.Random(1)
    words = [f"w{n}" for n in range(30)]
    texts = {split: [" ".join(rng.sample(words, 4)) for _ in range(40)] for split in SPLITS}
    for split in SPLITS:
        write(tmp_path / f"{split}.json", json.dumps(texts[split]))

    def drawn(threshold: float | None) -> tuple[Sampled, list[str]]:
        said: list[str] = []
        name = str(tmp_path)
        return draw(name, ALL, 0, columns=Columns(), near_duplicates=threshold, say=said.append), said

    whole, said = drawn(None)
    kept = {split: instructions(whole.prompts[split]) for split in SPLITS}
    vectors = TfidfVectorizer(token_pattern=r"(?u)\w+").fit([text for split in SPLITS for text in kept[split]])
    similar = {
        (one, other): cosine_similarity(vectors.transform(kept[one]), vectors.transform(kept[other]))
        for one, other in (("val", "train"), ("test", "train"), ("test", "val"))
    }
    for (one, other), cosines in similar.items():
        near = int((cosines.max(1) >= 0.6).sum())
        assert near > 0
        assert whole.counts[one][f"near_{other}"] == near
        assert f"{near} of {len(kept[one])} {one} prompts have one in {other}" in said[-1]
    thinned, _ = drawn(0.6)
    for split in ("train", "val"):
        assert instructions(thinned.prompts[split]) == list(np.array(kept[split])[similar["test", split].max(0) < 0.6])
        assert thinned.counts["test"][f"near_{split}"] == 0
    assert thinned.prompts["test"] == whole.prompts["test"]


def test_a_prompt_cannot_be_of_both_kinds():
    drawn = [Sampled({"train": [Prompt(text)], "val": [], "test": []}, {}) for text in ("Why?", "why")]
    with pytest.raises(RefusalCmpError, match=r"1 prompts are harmful and harmless at once, such as 'Why\?'"):
        check_apart(*drawn)


# In a run


@pytest.fixture
def my_files(tmp_path):
    """A hundred of the embedded prompts of each kind, as a new user's own files."""
    for kind, suffix in (("harmful", "csv"), ("harmless", "jsonl")):
        prompts = DATASETS.get(f"tiny-{kind}")("train")[:100]
        rows = [{"question": one.instruction, "topic": one.category} for one in prompts]
        if suffix == "csv":
            write_csv(tmp_path / "my.csv", rows)
        else:
            write(tmp_path / "my.jsonl", "\n".join(map(json.dumps, rows)))
    return tmp_path


def start(folder: Path, model, stages=("extract",), **flags) -> tuple[Session, list[str]]:
    said: list[str] = []
    chosen = {"harmful": str(folder / "my.csv"), "harmless": str(folder / "my.jsonl"), "limit": 16, **flags}
    session = Session(load_config(None, chosen), RunDir(folder / "run"), say=said.append)
    session.__dict__["model"] = model
    run_stages(session, stages)
    return session, said


def test_a_run_keeps_its_prompts_and_needs_the_files_no_more(my_files, tiny):
    extra = [*instructions(DATASETS.get("tiny-harmful")("train")[:100]), "Which cake is blue?", "Which cow is blue?"]
    write(my_files / "Extra Set.txt", "\n".join(extra))
    flags = {"methods": "diff-in-means", "eval_datasets": ["harmful", str(my_files / "Extra Set.txt")], "limit": 999}
    session, _ = start(my_files, tiny, **flags)
    kept = session.run.read_json(PROMPTS)
    assert [kept["counts"][f"harmful_{split}"]["available"] for split in SPLITS] == [60, 20, 20]
    assert kept["prompts"]["harmful_test"][0]["category"]
    test = read_test_prompts(session, "extra-set")
    learned = {row["instruction"] for split in ("train", "val") for row in kept["prompts"][f"harmful_{split}"]}
    assert "Which cow is blue?" in instructions(test)
    assert not learned & set(instructions(test))
    assert load_config(session.run.path / "config.yaml", {}) == session.config

    (my_files / "my.csv").unlink()
    (my_files / "Extra Set.txt").unlink()
    again, _ = start(my_files, tiny, **flags)
    assert again.run.read_json(PROMPTS) == kept
    assert read_test_prompts(again, "extra-set") == test


def test_changed_files_are_read_again_and_missing_ones_named(my_files, tiny):
    session, _ = start(my_files, tiny, methods="diff-in-means")
    before = session.run.digest(PROMPTS)
    path = my_files / "my.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:80]))
    session, _ = start(my_files, tiny, methods="diff-in-means")
    assert session.run.digest(PROMPTS) != before
    with pytest.raises(RefusalCmpError, match=r"Cannot read the prompts .*none\.csv: No such file"):
        start(my_files, tiny, eval_datasets=["harmful", str(my_files / "none.csv")])


@pytest.mark.parametrize(
    ("sets", "name"),
    [
        ("xstest,data/XSTest.csv", "xstest"),
        ("harmful,harmful=jailbreakbench", "harmful"),
        ("contrast,contrast=a.txt", "contrast"),
    ],
)
def test_two_test_sets_of_one_name_are_refused(sets, name):
    with pytest.raises(RefusalCmpError, match=f"two test sets are called {name}, so rename one of the files"):
        load_config(None, {"eval_datasets": sets})


def test_the_source_of_a_test_set_is_separate_from_its_role():
    sets = "harmful=jailbreakbench,harmless=data/my=own.csv,contrast,xstest,data/Contrast.csv"
    config = load_config(None, {"eval_datasets": sets, "contrast": "tiny-contrast"})
    assert config.test_sets == ("harmful", "harmless", "contrast", "xstest", "contrast-file")
    assert config.other_sets == {
        "harmful": "jailbreakbench",
        "harmless": "data/my=own.csv",
        "contrast": "tiny-contrast",
        "xstest": "xstest",
        "contrast-file": "data/Contrast.csv",
    }
    assert load_config(None, {"eval_datasets": "harmful,harmless"}).other_sets == {}


def test_any_set_plays_a_role_without_what_the_run_learns_from(my_files, tiny):
    learned_from = instructions(DATASETS.get("tiny-harmful")("train")[:100])
    write(my_files / "others.txt", "\n".join([*learned_from, "Which cake is blue?"]))
    session, _ = start(
        my_files, tiny, methods="diff-in-means", eval_datasets=f"harmful={my_files / 'others.txt'},harmless", limit=999
    )
    assert "Which cake is blue?" in instructions(read_test_prompts(session, "harmful"))
    drawn = session.run.read_json("infer/prompts/harmful.json")
    assert drawn["source"] == str(my_files / "others.txt")
    own = session.run.read_json(PROMPTS)["prompts"]
    assert [row["instruction"] for row in own["harmless_test"]] == instructions(read_test_prompts(session, "harmless"))
    learned = {row["instruction"] for split in ("train", "val") for row in own[f"harmful_{split}"]}
    assert not learned & {row["instruction"] for row in drawn["prompts"]}


def session_of(folder: Path, **given) -> tuple[Session, list[str]]:
    """A session without a model, and what it says."""
    said: list[str] = []
    return Session(load_config(None, given), RunDir(folder / "run"), say=said.append), said


def both_kinds(path: Path, n: int = 66, kind: tuple[str | list[str], str | list[str]] = ("bad", "fine")) -> Path:
    """One file with n prompts of each kind, and what a column says of each: one value, or several in turn."""
    rows = []
    for said, name in zip(kind, KINDS, strict=True):
        values = said if isinstance(said, list) else [said]
        rows += [{"text": f"{name} {row}?", "kind": values[row % len(values)]} for row in range(n)]
    return write_csv(path, rows)


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_that_tells_the_kinds_apart_is_told_where_no_label_is_named(tmp_path, kind):
    path = both_kinds(tmp_path / "mine.csv")
    session, said = session_of(tmp_path, **{kind: f"{path}:text"})
    _check_labels(session)
    assert said == [
        f"Warning: {path} has a column kind with the values bad (66), fine (66), and all 132 rows are taken as {kind}; "
        f"if it tells the kinds apart, set label-column to kind, and {kind}-label to what it says of {kind} prompts."
    ]


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (("bad", "bad"), {}),
        (("a long remark on the prompt", "another long remark on it"), {}),
        (([f"id {n}" for n in range(6)], "bad"), {}),
        (("bad", ["bad"] * 65 + ["odd"]), {}),
        (("bad", "fine"), {"label_column": "kind", "harmful_label": "bad"}),
        (("train", "test"), {"split_column": "kind"}),
        (("bad", "fine"), {"harmless": "{folder}/other.csv"}),
        (("bad", "fine"), {"harmful": "{folder}/mine.csv:text", "harmless": "{folder}/mine.csv:kind"}),
    ],
    ids=["one-value", "long", "many", "rare", "named", "splits", "two-files", "two-columns"],
)
def test_no_label_is_seen_in_a_column_that_is_none(tmp_path, kind, given):
    path = both_kinds(tmp_path / "mine.csv", kind=kind)
    given = {name: value.format(folder=tmp_path) for name, value in given.items()}
    session, said = session_of(tmp_path, **{"harmful": f"{path}:text", **given})
    _check_labels(session)
    assert said == []


def test_one_file_for_both_kinds_without_a_label_is_an_error_that_names_the_column(tmp_path):
    path = f"{both_kinds(tmp_path / 'mine.csv')}:text"
    session, _ = session_of(tmp_path, harmful=path, harmless=path)
    with pytest.raises(RefusalCmpError, match=r"nothing tells its rows apart: .* column kind with the values") as error:
        _check_labels(session)
    assert error.value.settings == {"label_column": "kind", "harmful_label": "VALUE"}


def test_both_lists_of_one_file_are_told_by_their_kind(tmp_path):
    path = both_kinds(tmp_path / "mine.csv")
    session, said = session_of(tmp_path, harmful=f"{path}:text", label_column="kind", harmful_label="bad")
    _draw(session)
    assert [word.partition("; ")[2] for word in said if "is one list" in word] == [
        f"its 66 {kind} prompts are split 39/13/14 into train, val and test." for kind in KINDS
    ]


@pytest.mark.parametrize(
    ("n", "given", "says"),
    [
        (66, {}, "14 harmful test prompts cannot decide which plan suppresses refusal, even if all are answered: it "
         "takes 36 for one plan, and 72 among 48; give more prompts, or test on a set that comes with us"),
        (100, {}, "20 harmful test prompts cannot decide which plan suppresses refusal, even if all are answered: it "
         "takes 36 for one plan, and 72 among 48; give more prompts, or a larger test part of one list (setting split"),
        (66, {"model": "smol-refuser"}, "(setting eval-datasets, as in harmful=everyday-harmful,harmless,contrast)."),
        (200, {"scope": "all"}, "40 harmful test prompts may not decide"),
        (200, {"n_test": 20}, "among 48; its set has 40, so take more of them (setting n-test)."),
        (200, {"limit": 20}, "among 48; its set has 40, so take more of them (setting limit)."),
        (200, {"limit": 20, "n_test": 30}, "so take more of them (settings n-test, limit)."),
        (200, {"scope": "all", "methods": "inlp", "interventions": "ablation"}, None),
        (400, {}, None),
        (66, {"eval_datasets": "harmless"}, None),
        (66, {"eval_datasets": "harmful=tiny-harmful"}, None),
    ],
)  # fmt: skip
def test_too_few_test_prompts_are_told_as_soon_as_they_are_drawn(tmp_path, n, given, says):
    path = both_kinds(tmp_path / "mine.csv", n)
    own = {"harmful": f"{path}:text", "label_column": "kind", "harmful_label": "bad", **given}
    session, said = session_of(tmp_path, **own)
    drawn = _draw(session)
    said.clear()
    _report_few(session, drawn, {})
    assert len(said) == (says is not None)
    assert says is None or says in said[0]


def test_too_few_prompts_of_another_set_that_plays_the_harmful_ones_are_told(tmp_path):
    session, said = session_of(tmp_path, eval_datasets="harmful=mine.csv,harmless")
    _report_few(session, None, {"harmful": [Prompt(str(n)) for n in range(35)]})
    assert said[0].startswith("35 harmful test prompts cannot decide")
    _report_few(session, None, {"harmful": [Prompt(str(n)) for n in range(fewest(48))]})
    assert len(said) == 1


@pytest.mark.parametrize("model", ["tiny-refuser", "smol-refuser"])
def test_the_sets_that_come_with_us_are_large_enough(tmp_path, model):
    session, said = session_of(tmp_path, model=model)
    drawn = _draw(session)
    said.clear()
    _report_few(session, drawn, {})
    assert said == []


@pytest.mark.parametrize(
    ("left", "counts", "says", "settings"),
    [
        ((8, 9), (12, 12, 4), "8 harmful and 9 harmless ones; give more, or of one list a larger training part, or "
         "keep the 7 that were dropped", {"split", "no_filter_prompts"}),
        ((9, 12), (12, 12, 0), "9 harmful and 12 harmless ones; give more, or of one list a larger training part.",
         {"split"}),
        ((8, 8), (39, 10, 0), "take more of those that there are.", {"n_train"}),
        ((9, 12), (12, 12, 1), "or keep the one that was dropped by the refusal metric.",
         {"split", "no_filter_prompts"}),
    ],
)  # fmt: skip
def test_too_few_training_prompts_are_told_with_what_would_give_more(tmp_path, left, counts, says, settings):
    session, _ = session_of(tmp_path, n_train=10)
    kept = dict(zip(KINDS, left, strict=True))
    available, sampled, most = counts
    count = {"available": available, "duplicates": 0, "near_duplicates": 0, "sampled": sampled}
    session.run.write_json(PROMPTS, {
        "counts": {f"{kind}_train": {**count, "dropped": min(most, sampled - n)} for kind, n in kept.items()},
        "prompts": {f"{kind}_train": [{"instruction": f"{kind} {one}", "category": ""} for one in range(n)]
                    for kind, n in kept.items()},
    })  # fmt: skip
    session.run.record(PROMPTS, {}, {})
    with pytest.raises(RefusalCmpError, match="at least 10 different training prompts of each kind") as error:
        _check_enough(session)
    assert says in str(error.value)
    assert set(error.value.settings) == settings


def test_as_a_new_user_would_try_it(my_files):
    command = [sys.executable, "-c", "from refusal_cmp.cli import main; main()"]
    args = ["run", "--harmful", "my.csv", "--harmless", "my.jsonl", "--until", "extract", "--limit", "16"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    result = subprocess.run(
        [*command, *args], capture_output=True, text=True, cwd=my_files, env=environment, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "my.csv is one list; its 100 harmful prompts are split 60/20/20" in " ".join(result.stderr.split())
    assert (my_files / "runs/tiny-refuser/extract/diff-in-means.safetensors").is_file()
