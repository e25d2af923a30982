"""python -m experiments.tune: write studies that compare the best trials of two searches over five seeds."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import tomli_w

from fedpeft.errors import RunError
from fedpeft.reporting.command import run_command
from fedpeft.tune.report import BEST
from fedpeft.wiring.config import RunConfig, read_config

HERE = Path(__file__).parent

TASKS = {"Reuters R8": HERE, "the reviews": HERE / "reviews"}
"""Tasks of the searches, and their folders."""

SEARCHES = ("lora", "hybrid")
"""The two searches; the first one is the baseline."""

SEEDS = [0, 1, 2, 3, 4]

SECONDS = 120
"""Approximate seconds of a run."""


def format_study(task: str, best: dict[str, RunConfig]) -> str:
    """Return the text of the study: shared settings in [base], and an axis of the others."""
    settings = {label: dataclasses.asdict(config) for label, config in best.items()}
    names = [name for name in next(iter(settings.values())) if name != "seed"]
    default = dataclasses.asdict(RunConfig())
    shared = [name for name in names if len({str(own[name]) for own in settings.values()}) == 1]
    first = next(iter(settings.values()))
    study = {
        "name": "tune",
        "question": f"On {task}: is a hybrid that was searched for better than lora that was, at equal bytes?",
        "baseline": {"method": SEARCHES[0]},
        "seeds": SEEDS,
        "seconds_per_run": SECONDS,
        "base": {name: first[name] for name in shared if first[name] != default[name]},
        "axes": {
            "method": [
                {"label": label, **{name: own[name] for name in names if name not in shared}}
                for label, own in settings.items()
            ]
        },
    }
    return tomli_w.dumps(study)


def write() -> None:
    """Write study.toml beside the searches of each task that have ended.

    Raises:
        RunError: none has found anything yet.
    """
    written = []
    for task, folder in TASKS.items():
        found = {name: folder / name / BEST for name in SEARCHES}
        if all(path.is_file() for path in found.values()):
            written.append(folder / "study.toml")
            text = format_study(task, {name: read_config(path) for name, path in found.items()})
            written[-1].write_text(text, encoding="utf-8")
            print(f"{written[-1]}: fedpeft study {written[-1]}")
    if not written:
        raise RunError(f"no search has ended; run fedpeft tune {HERE / SEARCHES[0]}.toml first")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()  # --help, and nothing else
    sys.exit(run_command(write))
