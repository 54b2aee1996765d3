"""Registries: what is listed without an import is what is registered; a plugin depends on what it declares."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import textwrap

import pytest

from refusal_cmp.config import MachineSettings, load_config
from refusal_cmp.engines import ENGINES
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals import EVALUATORS, Evaluation, Evaluator, configured, facts
from refusal_cmp.methods import EXTRACTORS
from refusal_cmp.planning import INTERVENTIONS
from refusal_cmp.registry import Registry, described

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


# Third parties' plugins

HOST = """
    from abc import ABC, abstractmethod
    from refusal_cmp.registry import Registry

    class Toy(ABC):
        @abstractmethod
        def play(self): ...

    TOYS = Registry("toy", "toys", Toy)
"""
OURS = """
    from toys import TOYS, Toy

    @TOYS.register("ours")
    class Ours(Toy):
        "Ours."
        def play(self): ...
"""
GOOD = OURS.replace("ours", "good").replace("Ours", "Good")
BROKEN = {
    "raises": ("raise RuntimeError('it is\\nbroken\\x1b.')", "RuntimeError: it is broken\x1b"),
    "raises-nothing": ("raise RuntimeError", "RuntimeError"),
    "exits": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "exits-well": ("import sys; sys.exit()", "SystemExit"),
    "stops": ("class Stop(BaseException): pass\nraise Stop('now')", "Stop: now"),
    "needs": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "no-python": ("def (:", "SyntaxError: "),
    "no-text": ("\0", "SyntaxError: "),
    "deep": ("f = lambda: f()\nf()", "RecursionError: "),
    "late": (GOOD.replace("good", "late") + "\n    raise ValueError('late')", "ValueError: late"),
    "empty": ("", "it registers no toy"),
    "lacks": (
        "from toys import *\n@TOYS.register('lacks')\nclass A(Toy): pass",
        "The toy 'lacks' lacks play; write it",
    ),
    "stranger": (
        "from toys import *\n@TOYS.register('stranger')\nclass A: pass",
        "The toy 'stranger' is no class that derives from Toy",
    ),
    "function": (
        "from toys import *\n@TOYS.register('function')\ndef f(): pass",
        "The toy 'function' is no class that derives from Toy",
    ),
    "Bad Name": ("from toys import *\nTOYS.register('Bad Name')", "A toy cannot be called 'Bad Name'"),
    "ours": (OURS, "Two toys are called 'ours': toys.own.Ours and plugin_ours.Ours; rename one"),
}


def install(site, group, plugins):
    """Packages as pip leaves them: a module and what it says of itself."""
    for name, (source, target) in plugins.items():
        module = "plugin_" + name.lower().replace("-", "_").replace(" ", "_")
        (site / f"{module}.py").write_text(textwrap.dedent(source))
        about = site / f"{module}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[{group}]\n{name} = {target or module}\n")


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """A registry with a plugin of its own, and a function that installs those of others beside it."""
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys/__init__.py").write_text(textwrap.dedent(HOST))
    (tmp_path / "toys/own.py").write_text(textwrap.dedent(OURS))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield importlib.import_module("toys").TOYS, lambda **plugins: install(tmp_path, "toys", plugins)
    for name in [name for name in sys.modules if name.startswith(("toys", "plugin_"))]:
        del sys.modules[name]
    del Registry.of_package["toys"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_plugin_that_does_not_load_is_named_and_the_rest_goes_on(toys, name):
    registry, installed = toys
    source, reason = BROKEN[name]
    installed(**{"good": (GOOD, None), name: (source, None), "after": (GOOD.replace("good", "after"), None)})
    with pytest.warns(UserWarning, match="cannot be used") as warned:
        assert list(registry) == ["after", "good", "ours"]
    (warning,) = [str(one.message) for one in warned]
    assert warning.startswith(f"The toy plugin {name!r} (plugin_")
    assert f"cannot be used: {reason}" in warning
    assert warning.endswith("; mend or uninstall its package.")
    assert "\n" not in warning
    (listed,) = [about for plugin, about, _ in registry.describe() if about.startswith("cannot be used")]
    assert reason in listed
    assert described("toys", "register") == registry.describe()
    if name == "ours":
        assert registry.get("ours").__module__ == "toys.own"
        return
    with pytest.raises(RefusalCmpError, match=f"The toy '{name}' of plugin_.* cannot be used") as caught:
        registry.create(name)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "target", ["no_such_module", "plugin_astray:Toy", "plugin_astray:", "?", ": :", "plugin_astray."]
)
def test_an_entry_point_that_leads_nowhere_is_named(toys, target):
    registry, installed = toys
    installed(astray=("", target))
    with pytest.warns(UserWarning, match="The toy plugin 'astray' .* cannot be used: "):
        assert list(registry) == ["ours"]
    with pytest.raises(RefusalCmpError, match="'astray' of .* cannot be used: "):
        registry.get("astray")


def test_a_name_that_two_strangers_claim_is_nobodys(toys):
    registry, installed = toys
    installed(good=(GOOD, None), other=(GOOD, "plugin_other"))
    with pytest.warns(UserWarning, match="Two toys are called 'good': plugin_.*Good and plugin_.*Good; rename one"):
        assert "ours" in registry
    assert list(registry) == ["ours"]
    for name in ("good", "other"):
        with pytest.raises(RefusalCmpError, match="Two toys are called 'good'"):
            registry.get(name)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def __init__(self): raise OSError('no disk')", "OSError: no disk"),
        ("def __init__(self): raise SystemExit(2)", "SystemExit: 2"),
        ("def __init__(self, size: Nowhere): pass", "NameError: name 'Nowhere' is not defined"),
        ("def __init__(self, size): self.size = size", "TypeError: "),
        ("def __init__(self): raise RefusalCmpError('Mine.')", "^Mine.$"),
    ],
)
def test_a_plugin_that_cannot_be_made_is_named(toys, body, says):
    registry, installed = toys
    future = "from __future__ import annotations\nfrom refusal_cmp.errors import RefusalCmpError"
    installed(good=(f"{future}{textwrap.dedent(GOOD)}    {body}\n", None))
    options = {"size": 1} if "Nowhere" in body else {}
    with pytest.raises(RefusalCmpError, match=says) as caught:
        registry.create("good", **options)
    if says != "^Mine.$":
        assert str(caught.value).startswith("The toy 'good' of plugin_good cannot be used: ")


def test_a_stop_by_the_user_is_none_of_a_plugin(toys):
    registry, installed = toys
    installed(slow=("raise KeyboardInterrupt", None))
    with pytest.raises(KeyboardInterrupt):
        list(registry)


def test_the_command_line_lists_and_works_beside_a_broken_plugin(tmp_path):
    install(
        tmp_path,
        "refusal_cmp.methods",
        {"exits": ("import sys; sys.exit('\\x1b[31mbye')", None), "fine": ("", "plugin_fine:nothing")},
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "COLUMNS": "200"}
    script = (
        "import sys\nfrom refusal_cmp.cli import main\n"
        "for args in (['methods'], ['run', '--methods', 'exits'], ['run', '--methods', 'fine']):\n"
        "    sys.argv = ['refusal-cmp', *args]\n"
        "    try: main()\n"
        "    except SystemExit as stopped: print(stopped.code)\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    assert "exits          cannot be used: SystemExit: \\x1b[31mbye" in done.stdout
    assert "diff-in-means  " in done.stdout
    assert [line for line in done.stdout.splitlines() if line.isdigit()] == ["0", "2", "2"]
    assert "Error: The method 'exits' of plugin_exits cannot be used: SystemExit: \\x1b[31mbye; mend" in done.stderr
    assert "Error: The method 'fine' of plugin_fine:nothing cannot be used: AttributeError: " in done.stderr
    assert "Warning: The method plugin 'exits' (plugin_exits) cannot be used" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_an_option_that_takes_several_kinds_of_value_names_them_all():
    with pytest.raises(RefusalCmpError, match=r"is 'middle', .*valid number.*, or input should be 'midpoint'\."):
        INTERVENTIONS.create("ablation[when=middle]")
