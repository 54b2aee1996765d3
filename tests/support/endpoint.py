"""A real HTTP server on localhost that speaks OpenAI's API, and misbehaves as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server sends: an answer, or what is set instead of it."""

    text: str = ""
    status: int = 200
    raw: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    dies: bool = False
    pieces: Iterable[bytes] | None = None
    """Sent as they are, head and all, `pause` seconds apart, until the client leaves."""
    pause: float = 0.0


class Server:
    """The server's address and what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.authorizations: list[str | None] = []
        self.times: list[float] = []
        self.busiest = 0
        self.busy = 0
        self.lock = threading.Lock()


class QuietHandler(BaseHTTPRequestHandler):
    """Tells nothing of requests, nor of clients that leave."""

    def log_message(self, *_: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # the client left
            self.close_connection = True


@contextmanager
def endpoint(reply: Callable[[int, dict[str, Any]], Reply]) -> Iterator[Server]:
    """A server that answers the nth request (from 0), with this body, by `reply(n, body)`."""
    server = Server()

    class Handler(QuietHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                number = len(server.bodies)
                server.bodies.append(body)
                server.paths.append(self.path)
                server.authorizations.append(self.headers.get("Authorization"))
                server.times.append(time.monotonic())
                server.busy += 1
                server.busiest = max(server.busiest, server.busy)
            try:
                self._send(reply(number, body), "messages" in body)
            finally:
                with server.lock:
                    server.busy -= 1

        def _send(self, reply: Reply, chat: bool) -> None:
            time.sleep(reply.delay)
            if reply.pieces is not None:
                self.close_connection = True
                for piece in reply.pieces:
                    self.wfile.write(piece)
                    time.sleep(reply.pause)
                return
            choice = {"message": {"role": "assistant", "content": reply.text}} if chat else {"text": reply.text}
            content = (json.dumps({"choices": [choice]}) if reply.raw is None else reply.raw).encode()
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if reply.dies:
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
                return
            self.wfile.write(content)

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.daemon_threads = True
    server.url = f"http://127.0.0.1:{web.server_port}/v1"
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        web.shutdown()
        web.server_close()
