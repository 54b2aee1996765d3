"""What the documentation says of the program comes from the program: tables that are put into the pages.

Between `<!-- insert: NAME -->` and `<!-- inserted -->` a page has what the function of that name in `INSERTS` returns,
between `<!-- insert: NAME OF -->` and its end what it returns for that. Run as a script it writes them into the pages,
so that these are read without being built; as a hook of mkdocs (`mkdocs.yml`) it puts them there afresh. A test keeps
the pages from falling behind.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SIMULATED = ("means", "losses", "differences", "best", "kappa", "rho", "inlp", "seeds")
"""Questions of benchmarks/simulations.py."""
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{5})")
PARAMETER = re.compile(r"^(\w+)\n((?: {4}.+\n?)+)", re.MULTILINE)
INSERT = re.compile(r"^<!-- insert: ([a-z-]+)(?: ([a-z-]+))? -->$.*?^<!-- inserted -->$", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The text of a page with everything inserted, and no marks; KeyError for a name that is not in `INSERTS`."""
    return INSERT.sub(_inserted, markdown)


def written(markdown: str) -> str:
    """The text of a page with everything inserted between its marks."""
    return INSERT.sub(lambda found: f"{found[0].splitlines()[0]}\n\n{_inserted(found)}\n\n<!-- inserted -->", markdown)


def commands() -> str:
    """Every command with its options. Those that have the same ones, as the stages do, share a table."""
    found: dict[str, list[str]] = {}
    about = {}
    for name, command in _commands().items():
        about[name] = (command.help or "").strip().split("\n")[0]
        found.setdefault(_parameters(command), []).append(name)
    sections = []
    for parameters, names in found.items():
        lines = [f"- `refusal-cmp {name}`: {about[name]}" for name in names]
        sections += [f"## {', '.join(names)}", "\n".join(lines), parameters]
    return "\n\n".join(part for part in sections if part)


def file_settings() -> str:
    """Settings that only a configuration file has."""
    from refusal_cmp.config import FILE_ONLY, RunConfig, is_marked

    fields = RunConfig.model_fields.items()
    rows = [(f"`{name}`", field.description) for name, field in fields if is_marked(field, FILE_ONLY)]
    return _table(("setting", "what it is"), rows)


def methods() -> str:
    """The registered extractors."""
    from refusal_cmp.methods import EXTRACTORS

    return _registered(EXTRACTORS)


def methods_in_full() -> str:
    """Of every extractor: what its module says of it, and its options."""
    from refusal_cmp.methods import EXTRACTORS

    sections = []
    for name, about, module in EXTRACTORS.describe():
        text = inspect.getdoc(sys.modules[module]) or ""
        text = ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
        text = re.sub(r"^Cost:", "**Cost:**", re.sub(r"^Use it", "\n**Use it**", text, flags=re.M), flags=re.M)
        sections += [f"## `{name}`", f"*{about}*", text, _options(EXTRACTORS.get(name))]
    return "\n\n".join(part for part in sections if part)


def interventions() -> str:
    """The registered interventions."""
    from refusal_cmp.interventions import INTERVENTIONS

    return _registered(INTERVENTIONS)


def evals() -> str:
    """The registered evaluators."""
    from refusal_cmp.evals import EVALUATORS

    return _registered(EVALUATORS)


def measures(evaluator: str) -> str:
    """What an evaluator's metrics are."""
    from refusal_cmp.evals import EVALUATORS

    rows = [
        (f"`{one.name}`", one.meaning, one.unit, one.interval, "" if one.better == "neither" else one.better)
        for one in EVALUATORS.get(evaluator).measures
    ]
    return _table(("metric", "is", "unit", "interval", "better"), rows)


def datasets() -> str:
    """The registered prompt sets and text sets."""
    from refusal_cmp.data import CARDS, DATASETS, TEXTS

    tables = []
    for registry, heading in ((DATASETS, "prompts, train/val/test"), (TEXTS, "texts")):
        cards = CARDS[registry]
        rows = [(f"`{name}`", cards[name].size, about, cards[name].source) for name, about, _ in registry.describe()]
        tables.append(_table(("name", heading, "what it is", "source"), rows))
    return "\n\n".join(tables)


def benchmarks() -> str:
    """The committed timings."""
    script = [sys.executable, str(ROOT / "benchmarks" / "table.py")]
    return subprocess.run(script, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def simulated(question: str) -> str:
    """The committed simulations of one question: a row each, shares to three digits."""
    path = ROOT / "benchmarks" / "results" / "simulations.json"
    rows = json.loads(path.read_text(encoding="utf-8"))[question]
    head = list(dict.fromkeys(name for row in rows for name in row))
    return _table(head, [[_number(row.get(name)) for name in head] for row in rows])


def memory(part: str) -> str:
    """The committed measurements of memory, or what is computed for larger models."""
    found = json.loads((ROOT / "benchmarks" / "results" / "memory.json").read_text(encoding="utf-8"))[part]
    if part == "measured":
        rows = [(row["work"], _gib(row["pass_gib"]), _gib(row["beside_weights_gib"])) for row in found]
        return _table(("work", "a pass, GiB", "beside the weights, GiB"), rows)
    head = ("model, weights in float32", "work", "rows of a pass", "GiB", "GiB of 128 rows")
    rows = [
        (
            f"{one['shape']}, {one['weights_gib']:.1f} GiB",
            work,
            str(of["rows"]),
            _gib(of["gib"]),
            _gib(of["gib_of_128"]),
        )
        for one in found
        for work, of in one["work"].items()
    ]
    return _table(head, rows)


def grid(part: str) -> str:
    """Of a committed grid of methods and interventions: a scope's plans, or averages of either."""
    name, what = part.split("-")
    found = json.loads((ROOT / "benchmarks" / "results" / f"grid-{name}.json").read_text(encoding="utf-8"))
    return _averages(found, what.removesuffix("s")) if what in ("methods", "interventions") else _scope(found, what)


def _scope(found: dict[str, Any], scope: str) -> str:
    """A row per method and a column per intervention: harmful prompts answered, and the KL of harmless ones."""
    plans = [one for one in found["plans"] if one["scope"] == scope]
    cells = {(one["method"], one["intervention"]): one for one in plans}
    columns = list(dict.fromkeys(one["intervention"] for one in plans))
    rows = [
        (f"`{method}`", *(_plan(cells.get((method, column))) for column in columns))
        for method in dict.fromkeys(one["method"] for one in plans)
    ]
    return _table(("method", *columns), rows)


def _plan(plan: dict[str, Any] | None) -> str:
    if plan is None:
        return "–"
    shown = f"{100 * plan['answered'][0]:.0f} · {plan['kl'][0]:.2f}"
    return f"{shown} ×" if plan["destroys"] else shown


def _averages(found: dict[str, Any], by: str) -> str:
    """What each does on average in either scope, beside the first."""
    rows = [
        (
            f"`{one[by]}`" if by == "method" else one[by],
            one["scope"],
            str(one["plans"]),
            _percent(one["answered"]),
            _differs(one, "answered", _percent),
            _decimals(one["kl"]),
            _differs(one, "kl", _decimals),
        )
        for one in found[by]
    ]
    first = found[by][0][by]
    return _table((by, "scope", "plans", "answered, %", f"beside {first}", "KL, nats", f"beside {first}"), rows)


def _differs(one: dict[str, Any], measure: str, shown: Any) -> str:
    if f"{measure}_difference" not in one:
        return ""
    p = one[f"{measure}_p"]
    said = shown(one[f"{measure}_difference"], sign="+")
    return f"**{said}**" if p is not None and p < 0.05 else said


def _percent(value: Sequence[float], sign: str = "") -> str:
    return f"{100 * value[0]:{sign}.0f} [{100 * value[1]:{sign}.0f}, {100 * value[2]:{sign}.0f}]".replace("-", "−")


def _decimals(value: Sequence[float], sign: str = "") -> str:
    return f"{value[0]:{sign}.2f} [{value[1]:{sign}.2f}, {value[2]:{sign}.2f}]".replace("-", "−")


def _gib(value: float) -> str:
    return f"{value:.2f}"


INSERTS = {
    "commands": commands,
    "file-settings": file_settings,
    "methods": methods,
    "methods-in-full": methods_in_full,
    "interventions": interventions,
    "evals": evals,
    "measures": measures,
    "datasets": datasets,
    "benchmarks": benchmarks,
    "grid": grid,
    **{f"memory-{part}": partial(memory, part) for part in ("measured", "computed")},
    **{f"simulated-{name}": partial(simulated, name) for name in SIMULATED},
}


def _inserted(line: re.Match[str]) -> str:
    name, *of = (part for part in line.groups() if part)
    return INSERTS[name](*of).strip()


def _commands() -> dict[str, Any]:
    import typer

    from refusal_cmp.cli import app

    return typer.main.get_command(app).commands  # type: ignore[attr-defined]


def _parameters(command: Any) -> str:
    """A command's arguments, and its options under the headings that its help has."""
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.params:
        if "--help" in parameter.opts:
            continue
        is_option = parameter.opts[0].startswith("-")
        panel = getattr(parameter, "rich_help_panel", None) or ("Options" if is_option else "Arguments")
        names = [*parameter.opts, *parameter.secondary_opts] if is_option else [parameter.name.upper()]
        value = f" {parameter.metavar}" if is_option and parameter.metavar and not parameter.is_flag else ""
        label = ", ".join(f"`{name}{value}`" for name in names)
        default = f" (default: {parameter.default})" if parameter.default else ""
        panels.setdefault(panel, []).append((label, f"{parameter.help or ''}{default}"))
    return "\n\n".join(f"**{panel}**\n\n{_table(('option', 'what it is'), rows)}" for panel, rows in panels.items())


def _options(plugin: type) -> str:
    """A table of a plugin's options, its default for each, and what the class says of them."""
    said = dict(PARAMETER.findall(inspect.getdoc(plugin) or ""))
    (body,) = [
        node.body
        for node in ast.parse(inspect.getsource(sys.modules[plugin.__module__])).body
        if isinstance(node, ast.ClassDef) and node.name == plugin.__name__
    ]
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            said[ast.unparse(field.target)] = str(text.value.value)
    rows = [
        (
            f"`{name.replace('_', '-')}`",
            "" if option.default in (option.empty, None) else f"`{option.default}`",
            " ".join(said.get(name, "").split()),
        )
        for name, option in inspect.signature(plugin).parameters.items()
    ]
    return _table(("option", "default", "what it is"), rows) if rows else ""


def _registered(registry: Any) -> str:
    return _table(("name", "what it is"), [(f"`{name}`", about) for name, about, _ in registry.describe()])


def _number(value: Any) -> str:
    """A cell: numbers with a fraction to three digits, nothing where there is none."""
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(str(value)) for value in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """The text with its bars escaped, but for those in code, which end no cell."""
    return "`".join(part if code % 2 else part.replace("|", "\\|") for code, part in enumerate(text.split("`")))


def main() -> None:
    """Write what is inserted into the pages."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (now := written(text)) != text:
            page.write_text(now, encoding="utf-8")
            print(f"{page.relative_to(ROOT)} is written.")


if __name__ == "__main__":
    main()
