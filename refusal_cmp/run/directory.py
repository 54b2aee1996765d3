"""The run directory: every file is written whole or not at all, and the manifest says what it was made from.

An artifact is recorded with its *settings* (what the user chose) and its *sources* (digests of the files it
came from). If both are unchanged it is reused. If a source changed it is made again, and that is said. If a setting
changed, the run stops and says which: finished work is only replaced when the user says so (`--force`).

Files vouch for themselves: the manifest has the digest of each, and what is read is compared with it. An artifact that
is not what was written there is made again by its stage, and is an error to everybody else. The manifest has its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from refusal_cmp.activations import ACTIVATIONS
from refusal_cmp.config import EMBEDDED, STAGES, MachineSettings, RunConfig
from refusal_cmp.errors import BusyError, RefusalCmpError
from refusal_cmp.run.files import OWN, TEMPORARY, UNFINISHED, replacing, writing
from refusal_cmp.run.journal import Journal
from refusal_cmp.run.shared import NOTES, Shared, link
from refusal_cmp.subspace import METADATA

Json = Any

MANIFEST = "manifest.json"
LOCK = f"{OWN}lock"
CHECKSUM = "checksum"
"""The manifest's entry that vouches for all others."""
NAMES = dict.fromkeys((
    "model", "plan", "against", "method", "intervention", "scope", "direction", "dataset", "metric", "first", "second",
    "id", "rater", "verdict", "judge",
), str)  # fmt: skip
"""Columns of tables that hold text, whatever it looks like: a test set may be called `null`, or `2024`."""
BESIDE = ("stability", "label")
"""Commands on a finished run that keep what they find in a folder of their own."""
TRIES = 5
"""To lock a directory that other processes, which leave nothing, remove at the same time."""

RUNS: Path = RunConfig.model_fields["runs_dir"].default


def say_nothing(message: str) -> None:
    """For those who are not told."""


def cell_name(seed: int) -> str:
    """The folder of a seed's run, in that of all."""
    return f"seed-{seed}"


def why_no_run(run: RunDir) -> str:
    """What is wrong with a folder that a run is expected in, and what to do; the end of a sentence."""
    if run.seeds:
        seeds = ", ".join(map(str, run.seeds))
        return f"it holds those of the seeds {seeds}; name one of them, such as {run.path / cell_name(run.seeds[0])}"
    return f"it has no {MANIFEST} that names its configuration; name one, such as runs/tiny-refuser"


def stage_of(name: str) -> str:
    """The stage or command that writes an artifact: its folder's, or evaluate for the tables of results."""
    first = name.split("/")[0]
    return first if first in (*STAGES, *BESIDE) else "evaluate"


class RunDir:
    """A run directory and its manifest.

    Parameters
    ----------
    force
        Stages whose artifacts are made again whatever is there; with the first of all, a damaged manifest is forgotten.

    Raises
    ------
    RefusalCmpError
        If the manifest is not what was written there.
    """

    def __init__(self, path: Path, force: tuple[str, ...] = ()) -> None:
        self.path = path
        self.force = force
        self.say: Callable[[str], None] = say_nothing
        """Told what is made again, and why."""
        self.shared: Shared | None = None
        """Where artefacts of other runs are that are made from the same things."""
        self._made: set[str] = set()  # artifacts made by this process: never stale to it
        self._redone: set[str] = set()  # artifacts made again by this redoing, also before it was stopped
        self._said: set[tuple[str, str]] = set()
        self._hashes: dict[str, tuple[int, int, str]] = {}  # size and time of files when they had this hash
        self.manifest = self._read_manifest()

    @property
    def settings(self) -> dict[str, Json]:
        """The settings that the run was made with, without those of a machine; none if it is new."""
        stored = self.manifest.get("config", {})
        return {name: value for name, value in stored.items() if name not in MachineSettings.model_fields}

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds whose runs the folder holds, each in one of its own; none if it is a run itself, or new."""
        return tuple(self.manifest.get("seeds", ()))

    # Reading

    def has(self, name: str) -> bool:
        """Whether the file is there."""
        return (self.path / name).is_file()

    def command(self, stage: str) -> str:
        """The command for a stage of this run as it is typed, in backquotes, with the run's name where it needs one."""
        words = ["refusal-cmp", *stage.split()]
        if words[1] in BESIDE:
            return f"`{shlex.join([*words, str(self.path)])}`"
        if (self.path.parent, self.path.name) != (RUNS, EMBEDDED):
            words += ["--alias", self.path.name]
        if self.path.parent != RUNS:
            words += ["--runs-dir", str(self.path.parent)]
        return f"`{shlex.join(words)}`"

    def require(self, name: str) -> None:
        """An error that names the stage to run first, if the file is not there."""
        if not self.has(name):
            raise RefusalCmpError(
                f"{self.path / name} is missing; run {self.command(stage_of(name))} first, or {self.command('run')} "
                "for everything."
            )

    def require_finished(self) -> None:
        """An error where a stage is to be run again: what later stages hold is then of other choices."""
        states = {name: one["state"] for name, one in self.manifest.get("stages", {}).items()}
        unfinished = [name for name in STAGES if name != "report" and states.get(name, "done") != "done"]
        if unfinished:
            why = ", ".join(f"{name} is {states[name]}" for name in unfinished)
            raise RefusalCmpError(
                f"{self.path} holds results of different choices or settings ({why}); run "
                f"{self.command(unfinished[0])} and the stages after it first."
            )

    def read_json(self, name: str) -> Json:
        """The content of a JSON file."""
        return self._read(name, lambda path: json.loads(path.read_bytes()))

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
        """A hash of the file's bytes, to record as a source.

        Raises
        ------
        RefusalCmpError
            If the file is missing, or is not what was written there.
        """
        self.require(name)
        if not self._is_intact(name):
            stage = stage_of(name)
            raise RefusalCmpError(
                f"{self.path / name} is not what {stage} wrote there: it is damaged, edited or unfinished; run "
                f"{self.command(stage)} again."
            )
        return self._hash(name)

    # Writing

    def write_json(self, name: str, content: Json) -> None:
        """Write JSON, readable and with a stable order."""
        self._write(name, _readable(content))

    def write_lines(self, name: str, rows: list[Json]) -> None:
        """Write JSONL."""
        self._write(name, b"".join(_encoded(row) for row in rows))

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
        self._files.pop(name, None)

    # The manifest

    def note(self, **entries: Json) -> None:
        """Set entries of the manifest; they are written with the next artifact, so a mistake leaves no file."""
        self.manifest |= entries

    def save(self) -> None:
        """Write the manifest."""
        if "files" in self.manifest:
            self.note(files=dict(sorted(self._files.items())))
        self._write(MANIFEST, _readable({**self.manifest, CHECKSUM: _checksum(self.manifest)}))

    def begin(self, what: Json) -> None:
        """Say what is to be done: the redoing of just that goes on where it was stopped, of anything else is forgotten.

        Redone is what `force` names. `finish` ends it, so that the next time it is all done again.
        """
        before = self.manifest.pop("redoing", {})
        if self.force:
            self._redone = set(before["made"]) if before.get("what") == _plain(what) else set()
            self.note(redoing={"what": _plain(what), "made": sorted(self._redone)})
        if self._redone:
            self.say(f"Redoing goes on where it was stopped: {len(self._redone)} parts are done.")

    def finish(self) -> None:
        """All is done that `begin` named."""
        self.manifest.pop("redoing", None)

    def outdate(self, stages: Sequence[str]) -> list[str]:
        """Mark finished stages as outdated: they have to be run again before others build on them; those that are."""
        found = dict(self.manifest.get("stages", {}))
        those = [name for name in stages if name in found and found[name]["state"] != "outdated"]
        for name in those:
            found[name] = found[name] | {"state": "outdated"}
        self.note(stages=found)
        return those

    def changed(self, name: str, settings: Mapping[str, Json]) -> list[str]:
        """Which of these settings a finished artifact that is to be kept was made with others of, in words."""
        record = self.manifest.get("artifacts", {}).get(name)
        if stage_of(name) in self.force or record is None or not self.has(name):
            return []
        before = record["settings"]
        return [
            f"{key.replace('_', '-')} was {before.get(key)!r} and is now {value!r}"
            for key, value in settings.items()
            if before.get(key) != _plain(value)
        ]

    def check_settings(self, name: str, settings: Mapping[str, Json]) -> None:
        """An error if the artifact is finished, with other settings than these, and is to be kept."""
        if changed := self.changed(name, settings):
            raise RefusalCmpError(
                f"{self.path / name} was made with other settings: {', '.join(changed)}; redo it, or keep it and name "
                "another run.",
                force="",
                alias="NAME",
            )

    def is_fresh(self, name: str, settings: Mapping[str, Json], sources: Mapping[str, Json]) -> bool:
        """Whether the artifact is there, as it was written, and was made from just these.

        The first part of `name` is the stage that makes it. What is to be made again, though it was finished, is said.

        Raises
        ------
        RefusalCmpError
            If a setting changed since.
        """
        if name in self._made:
            return True
        self.check_settings(name, settings)
        record = self.manifest.get("artifacts", {}).get(name)
        if stage_of(name) in self.force and name not in self._redone:
            return False
        reason = "" if record is None else self._why_stale(name, record, _plain(sources))
        if (record is None or reason) and self._borrow(name, _plain(settings), _plain(sources)):
            return True
        if record is None:
            return False
        if reason and (stage_of(name), reason) not in self._said:
            self._said.add((stage_of(name), reason))
            self.say(f"{name} is made again: {reason}.")
        return not reason

    def is_current(self, name: str) -> bool:
        """Whether a finished artifact is as it was written, and the files that it was made from are still those."""
        record = self.manifest.get("artifacts", {}).get(name)
        if record is None:
            return False
        files = self.manifest.get("files", {})
        return not self._why_stale(name, record, {key: files.get(key, was) for key, was in record["sources"].items()})

    def record(
        self, name: str, settings: Mapping[str, Json], sources: Mapping[str, Json], also: Sequence[str] = ()
    ) -> None:
        """Say what a finished artifact was made from.

        Parameters
        ----------
        also
            Other files that are made with it, and again if one of them is damaged.
        """
        self._made.add(name)
        if stage_of(name) in self.force:
            self._redone.add(name)
            self.note(redoing=self.manifest.get("redoing", {}) | {"made": sorted(self._redone)})
        artifacts = dict(self.manifest.get("artifacts", {}))
        artifacts[name] = {"settings": _plain(settings), "sources": _plain(sources), "also": sorted(also)}
        self.note(artifacts=dict(sorted(artifacts.items())))
        self.save()
        if self.shared is not None:
            digests = {file: self._files[file] for file in (name, *sorted(also))}
            notes = {key: self.manifest[key] for key in NOTES if key in self.manifest}
            self.shared.lend(self.path, name, artifacts[name], digests, notes)

    def _borrow(self, name: str, settings: Json, sources: Json) -> bool:
        """Take an artifact that another run has made from the same things, if there is one."""
        found = self.shared and self.shared.find(name, settings, sources)
        if not found:
            return False
        if not self.has(MANIFEST):
            self.save()
        with writing(self.path / name):
            for file, path in found.files.items():
                link(path, self.path / file)
        if any(self._hash(file) != digest for file, digest in found.digests.items()):
            return False
        (self.path / f"{name}{UNFINISHED}").unlink(missing_ok=True)
        self._files.update(found.digests)
        self.note(**{key: value for key, value in found.notes.items() if key not in self.manifest})
        self.note(artifacts=dict(sorted({**self.manifest.get("artifacts", {}), name: dict(found.record)}.items())))
        self._made.add(name)
        self.save()
        return True

    def _why_stale(self, name: str, record: Mapping[str, Json], sources: Mapping[str, Json]) -> str:
        """Why a finished artifact is to be made again; empty if it is not."""
        before = record["sources"]
        for key in (key for key in {**before, **sources} if before.get(key) != sources.get(key)):
            return f"{key} {'is new' if key not in before else 'is gone' if key not in sources else 'has changed'}"
        for file in (name, *record["also"]):
            if not self.has(file):
                return f"{file} is missing"
            if not self._is_intact(file):
                return f"{file} is damaged or was edited"
        return ""

    @property
    def _files(self) -> dict[str, str]:
        """The digest of every file that was written, by name."""
        return self.manifest.setdefault("files", {})

    def _is_intact(self, name: str) -> bool:
        """Whether a file has the bytes that were written there."""
        return self.manifest.get("files", {}).get(name) == self._hash(name)

    def _hash(self, name: str) -> str:
        path = self.path / name
        try:
            stat = path.stat()
            known = self._hashes.get(name)
            if known is None or known[:2] != (stat.st_size, stat.st_mtime_ns):
                with path.open("rb") as file:
                    known = stat.st_size, stat.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest()[:16]
                self._hashes[name] = known
        except OSError as error:
            raise RefusalCmpError(f"Cannot read {path}: {error.strerror}.") from None
        return known[2]

    def _read_manifest(self) -> dict[str, Json]:
        """The manifest; none if the run is new."""
        path = self.path / MANIFEST
        try:
            content = json.loads(path.read_bytes())
            if content.pop(CHECKSUM) == _checksum(content):
                return content
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise RefusalCmpError(f"Cannot read {path}: {error.strerror}.") from None
        except (ValueError, RecursionError, AttributeError, TypeError, LookupError):  # not JSON, or of another shape
            pass
        if STAGES[0] in self.force:
            return {}
        raise RefusalCmpError(
            f"{path} is not what was written there: it is damaged, edited or of an older version; restore it, do the "
            "whole run again, or name another.",
            force="",
            alias="NAME",
        )

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
            self.manifest = self._read_manifest()
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
        raise BusyError(f"Another process is at work in {self.path}; wait for it, or name another run.", alias="NAME")

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
        self.digest(name)  # nothing is read that nobody vouches for
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
            self._write(MANIFEST, _readable({CHECKSUM: _checksum({})}))  # the folder is a run from its first file on
        path = self.path / name
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                file.write(content)
        if name != MANIFEST:
            self._files[name] = hashlib.sha256(content).hexdigest()[:16]


def _is_newer(path: Path, than: Path) -> bool:
    """Whether the file is there and was written after the other, or with it."""
    return path.is_file() and path.stat().st_mtime_ns >= than.stat().st_mtime_ns


def _plain(value: Any) -> Json:
    """The value as JSON would give it back."""
    return json.loads(json.dumps(value))


def _readable(content: Json) -> bytes:
    return _encoded(content, indent=2)


def _encoded(content: Json, indent: int | None = None) -> bytes:
    """JSON with a line's end; a lone surrogate, which UTF-8 has not, as JSON escapes it."""
    return (json.dumps(content, indent=indent, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def _checksum(manifest: Json) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
