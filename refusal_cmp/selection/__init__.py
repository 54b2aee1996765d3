"""Which component of a method to use: scores, the rule that filters and ranks by them, how far rankings agree."""

from refusal_cmp.selection.rule import Rule, Selection, outcome, ranked_table, score_table, select

__all__ = ["Rule", "Selection", "outcome", "ranked_table", "score_table", "select"]
