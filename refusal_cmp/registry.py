"""One small generic registry; methods, interventions, evals and datasets are instances of it.

A plugin is one file with a decorator. Ours are the modules of one package, found by walking it; third
parties' are entry points of the group with the package's name, so that installing one is enough. One that does not load
is named, with the reason, and the rest goes on without it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from refusal_cmp.errors import RefusalCmpError, unknown_name
from refusal_cmp.files import plain_yaml

T = TypeVar("T", bound=Callable[..., Any])

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


SPEC = re.compile(r"(?P<name>[^\[]+)(\[(?P<options>.*)\])?")


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """`random[seed=1,max-k=5]` → the plugin's name and its options, `{"seed": 1, "max_k": 5}`."""
    parts = SPEC.fullmatch(spec)
    pairs = [pair.partition("=") for pair in (parts["options"] or "").split(",") if pair] if parts else []
    if parts is None or not all(key and equals and value for key, equals, value in pairs):
        raise RefusalCmpError(f"{spec!r} is not understood; write a name, or NAME[option=value,…], as in inlp[c=1.0].")
    names = [key.strip().replace("-", "_") for key, _, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RefusalCmpError(f"{spec!r} sets {twice[0]} twice; keep one.")
    options = {
        key.strip().replace("-", "_"): plain_yaml.load(value, f"The option {key.strip()} of {spec!r}")
        for key, _, value in pairs
    }
    return parts["name"], options


def spelled(name: str, options: Mapping[str, Any]) -> str:
    """A plugin with its options as labels have it, which `parse_spec` reads: `angular[keep-norm=true]`."""
    pairs = ",".join(f"{key.replace('_', '-')}={str(value).lower()}" for key, value in options.items())
    return f"{name}[{pairs}]" if pairs else name


class Registry(Generic[T]):
    """Names → plugins of one kind.

    Parameters
    ----------
    kind
        What is registered, for messages: "method".
    package
        The package whose modules are our own plugins; also the entry-point group of third parties' plugins.
    base
        The class that plugins derive from, if they are classes.
    """

    of_package: ClassVar[dict[str, list[Registry[Any]]]] = {}

    def __init__(self, kind: str, package: str, base: type | None = None) -> None:
        self.kind = kind
        self.package = package
        self.base = base
        self._plugins: dict[str, T] = {}
        self._unusable: dict[str, tuple[str, str]] = {}
        """Third parties' plugins that do not load, by the name of the entry point: the reason, and where they are."""
        self._discovered = False
        self.of_package.setdefault(package, []).append(self)

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a class or function under `name`: lower-case words joined by dashes."""
        if not NAME.fullmatch(name):
            raise RefusalCmpError(
                f"A {self.kind} cannot be called {name!r}: use lower-case letters, digits and dashes."
            )

        def add(plugin: T) -> T:
            self._check(name, plugin)
            known = self._plugins.get(name)
            if known is not None and _place(known) != _place(plugin):
                clash = f"Two {self.kind}s are called {name!r}: {_place(known)} and {_place(plugin)}; rename one."
                if not self._is_ours(known):  # which of two strangers is meant?
                    self._unusable[name] = clash.rstrip("."), known.__module__
                raise RefusalCmpError(clash)
            self._plugins[name] = plugin
            return plugin

        return add

    def get(self, name: str) -> T:
        """The plugin called `name`; an error that names the nearest one if there is none, or why it cannot be used."""
        if name in self:
            return self._plugins[name]
        if name in self._unusable:
            reason, place = self._unusable[name]
            raise RefusalCmpError(
                f"The {self.kind} {name!r} of {place} cannot be used: {reason}; mend or uninstall its package."
            )
        raise unknown_name(self.kind, name, self)

    def create(self, spec: str, **options: Any) -> Any:
        """An instance of the plugin class with these hyper-parameters, checked against its signature.

        Parameters
        ----------
        spec
            Its name, with hyper-parameters of its own in brackets, which win: `random[seed=1]`.
        """
        name, own = parse_spec(spec)
        plugin, options = self.get(name), {**options, **own}
        with self._trusting(name, plugin):
            known = inspect.signature(plugin).parameters
            for option in options:
                if option not in known:
                    raise unknown_name(f"option of {self.kind} {name!r}", option, known)
            return plugin(**{option: self._fitting(name, option, value) for option, value in options.items()})

    def _fitting(self, name: str, option: str, value: Any) -> Any:
        """The value as the plugin's annotations want it, or an error that says what does not hold."""
        plugin: Any = self.get(name)
        annotated = plugin if is_dataclass(plugin) else plugin.__init__  # a class's are read where each is written
        wanted = get_type_hints(annotated, include_extras=True).get(option, Any)
        try:
            return TypeAdapter(wanted, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
        except ValidationError as invalid:
            messages = dict.fromkeys(error["msg"][0].lower() + error["msg"][1:] for error in invalid.errors())
            raise RefusalCmpError(  # one for each kind of value that would do
                f"The option {option!r} of {self.kind} {name!r} is {value!r}, and this does not hold: "
                f"{', or '.join(messages)}."
            ) from None

    def __contains__(self, name: str) -> bool:
        self._discover()
        return name in self._plugins and (name not in self._unusable or self._is_ours(self._plugins[name]))

    def __iter__(self) -> Iterator[str]:
        self._discover()
        return iter(sorted(name for name in self._plugins if name in self))

    def describe(self) -> list[tuple[str, str, str]]:
        """(name, first line of the docstring, module) of everything registered; of what cannot be used, the reason."""
        usable = [
            (name, (inspect.getdoc(self._plugins[name]) or "").split("\n")[0], self._plugins[name].__module__)
            for name in self
        ]
        unusable = [(name, f"cannot be used: {reason}", place) for name, (reason, place) in self._unusable.items()]
        return sorted(usable + unusable)

    def _check(self, name: str, plugin: T) -> None:
        """RefusalCmpError for what cannot be a plugin."""
        if self.base is None:
            return
        if not (isinstance(plugin, type) and issubclass(plugin, self.base)):
            raise RefusalCmpError(f"The {self.kind} {name!r} is no class that derives from {self.base.__name__}.")
        missing = sorted(getattr(plugin, "__abstractmethods__", ()))
        if missing:
            raise RefusalCmpError(f"The {self.kind} {name!r} lacks {', '.join(missing)}; write it.")

    @contextmanager
    def _trusting(self, name: str, plugin: T) -> Iterator[None]:
        """What goes wrong inside a third party's plugin is a sentence that names it."""
        try:
            yield
        except (Exception, SystemExit) as error:
            if isinstance(error, RefusalCmpError) or self._is_ours(plugin):
                raise
            raise RefusalCmpError(
                f"The {self.kind} {name!r} of {plugin.__module__} cannot be used: {_reason(error)}; mend or uninstall "
                "its package."
            ) from error

    def _is_ours(self, plugin: T) -> bool:
        return plugin.__module__.startswith(f"{self.package}.")

    def _discover(self) -> None:
        if self._discovered:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        self._discovered = True
        for entry_point in _of_others(self.package):
            self._load(entry_point)

    def _load(self, entry_point: EntryPoint) -> None:
        """Load a third party's plugin, or note why it cannot be used, and what it left behind is taken back."""
        name, place = entry_point.name, entry_point.value
        module = place.partition(":")[0].strip()
        try:
            entry_point.load()
            beside = Registry.of_package[self.package]
            if any(_within(plugin, module) for registry in beside for plugin in registry._plugins.values()):
                return
            reason = f"it registers no {self.kind}"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # foreign code: it may even exit
            reason = _reason(error)
            self._plugins = {key: plugin for key, plugin in self._plugins.items() if not _within(plugin, module)}
        self._unusable[name] = reason, place
        warnings.warn(
            f"The {self.kind} plugin {name!r} ({place}) cannot be used: {reason}; mend or uninstall its package.",
            stacklevel=2,
        )


def _of_others(group: str) -> list[EntryPoint]:
    """The entry points of installed packages; a package whose list of them is damaged has none."""
    try:
        return list(entry_points(group=group))
    except Exception:  # a file of anybody's: it is found below
        found: list[EntryPoint] = []
    for package in distributions():
        try:
            found += package.entry_points.select(group=group)
        except Exception as error:
            place = getattr(package, "_path", package)
            warnings.warn(f"What {place} adds cannot be read ({_reason(error)}); install it anew.", stacklevel=2)
    return found


def _place(plugin: Any) -> str:
    return f"{plugin.__module__}.{plugin.__qualname__}"


def _within(plugin: Any, module: str) -> bool:
    """Whether a plugin is of a module, or of a package's."""
    return f"{plugin.__module__}.".startswith(f"{module}.")


def _reason(error: BaseException) -> str:
    """What went wrong in foreign code, in one line."""
    text = " ".join(str(error).split()).rstrip(".")
    return text if isinstance(error, RefusalCmpError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def described(package: str, decorator: str) -> list[tuple[str, str, str]]:
    """(name, first line of the docstring, module) of every plugin of a package, sorted.

    Modules of ours are read as text: importing them takes seconds, of torch and what it brings. Where third parties'
    plugins are installed, all are imported, as nothing else shows whether they can be used.

    Parameters
    ----------
    package
        Whose modules are our plugins, and the entry-point group of third parties'.
    decorator
        What registers: `register_extractor`.
    """
    if _of_others(package):
        importlib.import_module(package)
        return Registry.of_package[package][0].describe()
    top, *inner = package.split(".")
    spec = importlib.util.find_spec(top)
    homes = [Path(home, *inner) for home in (spec.submodule_search_locations or [] if spec else [])]
    found = [
        (str(call.args[0].value), (ast.get_docstring(node) or "").split("\n")[0], f"{package}.{module.name}")
        for home in homes
        for module in pkgutil.iter_modules([str(home)])
        for node in ast.parse((home / f"{module.name}.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
        for call in node.decorator_list
        if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] == decorator
        if call.args and isinstance(call.args[0], ast.Constant)
    ]
    return sorted(found)
