"""Tables for papers."""

from __future__ import annotations

import pandas as pd

from refusal_cmp.report.latex import tables, tabular


def test_latex_tables_are_whole(data):
    found = tables(data)
    assert set(found) == {"plans", "selection", "rankings"}
    for source in found.values():
        rows = [line for line in source.splitlines() if line.endswith(r"\\")]
        assert len({row.count(" & ") for row in rows}) == 1
        assert len(rows) > 2
    assert found["plans"].count(r"\\") == len(data.plans) + 1


def test_latex_prints_what_it_is_given():
    source = tabular(pd.DataFrame({"a_b & 5 %": ["{#1} ~^\\"], "p": ["−0.5 %–"]}))
    head, row = (line for line in source.splitlines() if line.endswith(r"\\"))
    assert head == r"a\_b \& 5 \% & p \\"
    printed = row.removesuffix(r" & $-$0.5 \%-- \\").split()
    assert printed == [r"\{\#1\}", r"\textasciitilde", r"\textasciicircum", r"\textbackslash"]
