"""The endpoint backend: any server that speaks OpenAI's HTTP API, such as `vllm serve` or a paid service."""

from __future__ import annotations

import os
import random
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
from pydantic import SecretStr

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.judges import Backend, Request

URL_VARIABLE = "OPENAI_BASE_URL"
KEY_VARIABLE = "OPENAI_API_KEY"
BUSY = (408, 409, 425, 429)
"""Statuses after which the same request may succeed, like those from 500 on."""
LONGEST_WAIT = 60.0
"""Seconds between two tries, whatever the server asks for."""


class UnansweredError(Exception):
    """A try that failed; the message says how.

    Parameters
    ----------
    wait
        Seconds that the server asks to wait.
    final
        Whether another try would be in vain.
    """

    def __init__(self, how: str, *, wait: float = 0.0, final: bool = False) -> None:
        super().__init__(how)
        self.wait = wait
        self.final = final


class OpenAIBackend(Backend):
    """Asks an endpoint, several requests at a time.

    Parameters
    ----------
    model
        The name that the endpoint serves the model by.
    url
        Such as http://localhost:8000/v1; by default the environment's `OPENAI_BASE_URL`.
    key
        By default the environment's `OPENAI_API_KEY`; without either none is sent.
    concurrency
        Requests under way at a time.
    timeout
        Seconds to wait for an answer.
    retries
        Tries of a request after the first.
    backoff
        Seconds before the second try; each later wait is twice as long.
    """

    def __init__(
        self,
        model: str,
        url: str | None = None,
        key: SecretStr | None = None,
        *,
        concurrency: int = 8,
        timeout: float = 60.0,
        retries: int = 5,
        backoff: float = 1.0,
    ) -> None:
        self.model = model
        self.url = _checked(url or os.environ.get(URL_VARIABLE))
        self._key = (key.get_secret_value() if key is not None else os.environ.get(KEY_VARIABLE, "")).strip()
        if not re.fullmatch(r"[!-~]*", self._key):
            raise RefusalCmpError(
                f"The key of the endpoint must be letters, digits and signs without spaces, and it is not; give it "
                f"anew, best in the environment as {KEY_VARIABLE}.",
                openai_key="",
            )
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx2.Limits(max_connections=concurrency)
        self._client = httpx2.Client(headers=headers, timeout=timeout, limits=limits)
        self.concurrency, self.timeout, self.retries, self.backoff = concurrency, timeout, retries, backoff
        self._given_up = threading.Event()

    def answer(self, requests: Sequence[Request], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        """See `Backend.answer`.

        Raises
        ------
        RefusalCmpError
            If a request stays without answer after all tries; it names the endpoint and the last failure.
        """
        self._given_up.clear()
        failure: UnansweredError | None = None
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            futures = {pool.submit(self._persist, request, max_new_tokens): at for at, request in enumerate(requests)}
            for future in as_completed(futures):
                error = future.exception()
                if error is None:
                    yield futures[future], future.result()
                elif not isinstance(error, UnansweredError):
                    raise error
                elif failure is None:
                    failure = error
                    self._given_up.set()
        finally:
            self._given_up.set()  # also where the caller leaves early: what is not asked yet stays so
            pool.shutdown()
        if failure is not None:
            raise self._explained(failure) from None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _persist(self, request: Request, max_new_tokens: int) -> str:
        """The answer, after as many tries as it takes."""
        for attempt in range(self.retries + 1):
            if self._given_up.is_set():
                break
            try:
                return self._try(request, max_new_tokens)
            except UnansweredError as error:
                if error.final or attempt == self.retries:
                    raise
                # half of the wait is drawn at random, so that many requests do not come back at once
                wait = self.backoff * 2**attempt * random.uniform(0.5, 1.0)
                if self._given_up.wait(min(max(wait, error.wait), LONGEST_WAIT)):
                    raise
        raise UnansweredError("another request stayed without answer")

    def _try(self, request: Request, max_new_tokens: int) -> str:
        body: dict[str, Any] = {"model": self.model, "temperature": 0, "max_tokens": max_new_tokens}
        if isinstance(request, str):
            path, body["prompt"] = "completions", request
        else:
            path, body["messages"] = "chat/completions", request
        try:
            response = self._client.post(f"{self.url}/{path}", json=body)
        except httpx2.TimeoutException:
            raise UnansweredError(f"nothing came within {self.timeout:g} seconds") from None
        except httpx2.RequestError as error:
            raise UnansweredError(self._plain(str(error)) or type(error).__name__) from None
        if response.status_code != 200:
            busy = response.status_code in BUSY or response.status_code >= 500
            raise UnansweredError(
                f"status {response.status_code}{self._reason(response)}", wait=_retry_after(response), final=not busy
            )
        return _text_of(response)

    def _reason(self, response: httpx2.Response) -> str:
        """What the server says about a failure, if it does so in the usual form."""
        try:
            reason = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            return ""
        return f": {self._plain(str(reason))[:200]}"

    def _plain(self, text: str) -> str:
        """One line without the key."""
        text = " ".join(text.split()).rstrip(".")
        return text.replace(self._key, "…") if self._key else text

    def _explained(self, failure: UnansweredError) -> RefusalCmpError:
        tries = "" if failure.final else f" in {self.retries + 1} tries"
        return RefusalCmpError(
            f"The endpoint {self.url} gave no answer{tries} ({failure}); mend it or name another, and do the same "
            "again: what was judged before is kept.",
            openai_url="",
        )


def _checked(url: str | None) -> str:
    """The address without what could be secret in it or is not its part."""
    if not url:
        raise RefusalCmpError(
            f"The openai backend needs the address of an endpoint, such as http://localhost:8000/v1; give it, or set "
            f"it in the environment as {URL_VARIABLE}.",
            openai_url="URL",
        )
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        parsed = httpx2.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo or parsed.query:
        raise RefusalCmpError(
            "The address of an endpoint must be like http://localhost:8000/v1, with the key apart, and this one is "
            "not; mend it.",
            openai_url="URL",
        )
    return url.rstrip("/").removesuffix("/chat/completions")


def _text_of(response: httpx2.Response) -> str:
    try:
        choice = response.json()["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise UnansweredError("what came is not the JSON of an answer") from None
    return text if isinstance(text, str) else ""


def _retry_after(response: httpx2.Response) -> float:
    """Seconds that the server asks to wait: a number or a date (RFC 9110, 10.2.3); 0 if it does not ask."""
    value = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
