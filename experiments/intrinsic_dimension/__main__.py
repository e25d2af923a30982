"""python -m experiments.intrinsic_dimension [--preset P]: the numbers that a task needs, from the recorded runs.

Two tables are made of the results of `fedpeft study experiments/intrinsic_dimension/study.toml --preset P`:

1. The intrinsic dimension: the smallest dimension of `subspace` that keeps 90 % of the gain of the method that it is
   in. A gain is the mean test accuracy over the seeds, less that of the linear probe on the same examples (Li et al.,
   arXiv 1804.08838, and Aghajanyan et al., arXiv 2012.13255, take 90 % of the accuracy itself; abstracts only).
2. A fit for each method, by least squares over its runs:

    ln error = a + b ln parameters + c ln examples

   The error is the share of wrong test predictions, parameters are all trained numbers with the head, and examples are
   those of all clients together. b or c is left out if the runs have one value of it. The fit describes these runs on
   one task; it is no law, and does not hold outside the range that was run.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from experiments import exit_on_error
from experiments.recorded import read_recorded
from fedpeft.parts import name_of
from fedpeft.parts.families import PEFT_METHODS
from fedpeft.peft.methods.subspace import Subspace
from fedpeft.study.results import Result

HERE = Path(__file__).parent

SHARE = 0.9
"""Share of the gain that the intrinsic dimension keeps."""

LEAST_ERROR = 1e-4
"""Error that stands for none, since its logarithm is fitted."""


@dataclass(frozen=True)
class Cell:
    """The runs of one method on one number of examples.

    Attributes:
        spec: text of the method.
        examples: training examples of all clients.
        accuracies: test accuracy of each run.
        probe: mean accuracy of the linear probe.
        parameters: trained numbers, with the head.
        update: bytes of a client's update.
        memory: peak memory of all processes of a run, bytes.
    """

    spec: str
    examples: int
    accuracies: tuple[float, ...]
    probe: float
    parameters: int
    update: float
    memory: float

    @property
    def gain(self) -> float:
        """Mean accuracy over the probe's."""
        return fmean(self.accuracies) - self.probe

    @property
    def subspace(self) -> Subspace | None:
        """The method, if it is a subspace."""
        method = PEFT_METHODS.build(self.spec)
        return method if isinstance(method, Subspace) else None

    @property
    def family(self) -> str:
        """Name of the method without its size."""
        name = name_of(type(PEFT_METHODS.build(self.spec)))
        return name if self.subspace is None else f"{name} of {self.subspace.of}"


def build_cells(results: Sequence[Result]) -> list[Cell]:
    """Return the cells of finished runs."""
    runs: dict[tuple[str, int], list[Result]] = defaultdict(list)
    for result in results:
        runs[str(result.config["peft"]), int(result.point["rows"])].append(result)
    cells = []
    for (spec, examples), some in runs.items():
        summaries = [result.summary for result in some if result.summary is not None]
        cells.append(
            Cell(
                spec,
                examples,
                tuple(summary["accuracy"] for summary in summaries),
                fmean(summary["baseline_accuracy"] for summary in summaries),
                summaries[0]["parameters"],
                fmean(summary["uplink_bytes_per_parameter"] * summary["parameters"] for summary in summaries),
                max(summary["peak_memory_bytes"] for summary in summaries),
            )
        )
    return sorted(cells, key=lambda cell: (cell.family, cell.parameters, cell.examples))


def find_intrinsic_dimension(whole: Cell, subspaces: Sequence[Cell]) -> int | None:
    """Return the smallest dimension that keeps `SHARE` of the gain of the method `whole`; None: none does.

    None also stands for a method that gains nothing.
    """
    kept = [
        cell.subspace.dimension
        for cell in subspaces
        if cell.subspace is not None and whole.gain > 0 and cell.gain >= SHARE * whole.gain
    ]
    return min(kept, default=None)


@dataclass(frozen=True)
class Fit:
    """Coefficients of ln error = a + b ln parameters + c ln examples; None: left out.

    Attributes:
        explained: share of the variance of ln error that the fit explains; None: it does not vary.
        runs: number of runs.
    """

    a: float
    b: float | None
    c: float | None
    explained: float | None
    runs: int


def fit_errors(cells: Sequence[Cell]) -> Fit | None:
    """Fit the errors of one method's runs; None: the runs do not determine the coefficients."""
    points = [(c.parameters, c.examples, max(1 - a, LEAST_ERROR)) for c in cells for a in c.accuracies]
    sizes, examples, errors = (np.log([point[i] for point in points]) for i in range(3))
    columns = {"a": np.ones(len(points)), "b": sizes, "c": examples}
    used = [name for name, column in columns.items() if name == "a" or np.ptp(column) > 0]
    design = np.stack([columns[name] for name in used], axis=1)
    if len(points) <= len(used) or np.linalg.matrix_rank(design) < len(used):
        return None
    solved = np.linalg.lstsq(design, errors, rcond=None)[0]
    left, spread = float(((design @ solved - errors) ** 2).sum()), float(((errors - errors.mean()) ** 2).sum())
    found = {name: float(value) for name, value in zip(used, solved, strict=True)}
    explained = 1 - left / spread if spread > 0 else None
    return Fit(found["a"], found.get("b"), found.get("c"), explained, len(points))


def format_dimensions(cells: Sequence[Cell]) -> list[str]:
    """Return the first table and its findings."""
    lines = [
        "| method | examples | trained numbers | accuracy (%) | over the probe | of the gain | update (kB) | "
        "memory (MB) |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    findings = []
    wholes = {(cell.spec, cell.examples): cell for cell in cells if cell.subspace is None}
    for cell in cells:
        whole = cell if cell.subspace is None else wholes.get((cell.subspace.of, cell.examples))
        share = "" if whole is None or whole.gain <= 0 else f"{cell.gain / whole.gain:.0%}"
        lines.append(
            f"| {cell.spec} | {cell.examples} | {cell.parameters} | {100 * fmean(cell.accuracies):.1f} | "
            f"{100 * cell.gain:+.1f} | {share} | {cell.update / 1e3:.1f} | {cell.memory / 1e6:.0f} |"
        )
    for (spec, examples), whole in wholes.items():
        inside = [c for c in cells if c.subspace is not None and (c.subspace.of, c.examples) == (spec, examples)]
        if not inside:
            continue
        dimension = find_intrinsic_dimension(whole, inside)
        found = "none of the dimensions" if dimension is None else f"dimension {dimension}"
        reason = "; it gains nothing over the probe" if whole.gain <= 0 else ""
        findings.append(f"{spec} on {examples} examples: {found} keeps {SHARE:.0%} of its gain{reason}.")
    return [*lines, "", *findings]


def format_fits(cells: Sequence[Cell]) -> list[str]:
    """Return the second table."""
    families: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        families[cell.family].append(cell)
    lines = [
        "| method | runs | b (parameters) | c (examples) | explained variance | update (kB) | memory (MB) |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for family, some in families.items():
        fit = fit_errors(some)
        if fit is None:
            lines.append(f"| {family} | {sum(len(c.accuracies) for c in some)} | too few runs | | | | |")
            continue
        b, c, explained = ("" if value is None else f"{value:+.3f}" for value in (fit.b, fit.c, fit.explained))
        costs = _format_range([x.update for x in some], 1e3), _format_range([x.memory for x in some], 1e6)
        lines.append(f"| {family} | {fit.runs} | {b} | {c} | {explained.lstrip('+')} | {' | '.join(costs)} |")
    return lines


def _format_range(values: Sequence[float], unit: float) -> str:
    low, high = min(values) / unit, max(values) / unit
    return f"{low:.1f}" if math.isclose(low, high) else f"{low:.1f} to {high:.1f}"


def main() -> None:
    """Print both tables."""
    cells = build_cells(read_recorded(HERE, __doc__))
    print("\n".join([*format_dimensions(cells), "", *format_fits(cells)]))


if __name__ == "__main__":
    with exit_on_error():
        main()
