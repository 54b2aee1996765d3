"""Chat models as residual streams: loading, reading, editing, generating, folding; see `ChatModel`."""

from refusal_cmp.model.batching import Batch
from refusal_cmp.model.chat_model import ChatModel, refusal_metric
from refusal_cmp.model.generation import Answer, Completion
from refusal_cmp.model.reading import collect
from refusal_cmp.model.source import ModelSource, model_path

__all__ = ["Answer", "Batch", "ChatModel", "Completion", "ModelSource", "collect", "model_path", "refusal_metric"]
