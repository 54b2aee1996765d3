"""The transformers engine: our hooks around the model in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from refusal_cmp.engines import BatchEngine, Host, register_engine
from refusal_cmp.model import ChatModel
from refusal_cmp.model.batching import STEP_ROWS, RowBudget
from refusal_cmp.model.generation import Job, complete
from refusal_cmp.progress import Progress, silent


@register_engine("hf")
class HFEngine(BatchEngine):
    """transformers: our hooks around the model in this process.

    Parameters
    ----------
    batch_size
        Prompts in one forward pass; by default as many as make it faster, and fewer once memory has run out.
    """

    shares_model = True
    tells_tokens = True

    def __init__(self, model: ChatModel, batch_size: int | None = None) -> None:
        self.model = model
        self.rows = RowBudget(model.device, batch_size, STEP_ROWS)

    @classmethod
    def start(cls, host: Host) -> HFEngine:
        """The engine around the run's model."""
        return cls(host.model, host.config.batch_size)

    def generate_many(
        self,
        jobs: Sequence[Job],
        max_new_tokens: int,
        progress: Progress = silent,
        finished: Callable[[Job], None] = lambda _: None,
    ) -> None:
        """The completions of many jobs, rows of several plans together; see `refusal_cmp.model.generation`.

        A round of which any completion is missing is made again as a whole: the batch's composition decides the
        last bits of the logits, and a resumed run ends with what an uninterrupted one would have.
        """
        complete(self.model, jobs, max_new_tokens=max_new_tokens, rows=self.rows, progress=progress, finished=finished)
