"""The Hugging Face hub on localhost, for `huggingface_hub`, `transformers` and `datasets` as they are.

It speaks what they ask of it: facts and file lists of models and data sets, branches and tags that stand for commits,
files by HEAD, GET and ranges, errors by the hub's own codes. As there, a small file is behind a redirect on the hub
itself, and a large one behind one to another host, its storage. It has no Xet, as it announces none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from support.endpoint import QuietHandler

LARGE = 2**20
"""Bytes from which a file is in the storage."""
PIECES = 20
"""In which a body is sent that trickles."""
NOT_FOUND = {
    "RepoNotFound": "Repository not found",
    "RevisionNotFound": "Invalid rev id",
    "EntryNotFound": "Entry not found",
}
RESTRICTED = "Access to this repository is restricted. You must have access to it and be authenticated to access it."


@dataclass
class Repo:
    """A model or a data set: the files of every commit, and what its branches and tags stand for."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    access: str = "public"
    """`gated`: everybody sees what is there, files are for readers; `private`: it is there for readers alone."""


@dataclass
class Trouble:
    """What requests meet whose method and path have `at` in them (a regular expression), `times` times."""

    at: str = ""
    times: int = 10**9
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    """Sent instead of the right one, by an answer to every method that looks as if all was well."""
    delay: float = 0.0
    """Seconds before the first byte."""
    pause: float = 0.0
    """Seconds between two pieces of the body."""
    cut: float = 1.0
    """Share of the body after which the connection ends."""
    silent: bool = False
    """The request is taken, and never answered."""


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    method: str
    path: str
    range: str | None
    token: str | None
    sent: list[int] = field(default_factory=list)
    """The sizes of what was sent of a body."""


class Hub:
    """The server's address, what it holds, what is wrong with it, and what it was asked."""

    def __init__(self) -> None:
        self.url = self.storage = ""
        self.repos: dict[str, Repo] = {}
        self.readers: dict[str, set[str]] = {}
        """The repositories, of those that are not public, that a token may read."""
        self.troubles: list[Trouble] = []
        self.asked: list[Asked] = []
        self.lock = threading.Lock()
        self.released = threading.Event()

    def push(self, name: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """A new commit of `models/owner/name` or `datasets/owner/name` with these files alone."""
        repo = self.repos.setdefault(name, Repo())
        commit = hashlib.sha1(repr((len(repo.commits), sorted(files.items()))).encode()).hexdigest()
        repo.commits[commit] = dict(files)
        repo.refs[branch] = commit
        return commit

    def count(self, at: str) -> int:
        """How many requests came like this."""
        return len(self.like(at))

    def like(self, at: str) -> list[Asked]:
        """The requests whose method and path have this in them."""
        return [one for one in self.asked if re.search(at, f"{one.method} {one.path}")]

    def meet(self, method: str, path: str) -> Trouble:
        """What a request runs into, often nothing."""
        with self.lock:
            for one in self.troubles:
                if one.times and re.search(one.at, f"{method} {path}"):
                    one.times -= 1
                    return one
        return Trouble()


class HubError(Exception):
    """An answer that is an error of the hub's."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


class Handler(QuietHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        form = parse_qs(self.rfile.read(length).decode())
        path = urlsplit(self.path).path
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        asked = Asked(self.command, unquote(path), self.headers.get("Range"), token)
        with self.hub.lock:
            self.hub.asked.append(asked)
        trouble = self.hub.meet(self.command, unquote(path))
        if trouble.silent:
            self.hub.released.wait()
            self.close_connection = True
            return
        time.sleep(trouble.delay)
        try:
            if trouble.status:
                raise HubError(trouble.status, None, "Something is wrong here")
            if trouble.body is not None:
                self._send(trouble.body, trouble, asked, {"Content-Type": "text/html"})
                return
            content, headers = self._answer(path, token, form)
            self._send(content, trouble, asked, headers)
        except HubError as error:
            body = json.dumps({"error": str(error)}).encode()
            self._send(body, trouble, asked, error.headers | dict(trouble.headers), error.status)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def _answer(self, path: str, token: str | None, form: dict[str, list[str]]) -> tuple[Any, dict[str, str]]:
        """The body, None for a redirect, and the headers."""
        if stored := matched(r"/storage/(\w+)/.*", path):
            contents = (
                file for repo in self.hub.repos.values() for one in repo.commits.values() for file in one.values()
            )
            return next(one for one in contents if hashlib.sha256(one).hexdigest() == stored[1]), {}
        kind = "(models|datasets)"
        if asked := matched(rf"/api/{kind}/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            _, commit = self._find(f"{asked[1]}/{asked[2]}", asked[3] or None, token)
            return _json({**self._facts(f"{asked[1]}/{asked[2]}", commit)}), {}
        if asked := matched(rf"/api/{kind}/([^/]+/[^/]+)/(tree|paths-info)/([^/]+)/?(.*)", path):
            repo, commit = self._find(f"{asked[1]}/{asked[2]}", asked[4], token)
            files = repo.commits[commit]
            if asked[3] == "paths-info":
                return _json([one for one in _entries(files, "", True) if one["path"] in form.get("paths", [])]), {}
            recursive = parse_qs(urlsplit(self.path).query).get("recursive") in (["True"], ["true"], ["1"])
            entries = _entries(files, asked[5], recursive)
            if asked[5] and not entries:
                raise HubError(404, "EntryNotFound", NOT_FOUND["EntryNotFound"])
            return _json(entries), {}
        if asked := matched(rf"/api/resolve-cache/{kind}/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            return self._file(f"{asked[1]}/{asked[2]}", asked[3], asked[4], token)
        if asked := matched(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(f"{asked[1] or 'models/'}{asked[2]}", asked[3], asked[4], token)
        raise HubError(404, None, "Sorry, we can't find the page you are looking for.")

    def _find(self, name: str, revision: str | None, token: str | None) -> tuple[Repo, str]:
        """The repository, for who may see it, and the commit."""
        if token is not None and token not in self.hub.readers:
            raise HubError(401, None, "Invalid credentials in Authorization header")
        repo = self.hub.repos.get(name)
        if repo is None or (repo.access == "private" and name not in self.hub.readers.get(token or "", ())):
            raise HubError(401 if token is None else 404, "RepoNotFound", NOT_FOUND["RepoNotFound"])
        commit = repo.refs.get(revision or "main", revision)
        if commit not in repo.commits:
            raise HubError(404, "RevisionNotFound", f"{NOT_FOUND['RevisionNotFound']}: {revision}")
        return repo, str(commit)

    def _resolve(self, name: str, revision: str, path: str, token: str | None) -> tuple[Any, dict[str, str]]:
        """The redirect to where the file's bytes are, with what there is to know of it."""
        repo, commit = self._find(name, revision, token)
        if repo.access == "gated" and name not in self.hub.readers.get(token or "", ()):
            raise HubError(401 if token is None else 403, "GatedRepo", RESTRICTED)
        if path not in repo.commits[commit]:
            error = HubError(404, "EntryNotFound", NOT_FOUND["EntryNotFound"])
            error.headers["X-Repo-Commit"] = commit
            raise error
        content = repo.commits[commit][path]
        if len(content) < LARGE:
            return None, {"Location": quote(f"/api/resolve-cache/{name}/{commit}/{path}"), "X-Repo-Commit": commit}
        digest = hashlib.sha256(content).hexdigest()
        return None, {
            "Location": f"{self.hub.storage}/storage/{digest}/{quote(path)}",
            "X-Repo-Commit": commit,
            "X-Linked-Size": str(len(content)),
            "X-Linked-Etag": f'"{digest}"',
        }

    def _file(self, name: str, commit: str, path: str, token: str | None) -> tuple[bytes, dict[str, str]]:
        content = self._find(name, commit, token)[0].commits[commit][path]
        return content, {"X-Repo-Commit": commit, "ETag": f'"{_blob(content)}"'}

    def _facts(self, name: str, commit: str) -> dict[str, Any]:
        repo, (kind, _, short) = self.hub.repos[name], name.partition("/")
        return {
            "_id": _blob(name.encode())[:24],
            "id": short,
            f"{kind[:-1]}Id": short,
            "sha": commit,
            "private": repo.access == "private",
            "gated": "manual" if repo.access == "gated" else False,
            "tags": [],
            "siblings": [{"rfilename": path} for path in sorted(repo.commits[commit])],
        }

    def _send(
        self, content: bytes | None, trouble: Trouble, asked: Asked, headers: Mapping[str, str], status: int = 200
    ) -> None:
        body = content or b""
        headers = {"Content-Type": "application/json", "Accept-Ranges": "bytes", **headers}
        if content is None:
            status = 302 if "X-Linked-Size" in headers else 307
        elif status == 200 and (part := re.fullmatch(r"bytes=(\d+)-(\d*)", asked.range or "")):
            start, end = int(part[1]), min(int(part[2] or len(body)), len(body) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
            status, body = 206, body[start : end + 1]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        whole = len(body)
        size = -(-whole // PIECES) if trouble.pause else whole
        for start in range(0, int(whole * trouble.cut), max(size, 1)):
            piece = body[start : min(start + size, int(whole * trouble.cut))]
            self.wfile.write(piece)
            asked.sent.append(len(piece))
            time.sleep(trouble.pause)
        self.close_connection = self.close_connection or trouble.cut < 1


def matched(pattern: str, path: str) -> list[str] | None:
    """The parts of a path, of which one may hold a quoted slash; the first is the whole."""
    found = re.fullmatch(pattern, path)
    return [unquote(part or "") for part in (found[0], *found.groups())] if found else None


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()


def _blob(content: bytes) -> str:
    """Git's name for a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entries(files: Mapping[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """A folder's files and, of folders in it, the names or the files."""
    inside = f"{folder.strip('/')}/".lstrip("/")
    entries: dict[str, dict[str, Any]] = {}
    for path, content in sorted(files.items()):
        if path.startswith(inside):
            parts = path.removeprefix(inside).split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                name = inside + "/".join(parts[:depth])
                entries[name] = {"type": "directory", "oid": _blob(name.encode()), "size": 0, "path": name}
            if recursive or len(parts) == 1:
                entry = {"type": "file", "oid": _blob(content), "size": len(content), "path": path}
                if len(content) >= LARGE:
                    digest = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
                entries[path] = entry
    return list(entries.values())


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub, and its storage at another port and so another host."""
    hub = Hub()
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), type("Ours", (Handler,), {"hub": hub})) for _ in range(2)]
    hub.url, hub.storage = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.released.set()
        for server in servers:
            server.shutdown()
            server.server_close()


PROGRAM = """
import json, os, signal, sys
from refusal_cmp import cli
cli._quiet()
import datasets, torch, transformers
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.judges import hf
from refusal_cmp.stages import evaluate, extract, infer, report, select
torch.set_num_threads(1)
for line in sys.stdin:
    home, environment, arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        os.chdir(home)
        os.environ |= environment
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        sys.argv = ["refusal-cmp", *arguments]
        status = 1
        try:
            if arguments[0] == "-c":
                exec(arguments[1], {})
            else:
                cli.main()
            status = 0
        except RefusalCmpError as error:
            print(f"Error: {error}", file=sys.stderr)
            status = 2
        except SystemExit as error:
            status = error.code or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs commands or Python; each in a process that has read the environment and imported the libraries already."""


@dataclass
class Done:
    """How a command ended and what it said."""

    status: int
    out: str
    err: str
    seconds: float


class Machine:
    """A machine with an empty cache, whose hub this is."""

    def __init__(self, hub: Hub, home: Path, **environment: str) -> None:
        self.home = home
        given = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home / "cache")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, **given, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> Done:
        """`refusal-cmp` with these arguments, or Python after `-c`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        started = time.monotonic()
        self.process.stdin.write(json.dumps([str(self.home), environment, arguments]) + "\n")
        self.process.stdin.flush()
        status = int(self.process.stdout.readline())
        seconds = time.monotonic() - started
        return Done(status, (self.home / "out").read_text(), (self.home / "err").read_text(), seconds)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
