"""The run directory: every file is written whole or not at all, and the manifest says what it was made from.

An artifact is recorded with its *settings* (what the user chose) and its *sources* (digests of the files it
came from). If both are unchanged it is reused. If a source changed it is made again. If a setting changed,
the run stops and says which: finished work is only replaced when the user says so (`--force`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from refusal_cmp.activations import ACTIVATIONS
from refusal_cmp.config import MachineSettings
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.run.files import OWN, TEMPORARY, UNFINISHED, replacing, writing
from refusal_cmp.run.journal import Journal
from refusal_cmp.subspace import METADATA

Json = Any

MANIFEST = "manifest.json"
LOCK = f"{OWN}lock"
NAMES = dict.fromkeys(
    (
        "model",
        "plan",
        "against",
        "method",
        "intervention",
        "scope",
        "direction",
        "dataset",
        "metric",
        "first",
        "second",
    ),
    str,
)
"""Columns of tables that hold text, whatever it looks like: a test set may be called `null`, or `2024`."""
TRIES = 5
"""To lock a directory that other processes, which leave nothing, remove at the same time."""


class RunDir:
    """A run directory and its manifest.

    Parameters
    ----------
    force
        Stages whose artifacts are made again whatever is there.
    """

    def __init__(self, path: Path, force: tuple[str, ...] = ()) -> None:
        self.path = path
        self.force = force
        self._made: set[str] = set()  # artifacts made by this process: never stale to it
        self.manifest: dict[str, Json] = self.read_json(MANIFEST) if self.has(MANIFEST) else {}

    @property
    def settings(self) -> dict[str, Json]:
        """The settings that the run was made with, without those of a machine; none if it is new."""
        stored = self.manifest.get("config", {})
        return {name: value for name, value in stored.items() if name not in MachineSettings.model_fields}

    # Reading

    def has(self, name: str) -> bool:
        """Whether the file is there."""
        return (self.path / name).is_file()

    def require(self, name: str, stage: str) -> None:
        """An error that names the stage to run first, if the file is not there."""
        if not self.has(name):
            raise RefusalCmpError(
                f"{self.path / name} is missing; run `refusal-cmp {stage}` for this run first, or `refusal-cmp run` "
                "for everything."
            )

    def read_json(self, name: str) -> Json:
        """The content of a JSON file."""
        return self._read(name, lambda path: json.loads(path.read_text(encoding="utf-8")))

    def read_lines(self, name: str) -> list[Json]:
        """The content of a JSONL file."""
        return self._read(name, lambda path: [json.loads(line) for line in path.read_bytes().split(b"\n") if line])

    def read_tensors(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors and the metadata of a safetensors file."""

        def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
            with safe_open(path, framework="pt") as file:
                metadata = json.loads((file.metadata() or {}).get(METADATA, "{}"))
                return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118

        return self._read(name, read)

    def read_table(self, name: str) -> pd.DataFrame:
        """The content of a CSV file."""
        return self._read(name, lambda path: pd.read_csv(path, dtype=NAMES, keep_default_na=False, na_values=[""]))

    def digest(self, name: str) -> str:
        """A hash of the file's bytes, to record as a source."""
        return hashlib.sha256((self.path / name).read_bytes()).hexdigest()[:16]

    # Writing

    def write_json(self, name: str, content: Json) -> None:
        """Write JSON, readable and with a stable order."""
        self._write(name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

    def write_lines(self, name: str, rows: list[Json]) -> None:
        """Write JSONL."""
        self._write(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write safetensors."""
        whole = {key: tensor.contiguous().cpu() for key, tensor in tensors.items()}
        self._write(name, save(whole, {METADATA: json.dumps(dict(metadata), sort_keys=True)}))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file as it is."""
        self._write(name, content)

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write CSV, numbers with twelve digits."""
        self._write(name, table.to_csv(index=False, float_format="%.12g").encode())

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        with writing(self.path / name):
            (self.path / name).unlink(missing_ok=True)

    # The manifest

    def note(self, **entries: Json) -> None:
        """Set entries of the manifest; they are written with the next artifact, so a mistake leaves no file."""
        self.manifest |= entries

    def save(self) -> None:
        """Write the manifest."""
        self.write_json(MANIFEST, self.manifest)

    def is_fresh(self, name: str, settings: Mapping[str, Json], sources: Mapping[str, Json]) -> bool:
        """Whether the artifact is there and was made from just these; an error if a setting changed since.

        The first part of `name` is the stage that makes it.
        """
        if name in self._made:
            return True
        record = self.manifest.get("artifacts", {}).get(name)
        if name.split("/")[0] in self.force or record is None or not self.has(name):
            return False
        changed = {key: (record["settings"].get(key), value) for key, value in settings.items()
                   if record["settings"].get(key) != _plain(value)}  # fmt: skip
        if changed:
            what = ", ".join(
                f"{key.replace('_', '-')} was {was!r} and is now {now!r}" for key, (was, now) in changed.items()
            )
            raise RefusalCmpError(
                f"{self.path / name} was made with other settings: {what}; redo it, or keep it and name another run.",
                force="",
                alias="NAME",
            )
        return record["sources"] == _plain(sources)

    def record(self, name: str, settings: Mapping[str, Json], sources: Mapping[str, Json]) -> None:
        """Say what a finished artifact was made from."""
        self._made.add(name)
        artifacts = dict(self.manifest.get("artifacts", {}))
        artifacts[name] = {"settings": _plain(settings), "sources": _plain(sources)}
        self.note(artifacts=dict(sorted(artifacts.items())))
        self.save()

    # Work in progress

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out of the run directory; the lock goes with the process, however it ends.

        Raises
        ------
        RefusalCmpError
            If another process is at work there, or the folder holds files and is no run.
        """
        home, is_new = self.path.parent, not self.path.parent.exists()
        lock = self._acquire()
        try:
            self.manifest = self.read_json(MANIFEST) if self.has(MANIFEST) else {}
            self._sweep()
            yield
        finally:
            with suppress(OSError):
                (self.path / LOCK).unlink()  # while it is held: nobody else's is removed
            lock.release()
            with suppress(OSError):
                self.path.rmdir()  # a mistake before the first file leaves no folder
                if is_new:
                    home.rmdir()

    def journal(self, name: str, identity: Json, **coding: Callable[[Any], Any]) -> Journal[Any]:
        """What is finished of an artifact in the making; `identity` is what it is made from."""
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        return Journal(self.path / f"{name}{UNFINISHED}", digest, **coding)

    def _acquire(self) -> FileLock:
        lock = FileLock(self.path / LOCK)
        with writing(self.path):
            self._check_is_run()
            for _ in range(TRIES):
                with suppress(Timeout, FileNotFoundError, FileExistsError):
                    if not self.path.is_dir():
                        self.path.mkdir(parents=True)
                    lock.acquire(blocking=False)
                    return lock
        raise RefusalCmpError(
            f"Another process is at work in {self.path}; wait for it, or name another run.", alias="NAME"
        )

    def _check_is_run(self) -> None:
        """RefusalCmpError for a folder of somebody's files: the first file of a run is its manifest."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return
        strangers = sorted(name for name in names if not name.startswith(OWN))
        if strangers and MANIFEST not in strangers:
            raise RefusalCmpError(
                f"{self.path} is no run, as it has no {MANIFEST}, and holds other files, such as {strangers[0]}; name "
                "another run.",
                alias="NAME",
            )

    def _sweep(self) -> None:
        """Delete what killed processes left: half-written files, and journals of artifacts that are finished."""
        for folder in self.path.glob(f"{ACTIVATIONS}*"):
            shutil.rmtree(folder, ignore_errors=True)
        journals = self.path.rglob(f"*{UNFINISHED}")
        litter = [path for path in journals if _is_newer(path.with_name(path.name.removesuffix(UNFINISHED)), path)]
        for path in [*self.path.rglob(f"{TEMPORARY}*"), *litter]:
            if path.is_file():
                with writing(path):
                    path.unlink()

    # Files

    def _read(self, name: str, read: Callable[[Path], Any]) -> Any:
        path = self.path / name
        try:
            return read(path)
        except OSError as error:
            raise RefusalCmpError(f"Cannot read {path}: {error.strerror}.") from None
        except (ValueError, SafetensorError) as error:
            raise RefusalCmpError(
                f"{path} is damaged ({str(error).splitlines()[0]}); delete it and run its stage again."
            ) from None

    def _write(self, name: str, content: bytes) -> None:
        if name != MANIFEST and not self.has(MANIFEST):
            self._write(MANIFEST, b"{}\n")  # the folder is a run from its first file on
        path = self.path / name
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                file.write(content)


def _is_newer(path: Path, than: Path) -> bool:
    """Whether the file is there and was written after the other, or with it."""
    return path.is_file() and path.stat().st_mtime_ns >= than.stat().st_mtime_ns


def _plain(value: Any) -> Json:
    """The value as JSON would give it back."""
    return json.loads(json.dumps(value))
