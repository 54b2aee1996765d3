"""The transformers backend: a guard in this process."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence

import torch

from refusal_cmp.config import DATE
from refusal_cmp.judges import Backend, Request, guard_source, loading_guard, tokenizer_of
from refusal_cmp.model.batching import Cost, RowBudget
from refusal_cmp.model.loading import load_pretrained


class HFBackend(Backend):
    """A causal language model, asked in batches of requests of like length.

    Parameters
    ----------
    name
        Hugging Face id, local folder, GGUF file, or the embedded `tiny-guard`.
    revision
        A branch, tag or commit on the hub.
    date
        The day that a chat template is told which asks for today's.
    device, dtype
        As for `ChatModel.load`.
    batch_size
        Requests in one forward pass; fewer if memory runs out.
    """

    def __init__(
        self,
        name: str,
        *,
        revision: str | None = None,
        date: str = DATE,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 64,
    ) -> None:
        with loading_guard(name):
            model, self.tokenizer = load_pretrained(guard_source(name, revision, dtype), device)
        self.model = model.eval()
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self._tokenize = tokenizer_of(self.tokenizer, name, date)
        self._rows = RowBudget(self.model.device, batch_size)
        self._cost = Cost.of(self.model.config, self.model.dtype)

    def answer(self, requests: Sequence[Request], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        """See `Backend.answer`; the longest requests come first, so that memory runs out early if at all."""
        sequences = [self._tokenize(request) for request in requests]
        order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))

        def row(indices: Sequence[int]) -> int:
            longest = len(sequences[indices[0]])
            return self._cost.row(longest, cached=longest + max_new_tokens)

        while order:
            indices = self._rows.first(order, row)
            texts: list[str] = []
            with self._rows.halving(len(indices), least=1) as attempt:
                texts = self._generate([sequences[index] for index in indices], max_new_tokens)
            if not attempt.failed:
                order = order[len(indices) :]
                yield from zip(indices, texts, strict=True)

    @torch.inference_mode()
    def _generate(self, sequences: Sequence[list[int]], max_new_tokens: int) -> list[str]:
        batch = self.tokenizer.pad({"input_ids": sequences}, return_tensors="pt").to(self.model.device)
        out = self.model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,  # guards' own generation settings are for sampling
            top_p=None,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        new = out[:, batch["input_ids"].shape[1] :]
        return self.tokenizer.batch_decode(new, skip_special_tokens=True)

    def close(self) -> None:
        """Free the guard's memory."""
        del self.model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
