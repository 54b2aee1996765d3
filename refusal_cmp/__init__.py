"""refusal-cmp: which way of finding and editing the refusal directions of a chat model does what, at what cost."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refusal_cmp.api import (
        calibrate,
        class_covariances,
        curve,
        extract,
        load_prompts,
        plan_intervention,
        rank_components,
    )
    from refusal_cmp.data import register_dataset, register_text
    from refusal_cmp.evals import register_evaluator
    from refusal_cmp.interventions import register_intervention
    from refusal_cmp.methods import register_extractor
    from refusal_cmp.model import ChatModel
    from refusal_cmp.subspace import Component, Subspace, SubspaceField

_HOME = {
    "ChatModel": "model",
    "Component": "subspace",
    "Subspace": "subspace",
    "SubspaceField": "subspace",
    "calibrate": "api",
    "class_covariances": "api",
    "curve": "api",
    "extract": "api",
    "load_prompts": "api",
    "plan_intervention": "api",
    "rank_components": "api",
    "register_dataset": "data",
    "register_evaluator": "evals",
    "register_extractor": "methods",
    "register_intervention": "interventions",
    "register_text": "data",
}

__all__ = [
    "ChatModel",
    "Component",
    "Subspace",
    "SubspaceField",
    "calibrate",
    "class_covariances",
    "curve",
    "extract",
    "load_prompts",
    "plan_intervention",
    "rank_components",
    "register_dataset",
    "register_evaluator",
    "register_extractor",
    "register_intervention",
    "register_text",
]


def __getattr__(name: str) -> Any:
    """Public names are imported on first use, so that the command line starts without torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'refusal_cmp' has no attribute {name!r}")
    return getattr(import_module(f"refusal_cmp.{_HOME[name]}"), name)
