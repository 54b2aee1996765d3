"""report: results → the table that a person reads."""

from __future__ import annotations

import pandas as pd

from refusal_cmp.artifacts import RunDir
from refusal_cmp.report.table import summary
from refusal_cmp.session import Session
from refusal_cmp.stages.evaluate import RESULTS
from refusal_cmp.stages.infer import PLANS

SUMMARY = "report/summary.csv"


def report_stage(session: Session) -> None:
    """Write the summary, a row per plan."""
    session.run.write_table(SUMMARY, summary_of(session.run))


def summary_of(run: RunDir) -> pd.DataFrame:
    """The summary of a run that has been evaluated."""
    run.require(RESULTS, "evaluate")
    labels = [row["label"] for row in run.read_json(PLANS)]
    return summary(run.read_table(RESULTS), labels)
