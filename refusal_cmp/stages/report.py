"""report: results → the table that a person reads."""

from __future__ import annotations

from refusal_cmp.report.table import summary
from refusal_cmp.session import Session
from refusal_cmp.stages.evaluate import RESULTS
from refusal_cmp.stages.infer import PLANS

SUMMARY = "report/summary.csv"


def report_stage(session: Session) -> None:
    """Write the summary, a row per plan."""
    session.run.require(RESULTS, "evaluate")
    labels = [row["label"] for row in session.run.read_json(PLANS)]
    session.run.write_table(SUMMARY, summary(session.run.read_table(RESULTS), labels))
