"""Questions about a model's logits on held-out examples; every answer is a sum over examples.

So the answers of clients add up to the answer on all their examples together, and nobody needs the examples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.errors import ConfigError, PayloadError
from fedpeft.parts import format_part
from fedpeft.parts.families import QUESTIONS
from fedpeft.parts.spec import parse_spec
from fedpeft.peft.adapter import State

Matrices = Mapping[str, tuple[int, ...]]
"""Shapes of a model's LoRA matrices by name; some answers have these sizes."""

NO_MATRICES: Matrices = MappingProxyType({})

ROWS = "rows"
"""Name of the sum in every answer that counts the examples, shape (1,)."""

WORST_LOSS = 1e6
"""Largest number of nats of an example in a sum; a larger loss is false, or the model's calibration is irrelevant."""

MOST_WORDS = 300
"""Largest number of characters of a question's text."""


class Question(ABC):
    """A question to clients. Subclasses are frozen dataclasses whose fields are the server's choice."""

    of_model: ClassVar[bool] = False
    """Whether the sums come from the model itself, on its training set, instead of from its logits."""

    largest: ClassVar[int] = 1_000_000
    """Largest number of numbers in an answer."""

    @property
    def text(self) -> str:
        """Text of the question."""
        return format_part(self)

    @abstractmethod
    def shapes(self, classes: int, matrices: Matrices = NO_MATRICES) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the sums without `ROWS`."""

    def compute_sums(self, logits: Tensor, labels: Tensor) -> State:
        """Compute the sums over examples in fp64, without `ROWS`.

        Args:
            logits: (rows, classes) in fp64.
            labels: (rows,).

        Raises:
            ConfigError: the question is about the model, not about its logits; the default.
        """
        raise ConfigError(
            f"FP1440 {self.text} can be answered by a model, but not from its logits; choose a question about logits"
        )

    def limits(self, rows: int) -> dict[str, float]:
        """Return the largest legal value in each sum over `rows` examples; by default `rows` limits every sum."""
        return {}

    # ------------------------------------------------------------------------------------------------------- answers

    def get_all_shapes(self, classes: int, matrices: Matrices = NO_MATRICES) -> dict[str, tuple[int, ...]]:
        """Return the shapes of an answer.

        Raises:
            ConfigError: the answer has more numbers than `largest`.
        """
        shapes = {**self.shapes(classes, matrices), ROWS: (1,)}
        numbers = sum(int(torch.Size(shape).numel()) for shape in shapes.values())
        if numbers > self.largest:
            raise ConfigError(
                f"FP1441 {self.text} would need {numbers:,} numbers from each client for {classes} classes; at most "
                f"{self.largest:,} are legal: ask for fewer bins or points"
            )
        return shapes

    def answer(self, logits: Tensor, labels: Tensor) -> State:
        """Compute the sums over some examples, with `ROWS`.

        Raises:
            ConfigError: see `get_all_shapes`.
        """
        shapes = self.get_all_shapes(logits.shape[1])
        if not len(labels):
            return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
        sums = self.compute_sums(logits.double(), labels)
        return {**sums, ROWS: torch.tensor([float(len(labels))], dtype=torch.float64)}

    def check(self, answer: State, rows: int) -> None:
        """Refuse sums that `rows` examples can't have.

        Raises:
            PayloadError: names the reason.
        """
        if float(answer[ROWS]) != rows:
            raise PayloadError(
                f"FP6165 a client's sums are over {float(answer[ROWS]):g} examples, and it reported {rows}"
            )
        limits = self.limits(rows)
        for name, tensor in answer.items():
            most = limits.get(name, float(rows))
            if not bool(((tensor >= 0) & (tensor <= most * (1 + 1e-9))).all()):
                raise PayloadError(
                    f"FP6166 the sum {name} of a client is outside 0 to {most:g}, the legal range for {rows} examples"
                )


def parse_question(text: str) -> Question:
    """Parse the text of a server's question.

    Raises:
        PayloadError: this version does not have such a question.
    """
    if len(text) > MOST_WORDS:
        raise PayloadError(f"FP6167 the server's question has {len(text)} characters; at most {MOST_WORDS} are legal")
    try:
        spec = parse_spec(text)
        if spec.name not in QUESTIONS.own_names:
            raise PayloadError(
                f"FP6168 the server asks the unknown question {spec.name[:40]!r}; this version answers "
                f"{', '.join(QUESTIONS.own_names)}"
            )
        return QUESTIONS.build(spec)
    except ConfigError as error:
        raise PayloadError(f"FP6169 the server's question can't be answered: {error}") from None
