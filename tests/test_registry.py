"""Registries: what is listed without an import is what is registered; a plugin depends on what it declares."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from refusal_cmp.config import MachineSettings, load_config
from refusal_cmp.engines import ENGINES
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals import EVALUATORS, Evaluation, Evaluator, configured, facts
from refusal_cmp.methods import EXTRACTORS
from refusal_cmp.planning import INTERVENTIONS
from refusal_cmp.registry import described

DECORATORS = {
    EXTRACTORS: "register_extractor",
    INTERVENTIONS: "register_intervention",
    EVALUATORS: "register_evaluator",
    ENGINES: "register_engine",
}


@pytest.mark.parametrize("registry", DECORATORS, ids=lambda registry: registry.kind)
def test_what_is_listed_as_text_is_what_is_registered(registry):
    assert described(registry.package, DECORATORS[registry]) == registry.describe()


@pytest.mark.parametrize("command", ["--help", "methods", "interventions", "evals", "engines"])
def test_listing_imports_nothing_heavy(command):
    script = (
        "import json, sys; sys.argv = ['refusal-cmp', sys.argv[1]]\n"
        "from refusal_cmp.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(json.dumps([name for name in ('torch', 'transformers', 'pandas', 'vllm') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script, command], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.fixture
def toy(monkeypatch):
    """An evaluator of a third party with a setting of the run and a hyper-parameter of its own."""

    class Toy(Evaluator):
        def __init__(self, max_new_tokens: int, device: str, threshold: float = 1.0) -> None:
            self.given = (max_new_tokens, device, threshold)

        def evaluate(self, subject):
            return Evaluation([])

    EVALUATORS.get("refusal")  # discover first
    monkeypatch.setitem(EVALUATORS._plugins, "toy", Toy)
    return Toy


def test_an_evaluator_is_given_the_settings_that_its_constructor_declares(toy):
    config = load_config(None, {"max_new_tokens": 9, "device": "cpu"})
    assert configured(config, "toy").given == (9, "cpu", 1.0)
    assert configured(config, "toy[threshold=3]").given == (9, "cpu", 3.0)
    with pytest.raises(RefusalCmpError, match="option of evaluator 'toy'"):
        configured(config, "toy[treshold=3]")


def test_results_depend_on_what_is_declared_but_not_on_the_machine(toy):
    assert facts(load_config(None, {"max_new_tokens": 9}), "toy") == {"max_new_tokens": 9}
    config = load_config(None, {})
    assert set(facts(config, "kl")) == set()
    for name in EVALUATORS:
        assert not set(facts(config, name)) & set(MachineSettings.model_fields)
