"""The public prompt sets and texts of the field, downloaded on first use and cached.

A set of one list is its test split. The published splits of Arditi et al. 2024 were drawn without a seed, so they
are read as that work stored them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from refusal_cmp.data import Columns, Document, Prompt, Split, register_dataset, register_text
from refusal_cmp.data.download import Repository
from refusal_cmp.data.files import prompts_of
from refusal_cmp.data.sources import (
    ADVBENCH,
    ALPACA,
    HARMBENCH,
    JBB,
    MALICIOUS_INSTRUCT,
    PILE,
    PUBLISHED,
    STRONGREJECT,
    TDC,
    XSTEST,
)
from refusal_cmp.data.tables import Row, read_table
from refusal_cmp.errors import RefusalCmpError


@register_dataset("published-harmful", source=f"GitHub {PUBLISHED.name}", train=260, val=39, test=572)
def published_harmful(split: Split) -> list[Prompt]:
    """Harmful requests in the splits of Arditi et al. 2024."""
    return _github(PUBLISHED, f"dataset/splits/harmful_{split}.json", "instruction", "category")


@register_dataset("published-harmless", source=f"GitHub {PUBLISHED.name}", train=18793, val=6264, test=6266)
def published_harmless(split: Split) -> list[Prompt]:
    """Alpaca instructions in the splits of Arditi et al. 2024."""
    return _github(PUBLISHED, f"dataset/splits/harmless_{split}.json", "instruction", "category")


@register_dataset("advbench", source=f"GitHub {ADVBENCH.name}", test=520)
def advbench(split: Split) -> list[Prompt]:
    """AdvBench, harmful behaviours (Zou et al. 2023)."""
    if split != "test":
        return []
    return _github(ADVBENCH, "data/advbench/harmful_behaviors.csv", "goal")


@register_dataset("malicious-instruct", source=f"GitHub {MALICIOUS_INSTRUCT.name}", test=100)
def malicious_instruct(split: Split) -> list[Prompt]:
    """MaliciousInstruct, harmful questions (Huang et al. 2023)."""
    if split != "test":
        return []
    return _github(MALICIOUS_INSTRUCT, "data/MaliciousInstruct.txt", "instruction")


@register_dataset("tdc2023", source=f"GitHub {TDC.name}", test=100)
def tdc2023(split: Split) -> list[Prompt]:
    """Harmful behaviours of the Trojan Detection Challenge 2023, both phases (Mazeika et al. 2023)."""
    if split != "test":
        return []
    phases = ("dev", "test")
    return [one for phase in phases for one in _github(TDC, f"red_teaming/data/{phase}/behaviors.json", "instruction")]


@register_dataset("harmbench", source=f"GitHub {HARMBENCH.name}", val=41, test=159)
def harmbench(split: Split) -> list[Prompt]:
    """HarmBench, standard behaviours: no copyright, no context (Mazeika et al. 2024); it has no train split."""
    if split == "train":
        return []
    path = f"data/behavior_datasets/harmbench_behaviors_text_{split}.csv"
    rows = _rows(HARMBENCH, path, "Behavior", "FunctionalCategory", "SemanticCategory")
    standard = [row for row in rows if row["FunctionalCategory"] == "standard"]
    return prompts_of(standard, Columns(("Behavior",), "SemanticCategory"), path)


@register_dataset("jailbreakbench", source=f"HF hub {JBB.name}", test=100)
def jailbreakbench(split: Split) -> list[Prompt]:
    """JailbreakBench, harmful behaviours (Chao et al. 2024)."""
    return _jailbreakbench("harmful") if split == "test" else []


@register_dataset("jailbreakbench-benign", source=f"HF hub {JBB.name}", test=100)
def jailbreakbench_benign(split: Split) -> list[Prompt]:
    """JailbreakBench, harmless behaviours on the same topics (Chao et al. 2024)."""
    return _jailbreakbench("benign") if split == "test" else []


@register_dataset("strongreject", source=f"GitHub {STRONGREJECT.name}", test=313)
def strongreject(split: Split) -> list[Prompt]:
    """StrongREJECT, forbidden prompts (Souly et al. 2024)."""
    if split != "test":
        return []
    path = "strongreject_dataset/strongreject_dataset.csv"
    return _github(STRONGREJECT, path, "forbidden_prompt", "category")


@register_dataset("xstest", source=f"GitHub {XSTEST.name}", test=250)
def xstest(split: Split) -> list[Prompt]:
    """XSTest, harmless prompts that sound harmful (Röttger et al. 2024)."""
    if split != "test":
        return []
    path = "xstest_prompts.csv"
    rows = _rows(XSTEST, path, "prompt", "type", "label")
    return prompts_of([row for row in rows if row["label"] == "safe"], Columns(("prompt",), "type"), path)


@register_dataset("alpaca", source=f"HF hub {ALPACA.name}", test=31323)
def alpaca(split: Split) -> list[Prompt]:
    """Alpaca, harmless instructions without input (Taori et al. 2023)."""
    return prompts_of(list(_alpaca()), Columns(("instruction",)), ALPACA.name) if split == "test" else []


@register_text("alpaca", source=f"HF hub {ALPACA.name}", documents=31323)
def alpaca_answers() -> Iterator[Document]:
    """Alpaca's answers to instructions without input (Taori et al. 2023)."""
    return (Document(row["output"], row["instruction"]) for row in _alpaca())


@register_text("pile", source=f"HF hub {PILE.name}")
def pile() -> Iterator[Document]:
    """The Pile without copyrighted parts, streamed (Gao et al. 2020)."""
    return (Document(row["text"]) for row in having(PILE.rows("train", streaming=True), PILE.name, "text"))


def _alpaca() -> Iterator[Row]:
    rows = having(ALPACA.rows("train"), ALPACA.name, "instruction", "input", "output")
    return (row for row in rows if not row["input"].strip())


def _jailbreakbench(split: str) -> list[Prompt]:
    return prompts_of(list(JBB.rows(split, subset="behaviors")), Columns(("Goal",), "Category"), JBB.name)


def _github(repository: Repository, path: str, column: str, category: str | None = None) -> list[Prompt]:
    """The prompts of a file of a GitHub repository."""
    wanted = [column] if category is None else [column, category]
    return prompts_of(_rows(repository, path, *wanted), Columns((column,), category), path)


def _rows(repository: Repository, path: str, *columns: str) -> list[Row]:
    return list(having(read_table(repository.file(path)).rows, f"{repository.name}/{path}", *columns))


def having(rows: Iterable[dict[str, Any] | Row], where: str, *columns: str) -> Iterator[Row]:
    """The rows, after a look at whether they have the columns that this set is known by."""
    for row in rows:
        missing = [column for column in columns if column not in row]
        if missing:
            raise RefusalCmpError(
                f"{where} has no column {missing[0]}; its columns are {', '.join(row)}: read it as a local file, and "
                "name the column.",
                column="NAME",
            )
        yield row
