"""python -m experiments.tune: the study that sets the best trials of the two searches side by side, over five seeds."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import tomli_w

from fedpeft.config import RunConfig, read_config
from fedpeft.errors import RunError
from fedpeft.run.command import exit_code
from fedpeft.tuning.report import BEST

HERE = Path(__file__).parent

SEARCHES = ("lora", "hybrid")
"""The first one is the baseline."""

SEEDS = [0, 1, 2, 3, 4]


def study_of(best: dict[str, RunConfig]) -> str:
    """The text of the study: what the configurations share, and an axis of what they do not."""
    settings = {label: dataclasses.asdict(config) for label, config in best.items()}
    names = [name for name in next(iter(settings.values())) if name != "seed"]
    default = dataclasses.asdict(RunConfig())
    shared = [name for name in names if len({str(own[name]) for own in settings.values()}) == 1]
    first = next(iter(settings.values()))
    study = {
        "name": "tune",
        "question": "Is a hybrid that was searched for better than lora that was, at equal bytes?",
        "baseline": {"method": SEARCHES[0]},
        "seeds": SEEDS,
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
    """Write study.toml beside the searches.

    Raises:
        RunError: a search has not found anything yet.
    """
    best = {}
    for name in SEARCHES:
        path = HERE / name / BEST
        if not path.is_file():
            raise RunError(f"there is no {path}; run python -m fedpeft.tune {HERE / name}.toml first")
        best[name] = read_config(path)
    path = HERE / "study.toml"
    path.write_text(study_of(best), encoding="utf-8")
    print(f"{path}: python -m fedpeft.study {path}")


if __name__ == "__main__":
    sys.exit(exit_code(write))
