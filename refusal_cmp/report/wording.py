"""How numbers, lists and names are written for people, on the page, in figures, tables and sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from refusal_cmp.evals import Unit
from refusal_cmp.statistics import Estimate

PERCENT = "\u202f%"
"""With a narrow space before the sign."""


MOST_DIGITS = 6
"""After the point, of log-odds however near to zero."""


def percent(share: float) -> str:
    """A share in whole percent."""
    return f"{100 * share:.0f}{PERCENT}"


def shown(value: float, unit: Unit) -> str:
    """A value to the digits that its unit has; an en dash where there is none."""
    if pd.isna(value):
        return "–"
    if unit == "share":
        return percent(value)
    return f"{value:.2f}" if unit.startswith("nats") and abs(value) < 1000 else f"{value:.3g}"


def bounds(one: Estimate, unit: Unit) -> str:
    """An interval in brackets, its unit left out; nothing where there is none."""
    if pd.isna(one.low):
        return ""
    low, high = (shown(bound, unit).removesuffix(PERCENT) for bound in (one.low, one.high))
    return f"[{low}, {high}]"


def with_bounds(one: Estimate, unit: Unit) -> str:
    """A value with its interval."""
    return f"{shown(one.value, unit)} {bounds(one, unit)}".strip()


def minus(text: str) -> str:
    """A number with a proper minus, and no sign before a zero."""
    return text.lstrip("+-") if not text.strip("+-0.") else text.replace("-", "−")


def decimal(value: float, digits: int = 2) -> str:
    """A number of which the digits after the point are fixed."""
    return minus(f"{value:.{digits}f}")


def log_odds(value: float, digits: int = 2) -> str:
    """Log-odds to so many digits after the point, or to as many as show two that are not zero: `−0.040`."""
    if value and math.isfinite(value):
        digits = max(digits, min(MOST_DIGITS, 1 - math.floor(math.log10(abs(value)))))
    return decimal(value, digits)


def bracketed(low: float, high: float) -> str:
    """An interval to two digits."""
    return f"[{decimal(low)}, {decimal(high)}]"


def counted(n: int, what: str) -> str:
    """`1 plan`, `2 plans`."""
    return f"{n} {what}" + ("" if n == 1 else "s")


def span(low: int | str, high: int | str) -> str:
    """`1 to 3`, and `1` where both ends are the same."""
    return str(low) if str(low) == str(high) else f"{low} to {high}"


def does(n: int, verb: str) -> str:
    """What one does, or several do: `answers`, `answer`."""
    return f"{verb}s" if n == 1 else verb


def sentence_list(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def clause_list(clauses: Sequence[str]) -> str:
    """`a`, `a, and b`, `a, b, and c`: of what has commas and lists of its own."""
    return clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])}, and {clauses[-1]}"


def scope_name(scope: str) -> str:
    """A scope in words: `one layer`, `top 50 %`, `all layers`."""
    names = {"single": "one layer", "all": "all layers"}
    return names.get(scope) or f"top {scope.partition(':')[2]} %"
