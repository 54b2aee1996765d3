"""An OpenAI-compatible endpoint by its settings; what speaks to it is imported once it is opened."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import SecretStr

from refusal_cmp.judges import Backend


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint as a run's settings name it."""

    url: str | None
    """None: from the environment."""
    key: SecretStr | None
    concurrency: int
    """Requests under way at a time."""
    timeout: float
    """Seconds that one answer may take."""

    def open(self, model: str) -> Backend:
        """A model behind the endpoint."""
        from refusal_cmp.judges.openai import OpenAIBackend

        return OpenAIBackend(model, self.url, self.key, concurrency=self.concurrency, timeout=self.timeout)
