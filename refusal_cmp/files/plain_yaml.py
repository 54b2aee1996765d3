"""YAML as settings are written in it: lists, objects, numbers, true, false, null, and text.

What YAML 1.1 makes of `2020-01-02`, `1:30`, `010` or `no` (a date, 90, 8, false) is text here, as on the command line.
Tags and aliases are refused: no setting needs them, and a few lines with aliases can stand for gigabytes.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from refusal_cmp.errors import RefusalCmpError, shortened

_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"([-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?)|[-+]?\.inf|\.nan")
"""What of the numbers of YAML 1.1 is a number: no more than that, so that text that is dumped is read as text."""


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem=f"write out what *{event.anchor} stands for", problem_mark=mark)
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(problem=f"leave out the tag {event.tag}", problem_mark=mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = '"' if re.search("[\x85\u2028\u2029\ufeff]", data) else None  # unquoted they would be line breaks
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)


def load(text: str, what: str) -> Any:
    """The value of a YAML text.

    Parameters
    ----------
    what
        The text is, for messages: `The configuration x.yaml`.

    Raises
    ------
    RefusalCmpError
        If it is something else, or two entries of an object have one name.
    """
    return load_with_lines(text, what)[0]


def load_with_lines(text: str, what: str) -> tuple[Any, dict[str, int]]:
    """The value of a YAML text and, if it is an object, the line of each entry, counted from 1."""
    try:
        root = yaml.compose(text, Loader=_Loader)
        value = None if root is None else _value(root, what)
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:
        raise RefusalCmpError(
            f"{what}{_place(text, error)} is not YAML as settings are written in it ({_reason(error)}); mend it."
        ) from None
    entries = root.value if isinstance(root, yaml.MappingNode) else []
    return value, {key.value: _line(key) for key, _ in entries}


def dump(value: Any) -> str:
    """The YAML text of a value, that `load` reads back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _value(node: Any, what: str) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_value(one, what) for one in node.value]
    if isinstance(node, yaml.MappingNode):
        return _object(node, what)
    try:
        return node.value if node.style else _plain(node.value)
    except ValueError:  # Python reads no integer of thousands of digits
        raise yaml.MarkedYAMLError(problem="a number has too many digits", problem_mark=node.start_mark) from None


def _object(node: yaml.MappingNode, what: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a name must be text", problem_mark=key.start_mark)
        if key.value in found:
            raise RefusalCmpError(
                f"{what} sets {shortened(key.value)!r} twice, on lines {lines[key.value]} and {_line(key)}; keep one."
            )
        found[key.value], lines[key.value] = _value(value, what), _line(key)
    return found


def _plain(text: str) -> Any:
    """What text without quotes stands for."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text.lower()):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _place(text: str, error: Exception) -> str:
    """The line of a mistake, where it is known."""
    if (mark := getattr(error, "problem_mark", None)) is not None:
        return f", line {mark.line + 1},"
    at = getattr(error, "position", None)  # of a character that no YAML text holds
    return "" if at is None else f", line {text.count(chr(10), 0, at) + 1},"


def _reason(error: Exception) -> str:
    named = getattr(error, "problem", None) or getattr(error, "reason", None)
    return shortened(named or str(error).split("\n")[0])


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1
