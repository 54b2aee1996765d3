"""A classifier in this process as a guard: any sequence-classification model of transformers, from a folder or the hub.

It reads a prompt and its completion as a pair of texts, or the completion alone, and its label is its answer: the most
likely one, or of a multi-label model every one that is likelier than not.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from refusal_cmp.errors import RefusalCmpError, shortened
from refusal_cmp.judges import Backend, Request, guard_source, loading_guard
from refusal_cmp.judges.formats import Format, Judgement
from refusal_cmp.model.batching import RowBudget
from refusal_cmp.model.files import CONFIG, mapping

ARCHITECTURE = "ForSequenceClassification"
MULTI_LABEL = "multi_label_classification"
UNSAFE, SAFE = ("unsafe", "harmful"), ("safe", "harmless")
"""Labels that need no explanation."""
WIDEST = 10**6
"""Tokens that a tokenizer names where it knows no limit are more."""
FLOATS = 64
"""Of a token in a block of a pass, for each of the width; and a row of attention for each head."""


class Classifier(Format):
    """What a classifier is given, and which of its labels say that a completion is unsafe.

    Parameters
    ----------
    unsafe
        These labels; all others say that it is safe.
    alone
        Whether it reads the completion without the prompt.
    """

    max_new_tokens = 1

    def __init__(self, unsafe: Sequence[str], *, alone: bool) -> None:
        self.unsafe, self.alone = frozenset(unsafe), alone

    def request(self, instruction: str, completion: str) -> Request:
        """The completion, or the conversation that it ends."""
        if self.alone:
            return completion
        return [{"role": "user", "content": instruction}, {"role": "assistant", "content": completion}]

    def read(self, answer: str) -> Judgement:
        """One label, or of a multi-label model one a line."""
        return Judgement(bool(self.unsafe & set(answer.split("\n"))))


def is_classifier(name: str) -> bool:
    """Whether a guard in a folder is a sequence classifier, by its configuration."""
    with suppress(OSError, ValueError):
        if Path(name).is_dir():
            return _named(mapping(name, CONFIG, None) or {})
    return False


def _named(config: Any) -> bool:
    return any(str(one).endswith(ARCHITECTURE) for one in config.get("architectures") or ())


def classifier_format(guard: str, revision: str | None, unsafe: Sequence[str] | None, *, alone: bool) -> Classifier:
    """The format of a classifier, with the labels that say unsafe: those named, or those whose names say it.

    Raises
    ------
    RefusalCmpError
        If it is no classifier, has no such label, or has labels whose names say nothing.
    """
    labels = list(_described(guard, revision).id2label.values())
    there = ", ".join(labels)
    if unsafe is None:
        plain = {label: label.strip().lower() for label in labels}
        if not set(plain.values()) & {*UNSAFE} or not set(plain.values()) <= {*UNSAFE, *SAFE}:
            raise RefusalCmpError(
                f"The labels of the guard {guard!r} do not say which of them mean unsafe: {there}; name those.",
                guard_unsafe_labels="LABELS",
            )
        unsafe = [label for label in labels if plain[label] in UNSAFE]
    for label in unsafe:
        if label not in labels:
            raise RefusalCmpError(
                f"The guard {guard!r} has no label {label!r}, only {there}.", guard_unsafe_labels="LABELS"
            )
    if set(unsafe) == set(labels):
        raise RefusalCmpError(
            f"All labels of the guard {guard!r} are said to mean unsafe ({there}); leave out those that mean safe.",
            guard_unsafe_labels="LABELS",
        )
    return Classifier(unsafe, alone=alone)


def _described(guard: str, revision: str | None) -> Any:
    """The configuration of a classifier; RefusalCmpError for another model."""
    from transformers import AutoConfig

    with loading_guard(guard):
        source = guard_source(guard, revision)
        with _explained(guard):
            config = AutoConfig.from_pretrained(source.path, revision=source.revision)
    if not _named(config.to_dict()):
        raise RefusalCmpError(
            f"The guard {guard!r} is a {', '.join(config.architectures or ['model without an architecture'])} and no "
            "sequence classifier; give one, or another format.",
            guard_format="",
        )
    if len(config.id2label) < 2:
        raise RefusalCmpError(f"The guard {guard!r} has one output, which is a number and no label; give another.")
    return config


@contextmanager
def _explained(guard: str) -> Iterator[None]:
    """What transformers says of files that it cannot read, in a sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        why = shortened((str(error).splitlines() or [type(error).__name__])[0])
        raise RefusalCmpError(f"Cannot load the guard {guard!r}: {why}", guard="") from error


class ClassifierBackend(Backend):
    """A sequence-classification model, asked in batches of texts of like length.

    A text that is longer than it reads is cut at its end, of a pair the longer one.

    Parameters
    ----------
    name
        Hugging Face id or local folder.
    revision
        A branch, tag or commit on the hub.
    device, dtype
        As for `ChatModel.load`.
    batch_size
        Texts in one forward pass; fewer if memory runs out.
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
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        config = _described(name, revision)
        on_gpu = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
        precision = ("bfloat16" if on_gpu else "float32") if dtype == "auto" else dtype
        with loading_guard(name):
            source = guard_source(name, revision)
        where: dict[str, Any] = {"pretrained_model_name_or_path": source.path, "revision": source.revision}
        with _explained(name):
            self.tokenizer = AutoTokenizer.from_pretrained(**where)
            model, found = AutoModelForSequenceClassification.from_pretrained(
                **where, config=config, dtype=getattr(torch, precision), use_safetensors=True, output_loading_info=True
            )
        if missing := sorted(found["missing_keys"]):
            raise RefusalCmpError(
                f"The guard {name!r} lacks weights that a classifier has, such as {missing[0]}, so that its labels "
                "would be drawn by chance; give one that was trained."
            )
        self.model = model.to("cuda" if device == "auto" and on_gpu else "cpu" if device == "auto" else device).eval()
        self.labels: dict[int, str] = config.id2label
        self.is_multi = config.problem_type == MULTI_LABEL
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
            self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self._rows = RowBudget(self.model.device, batch_size)

    @property
    def longest(self) -> int | None:
        """Tokens that it reads; None where nobody says."""
        own = self.tokenizer.model_max_length
        most = getattr(self.model.config, "max_position_embeddings", None)
        if own <= WIDEST:
            return int(min(own, most or own))
        return int(most) if most else None

    def answer(self, requests: Sequence[Request], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        """See `Backend.answer`; the longest come first."""
        encoded = [self._encoded(request) for request in requests]
        order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index]["input_ids"]))
        while order:
            indices = self._rows.first(order, lambda some: self._bytes(len(encoded[some[0]]["input_ids"])))
            texts: list[str] = []
            with self._rows.halving(len(indices), least=1) as attempt:
                texts = self._labels([encoded[index] for index in indices])
            if not attempt.failed:
                order = order[len(indices) :]
                yield from zip(indices, texts, strict=True)

    def _encoded(self, request: Request) -> dict[str, list[int]]:
        texts = [request] if isinstance(request, str) else [one["content"] for one in request]
        return dict(self.tokenizer(*texts, truncation=self.longest is not None, max_length=self.longest))

    def _bytes(self, length: int) -> int:
        config = self.model.config
        return 4 * length * (FLOATS * config.hidden_size + 2 * length * config.num_attention_heads)

    @torch.inference_mode()
    def _labels(self, encoded: list[dict[str, list[int]]]) -> list[str]:
        batch = self.tokenizer.pad(encoded, return_tensors="pt").to(self.model.device)
        logits = self.model(**batch).logits.float()
        if self.is_multi:
            return ["\n".join(self.labels[i] for i in row.nonzero().flatten().tolist()) for row in logits > 0]
        return [self.labels[i] for i in logits.argmax(-1).tolist()]

    def close(self) -> None:
        """Free the classifier's memory."""
        del self.model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
