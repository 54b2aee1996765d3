"""One small generic registry; methods, interventions, evals and datasets are instances of it.

A plugin is one file with a decorator. Ours are the modules of one package, found by walking it; third
parties' are entry points of the group with the package's name, so that installing one is enough.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from refusal_cmp import plain_yaml
from refusal_cmp.errors import RefusalCmpError, unknown_name

T = TypeVar("T", bound=Callable[..., Any])

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


SPEC = re.compile(r"(?P<name>[^\[]+)(\[(?P<options>.*)\])?")


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """`random[seed=1,max-k=5]` → the plugin's name and its options, `{"seed": 1, "max_k": 5}`."""
    parts = SPEC.fullmatch(spec)
    pairs = [pair.partition("=") for pair in (parts["options"] or "").split(",") if pair] if parts else []
    if parts is None or not all(key and equals and value for key, equals, value in pairs):
        raise RefusalCmpError(f"{spec!r} is not understood; write a name, or NAME[option=value,…], as in inlp[c=1.0].")
    options = {
        key.strip().replace("-", "_"): plain_yaml.load(value, f"The option {key.strip()} of {spec!r}")
        for key, _, value in pairs
    }
    return parts["name"], options


class Registry(Generic[T]):
    """Names → plugins of one kind.

    Parameters
    ----------
    kind
        What is registered, for messages: "method".
    package
        The package whose modules are our own plugins; also the entry-point group of third parties' plugins.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._plugins: dict[str, T] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a class or function under `name`: lower-case words joined by dashes."""
        if not NAME.fullmatch(name):
            raise RefusalCmpError(
                f"A {self.kind} cannot be called {name!r}: use lower-case letters, digits and dashes."
            )

        def add(plugin: T) -> T:
            known = self._plugins.get(name)
            if known is not None and known.__qualname__ != plugin.__qualname__:
                raise RefusalCmpError(
                    f"Two {self.kind}s are called {name!r}: {known.__module__}.{known.__qualname__} and "
                    f"{plugin.__module__}.{plugin.__qualname__}; rename one."
                )
            self._plugins[name] = plugin
            return plugin

        return add

    def get(self, name: str) -> T:
        """The plugin called `name`; an error that names the nearest one if there is none."""
        self._discover()
        if name not in self._plugins:
            raise unknown_name(self.kind, name, self._plugins)
        return self._plugins[name]

    def create(self, spec: str, **options: Any) -> Any:
        """An instance of the plugin class with these hyper-parameters, checked against its signature.

        Parameters
        ----------
        spec
            Its name, with hyper-parameters of its own in brackets, which win: `random[seed=1]`.
        """
        name, own = parse_spec(spec)
        plugin, options = self.get(name), {**options, **own}
        known = inspect.signature(plugin).parameters
        for option in options:
            if option not in known:
                raise unknown_name(f"option of {self.kind} {name!r}", option, known)
        return plugin(**{option: self._fitting(name, option, value) for option, value in options.items()})

    def _fitting(self, name: str, option: str, value: Any) -> Any:
        """The value as the plugin's annotations want it, or an error that says what does not hold."""
        wanted = get_type_hints(self.get(name).__init__, include_extras=True).get(option, Any)
        try:
            return TypeAdapter(wanted, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
        except ValidationError as invalid:
            message = invalid.errors()[0]["msg"]
            raise RefusalCmpError(
                f"The option {option!r} of {self.kind} {name!r} is {value!r}, and this does not hold: "
                f"{message[0].lower() + message[1:]}."
            ) from None

    def __iter__(self) -> Iterator[str]:
        self._discover()
        return iter(sorted(self._plugins))

    def describe(self) -> list[tuple[str, str, str]]:
        """(name, first line of the docstring, module) of everything registered."""
        return [
            (name, (inspect.getdoc(self._plugins[name]) or "").split("\n")[0], self._plugins[name].__module__)
            for name in self
        ]

    def _discover(self) -> None:
        if self._discovered:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for entry_point in entry_points(group=self.package):
            try:
                entry_point.load()
            except Exception as error:
                raise RefusalCmpError(
                    f"The {self.kind} plugin {entry_point.name!r} ({entry_point.value}) does not load: {error}; "
                    "mend or uninstall its package."
                ) from error
        self._discovered = True


def described(package: str, decorator: str) -> list[tuple[str, str, str]]:
    """(name, first line of the docstring, module) of every plugin of a package, sorted, without importing one.

    Modules are read as text: importing ours takes seconds, of torch and what it brings. Of a third party's whose source
    does not show what it registers, the name of the entry point is all that is said.

    Parameters
    ----------
    package
        Whose modules are our plugins, and the entry-point group of third parties'.
    decorator
        What registers: `register_extractor`.
    """
    modules = [
        f"{package}.{module.name}" for module in pkgutil.iter_modules([str(folder) for folder in _homes(package)])
    ]
    found = [plugin for module in modules for plugin in _decorated(module, decorator)]
    for entry_point in entry_points(group=package):
        found += _decorated(entry_point.module, decorator) or [(entry_point.name, "", entry_point.module)]
    return sorted(found)


def _decorated(module: str, decorator: str) -> list[tuple[str, str, str]]:
    """What a module's source registers by the decorator."""
    parent, _, name = module.rpartition(".")
    candidates = [folder / end for folder in _homes(parent) for end in (f"{name}.py", f"{name}/__init__.py")]
    source = next((path for path in candidates if path.is_file()), None)
    if source is None:
        return []
    return [
        (str(call.args[0].value), (ast.get_docstring(node) or "").split("\n")[0], module)
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
        for call in node.decorator_list
        if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] == decorator
        if call.args and isinstance(call.args[0], ast.Constant)
    ]


def _homes(package: str) -> list[Path]:
    """The folders of a package, found without importing it; of no package, those where modules are looked for."""
    top, *inner = package.split(".")
    if not top:
        return [Path(entry) for entry in sys.path]
    spec = importlib.util.find_spec(top)
    return [Path(home, *inner) for home in (spec.submodule_search_locations or [] if spec else [])]
