"""Harmfulness direction: Zhao et al. 2025, arXiv:2507.11878, section 3.

    r = mean of harmful activations − mean of harmless activations at the last token of the instruction,    r̂ = r / ‖r‖

The same difference as that of the refusal direction, read before the chat template has said that it is time to answer.
There a model is found to hold whether a request is harmful; at the tokens behind the instruction, whether it is going
to refuse.

Cost: that of `diff-in-means`.
Use it beside that, to see which of the two an edit has to remove.
"""

from __future__ import annotations

from dataclasses import dataclass

from refusal_cmp.methods import register_extractor
from refusal_cmp.methods.diff_in_means import DiffInMeans


@register_extractor("harmfulness")
@dataclass(frozen=True)
class Harmfulness(DiffInMeans):
    """Difference in means at the last token of the instruction (Zhao et al. 2025).

    Its position is the one before the post-instruction tokens. It is the last token that the user's text has a part
    in: of a template that begins its own text without a control token, it may hold the template's first letters too.
    """

    def positions(self, post_instruction: tuple[int, ...]) -> tuple[int, ...]:
        """The one before the post-instruction tokens."""
        return (post_instruction[0] - 1,)
