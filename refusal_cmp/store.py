"""A safetensors file of activations that is written row by row, before anybody knows them all.

One float32 tensor (n, d) for each component, so that a component is read by itself, as one piece, through a
memory map that is closed again: neither writing nor reading holds more than what is in flight.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.subspace import Component

ACTIVATIONS = ".activations-"
"""How the folder of a store is called, until its process ends."""
ITEM = 4
"""Bytes of a float32."""


class ActivationStore:
    """Rows of activations at every component, in a file that lives as long as this object.

    Parameters
    ----------
    components
        What is stored.
    n, d
        Rows at each component, and their width.
    folder
        Where the file is put; by default the system's folder for temporary files.
    """

    def __init__(self, components: Sequence[Component], n: int, d: int, folder: Path | None = None) -> None:
        self.n, self.d = n, d
        self._offsets = {component: index * n * d * ITEM for index, component in enumerate(components)}
        try:
            home = tempfile.mkdtemp(prefix=ACTIVATIONS, dir=folder)
            weakref.finalize(self, shutil.rmtree, home, ignore_errors=True)
            self.path = Path(home) / "activations.safetensors"
            self._start = self._write_header(len(components) * n * d * ITEM)
        except OSError as error:
            raise self._unwritable(folder or Path(tempfile.gettempdir()), error) from None

    def write(self, component: Component, row: int, values: Float[Tensor, "b d"]) -> None:
        """Rows `row`, `row + 1`, … of a component."""
        try:
            with self.path.open("r+b", buffering=0) as file:
                file.seek(self._start + self._offsets[component] + row * self.d * ITEM)
                file.write(values.contiguous().numpy().data)
        except OSError as error:
            raise self._unwritable(self.path, error) from None

    def read(self, component: Component) -> Float[Tensor, "n d"]:
        """All rows of a component; float32."""
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(str(component))

    def _write_header(self, size: int) -> int:
        entries = {
            str(component): {
                "dtype": "F32",
                "shape": [self.n, self.d],
                "data_offsets": [offset, offset + self.n * self.d * ITEM],
            }
            for component, offset in self._offsets.items()
        }
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        with self.path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(file.tell() + size)
            return 8 + len(header)

    def _unwritable(self, where: Path, error: OSError) -> RefusalCmpError:
        size = len(self._offsets) * self.n * self.d * ITEM / 2**20
        return RefusalCmpError(
            f"Cannot keep {size:.0f} MB of activations in {where}: {error.strerror}; free space, or lower --limit."
        )
