"""python -m experiments.strategies: the learning rate of each method that the preset `tuning` has found best.

Best is the highest accuracy on the validation rows after the last round; the test rows play no part.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedpeft.errors import FedpeftError
from fedpeft.results import Result, ResultsFile, latest

RESULTS = Path(__file__).with_name("tuning") / "results.jsonl"


def validation_accuracy(result: Result) -> float:
    """After the last round."""
    return float(result.rounds[-1]["accuracy"])


def best(results: list[Result]) -> dict[str, list[Result]]:
    """By method all its tries, the best first."""
    tries: dict[str, list[Result]] = {}
    for result in results:
        if result.finished:
            tries.setdefault(result.point["method"], []).append(result)
    return {method: sorted(found, key=validation_accuracy, reverse=True) for method, found in tries.items()}


def main() -> int:
    """Print the table; 2: there are no results."""
    try:
        found = best(latest(ResultsFile(RESULTS).read()))
    except FedpeftError as error:
        print(error, file=sys.stderr)
        return 2
    if not found:
        command = "python -m fedpeft.study experiments/strategies/study.toml --preset tuning"
        print(f"{RESULTS} has no finished runs; make them with: {command}", file=sys.stderr)
        return 2
    table = Table("method", "best learning rate", "tries: validation accuracy (%)")
    for method, tries in found.items():
        told = ", ".join(f"{t.point['learning_rate']}: {100 * validation_accuracy(t):.2f}" for t in tries)
        table.add_row(method, tries[0].point["learning_rate"], told)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
