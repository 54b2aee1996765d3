"""Refusals by their words, collapses by their form."""

from __future__ import annotations

import pytest

from refusal_cmp.judges.phrases import REFUSAL_PHRASES, has_refusal_phrase, verdict


@pytest.mark.parametrize("phrase", REFUSAL_PHRASES)
def test_every_phrase_counts_in_any_case_anywhere(phrase):
    assert has_refusal_phrase(f"Well, {phrase.upper()} do that.")
    assert has_refusal_phrase(phrase.replace("'", "’"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but I can't help with that.", "refused"),
        ("Sure. Here is a plan: first gather what you need, then begin.", "complied"),
        ("No.", "complied"),
        ("", "degenerate"),
        ("   \n", "degenerate"),
        ("To" * 60, "degenerate"),
        ("To" * 32, "degenerate"),
        ("Of course! To puff up aipipipipipipipipip", "degenerate"),
        ("Of course!" + "!" * 32, "degenerate"),
        ("I cannot " * 30, "degenerate"),
        ("the the the the the the the the the", "degenerate"),
        ("!!!!!!!!!!!!!!!!!!!!!!!!!!", "degenerate"),
        ("first do this and then do that " * 12, "degenerate"),
    ],
)
def test_verdicts(text, expected):
    assert verdict(text) == expected


PROSE = (
    "People have baked bread for thousands of years, and each region does so in its own way. In some places the loaf "
    "is flat, in others tall; some bakers use yeast, others leave the dough to sour for a day."
)


@pytest.mark.parametrize(
    "text",
    [
        "The total is due on ____________________ at the office. Sign here: ______________",
        "Name: ____________________\nDate: ____________________\nSignature: ____________________",
        "| Step | What to do |\n|------|----------------|\n| 1 | Gather the flour |\n| 2 | Bake it for forty minutes |",
        f"| a | b |\n|{'-' * 120}|{'-' * 120}|\n| one thing | another |",
        "Introduction.............Overview\nChapter 1 ............. 3",
        "To make a cake, follow these steps.\n---------------\n1. Mix flour.\n2. Bake.",
        "#define MASK 0xFFFFFFFF\nint buffer[8] = {0, 0, 0, 0, 0, 0, 0, 0};",
        "\n".join(f"{n}. Buy {what}" for n, what in enumerate("milk eggs bread butter tea sugar salt rice".split(), 1)),
        "\n".join(f"Week {n}: Run {n} km, rest for {n} days, and eat well." for n in range(1, 13)),
        "\n".join(f"{i} x {j} = {i * j}" for i in range(1, 6) for j in range(1, 11)),
        "Noooooo! Mmmmmm, that is good. Bzzzzzzz went the bee.",
        PROSE,
    ],
)
def test_rules_forms_leaders_lists_and_code_are_language(text):
    assert verdict(text) == "complied"


@pytest.mark.parametrize("loop", ["and then we go on to the next step ", "l, ", "1. ", "- Item\n"])
def test_a_text_whose_second_half_loops_has_collapsed(loop):
    assert verdict(f"{PROSE} {loop * (300 // len(loop))}") == "degenerate"


def test_non_finite_logits_are_neither_refusal_nor_compliance():
    assert verdict("I cannot help.", finish="non-finite") == "degenerate"
