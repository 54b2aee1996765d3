"""The public prompt sets and texts of the field, downloaded on first use and cached; see `data/_download.py`.

A set of one list is its test split. The published splits of Arditi et al. 2024 were drawn without a seed, so they
are read as that work stored them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from refusal_cmp.data import Columns, Document, Prompt, Split, register_dataset, register_text
from refusal_cmp.data.download import github_file, hub_rows
from refusal_cmp.data.files import Row, prompts_of, read_rows
from refusal_cmp.errors import RefusalCmpError

PUBLISHED = "andyrdt/refusal_direction", "0b9c8bc56a73b42f595fd173156d4aefe9a9143c"
"""Repository and commit of the published splits."""
XSTEST = "paul-rottger/xstest", "475f10bf0a3d6a9dfb174b6de1a38afbfdff98a5"
HARMBENCH = "centerforaisafety/HarmBench", "main"
TDC = "centerforaisafety/tdc2023-starter-kit", "main"
JBB = "JailbreakBench/JBB-Behaviors"
ALPACA = "tatsu-lab/alpaca"
PILE = "monology/pile-uncopyrighted"


@register_dataset("published-harmful", source=f"GitHub {PUBLISHED[0]}", train=260, val=39, test=572)
def published_harmful(split: Split) -> list[Prompt]:
    """Harmful requests in the splits of Arditi et al. 2024."""
    return _github(*PUBLISHED, f"dataset/splits/harmful_{split}.json", "instruction", "category")


@register_dataset("published-harmless", source=f"GitHub {PUBLISHED[0]}", train=18793, val=6264, test=6266)
def published_harmless(split: Split) -> list[Prompt]:
    """Alpaca instructions in the splits of Arditi et al. 2024."""
    return _github(*PUBLISHED, f"dataset/splits/harmless_{split}.json", "instruction", "category")


@register_dataset("advbench", source="GitHub llm-attacks/llm-attacks", test=520)
def advbench(split: Split) -> list[Prompt]:
    """AdvBench, harmful behaviours (Zou et al. 2023)."""
    if split != "test":
        return []
    return _github("llm-attacks/llm-attacks", "main", "data/advbench/harmful_behaviors.csv", "goal")


@register_dataset("malicious-instruct", source="GitHub Princeton-SysML/Jailbreak_LLM", test=100)
def malicious_instruct(split: Split) -> list[Prompt]:
    """MaliciousInstruct, harmful questions (Huang et al. 2023)."""
    if split != "test":
        return []
    return _github("Princeton-SysML/Jailbreak_LLM", "main", "data/MaliciousInstruct.txt", "instruction")


@register_dataset("tdc2023", source=f"GitHub {TDC[0]}", test=100)
def tdc2023(split: Split) -> list[Prompt]:
    """Harmful behaviours of the Trojan Detection Challenge 2023, both phases (Mazeika et al. 2023)."""
    if split != "test":
        return []
    phases = ("dev", "test")
    return [one for phase in phases for one in _github(*TDC, f"red_teaming/data/{phase}/behaviors.json", "instruction")]


@register_dataset("harmbench", source=f"GitHub {HARMBENCH[0]}", val=41, test=159)
def harmbench(split: Split) -> list[Prompt]:
    """HarmBench, standard behaviours: no copyright, no context (Mazeika et al. 2024); it has no train split."""
    if split == "train":
        return []
    path = f"data/behavior_datasets/harmbench_behaviors_text_{split}.csv"
    rows = _rows(*HARMBENCH, path, "Behavior", "FunctionalCategory", "SemanticCategory")
    standard = [row for row in rows if row["FunctionalCategory"] == "standard"]
    return prompts_of(standard, Columns(("Behavior",), "SemanticCategory"), path)


@register_dataset("jailbreakbench", source=f"HF hub {JBB}", test=100)
def jailbreakbench(split: Split) -> list[Prompt]:
    """JailbreakBench, harmful behaviours (Chao et al. 2024)."""
    return _jailbreakbench("harmful") if split == "test" else []


@register_dataset("jailbreakbench-benign", source=f"HF hub {JBB}", test=100)
def jailbreakbench_benign(split: Split) -> list[Prompt]:
    """JailbreakBench, harmless behaviours on the same topics (Chao et al. 2024)."""
    return _jailbreakbench("benign") if split == "test" else []


@register_dataset("strongreject", source="GitHub alexandrasouly/strongreject", test=313)
def strongreject(split: Split) -> list[Prompt]:
    """StrongREJECT, forbidden prompts (Souly et al. 2024)."""
    if split != "test":
        return []
    path = "strongreject_dataset/strongreject_dataset.csv"
    return _github("alexandrasouly/strongreject", "main", path, "forbidden_prompt", "category")


@register_dataset("xstest", source=f"GitHub {XSTEST[0]}", test=250)
def xstest(split: Split) -> list[Prompt]:
    """XSTest, harmless prompts that sound harmful (Röttger et al. 2024)."""
    if split != "test":
        return []
    path = "xstest_prompts.csv"
    rows = _rows(*XSTEST, path, "prompt", "type", "label")
    return prompts_of([row for row in rows if row["label"] == "safe"], Columns(("prompt",), "type"), path)


@register_dataset("alpaca", source=f"HF hub {ALPACA}", test=31323)
def alpaca(split: Split) -> list[Prompt]:
    """Alpaca, harmless instructions without input (Taori et al. 2023)."""
    return prompts_of(list(_alpaca()), Columns(("instruction",)), ALPACA) if split == "test" else []


@register_text("alpaca", source=f"HF hub {ALPACA}", documents=31323)
def alpaca_answers() -> Iterator[Document]:
    """Alpaca's answers to instructions without input (Taori et al. 2023)."""
    return (Document(row["output"], row["instruction"]) for row in _alpaca())


@register_text("pile", source=f"HF hub {PILE}")
def pile() -> Iterator[Document]:
    """The Pile without copyrighted parts, streamed (Gao et al. 2020)."""
    return (Document(row["text"]) for row in having(hub_rows(PILE, "train", streaming=True), PILE, "text"))


def _alpaca() -> Iterator[Row]:
    rows = having(hub_rows(ALPACA, "train"), ALPACA, "instruction", "input", "output")
    return (row for row in rows if not row["input"].strip())


def _jailbreakbench(split: str) -> list[Prompt]:
    return prompts_of(list(hub_rows(JBB, split, name="behaviors")), Columns(("Goal",), "Category"), JBB)


def _github(repository: str, revision: str, path: str, column: str, category: str | None = None) -> list[Prompt]:
    """The prompts of a file of a GitHub repository."""
    wanted = [column] if category is None else [column, category]
    return prompts_of(_rows(repository, revision, path, *wanted), Columns((column,), category), path)


def _rows(repository: str, revision: str, path: str, *columns: str) -> list[Row]:
    return list(having(read_rows(github_file(repository, revision, path)), f"{repository}/{path}", *columns))


def having(rows: Iterable[dict[str, Any] | Row], where: str, *columns: str) -> Iterator[Row]:
    """The rows, after a look at whether they have the columns that this set is known by."""
    for row in rows:
        missing = [column for column in columns if column not in row]
        if missing:
            raise RefusalCmpError(
                f"{where} has no column {missing[0]} any more; its columns are {', '.join(row)}: read it as a local "
                "file with --column."
            )
        yield row
