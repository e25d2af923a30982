"""A strategy and a data set as somebody else would write them: one file, nothing of fedpeft edited."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.aggregation.update import Update
from fedpeft.data.rows import Dataset, Rows
from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, State

COLOURS = ("red", "green", "blue")


@dataclass(frozen=True)
class HalfMean(LinearStrategy):
    """A part of the mean update, so that the global model moves less."""

    needs_lora = False
    arrives_whole = False

    share: float = setting(0.5, "of each update that counts", above=0, high=1)

    def contribution(self, update: Update, state: State, layout: Layout) -> State:
        """Return the scaled delta."""
        return {name: self.share * delta for name, delta in update.delta.items()}


@dataclass(frozen=True)
class Colours:
    """Made texts about one of three colours."""

    rows: int = setting(120, "training rows", low=30)

    def load(self) -> Dataset:
        """Load the same examples each time."""
        return Dataset("colours", "text", "classification", self._made(self.rows), self._made(30), COLOURS, "tiny")

    def _made(self, count: int) -> Rows:
        labels = np.arange(count) % len(COLOURS)
        return Rows([f"{COLOURS[label]} thing number {i}" for i, label in enumerate(labels)], labels.astype(np.int64))
