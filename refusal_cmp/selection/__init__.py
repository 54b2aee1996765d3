"""Which component of a method to use: scores, the rule that filters and ranks by them, how far rankings agree."""

from refusal_cmp.selection.rule import Missed, Rule, Selection, missed, outcome, ranked_table, score_table, select

__all__ = ["Missed", "Rule", "Selection", "missed", "outcome", "ranked_table", "score_table", "select"]
