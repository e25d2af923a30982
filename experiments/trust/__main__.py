"""python -m experiments.trust: robustness of each method to corrupted examples, paired by seed with the first method.

Reads `robustness/results.jsonl`. Prints means over all types of corruption at the largest rate: the points of accuracy
lost on average, the points lost if the worst draw of each example counts, and the share of unchanged predictions.
Intervals are Student's, 95 %, over seeds.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments import exit_on_error
from fedpeft.study.results import ResultsFile
from fedpeft.study.statistics import LEVEL, POINTS, compute_half_width

RESULTS = Path(__file__).parent / "robustness" / "results.jsonl"

NAMES = ("lost (points)", "lost in the worst draw (points)", "predictions that stay (%)")


def read_measures(summary: Mapping[str, Any]) -> np.ndarray:
    """Return the three numbers of a run."""
    found = summary["trust"]["robustness"]
    clean = found["clean"]["accuracy"]
    strongest = [kind[-1] for kind in found.values() if isinstance(kind, list)]
    mean = {key: float(np.mean([change[key] for change in strongest])) for key in ("accuracy", "worst", "unchanged")}
    return POINTS * np.array([clean - mean["accuracy"], clean - mean["worst"], mean["unchanged"]])


def main() -> None:
    """Print the table."""
    methods: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    accuracy: dict[str, list[float]] = defaultdict(list)
    for result in ResultsFile(RESULTS).read():
        if result.is_finished and result.summary:
            methods[result.point["method"]][result.seed] = read_measures(result.summary)
            accuracy[result.point["method"]].append(POINTS * result.summary["accuracy"])
    first = methods["lora"]
    print(f"| method | seeds | test accuracy (%) | {' | '.join(NAMES)} |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, runs in methods.items():
        seeds = sorted(runs.keys() & first.keys())
        cells = []
        for i, mean in enumerate(np.mean([runs[s] for s in seeds], axis=0)):
            change = np.array([runs[s][i] - first[s][i] for s in seeds])
            width = compute_half_width(change, LEVEL, 2)
            beside = f"; {change.mean():+.1f} ({change.mean() - width:+.1f} to {change.mean() + width:+.1f})"
            cells.append(f"{mean:.1f}" + ("" if runs is first else beside))
        print(f"| {name} | {len(seeds)} | {np.mean(accuracy[name]):.1f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()  # --help, and nothing else
    with exit_on_error():
        main()
