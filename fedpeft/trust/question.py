"""What a model's logits are asked on rows that nobody trains on: every answer is a sum over rows.

So the answers of clients add up to that on all their rows together, whatever row is whose, and nobody needs the rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.errors import ConfigError, PayloadError
from fedpeft.families import QUESTIONS as QUESTIONS
from fedpeft.parts import format_part
from fedpeft.spec import parse_spec

State = dict[str, Tensor]

Matrices = Mapping[str, tuple[int, ...]]
"""The shapes of a model's LoRA matrices by name, which some answers are as long as."""

NO_MATRICES: Matrices = MappingProxyType({})

ROWS = "rows"
"""The sum that every answer has: how many rows it is over, shape (1,)."""

WORST_LOSS = 1e6
"""Nats that a row may add to a sum; a larger loss is a lie, or of a model that nobody calibrates."""

MOST_WORDS = 300
"""Characters of a question's text that a client reads."""


class Question(ABC):
    """One question. Subclasses are frozen dataclasses; their fields are what a server may choose."""

    of_model: ClassVar[bool] = False
    """Whether the sums come from the model itself, on the rows that it was trained on, and not from its logits."""

    largest: ClassVar[int] = 1_000_000
    """The most numbers that an answer may have."""

    @property
    def text(self) -> str:
        """As it is asked."""
        return format_part(self)

    @abstractmethod
    def shapes(self, classes: int, matrices: Matrices = NO_MATRICES) -> dict[str, tuple[int, ...]]:
        """Of the sums, but for `ROWS`."""

    def compute_sums(self, logits: Tensor, labels: Tensor) -> State:
        """The sums over rows, in fp64, but for `ROWS`: logits (rows, classes) in fp64, labels (rows,).

        Raises:
            ConfigError: the question is of the model, and not of its logits; the default.
        """
        raise ConfigError(f"FP1440 {self.text} is asked of a model, and not of its logits")

    def limits(self, rows: int) -> dict[str, float]:
        """The largest value of any number in each sum over `rows` rows; a sum that is not named ends at `rows`."""
        return {}

    # ------------------------------------------------------------------------------------------------------- answers

    def get_all_shapes(self, classes: int, matrices: Matrices = NO_MATRICES) -> dict[str, tuple[int, ...]]:
        """Of an answer.

        Raises:
            ConfigError: it would be longer than `largest`.
        """
        shapes = {**self.shapes(classes, matrices), ROWS: (1,)}
        numbers = sum(int(torch.Size(shape).numel()) for shape in shapes.values())
        if numbers > self.largest:
            raise ConfigError(
                f"FP1441 {self.text} would bring {numbers:,} numbers of each client for {classes} classes; legal are "
                f"{self.largest:,}: ask for fewer bins, or fewer points"
            )
        return shapes

    def answer(self, logits: Tensor, labels: Tensor) -> State:
        """The sums over some rows, `ROWS` included.

        Raises:
            ConfigError: see `get_all_shapes`.
        """
        shapes = self.get_all_shapes(logits.shape[1])
        if not len(labels):
            return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
        found = self.compute_sums(logits.double(), labels)
        return {**found, ROWS: torch.tensor([float(len(labels))], dtype=torch.float64)}

    def check(self, answer: State, rows: int) -> None:
        """Refuse sums that no `rows` rows can have.

        Raises:
            PayloadError: why.
        """
        if float(answer[ROWS]) != rows:
            raise PayloadError(f"FP6165 sums over {float(answer[ROWS]):g} rows, of a client that says it has {rows}")
        limits = self.limits(rows)
        for name, tensor in answer.items():
            most = limits.get(name, float(rows))
            if not bool(((tensor >= 0) & (tensor <= most * (1 + 1e-9))).all()):
                raise PayloadError(
                    f"FP6166 a sum called {name} lies outside of 0 to {most:g}, which {rows} rows can't exceed"
                )


def parse_question(text: str) -> Question:
    """The question that a server asks by `text`.

    Raises:
        PayloadError: this version has none like it.
    """
    if len(text) > MOST_WORDS:
        raise PayloadError(f"FP6167 the server asks a question of {len(text)} characters; legal are {MOST_WORDS}")
    try:
        spec = parse_spec(text)
        if spec.name not in QUESTIONS.own_names:
            raise PayloadError(
                f"FP6168 the server asks {spec.name[:40]!r}; this version answers {', '.join(QUESTIONS.own_names)}"
            )
        return QUESTIONS.build(spec)
    except ConfigError as error:
        raise PayloadError(f"FP6169 the server's question can't be answered: {error}") from None
