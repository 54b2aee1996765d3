"""Plans that an evaluator measures in the same passes, though it is asked about one after the other."""

from __future__ import annotations

from collections.abc import Callable, Hashable, MutableMapping, Sequence
from typing import Any, Generic, TypeVar

from refusal_cmp.evals import Subject
from refusal_cmp.plan import Plan

T = TypeVar("T")


class Together(Generic[T]):
    """What is measured of many plans once it is asked of one of them.

    Plans that edit the same model and the same kind of tokens go together; another checkpoint and another system prompt
    go alone.
    """

    def __init__(self) -> None:
        self.done: MutableMapping[str, Any] = {}
        """What is kept of work in progress, of plans that go together."""
        self._plans: list[Plan] = []
        self._found: dict[tuple[Hashable, str], T] = {}

    def expect(self, subjects: Sequence[Subject], known: MutableMapping[str, Any]) -> None:
        """The plans that will be asked about, and what is known of them; see `Evaluator.prepare`."""
        self.done = known
        self._plans = [one.plan for one in subjects if one.judged is None and not one.plan.edits_nothing]

    def of(
        self,
        plan: Plan,
        what: Hashable,
        measure: Callable[[Sequence[Plan], MutableMapping[str, Any]], Sequence[T]],
    ) -> T:
        """What is measured of a plan, by a name that says what it is; where it is not known yet, with its company.

        Parameters
        ----------
        measure
            Given plans and what is known of them, what is measured of each.
        """
        if (what, plan.digest) not in self._found:
            company = [one for one in self._plans if one.tokens == plan.tokens]
            together = plan in company
            some = company if together else [plan]
            measured = measure(some, self.done if together else {})
            self._found |= {(what, one.digest): value for one, value in zip(some, measured, strict=True)}
        return self._found[what, plan.digest]

    def forget(self) -> None:
        """Forget what was measured."""
        self._found.clear()
        self._plans = []
