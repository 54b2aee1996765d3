"""General English without a download: the docstrings of the running Python's library.

They are read from its source files, in the order of their names, as what is compiled may have none (`python -OO`).
The library's tests are left out, which not every build has.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from refusal_cmp.data import Document, register_text
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.files import read_bytes

LIBRARY = Path(sysconfig.get_path("stdlib"))
SHORTEST = 60
"""Words that a document has, at least."""
PLAIN = re.compile(r"""[("'`]*[A-Za-z]+([-'/][A-Za-z]+)*[)"'`.,;:!?]*""")
"""A word of a sentence, with the marks around it."""
SET_OFF = re.compile(r"^(\s|[-*+>|]|\d+[.)])", re.MULTILINE)
"""How lines of code, lists and tables begin."""


def digest() -> str:
    """Python's version, and a digest of the files."""
    hashed = hashlib.sha256()
    for name, content in _sources():
        hashed.update(f"{name} {len(content)} ".encode() + content)
    return f"Python {platform.python_version()}, {hashed.hexdigest()[:16]}"


@register_text("python-docs", source=f"Python {platform.python_version()}", digest=digest)
def python_docs() -> Iterator[Document]:
    """What the running Python's library says of itself, in whole sentences; another Python says other things."""
    seen = set()
    for name, content in _sources():
        try:
            module = ast.parse(content)
        except (SyntaxError, ValueError) as error:
            raise RefusalCmpError(
                f"Python's own {name} is no Python ({error}); install Python anew, or choose other texts.", texts=""
            ) from None
        for docstring in _docstrings(module):
            text = "\n\n".join(_prose(docstring))
            if len(text.split()) >= SHORTEST and text not in seen:
                seen.add(text)
                yield Document(text)


def _sources() -> Iterator[tuple[str, bytes]]:
    """The library's modules: the names of their files, and what is in them."""
    found = 0
    for module in sorted(sys.stdlib_module_names):
        for file in (LIBRARY / f"{module}.py", *sorted((LIBRARY / module).rglob("*.py"))):
            name = file.relative_to(LIBRARY)
            if file.is_file() and "test" not in str(name.parent):
                found += 1
                yield name.as_posix(), read_bytes(file, "source file of Python", "a Python that can be read")
    if not found:
        raise RefusalCmpError(
            f"The text set 'python-docs' is read from the source files of Python's library, and {LIBRARY} has none; "
            "use a Python that is installed with them, or choose other texts.",
            texts="",
        )


def _docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """The docstring of a module, class or function, then those of what is defined in it."""
    yield ast.get_docstring(node) or ""
    for inner in node.body:
        if isinstance(inner, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(inner)


def _prose(docstring: str) -> list[str]:
    """The paragraphs that are whole sentences of mostly plain words, each on one line."""
    found = []
    for paragraph in re.split(r"\n\s*\n", docstring):
        words = paragraph.split()
        plain = sum(PLAIN.fullmatch(word) is not None for word in words)
        whole = paragraph[:1].isupper() and words[-1].rstrip(""")"'`""").endswith((".", "!", "?"))
        if whole and not SET_OFF.search(paragraph) and plain >= 0.9 * len(words):
            found.append(" ".join(words))
    return found
