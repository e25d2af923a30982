"""What a step of the kit is, and what it is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.gpu.shapes import Shape

Row = Mapping[str, Any]
"""What was found, by the column of a table."""


@dataclass(frozen=True)
class Kit:
    """Where steps compute, and what they find there; plain data.

    Attributes:
        device: "cpu" or "cuda:N".
        folder: for what steps write.
        tiny: whether models and loads are tiny ones.
        assets: the folder that `--collect` has filled; None: there is none.
    """

    device: str
    folder: Path
    tiny: bool = False
    assets: Path | None = None

    def choose_shape(self, shape: Shape) -> Shape:
        """A shape, or what stands for it."""
        from experiments.gpu.shapes import SMALLER

        return SMALLER[shape.name] if self.tiny else shape

    def choose_size(self, usual: int, tiny: int) -> int:
        """A number of a load."""
        return tiny if self.tiny else usual

    @property
    def encoder(self) -> Path | None:
        """Folder of the encoder's real weights."""
        from experiments.gpu.assets import MODEL

        return None if self.assets is None else self.assets / MODEL

    def get_encoder_folder(self) -> Path:
        """Folder of the encoder in real weights, or in random ones that are written here."""
        from experiments.gpu.shapes import MINILM

        return self.encoder or self.choose_shape(MINILM).write_folder(self.folder / "encoder")

    def choose_dataset(self) -> str:
        """Rows that the encoder can read: real ones, or made-up words."""
        from experiments.gpu.assets import ROWS

        return "tiny" if self.assets is None else f"file:{self.assets / ROWS}"


@dataclass(frozen=True)
class Step:
    """One measurement.

    Attributes:
        name: unique.
        section: of the page.
        limit: seconds that it may take.
        run: finds a row; an exception says why it can't.
        needs: packages without which it is left out.
        assets: whether it is left out without real weights and rows.
        gigabytes: of free memory on the device below which it is left out.
    """

    name: str
    section: str
    limit: float
    run: Callable[[Kit], Row]
    needs: tuple[str, ...] = ()
    assets: bool = False
    gigabytes: float = 0.0
