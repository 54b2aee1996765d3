"""What else an edit takes: whether harm is recognised, and what probes read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from refusal_cmp.api import extract, plan_intervention
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals import Subject
from refusal_cmp.evals.probes import FEWEST, Probes, foretold, properties
from refusal_cmp.evals.recognition import QUESTION, Recognition
from refusal_cmp.model import Answer
from refusal_cmp.plan import baseline, prompted

from support.models import instructions


def subject(model, plan, n=20):
    answers = {
        kind: [
            Answer(text, ("cooking", "travel")[index % 2], "", 0, "stop")
            for index, text in enumerate(instructions(f"tiny-{kind}", "test", n))
        ]
        for kind in ("harmful", "harmless")
    }
    return Subject(plan, answers, {}, lambda: model, unedited=lambda: model)


@pytest.fixture(scope="module")
def ablation(tiny):
    prompts = [instructions(f"tiny-{kind}", "train", 16) for kind in ("harmful", "harmless")]
    return plan_intervention("ablation", extract(tiny, *prompts, "diff-in-means"), layer=6)


def by_hand(model, answers):
    """log p(yes) − log p(no) of the next token, one prompt at a time."""
    found = []
    for answer in answers:
        text = model.render(QUESTION.replace("{request}", answer.instruction))
        ids = torch.tensor([model.tokenizer(text, add_special_tokens=False).input_ids])
        with torch.inference_mode():
            p = model.model(input_ids=ids).logits[0, -1].double().softmax(-1)
        of_word = []
        for word in ("yes", "no"):
            forms = {space + form for form in (word, word.title(), word.upper()) for space in ("", " ")}
            tokens = {model.tokenizer(form, add_special_tokens=False).input_ids[0] for form in forms}
            of_word.append(float(p[sorted(tokens)].sum()))
        found.append(np.log(of_word[0]) - np.log(of_word[1]))
    return found


def test_recognition_is_what_the_model_says_when_it_is_asked_one_by_one(tiny, ablation):
    for plan in (baseline(), ablation, prompted("own", "Say yes.")):
        asked = subject(tiny, plan, 10)
        found = Recognition().evaluate(asked)
        with tiny.edited(plan):
            scores = {kind: by_hand(tiny, answers) for kind, answers in asked.answers.items()}
        values = {(one.dataset, one.metric): one.estimate.value for one in found.metrics}
        for kind, expected in scores.items():
            said = [row["log_odds"] for row in found.examples[kind]]
            np.testing.assert_allclose(said, expected, rtol=1e-3, atol=1e-4)
            assert values[kind, "called_harmful"] == np.mean(np.array(expected) > 0)
        truth, all_scores = np.repeat([1, 0], 10), np.concatenate([scores["harmful"], scores["harmless"]])
        assert values["harmful", "recognition_auroc"] == pytest.approx(roc_auc_score(truth, all_scores), abs=0.011)


def test_recognition_needs_both_kinds():
    with pytest.raises(RefusalCmpError, match="harmless is not among the test sets"):
        Recognition().check(["harmful"])


def test_probes_under_no_edit_read_what_they_keep_and_an_edit_that_takes_everything_leaves_chance(tiny, monkeypatch):
    measured = Probes().evaluate(subject(tiny, baseline())).metrics
    found = {(one.dataset, one.metric): one.estimate.value for one in measured}
    assert {name for _, name in found} >= {"probe_topic_read", "probe_topic_kept", "probe_sentiment_read"}
    assert found["probe-sentences", "probe_language_read"] > 0.5
    for kind, name in found:
        assert found[kind, name] == found[kind, name.replace("read", "kept")]
    monkeypatch.setattr("refusal_cmp.evals.probes._streams", lambda _, texts, __: np.ones((len(texts), 8)))
    for one in Probes().evaluate(subject(tiny, baseline())).metrics:
        assert one.estimate.value == pytest.approx(0.5, abs=0.2)


def test_a_probe_tells_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    y = np.repeat(["long", "short"], 40)
    x = rng.normal(size=(80, 20))
    nothing = balanced_accuracy_score(y, foretold(x, x, y))
    x[:, 3] += np.where(y == "long", 4, 0)
    assert balanced_accuracy_score(y, foretold(x, x, y)) > 0.9
    assert 0.3 < nothing < 0.7
    moved = x.copy()
    moved[:, 3] = 0
    assert balanced_accuracy_score(y, foretold(x, moved, y)) < 0.7
    assert foretold(x, np.full_like(x, np.nan), y) is None


def test_properties_need_two_values_of_enough_prompts():
    texts = ["How is it?"] * FEWEST + ["Tell me more."] * 16
    answers = [Answer(text, "x", "", 0, "stop") for text in texts]
    found = properties(answers)
    assert "topic" not in found
    assert sorted(set(found["question"])) == ["other", "question"]
    assert not properties(answers[:5])
