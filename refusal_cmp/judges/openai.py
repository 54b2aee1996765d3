"""The endpoint backend: any server that speaks OpenAI's HTTP API, such as `vllm serve` or a paid service."""

from __future__ import annotations

import base64
import html
import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import anyio
import httpx2
from anyio.from_thread import start_blocking_portal
from pydantic import SecretStr

from refusal_cmp.config import checked_address
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.judges import Backend, Request

URL_VARIABLE = "OPENAI_BASE_URL"
KEY_VARIABLE = "OPENAI_API_KEY"
BUSY = (408, 409, 425, 429)
"""Statuses after which the same request may succeed, like those from 500 on."""
LONGEST_WAIT = 60.0
"""Seconds between two tries, whatever the server asks for."""
MOST_BYTES = 2**23
"""Of an answer, after decompression."""
SHORTEST_SECRET = 8
"""Characters of a key that is looked for in answers; a shorter one guards nothing and may be a word of them: EMPTY."""


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


@dataclass(frozen=True)
class _Work:
    """What the requests under way share; all of it lives in one event loop."""

    client: httpx2.AsyncClient
    slots: anyio.Semaphore
    given_up: anyio.Event


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
        Seconds that one answer may take, from the connection to its last byte.
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
        self.url = _address(url or os.environ.get(URL_VARIABLE))
        self._key = (key.get_secret_value() if key is not None else os.environ.get(KEY_VARIABLE, "")).strip()
        if not re.fullmatch(r"[!-~]*", self._key):
            raise RefusalCmpError(
                f"The key of the endpoint must be letters, digits and signs without spaces, and it is not; give it "
                f"anew, best in the environment as {KEY_VARIABLE}.",
                openai_key="",
            )
        self._secret = _pattern(self._key)
        self.concurrency, self.timeout, self.retries, self.backoff = concurrency, timeout, retries, backoff

    def answer(self, requests: Sequence[Request], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        """See `Backend.answer`.

        Raises
        ------
        RefusalCmpError
            If a request stays without answer after all tries; it names the endpoint and the last failure.
        """
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        failure: UnansweredError | None = None
        made = httpx2.AsyncClient(headers=headers, timeout=None)  # `timeout` is the whole answer's, not one byte's
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(made) as client:
            work = _Work(client, anyio.Semaphore(self.concurrency), anyio.Event())
            futures = {
                portal.start_task_soon(self._persist, work, request, max_new_tokens): at
                for at, request in enumerate(requests)
            }
            try:
                for future in as_completed(futures):
                    error = future.exception()
                    if isinstance(error, UnansweredError):
                        failure = failure or error
                    elif (text := future.result()) is not None:
                        yield futures[future], text
            finally:
                for future in futures:  # where the caller leaves early: what is not answered yet stays so
                    future.cancel()
        if failure is not None:
            raise self._explained(failure) from None

    def close(self) -> None:
        """Nothing is held between answers."""

    async def _persist(self, work: _Work, request: Request, max_new_tokens: int) -> str | None:
        """The answer, after as many tries as it takes; None once another request is given up."""
        async with work.slots:
            for attempt in range(self.retries + 1):
                if work.given_up.is_set():
                    break
                try:
                    return await self._try(work.client, request, max_new_tokens)
                except UnansweredError as error:
                    if error.final or attempt == self.retries:
                        work.given_up.set()
                        raise
                    # half of the wait is drawn at random, so that many requests do not come back at once
                    wait = self.backoff * 2**attempt * random.uniform(0.5, 1.0)
                    with anyio.move_on_after(min(max(wait, error.wait), LONGEST_WAIT)):
                        await work.given_up.wait()
        return None

    async def _try(self, client: httpx2.AsyncClient, request: Request, max_new_tokens: int) -> str:
        body: dict[str, Any] = {"model": self.model, "temperature": 0, "max_tokens": max_new_tokens}
        if isinstance(request, str):
            path, body["prompt"] = "completions", request
        else:
            path, body["messages"] = "chat/completions", request
        came: httpx2.Response | None = None
        content = bytearray()
        try:
            with anyio.move_on_after(self.timeout) as deadline:
                asked = client.stream("POST", f"{self.url}/{path}", content=json.dumps(body))
                async with asked as came, aclosing(came.aiter_bytes()) as chunks:
                    async for chunk in chunks:
                        content += chunk
                        if len(content) > MOST_BYTES:
                            break
        except (httpx2.RequestError, UnicodeError) as error:  # UnicodeError: a host that no name server takes
            raise UnansweredError(self._plain(_cause(error))) from None
        if came is None:
            raise UnansweredError(f"nothing came within {self.timeout:g} seconds")
        if came.status_code != 200:
            busy = came.status_code in BUSY or came.status_code >= 500
            raise UnansweredError(
                f"status {came.status_code}{self._reason(content)}", wait=_retry_after(came), final=not busy
            )
        if deadline.cancelled_caught:
            raise UnansweredError(f"no whole answer came within {self.timeout:g} seconds")
        if len(content) > MOST_BYTES:
            raise UnansweredError(f"what came is more than {MOST_BYTES:,} bytes")
        text = _text_of(content)
        return self._secret.sub("…", text) if len(self._key) >= SHORTEST_SECRET else text

    def _reason(self, content: bytes | bytearray) -> str:
        """What the server says about a failure, if it does so in the usual form."""
        try:
            reason = json.loads(content)["error"]["message"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return ""
        return f": {self._plain(reason)[:200]}" if isinstance(reason, str) else ""

    def _plain(self, text: str) -> str:
        """One line without the key."""
        text = " ".join(text.split()).rstrip(".")
        return self._secret.sub("…", text) if self._key else text

    def _explained(self, failure: UnansweredError) -> RefusalCmpError:
        tries = "" if failure.final else f" in {self.retries + 1} tries"
        return RefusalCmpError(
            f"The endpoint {self._plain(self.url)} gave no answer{tries} ({failure}); mend it or name another, and do "
            "the same again: what was judged before is kept.",
            openai_url="",
        )


def _address(url: str | None) -> str:
    """The address up to what every request adds to it."""
    if not url:
        raise RefusalCmpError(
            f"The openai backend needs the address of an endpoint, such as http://localhost:8000/v1; give it, or set "
            f"it in the environment as {URL_VARIABLE}.",
            openai_url="URL",
        )
    return checked_address(url).rstrip("/").removesuffix("/chat/completions")


def _pattern(key: str) -> re.Pattern[str]:
    """Finds a key however a server writes it: in any case, spaced out, encoded for a URL, escaped, in hex or base64."""
    forms = [key, key.encode().hex()]
    for shift in range(3):  # of base64, what does not depend on the bytes before and after the key
        encoded = base64.b64encode(bytes(shift) + key.encode()).decode()
        forms.append(encoded[-(-shift * 4 // 3) : (shift + len(key)) * 4 // 3])
    told = [form for form in forms if form == key or len(form) >= SHORTEST_SECRET]
    return re.compile("|".join("[^!-~]*".join(map(_written, form)) for form in told), re.IGNORECASE)


def _written(character: str) -> str:
    """The ways to write a character: as it is, percent-encoded, escaped as in JSON or HTML, for a URL in base64."""
    code = f"{ord(character):02x}"
    ways = {
        re.escape(one) for one in (character, html.escape(character), {"+": "-", "/": "_"}.get(character, character))
    }
    return rf"(?:\\*(?:{'|'.join(sorted(ways))})|%(?:25)*{code}|\\+(?:u00|x){code}|&#(?:0*{ord(character)}|x0*{code});)"


def _cause(error: Exception) -> str:
    """What is wrong with the connection, in words."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, ConnectionError) and link.errno:
            return os.strerror(link.errno)
        link = link.__cause__ or link.__context__
    return str(error) or type(error).__name__


def _text_of(content: bytes | bytearray) -> str:
    """The answer in a response, as text that can be written anywhere."""
    try:
        choice = json.loads(content)["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        return re.sub("[\ud800-\udfff]", "\ufffd", "" if text is None else text)  # halves of a pair are no character
    except (ValueError, LookupError, TypeError, RecursionError):
        raise UnansweredError("what came is not the JSON of an answer") from None


def _retry_after(response: httpx2.Response) -> float:
    """Seconds that the server asks to wait: a number or a date (RFC 9110, 10.2.3); 0 if it does not ask."""
    value = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
        return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return 0.0
