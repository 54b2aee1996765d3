"""The page's section on stability: what other prompts would have given, where that was asked."""

from __future__ import annotations

from typing import Any

from refusal_cmp.report.data import RunData
from refusal_cmp.report.stability import named, selected_again, steadiness, where_selected
from refusal_cmp.report.wording import percent


def stability_section(data: RunData) -> dict[str, Any] | None:
    """A row per method and component for directions, and a row per method for choices."""
    if data.stability is None:
        return None
    directions, choices = data.stability
    rows = steadiness(data.stability, where_selected(data.extracted_by, data.selections))
    if not rows:
        return None
    boot = directions[directions["by"] == "bootstrap"]
    return {
        "draws": int(boot["draw"].max()) + 1,
        "n": int(boot["n"].max()),
        "directions": [
            {
                "method": one.method,
                "at": f"{one.component}" + ("" if one.chosen else ", shared"),
                "cells": [str(one.bootstrap), str(one.halves), str(one.overlap), one.rank],
            }
            for one in rows
        ],
        "choices": [
            {
                "method": one.method,
                "at": str(one.selected),
                "again": percent(selected_again(choices, one.method, one.selected)),
                "others": named(choices, one.method),
            }
            for one in data.selections
            if (choices["method"] == one.method).any()
        ],
    }
