"""The steps of the GPU measurements and their inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.gpu.shapes import Shape

Row = Mapping[str, Any]
"""Results of a step, by the column of its table."""


@dataclass(frozen=True)
class Kit:
    """The device, folder and sizes of the steps, as plain data.

    Attributes:
        device: "cpu" or "cuda:N".
        folder: folder for files that steps write.
        tiny: whether models and loads are tiny.
        assets: the folder that `--collect` filled; None without one.
    """

    device: str
    folder: Path
    tiny: bool = False
    assets: Path | None = None

    def choose_shape(self, shape: Shape) -> Shape:
        """Return a shape, or its smaller substitute if the kit is tiny."""
        from experiments.gpu.shapes import SMALLER

        return SMALLER[shape.name] if self.tiny else shape

    def choose_size(self, usual: int, tiny: int) -> int:
        """Return the usual size, or the tiny one if the kit is tiny."""
        return tiny if self.tiny else usual

    @property
    def encoder(self) -> Path | None:
        """The folder of the encoder's real weights; None without assets."""
        from experiments.gpu.assets import MODEL

        return None if self.assets is None else self.assets / MODEL

    def get_encoder_folder(self) -> Path:
        """Return the folder of the encoder's real weights, or of random ones that it writes."""
        from experiments.gpu.shapes import MINILM

        return self.encoder or self.choose_shape(MINILM).write_folder(self.folder / "encoder")

    def choose_dataset(self) -> str:
        """Return a dataset that the encoder can read: real examples, or made-up words."""
        from experiments.gpu.assets import ROWS

        return "tiny" if self.assets is None else f"file:{self.assets / ROWS}"


@dataclass(frozen=True)
class Step:
    """A measurement.

    Attributes:
        name: a unique name.
        section: section of the page.
        limit: most seconds that it may take.
        run: returns a row; an exception gives the reason of a failure.
        needs: packages that it requires.
        assets: whether it requires real weights and examples.
        gigabytes: free memory on the device that it requires.
    """

    name: str
    section: str
    limit: float
    run: Callable[[Kit], Row]
    needs: tuple[str, ...] = ()
    assets: bool = False
    gigabytes: float = 0.0
