"""python -m experiments.peft_or_full.words: a linear model on words, on the examples that the study `few` draws.

The model is the one of experiments/ladder: a support vector machine on TF-IDF, with all choices cross-validated.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from rich.table import Table

from experiments import exit_on_error
from experiments.ladder.rungs import score_surface
from fedpeft.data.rows import load_dataset, split_off_validation
from fedpeft.machine.terminal import Console
from fedpeft.parts.families import PARTITIONS
from fedpeft.study.statistics import POINTS
from fedpeft.study.study_file import Study, read_study

FOLDER = Path(__file__).parent


def score_words(study: Study, settings: dict[str, Any], seeds: Sequence[int]) -> list[float]:
    """Return the test accuracy in percent of the examples that all clients have together, for each seed."""
    settings = {**study.base, **settings}
    data = load_dataset(settings["dataset"])
    train, _ = split_off_validation(data)
    found = []
    for seed in seeds:
        shards = PARTITIONS.build(settings["partition"]).split(train, settings["clients"], seed)
        drawn = np.unique(np.concatenate([shards.shard(client) for client in range(len(shards))]))
        found.append(POINTS * score_surface(replace(data, train=train.take(drawn)))["accuracy"])
    return found


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    study = read_study(FOLDER / "few" / "study.toml")
    table = Table("examples", "seeds", "linear model on words (%)")
    for value in study.axes["rows"]:
        each = score_words(study, dict(value.settings), study.seeds)
        table.add_row(value.label, str(len(each)), f"{fmean(each):.2f} ± {stdev(each):.2f}")
    Console().print(table)


if __name__ == "__main__":
    with exit_on_error():
        main()
