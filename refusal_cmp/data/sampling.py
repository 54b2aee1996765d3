"""From whole sets to the prompts of a run: split where they are not, each prompt in one split, then sampled."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from refusal_cmp.data import SPLITS, Columns, Prompt, Split
from refusal_cmp.data.conversations import has_prefill, words
from refusal_cmp.data.sets import load, pick
from refusal_cmp.errors import RefusalCmpError

PARTS = (60.0, 20.0, 20.0)
"""Percent of train, val and test, where a set is one list."""
NEAR = 0.6
"""TF-IDF cosine from which on a prompt counts as a near-duplicate."""
EARLIER: dict[Split, tuple[Split, ...]] = {"val": ("train",), "test": ("train", "val")}
"""What each split should be new to."""
CHUNK = 512

Splits = dict[Split, list[Prompt]]


@dataclass(frozen=True)
class Sampled:
    """The sampled prompts of one kind by split, with what was counted on the way."""

    prompts: Splits
    counts: dict[Split, dict[str, int]]
    """By split: `available` in the set; `duplicates` and `near_duplicates` left out; `sampled`. Of val and test also
    `near_train`, and of test `near_val`: those of the sample that have a near-duplicate in the sample of that split."""


def draw(
    name: str,
    sizes: Mapping[Split, int],
    seed: int,
    *,
    columns: Columns,
    near_duplicates: float | None,
    say: Callable[[str], None],
    parts: Sequence[float] = PARTS,
    test_seed: int | None = None,
) -> Sampled:
    """The prompts of a set that a run works on.

    Parameters
    ----------
    sizes
        Most prompts of each split.
    near_duplicates
        Training and validation prompts whose TF-IDF cosine to a sampled test prompt is at least this are left out.
    parts
        Percent of train, val and test that a set of one list is divided into.
    test_seed
        Of the sample of test prompts; by default that of the others.

    Raises
    ------
    RefusalCmpError
        If the set cannot be read, or a split of it is empty.
    """
    of_kind = f"{columns.kind} " if columns.kind else ""
    whole = _three_splits(name, load(name, columns, say), parts, say, of_kind)
    splits = _distinct(whole)
    test = pick(splits["test"], sizes["test"], seed if test_seed is None else test_seed)
    cosine = _cosine([words(prompt.instruction) for split in SPLITS for prompt in splits[split]])
    pools: Splits = dict(splits)
    if near_duplicates is not None:
        for split in ("train", "val"):
            pools[split] = _unlike(splits[split], test, cosine, near_duplicates)
    train, val = (pick(pools[split], sizes[split], seed) for split in ("train", "val"))
    sampled: Splits = {"train": train, "val": val, "test": test}
    counts = {
        split: {
            "available": len(whole[split]),
            "duplicates": len(whole[split]) - len(splits[split]),
            "near_duplicates": len(splits[split]) - len(pools[split]),
            "sampled": len(sampled[split]),
        }
        for split in SPLITS
    }
    for split in SPLITS:
        if not sampled[split]:
            raise RefusalCmpError(f"No {of_kind}{split} prompt of {name!r} is left; give other or more prompts.")
    begun = [prompt for prompt in (*train, *val) if has_prefill(prompt.instruction)]
    if begun:
        raise RefusalCmpError(
            f"{len(begun)} of the {of_kind}training and validation prompts say how the answer begins, and directions "
            "are read before there is one; leave that out, or use the set to test on only.",
            eval_datasets="",
        )
    for split, earlier in EARLIER.items():
        counts[split] |= _near(sampled[split], {one: sampled[one] for one in earlier}, cosine)
    _tell(f"{name} ({columns.kind})" if columns.kind else name, counts, near_duplicates, say)
    return Sampled(sampled, counts)


def check_apart(harmful: Sampled, harmless: Sampled) -> None:
    """RefusalCmpError if a prompt is harmful and harmless at once."""
    kinds = [
        {normal(prompt.instruction): prompt.instruction for split in SPLITS for prompt in drawn.prompts[split]}
        for drawn in (harmful, harmless)
    ]
    both = kinds[0].keys() & kinds[1].keys()
    if both:
        raise RefusalCmpError(
            f"{len(both)} prompts are harmful and harmless at once, such as {kinds[0][min(both)]!r}; remove them from "
            "one set."
        )


def to_raise(there: int, needed: int, **most: int | None) -> list[str]:
    """Of the settings that keep a run to so many prompts of a set, those that keep it from as many as it needs.

    None where the set does not hold that many: then more prompts have to be given.

    Parameters
    ----------
    there
        Different prompts of the set.
    most
        Settings by name, as in `n_test=100, limit=None`.
    """
    return [name for name, value in most.items() if value is not None and value < needed] if there >= needed else []


def unlike_learned(
    prompts: Sequence[Prompt], learned: Mapping[Split, Sequence[Prompt]], near_duplicates: float | None
) -> tuple[list[Prompt], dict[str, int]]:
    """The prompts of a test set without repetitions and without what is in, or near, the prompts that are learned from.

    The counts are `available`, `duplicates` and `near_duplicates` left out, and `near_train` and `near_val`: near to
    those of that split, and kept.
    """
    others = [prompt for of_split in learned.values() for prompt in of_split]
    seen = {normal(prompt.instruction) for prompt in others}
    distinct: list[Prompt] = []
    for prompt in prompts:
        key = normal(prompt.instruction)
        if key not in seen:
            seen.add(key)
            distinct.append(prompt)
    cosine = _cosine([words(prompt.instruction) for prompt in (*others, *distinct)])
    kept = distinct if near_duplicates is None else _unlike(distinct, others, cosine, near_duplicates)
    return kept, {
        "available": len(prompts),
        "duplicates": len(prompts) - len(distinct),
        "near_duplicates": len(distinct) - len(kept),
        **_near(kept, learned, cosine),
    }


def normal(text: str) -> str:
    """A prompt without what makes no difference: case, spacing, punctuation at its ends, ways to write a character."""
    text = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).casefold())
    return text.strip(" .,;:!?\"'“”‘’") or text.strip()


def _three_splits(
    name: str, splits: Splits, parts: Sequence[float], say: Callable[[str], None], of_kind: str
) -> Splits:
    """The set as it is, or, if it is one list, divided into these parts, whatever the order of its prompts."""
    empty = [split for split in SPLITS if not splits[split]]
    if not empty:
        return splits
    if len(empty) < 2:
        raise RefusalCmpError(
            f"The {empty[0]} split of dataset {name!r} is empty; choose another set, or use this one to test on only.",
            eval_datasets="",
        )
    prompts = next((found for found in splits.values() if found), [])
    order = sorted(range(len(prompts)), key=lambda index: _hash(normal(prompts[index].instruction)))
    ends = np.cumsum([int(share * len(prompts) / 100) for share in parts[:-1]])
    if not 0 < ends[0] < ends[1] < len(prompts):
        raise RefusalCmpError(
            f"{name!r} has {len(prompts)} {of_kind}prompts, too few to split; give more, at least 5 for 60/20/20.",
            split="",
        )
    divided: Splits = {
        split: [prompts[row] for row in sorted(rows)]
        for split, rows in zip(SPLITS, np.split(np.array(order), ends), strict=True)
    }
    sizes = "/".join(str(len(divided[split])) for split in SPLITS)
    say(f"{name} is one list; its {len(prompts)} {of_kind}prompts are split {sizes} into train, val and test.")
    return divided


def _distinct(splits: Splits) -> Splits:
    """Each prompt once: in test rather than in val, in val rather than in train."""
    seen: set[str] = set()
    found: Splits = {}
    for split in reversed(SPLITS):
        found[split] = []
        for prompt in splits[split]:
            key = normal(prompt.instruction)
            if key not in seen:
                seen.add(key)
                found[split].append(prompt)
    return found


Cosine = Callable[[Sequence[Prompt], Sequence[Prompt]], Float[np.ndarray, " n"]]


def _cosine(texts: Sequence[str]) -> Cosine:
    """A function that gives, for each of some prompts, the largest TF-IDF cosine to any of others."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\w+")
    if any(re.search(r"\w", text) for text in texts):
        vectorizer.fit(texts)
    else:  # nothing but punctuation: no word to compare
        return lambda prompts, others: np.zeros(len(prompts))

    def largest(prompts: Sequence[Prompt], others: Sequence[Prompt]) -> Float[np.ndarray, " n"]:
        references = vectorizer.transform([words(prompt.instruction) for prompt in others]).T
        rows = vectorizer.transform([words(prompt.instruction) for prompt in prompts])
        chunks = [rows[start : start + CHUNK] @ references for start in range(0, len(prompts), CHUNK)]
        return np.concatenate([chunk.max(axis=1).toarray().ravel() for chunk in chunks])

    return largest


def _unlike(prompts: list[Prompt], others: Sequence[Prompt], cosine: Cosine, threshold: float) -> list[Prompt]:
    if not prompts or not others:
        return prompts
    return [prompt for prompt, near in zip(prompts, cosine(prompts, others), strict=True) if near < threshold]


def _near(prompts: Sequence[Prompt], earlier: Mapping[Split, Sequence[Prompt]], cosine: Cosine) -> dict[str, int]:
    """How many of the prompts have a near-duplicate in each of the earlier splits."""
    return {
        f"near_{split}": int((cosine(prompts, others) >= NEAR).sum()) if prompts and others else 0
        for split, others in earlier.items()
    }


def _tell(
    name: str, counts: Mapping[Split, Mapping[str, int]], threshold: float | None, say: Callable[[str], None]
) -> None:
    duplicates = sum(count["duplicates"] for count in counts.values())
    if duplicates:
        say(f"{name}: {duplicates} duplicates are left out; a prompt is in one split, and once.")
    left_out = sum(count["near_duplicates"] for count in counts.values())
    if left_out:
        say(f"{name}: {left_out} training and validation prompts are left out, near-duplicates of test prompts.")
    hint = (
        ""
        if threshold is not None
        else f"; the setting near-duplicates, at {NEAR}, leaves out those like a test prompt"
    )
    near = [
        f"{counts[split][f'near_{other}']} of {counts[split]['sampled']} {split} prompts have one in {other}"
        for split, earlier in EARLIER.items()
        for other in earlier
        if counts[split][f"near_{other}"]
    ]
    if near:
        say(f"{name}: near-duplicates (TF-IDF cosine from {NEAR}): {', '.join(near)}{hint}.")


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
