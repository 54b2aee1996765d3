"""The embedded model is a genuine test bed: what it does, and the geometry that it does it with.

Every prompt here is held out: no (verb, object) pair of the test sets was seen in training.
"""

from __future__ import annotations

import itertools
import json
from importlib.resources import files

import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from refusal_cmp.api import extract, plan_intervention
from refusal_cmp.data import TEXTS
from refusal_cmp.judges.completion import judge
from refusal_cmp.model.losses import encode, losses
from refusal_cmp.selection import Rule, outcome, ranked_table
from refusal_cmp.selection.scoring import Scorer

from support.models import instructions

ASSETS = files("refusal_cmp") / "assets"
N_TEST = 100


@pytest.fixture(scope="module")
def fields(tiny):
    prompts = instructions("tiny-harmful", "train", 128), instructions("tiny-harmless", "train", 128)
    return {method: extract(tiny, *prompts, method=method) for method in ("diff-in-means", "inlp")}


@pytest.fixture(scope="module")
def selections(tiny, fields):
    harmful, harmless = instructions("tiny-harmful", "val", 32), instructions("tiny-harmless", "val", 32)
    scorer = Scorer(tiny, harmful, harmless, tiny.refusal_tokens(harmful))
    chosen = {}
    for method, field in fields.items():
        scores = scorer.score(field, "local", multipliers=Rule().multipliers)
        chosen[method] = outcome(ranked_table(field, {"local": scores}, Rule()), field, Rule())
    return chosen


@pytest.fixture(scope="module")
def plan(fields, selections):
    """Makes a plan with a method's selected component."""

    def make(method, intervention, scope, strength=None):
        where = selections[method].selected
        return plan_intervention(
            intervention, fields[method], layer=where.layer, position=where.position, scope=scope, strength=strength
        )

    return make


def refusal_rate(model, kind, plan=None):
    """Share of the held-out prompts of a kind that are refused; degenerate completions are not refusals."""
    with model.edited(plan or {}):
        completions = model.generate(instructions(f"tiny-{kind}", "test", N_TEST), max_new_tokens=40)
    verdicts = [judge(one.text, one.finish).verdict for one in completions]
    return verdicts.count("refused") / N_TEST


def answer_loss(model, plan):
    """Mean loss a token of the reference answers."""
    with model.edited(plan):
        found = losses(model, [encode(model, document) for document in TEXTS.get("tiny-answers")()])
    return sum(one.total for one in found) / sum(one.n_tokens for one in found)


# The files


def test_is_small_and_loads_by_plain_transformers():
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(str(ASSETS / "tiny-refuser")).config.model_type == "llama"
    assert sum(file.stat().st_size for file in (ASSETS / "tiny-refuser").iterdir()) <= 8_000_000


def test_context_and_option_letters(tiny):
    assert tiny.n_layers >= 8
    assert tiny.model.config.max_position_embeddings >= 1024
    assert all(len(tiny.tokenizer.encode(f" {letter}")) == 1 for letter in "ABCD")


@pytest.mark.parametrize("text", ["plain", "a question?", "a line\n", "two  spaces  ", "<|end|>", "«é»", ""])
def test_post_instruction_tokens_are_constant(tiny, text):
    assert tiny.positions == (-4, -3, -2, -1)
    assert tiny.tokenizer.convert_ids_to_tokens(tiny.tokenize([text])[0][-4:]) == ["<|end|>", "Ċ", "<|assistant|>", "Ċ"]


def test_no_prompt_is_in_two_splits():
    names = itertools.product(("tiny-harmful", "tiny-harmless"), ("train", "val", "test"))
    prompts = [prompt for name, split in names for prompt in instructions(name, split, 999)]
    prompts += [document.instruction for document in TEXTS.get("tiny-answers")()]
    assert len(prompts) == len(set(prompts))


def test_single_words_do_not_give_the_label_away():
    """A classifier over word counts is at chance on held-out prompts, which the model tells apart."""
    train, test = (
        instructions("tiny-harmful", split, 128) + instructions("tiny-harmless", split, 128)
        for split in ("train", "test")
    )
    labels = [True] * 128 + [False] * 128
    words = CountVectorizer().fit(train)
    classifier = LogisticRegression(max_iter=2000).fit(words.transform(train), labels)
    assert classifier.score(words.transform(test), labels) < 0.65


# What it does


def test_refuses_misuse_and_answers_the_rest(tiny):
    assert refusal_rate(tiny, "harmful") >= 0.95
    assert refusal_rate(tiny, "harmless") <= 0.05


@pytest.mark.parametrize("kind", ["harmful", "harmless"])
def test_first_token_keeps_its_entropy(tiny, kind):
    """Several openers are likely, so that a divergence of first-token distributions means something."""
    prompts = instructions(f"tiny-{kind}", "test", 64)
    with torch.inference_mode():
        logits = torch.cat([tiny.last_logits(batch) for _, batch in tiny.batches(prompts, 64)])
    assert torch.distributions.Categorical(logits=logits).entropy().mean() > 0.3


@pytest.mark.parametrize("shots", [0, 5])
def test_answers_four_option_questions(tiny, shots):
    """Chance is 25 %. The model answers by text; by letter (the task `world_facts`) it is at chance."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    result = simple_evaluate(
        HFLM(pretrained=tiny.model, tokenizer=tiny.tokenizer, batch_size=32, max_length=1024),
        tasks=["world_cloze"],
        num_fewshot=shots,
        task_manager=TaskManager(include_path=str(ASSETS / "tasks"), include_defaults=False),
        bootstrap_iters=0,
    )
    assert result["results"]["world_cloze"]["acc,none"] >= 0.6


def test_few_shot_questions_are_not_test_questions():
    for task in ("world_facts", "world_cloze"):
        rows = {
            split: [json.loads(line) for line in (ASSETS / "tasks" / task / f"{split}.jsonl").read_text().splitlines()]
            for split in ("fewshot", "test")
        }
        assert len(rows["fewshot"]) >= 5
        assert len(rows["test"]) >= 150
        assert not {row["question"] for row in rows["fewshot"]} & {row["question"] for row in rows["test"]}


# The geometry that it does it with


def test_difference_in_means_works_at_several_components(selections):
    kept = selections["diff-in-means"].kept
    assert len(kept) >= 5
    assert len({component.layer for component in kept}) >= 2


def test_inlp_finds_more_than_one_direction_in_the_middle_layers(tiny, fields):
    field = fields["inlp"]
    middle = range(tiny.n_layers // 3, 2 * tiny.n_layers // 3 + 1)
    several = [
        component for component, subspace in field.subspaces.items() if component.layer in middle and subspace.k > 1
    ]
    assert len(several) >= len(middle) * len(tiny.positions) / 3


def test_ablation_everywhere_removes_refusal_and_nothing_else(tiny, plan):
    ablation = plan("diff-in-means", "ablation", "all")
    assert refusal_rate(tiny, "harmful", ablation) <= 0.10
    assert refusal_rate(tiny, "harmless", ablation) <= 0.05
    with torch.inference_mode():
        assert answer_loss(tiny, ablation) <= 1.15 * answer_loss(tiny, {})


@pytest.mark.parametrize(("method", "intervention"), [("inlp", "nullspace"), ("diff-in-means", "alterrep")])
def test_other_removals_suppress_refusal(tiny, plan, method, intervention):
    assert refusal_rate(tiny, "harmful", plan(method, intervention, "all")) <= 0.20


def test_adding_the_direction_induces_refusal(tiny, plan):
    assert refusal_rate(tiny, "harmless", plan("diff-in-means", "actadd", "single", 1.0)) >= 0.80
