"""The transformers backend: a guard in this process."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence

import torch

from refusal_cmp.judges import Backend, Request, at_commit, cannot_load, tokenizer_of
from refusal_cmp.model.batching import Cost, RowBudget


class HFBackend(Backend):
    """A causal language model, asked in batches of requests of like length.

    Parameters
    ----------
    name
        Hugging Face id, local folder, or the embedded `tiny-guard`.
    revision
        A branch, tag or commit on the hub.
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
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 64,
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        if dtype == "auto":
            dtype = "bfloat16" if device.startswith("cuda") else "float32"
        where = at_commit(name, revision)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(**where, padding_side="left")
            model = AutoModelForCausalLM.from_pretrained(**where, dtype=getattr(torch, dtype))
        except (OSError, ValueError, RuntimeError) as error:
            raise cannot_load(name, error) from error
        self.model = model.to(device).eval()
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self._tokenize = tokenizer_of(self.tokenizer, name)
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
