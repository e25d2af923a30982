"""Updates that wait on disk until a strategy has read them, one layer at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

from safetensors import safe_open
from safetensors.torch import save_file

from fedpeft.aggregation.strategy import Update
from fedpeft.run.records import writing


@dataclass
class Shelf:
    """Decoded updates in safetensors files, in the order in which they were put."""

    folder: Path
    _heads: list[Update] = field(default_factory=list)

    def put(self, update: Update) -> None:
        """Store the update's tensors; only its description stays in memory.

        Raises:
            RunError: the disk is full or can't be written.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({n: t.contiguous() for n, t in update.delta.items()}, self._file(len(self._heads)))
        self._heads.append(replace(update, delta={}))

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:06d}.safetensors"

    def read(self, names: tuple[str, ...]) -> Sequence[Update]:
        """All updates, holding only the tensors called `names`; decoded anew at each pass."""
        return _Layer(self, names)

    def clear(self) -> None:
        """Forget the updates and remove their files."""
        self._heads.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class _Layer(Sequence[Update]):
    shelf: Shelf
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.shelf._heads)

    @overload
    def __getitem__(self, index: int) -> Update: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Update]: ...
    def __getitem__(self, index: int | slice) -> Update | Sequence[Update]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        head = self.shelf._heads[index]
        with safe_open(self.shelf._file(index), framework="pt") as file:
            present = set(file.keys())
            return replace(head, delta={n: file.get_tensor(n) for n in self.names if n in present})

    def __iter__(self) -> Iterator[Update]:
        return (self[i] for i in range(len(self)))
