"""The vLLM backend: a guard in this process, by vLLM's offline engine."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from typing import Any

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.guards import Backend, Request, guard_path, tokenizer_of

AT_A_TIME = 512
"""Requests handed to vLLM at a time, after which the answers are kept; vLLM batches within them by itself."""
CPU_CACHE_BYTES = 2**30
"""Keys and values on a CPU, where vLLM's own default is nearly all memory."""


class VLLMBackend(Backend):
    """A causal language model in vLLM; prompts are rendered as in the transformers backend.

    Parameters
    ----------
    name
        Hugging Face id, local folder, or the embedded `tiny-guard`.
    dtype
        `auto` is float32 on a CPU and the model's own on a GPU.
    tensor_parallel
        GPUs that share each layer.
    gpu_memory_utilization
        Share of a GPU's memory that vLLM may take.
    """

    def __init__(
        self, name: str, *, dtype: str = "auto", tensor_parallel: int = 1, gpu_memory_utilization: float = 0.9
    ) -> None:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        try:
            from vllm import LLM, SamplingParams
            from vllm.platforms import current_platform
        except ImportError as error:
            raise RefusalCmpError(
                f"The vllm guard backend needs vLLM, and it cannot be imported ({error}); install it with `pip install "
                "'refusal-cmp[vllm]'`, or use --guard-backend hf."
            ) from None
        on_cpu = current_platform.device_type == "cpu"
        if on_cpu and tensor_parallel == 1:  # a process of its own takes half a minute to start and a core
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            self._llm: Any = LLM(
                model=guard_path(name),
                dtype="float32" if dtype == "auto" and on_cpu else dtype,
                seed=0,
                enforce_eager=True,  # a few tokens an answer: capturing graphs takes longer than it saves
                tensor_parallel_size=tensor_parallel,
                gpu_memory_utilization=gpu_memory_utilization,
                kv_cache_memory_bytes=CPU_CACHE_BYTES if on_cpu else None,
                max_model_len=-1,  # as long as fits in the memory, the model's context at most
                use_tqdm_on_load=False,
            )
        except Exception as error:  # vLLM's errors have no common class
            raise RefusalCmpError(
                f"vLLM cannot load the guard {name!r} ({_first_line(error)}); if memory is short, change "
                f"--vllm-gpu-memory-utilization (now {gpu_memory_utilization:g}), else use --guard-backend hf."
            ) from error
        self._sampling = SamplingParams
        self._tokenize = tokenizer_of(self._llm.get_tokenizer(), name)

    def answer(self, requests: Sequence[Request], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        """See `Backend.answer`."""
        params = self._sampling(temperature=0, max_tokens=max_new_tokens)
        for start in range(0, len(requests), AT_A_TIME):
            prompts = [{"prompt_token_ids": self._tokenize(one)} for one in requests[start : start + AT_A_TIME]]
            try:
                outputs = self._llm.generate(prompts, params, use_tqdm=False)
            except Exception as error:
                raise RefusalCmpError(
                    f"vLLM stopped judging ({_first_line(error)}); what was judged before is kept, so type the same "
                    "command again, or use --guard-backend hf."
                ) from error
            yield from ((start + place, output.outputs[0].text) for place, output in enumerate(outputs))

    def close(self) -> None:
        """Stop the engine and free its memory."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()
        cleanup_dist_env_and_memory()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
