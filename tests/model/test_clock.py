"""The clock in a chat template: every way to a prompt tells it the same day, whatever day it is."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import count

import pytest

from refusal_cmp.config import load_config
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals import configured
from refusal_cmp.evals.capability import _strict_lm
from refusal_cmp.evals.guard import Guard
from refusal_cmp.judges import tokenizer_of
from refusal_cmp.model import ChatModel, ModelSource
from refusal_cmp.model.chat import Chat
from refusal_cmp.run.contents import PROMPTS
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import Session
from refusal_cmp.stages import run_stages

from support.models import TEMPLATE, word_tokenizer

ASKED = "{{ strftime_now('%d %b %Y, %H:%M') }}"
LLAMA_3_1 = (
    "{% if date_string is not defined %}{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') "
    "%}{% else %}{% set date_string = 'none' %}{% endif %}{% endif %}{{ date_string }} "
)
IN_A_MACRO = "{% macro today() %}{{ strftime_now('%Y-%m-%d') }} {% endmacro %}{{ today() }}"


@pytest.fixture(autouse=True)
def days(monkeypatch):
    """Whenever transformers' clock is asked, it is another day."""
    later = (datetime(2030, 1, 1) + timedelta(day) for day in count())

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return next(later)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)


def dated(template=ASKED):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template + TEMPLATE
    return tokenizer


def test_the_clock_of_these_tests_moves():
    said = [{"role": "user", "content": "one"}]
    first, second = (dated().apply_chat_template(said, tokenize=False) for _ in range(2))
    assert first != second
    assert first.startswith("01 Jan 2030")


@pytest.mark.parametrize(
    ("template", "told"), [(ASKED, "26 Jul 2024, 00:00"), (LLAMA_3_1, "26 Jul 2024 "), (IN_A_MACRO, "2024-07-26 ")]
)
def test_a_template_is_told_the_same_day_always(random_model, template, told):
    chat = ChatModel(random_model.model, dated(template), "random")
    assert {chat.render("one")[: len(told)] for _ in range(3)} == {told}


def test_the_day_can_be_chosen(tmp_path):
    chat = Chat.load(ModelSource(chat_template=ASKED + "{{ messages[-1].content }}<|end|>", date="2025-02-03"))
    assert chat.render("one") == "03 Feb 2025, 00:00one<|end|>"
    config = load_config(None, {"date": "2025-02-03"})
    assert Session(config, RunDir(tmp_path / "run")).source.date == "2025-02-03"
    assert Session(load_config(None, {}), RunDir(tmp_path / "run")).source.date == "2024-07-26"


@pytest.mark.parametrize("date", ["today", "2025-13-01", "03.02.2025", "2025", 20250203, ""])
def test_what_is_no_day_is_refused(date):
    with pytest.raises(RefusalCmpError, match="date"):
        load_config(None, {"date": date})


def test_a_guard_is_told_the_day_of_the_run():
    evaluator = configured(load_config(None, {"date": "2025-02-03"}), "guard")
    assert isinstance(evaluator, Guard)
    assert evaluator.date == "2025-02-03"
    for date in ("2024-07-26", "2025-02-03"):
        tokenizer = dated("{{ strftime_now('%Y-%m-%d') }} ")
        tokenizer.add_tokens(["2024-07-26", "2025-02-03"])
        ids = tokenizer_of(tokenizer, "some-guard", date)([{"role": "user", "content": "one"}])
        assert tokenizer.decode(ids).startswith(date)


def test_benchmarks_are_told_it_too(random_model):
    model = ChatModel(random_model.model, dated(), "random", date="2025-02-03")
    prompt = _strict_lm(model, 1).apply_chat_template([{"role": "user", "content": "one"}])
    assert prompt.startswith("03 Feb 2025, 00:00")


def test_a_run_goes_on_with_the_day_that_it_was_begun_with(tmp_path):
    template = tmp_path / "dated.jinja"
    template.write_text(
        ASKED + "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    settings = {"chat_template": str(template), "methods": "diff-in-means", "n_train": 16, "n_val": 2, "n_test": 2}

    def begin(name, *stages, **more):
        run = RunDir(tmp_path / name)
        run_stages(Session(load_config(None, settings | more), run), stages)
        return run

    first, second = (begin(name, "extract") for name in ("first", "second"))
    assert first.read_json(PROMPTS) == second.read_json(PROMPTS)
    assert first.manifest["model"]["date"] == "2024-07-26"
    assert first.manifest["files"] == second.manifest["files"]
    begin("first", "extract")
    with pytest.raises(RefusalCmpError, match="date was None and is now '2025-02-03'"):
        begin("first", "extract", date="2025-02-03")
