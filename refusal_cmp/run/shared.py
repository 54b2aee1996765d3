"""What the runs of a study have in common: an artefact that one has made is a hard link in the others.

An artefact is known by what its own record says of it (its name, settings and sources, `RunDir.record`) and by what the
records of a run leave unsaid, as it is the same for all of them: the model's weights, the kind of device, the versions
of packages, and the settings of earlier stages. A run asks here where it finds nothing of its own that is fresh.

Files of a run are replaced, never written into, so that a link stays what it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refusal_cmp.run.files import replacing, writing

NOTES = ("model", "device", "versions")
"""Entries of the manifest that say what artefacts were made with."""


@dataclass(frozen=True)
class Found:
    """An artefact that another run has made."""

    files: Mapping[str, Path]
    """By name in a run."""
    digests: Mapping[str, str]
    record: Mapping[str, Any]
    notes: Mapping[str, Any]
    """What of the manifest goes with it."""


@dataclass
class Shared:
    """A folder of artefacts, each by what it was made from."""

    path: Path
    keys: Mapping[str, str]
    """By stage: a hash of the settings that its artefacts depend on, though their records do not have them."""
    lends: Collection[str]
    """Stages whose artefacts are put there; all that are there are taken."""
    context: list[Any] = field(default_factory=list)
    """The weights, the kind of device and the versions, as the run knows them."""

    def find(self, name: str, settings: Any, sources: Any) -> Found | None:
        """The artefact that was made from just these, if it is there and whole."""
        place = self._place(name, settings, sources)
        if place is None:
            return None
        try:
            entry = json.loads((place / "record.json").read_bytes())
            files = {file: place / str(index) for index, file in enumerate(entry["digests"])}
            if all(path.is_file() for path in files.values()):
                return Found(files, entry["digests"], entry["record"], entry["notes"])
        except (OSError, ValueError, LookupError, TypeError):  # none, or half of one: it is made
            pass
        return None

    def lend(self, run: Path, name: str, record: Mapping[str, Any], digests: Mapping[str, str], notes: Any) -> None:
        """Put an artefact there, with its files; the record comes last, and what is there already stays."""
        place = self._place(name, record["settings"], record["sources"])
        if place is None or _stage(name) not in self.lends or (place / "record.json").exists():
            return
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
            for index, file in enumerate(digests):
                link(run / file, place / str(index))
            with replacing(place / "record.json") as out:
                out.write(json.dumps({"record": record, "digests": digests, "notes": notes}).encode())

    def _place(self, name: str, settings: Any, sources: Any) -> Path | None:
        key = self.keys.get(_stage(name))
        if key is None:
            return None
        digest = _digest([self.context, key, name, settings, sources])
        return self.path / digest[:2] / digest


def link(source: Path, target: Path) -> None:
    """A hard link that takes the target's place; a copy where the file system has none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        target.unlink()
    try:
        os.link(source, target)
    except FileExistsError:  # of another run, at the same time and with the same content
        pass
    except OSError:
        with source.open("rb") as read, replacing(target) as write:
            shutil.copyfileobj(read, write)


def _stage(name: str) -> str:
    return name.split("/")[0]


def _digest(content: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
