"""The vLLM backend: a guard in this process, by vLLM's offline engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from refusal_cmp.config import DATE
from refusal_cmp.engines.vllm import first_line, start_vllm, stop_vllm
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.judges import Backend, Request, guard_source, tokenizer_of

INSTEAD = {"guard_backend": "hf"}
"""The setting that does without vLLM."""
AT_A_TIME = 512
"""Requests handed to vLLM at a time, after which the answers are kept; vLLM batches within them by itself."""


class VLLMBackend(Backend):
    """A causal language model in vLLM; prompts are rendered as in the transformers backend.

    Parameters
    ----------
    name
        Hugging Face id, local folder, GGUF file, or the embedded `tiny-guard`.
    revision
        A branch, tag or commit on the hub.
    date
        The day that a chat template is told which asks for today's.
    dtype
        `auto` is float32 on a CPU and bfloat16 on a GPU.
    tensor_parallel
        GPUs that share each layer.
    gpu_memory_utilization
        Share of a GPU's memory that vLLM may take.
    """

    def __init__(
        self,
        name: str,
        *,
        revision: str | None = None,
        date: str = DATE,
        dtype: str = "auto",
        tensor_parallel: int = 1,
        gpu_memory_utilization: float = 0.9,
    ) -> None:
        self._llm: Any = start_vllm(
            guard_source(name, revision, dtype),
            tensor_parallel=tensor_parallel,
            gpu_memory_utilization=gpu_memory_utilization,
            instead=INSTEAD,
        )
        self._tokenize = tokenizer_of(self._llm.get_tokenizer(), name, date)

    def answer(self, requests: Sequence[Request], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        """See `Backend.answer`."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=max_new_tokens)
        for start in range(0, len(requests), AT_A_TIME):
            prompts = [{"prompt_token_ids": self._tokenize(one)} for one in requests[start : start + AT_A_TIME]]
            try:
                outputs = self._llm.generate(prompts, params, use_tqdm=False)
            except Exception as error:
                raise RefusalCmpError(
                    f"vLLM stopped judging ({first_line(error)}); what was judged before is kept, so do the same "
                    "again, or do without vLLM.",
                    **INSTEAD,
                ) from error
            yield from ((start + place, output.outputs[0].text) for place, output in enumerate(outputs))

    def close(self) -> None:
        """Stop the engine and free its memory."""
        llm, self._llm = self._llm, None
        stop_vllm(llm)
