"""Adapters of PEFT, merged into the model that they were trained on: W + BA for LoRA (Hu et al. 2021, 2106.09685)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model.files import ADAPTER, ModelFiles
from refusal_cmp.model.hooks import first, installed

TOLERANCE = {torch.bfloat16: 0.02, torch.float16: 0.005}
FINE_TOLERANCE = 1e-3
"""Most difference that rounding explains of what a module returns, relative to all that it returns."""
PROBE = 16
"""Tokens of which what modules return is compared."""


def check_mergeable(files: ModelFiles) -> None:
    """RefusalCmpError where an adapter is of a kind that is no change of weights."""
    from peft import PeftConfig
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner

    kind = PeftConfig.from_pretrained(**_where(files)).peft_type
    if not issubclass(PEFT_TYPE_TO_TUNER_MAPPING[kind], BaseTuner):
        raise RefusalCmpError(_told(files, f"is of the kind {kind.value}, which is no change of weights"))


def merged(model: Any, files: ModelFiles) -> Any:
    """The model with the adapter in its weights.

    Raises
    ------
    RefusalCmpError
        If the adapter is not one of this model, or weights cannot do what it does.
    """
    from peft import PeftConfig, PeftModel
    from peft.utils import load_peft_weights

    where: Any = {"model_id": files.adapter, "revision": files.adapter_revision}
    weights = load_peft_weights(**where, device="cpu")
    _resize(model, weights)
    if not any("trainable_tokens" in name for name in weights):  # those of peft are tied where the matrices are
        _untie(model, PeftConfig.from_pretrained(**_where(files)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of is checked here
        adapted = PeftModel.from_pretrained(model, **where).eval()
        found = adapted.load_adapter(**where, adapter_name="default")  # again, as the first tells nothing
        strangers = [*found.unexpected_keys, *found.missing_keys]
        if strangers:
            what = "is not there" if found.missing_keys else "has no place in its base"
            raise RefusalCmpError(_told(files, f"does not fit its base: {strangers[0]} {what}"))
        ids = torch.arange(PROBE, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
        with torch.inference_mode():
            calls = _calls(adapted, ids)
            whole = adapted.merge_and_unload().eval()
            if not all(call.is_same(whole, TOLERANCE.get(model.dtype, FINE_TOLERANCE)) for call in calls):
                raise RefusalCmpError(_told(files, "does more than any change of weights"))
    return whole


@dataclass(frozen=True)
class _Call:
    """What a module was given in a pass, and what it returned."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: torch.Tensor

    def is_same(self, model: Any, tolerance: float) -> bool:
        """Whether the module of that name in another model returns the same."""
        output = _returned(model.get_submodule(self.name)(*self.args, **self.kwargs))
        return bool((output.double() - self.output.double()).norm() <= tolerance * self.output.double().norm())


def _calls(adapted: Any, ids: torch.Tensor) -> list[_Call]:
    """The calls of the modules that an adapter wraps, in one pass; in float32 and better, that of the model as well.

    In 16 bits the roundings of all blocks add up in the logits, and may be a large part of them.
    """
    model, calls = adapted.base_model.model, []
    names = _wrapped(model) if model.dtype in TOLERANCE else ["", *_wrapped(model)]

    def noted(name: str, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append(_Call(name, args, kwargs, _returned(output)))

    with installed(
        model.get_submodule(name).register_forward_hook(partial(noted, name), with_kwargs=True) for name in names
    ):
        adapted(input_ids=ids, use_cache=False)
    return calls


def _wrapped(model: Any) -> list[str]:
    """The names of the modules that an adapter has put others in the place of."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and not inside:
            found.append(name)
    return found


def _returned(output: Any) -> torch.Tensor:
    """The tensor that a module returns, or the first; the logits of a model."""
    return output.logits if hasattr(output, "logits") else first(output)


def _where(files: ModelFiles) -> Any:
    return {"pretrained_model_name_or_path": files.adapter, "revision": files.adapter_revision}


def _resize(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Give the model as many embeddings as the adapter has, where it brings its own: tokens were added to it."""
    for name in _ends(model):
        rows = [
            len(weight)
            for key, weight in weights.items()
            if key.endswith((f".{name}.weight", f".{name}.base_layer.weight"))
        ]
        if rows and rows[0] != model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(rows[0], mean_resizing=False)


def _untie(model: Any, config: Any) -> None:
    """Give the head weights of its own where an adapter changes only those of the embedding, or only the head's."""
    text = model.config.get_text_config()
    targets = config.to_dict()
    changed = [*(targets.get("modules_to_save") or []), *_listed(targets.get("target_modules"))]
    if not text.tie_word_embeddings or targets.get("ensure_weight_tying") or not set(changed) & set(_ends(model)):
        return
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for one in (model.config, text):
        one.tie_word_embeddings = False


def _ends(model: Any) -> list[str]:
    """The last names of the embedding and of the head."""
    modules = {model.get_input_embeddings(), model.get_output_embeddings()}
    return [name.rpartition(".")[2] for name, module in model.named_modules() if module in modules]


def _listed(targets: Any) -> list[str]:
    return [] if targets is None or isinstance(targets, str) else list(targets)


def _told(files: ModelFiles, why: str) -> str:
    return (
        f"The adapter {files.adapter!r} {why}, so it cannot be merged into {files.gguf or files.base!r}; give another "
        f"adapter, the base that it was trained on in its {ADAPTER}, or a whole model."
    )
