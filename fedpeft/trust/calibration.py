"""Calibration from sums over examples: a temperature, calibration errors, and a risk-coverage curve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fedpeft.peft.adapter import State
from fedpeft.trust.question import ROWS, Question
from fedpeft.trust.questions.likelihoods import POINTS, Likelihoods
from fedpeft.trust.questions.reliability import CONFIDENCE, CORRECT, COUNT, Reliability

COARSE = Likelihoods()
"""The first grid of temperatures, with steps of 16 %."""

COVERAGES = 20
"""Number of points of the risk-coverage curve in the result."""


def refine_grid(total: State, grid: Likelihoods) -> Likelihoods:
    """Return a finer grid of temperatures around the smallest loss on a `grid`.

    The loss has one minimum, since it is convex in 1 / T. From 41 points to 41, steps are 20 times as fine, less than 1
    % of T.
    """
    best, at = grid.grid, int(total["loss"].argmin())
    return Likelihoods(float(best[max(0, at - 1)]), float(best[min(len(best) - 1, at + 1)]), POINTS)


def find_temperature(total: State, grid: Likelihoods) -> float:
    """Return T with the smallest loss.

    It is the vertex of the parabola through the lowest point and its neighbors, in log T.
    """
    loss, logs, at = total["loss"], grid.grid.log(), int(total["loss"].argmin())
    if at in (0, len(loss) - 1):
        return float(grid.grid[at])
    before, least, after = (float(loss[i]) for i in (at - 1, at, at + 1))
    bend = before - 2 * least + after
    shift = (before - after) / (2 * bend) if bend > 0 else 0.0
    return float((logs[at] + shift * (logs[1] - logs[0])).exp())


Ask = Callable[[Question], State]
"""A function that returns the sums over all examples for a question."""


def find_federated_temperature(ask: Ask) -> float:
    """Find T with the smallest loss on the examples of all clients that answer, by two grids."""
    finer = refine_grid(ask(COARSE), COARSE)
    return find_temperature(ask(finer), finer)


@dataclass(frozen=True)
class CalibrationResult:
    """Calibration measures from the sums of `Reliability`.

    Attributes:
        rows: number of examples.
        error: expected calibration error of the likeliest class, 0 to 1: the mean over examples of |accuracy - mean
            confidence| of their bin.
        classwise: the same error for every class's own probability, averaged over classes.
        adaptive: as `error`, in bins with equally many examples.
        brier: mean squared distance from the one-hot label, 0 to 2.
        loss: nats per example.
        accuracy: 0 to 1.
        area: area under the risk-coverage curve; 0 is perfect.
        bins: examples, mean confidence and accuracy of each bin.
        coverage: share of examples that are answered, from the most confident on.
        risk: share of wrong answers among them.
    """

    rows: int
    error: float
    classwise: float
    adaptive: float
    brier: float
    loss: float
    accuracy: float
    area: float
    bins: tuple[tuple[float, float, float], ...]
    coverage: tuple[float, ...]
    risk: tuple[float, ...]

    @classmethod
    def from_sums(cls, total: State, question: Reliability) -> CalibrationResult:
        """Create the result from the sums over all examples, at least one."""
        rows = float(total[ROWS])
        coverage, risk = compute_risk_coverage(total["cells"])
        kept = torch.linspace(0, len(coverage) - 1, min(COVERAGES, len(coverage))).round().long()
        return cls(
            rows=round(rows),
            error=compute_gap(total["top"]),
            classwise=sum(compute_gap(of_class) for of_class in total["classes"]) / len(total["classes"]),
            adaptive=compute_gap(rebin_by_mass(total["cells"], question.bins)),
            brier=float(total["brier"]) / rows,
            loss=float(total["loss"]) / rows,
            accuracy=float(total["top"][:, CORRECT].sum()) / rows,
            area=float(torch.trapezoid(torch.cat([risk[:1], risk]), torch.cat([coverage.new_zeros(1), coverage]))),
            bins=tuple(
                (float(n), float(c / n) if n else 0.0, float(r / n) if n else 0.0) for n, c, r in total["top"].tolist()
            ),
            coverage=tuple(coverage[kept].tolist()),
            risk=tuple(risk[kept].tolist()),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for summary.json."""
        return asdict(self)


def create_questions(temperature: float, bins: int) -> tuple[Reliability, Reliability]:
    """Create the questions that compare a model with the same model after division of its logits by `temperature`."""
    return Reliability(bins=bins), Reliability(temperature=temperature, bins=bins)


def compare_answers(answers: Sequence[State], questions: Sequence[Reliability]) -> dict[str, dict[str, Any]]:
    """Return the calibration from the answers to `create_questions`, for summary.json."""
    results = (
        CalibrationResult.from_sums(total, question).to_dict()
        for total, question in zip(answers, questions, strict=True)
    )
    return dict(zip(("before", "after"), results, strict=True))


def compute_gap(bins: Tensor) -> float:
    """Compute the mean over examples of |share of right ones - mean probability| of their bin, from sums (bins, 3)."""
    return float((bins[:, CORRECT] - bins[:, CONFIDENCE]).abs().sum() / bins[:, COUNT].sum())


def rebin_by_mass(cells: Tensor, bins: int) -> Tensor:
    """Sum narrow cells (cells, 3) to `bins` bins with about equally many examples; cells are not divided.

    A cell belongs to the bin that contains the middle of its examples. With 1,000 cells a bin's edge is off by 0.001.
    """
    rows = cells[:, COUNT]
    middle = rows.cumsum(0) - rows / 2
    place = (middle / rows.sum() * bins).long().clamp(0, bins - 1)
    return torch.zeros(bins, 3, dtype=cells.dtype).index_add_(0, place, cells)


def compute_risk_coverage(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Compute coverage and risk for falling thresholds of confidence, one point for each cell with examples."""
    down = cells.flip(0)
    down = down[down[:, COUNT] > 0].cumsum(0)
    return down[:, COUNT] / cells[:, COUNT].sum(), 1 - down[:, CORRECT] / down[:, COUNT]
