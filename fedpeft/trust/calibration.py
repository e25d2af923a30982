"""What sums over rows say of calibration: a temperature, errors, and which answers to leave out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fedpeft.trust.question import ROWS, Question, State
from fedpeft.trust.questions.likelihoods import POINTS, Likelihoods
from fedpeft.trust.questions.reliability import CONFIDENCE, CORRECT, COUNT, Reliability

COARSE = Likelihoods()
"""The first grid: steps of 16 %."""

COVERAGES = 20
"""Points of the risk-coverage curve that are kept."""


def refine_grid(total: State, grid: Likelihoods) -> Likelihoods:
    """A finer grid, between the neighbours of the least loss on a `grid`: the loss has one minimum, since it is
    convex in 1 / T. From 41 points to 41 its steps are 40 times as fine, less than 1 % of T."""
    best, at = grid.grid, int(total["loss"].argmin())
    return Likelihoods(float(best[max(0, at - 1)]), float(best[min(len(best) - 1, at + 1)]), POINTS)


def find_temperature(total: State, grid: Likelihoods) -> float:
    """T with the least loss: the vertex of the parabola through the least point and its neighbours, in log T."""
    loss, logs, at = total["loss"], grid.grid.log(), int(total["loss"].argmin())
    if at in (0, len(loss) - 1):
        return float(grid.grid[at])
    before, least, after = (float(loss[i]) for i in (at - 1, at, at + 1))
    bend = before - 2 * least + after
    shift = (before - after) / (2 * bend) if bend > 0 else 0.0
    return float((logs[at] + shift * (logs[1] - logs[0])).exp())


Ask = Callable[[Question], State]
"""The sums over all rows that answer a question."""


def find_federated_temperature(ask: Ask) -> float:
    """T with the least loss on the rows of whoever answers, by two grids."""
    finer = refine_grid(ask(COARSE), COARSE)
    return find_temperature(ask(finer), finer)


@dataclass(frozen=True)
class CalibrationResult:
    """What `Reliability` sums come to.

    Attributes:
        rows: how many.
        error: expected calibration error of the likeliest class, 0 to 1: the mean over rows of |accuracy - mean
            confidence| of their bin.
        classwise: the same of every class's own probability, mean over classes.
        adaptive: as `error`, in bins of equal mass.
        brier: mean squared distance from the one-hot label, 0 to 2.
        loss: nats per row.
        accuracy: 0 to 1.
        area: under the risk-coverage curve; 0 is perfect.
        bins: rows, mean confidence and accuracy of each.
        coverage, risk: share of rows that are answered, those surest first, and the share of wrong answers among them.
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
        """From the sums over all rows, at least one."""
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
        """For summary.json."""
        return asdict(self)


def create_questions(temperature: float, bins: int) -> tuple[Reliability, Reliability]:
    """What is asked to compare a model as it is with its logits divided by `temperature`."""
    return Reliability(bins=bins), Reliability(temperature=temperature, bins=bins)


def compare_answers(answers: Sequence[State], questions: Sequence[Reliability]) -> dict[str, dict[str, Any]]:
    """Answers to `create_questions`, for summary.json."""
    found = (
        CalibrationResult.from_sums(total, question).to_dict()
        for total, question in zip(answers, questions, strict=True)
    )
    return dict(zip(("before", "after"), found, strict=True))


def compute_gap(bins: Tensor) -> float:
    """The mean over rows of |share of right ones - mean probability| of their bin, of sums per bin (bins, 3)."""
    return float((bins[:, CORRECT] - bins[:, CONFIDENCE]).abs().sum() / bins[:, COUNT].sum())


def rebin_by_mass(cells: Tensor, bins: int) -> Tensor:
    """Sums of `bins` bins with about equally many rows, from those of narrow cells (cells, 3), which are not divided.

    A cell belongs to the bin in which the middle of its rows lies; with 1,000 cells a bin's edge is off by 0.001.
    """
    rows = cells[:, COUNT]
    middle = rows.cumsum(0) - rows / 2
    place = (middle / rows.sum() * bins).long().clamp(0, bins - 1)
    return torch.zeros(bins, 3, dtype=cells.dtype).index_add_(0, place, cells)


def compute_risk_coverage(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Coverage and risk as the threshold of confidence falls, one point for each cell that has rows."""
    down = cells.flip(0)
    down = down[down[:, COUNT] > 0].cumsum(0)
    return down[:, COUNT] / cells[:, COUNT].sum(), 1 - down[:, CORRECT] / down[:, COUNT]
