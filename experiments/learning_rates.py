"""python -m experiments.learning_rates STUDY [--preset tuning] [--write]: the best learning rate of each method.

The best rate has the highest accuracy on validation examples after the last round, or for a language model the lowest
loss. If a rate was tried on several partitions or seeds, the mean counts. Test examples are not used. Rates of a method
that were tried less often than its others are left out.

`--write` puts the best rates into the study's file, in the lines of the tuned methods. These are the lines of `[axes]`
and of the default preset, or after tuning in a preset X_tuning those of the preset X. An untuned method whose label
extends a tuned one after a comma ("flora, mixed ranks") gets the rate of the tuned one. The table marks a best rate
that is the lowest or highest that was tried.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from fedpeft.errors import FedpeftError, RunError
from fedpeft.parts.spec import add_settings
from fedpeft.study.results import Result, ResultsFile, select_latest
from fedpeft.study.study_file import read_study

FOLDER = Path(__file__).parent

HEAD, USUAL_HEAD = r"head_rate=([0-9.e-]+)", 0.1
"""Pattern of the head's rate in an optimizer's text, and its default."""


@dataclass(frozen=True)
class Command:
    """The best learning rate of each method of a study."""

    study: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STUDY", help="strategies or peft_methods")]
    preset: Annotated[str, tyro.conf.arg(help="preset that tried the rates: tuning, or X_tuning for X")] = "tuning"
    write: Annotated[bool, tyro.conf.arg(help="write the best rates into the study's file")] = False


def is_language_run(result: Result) -> bool:
    """Return whether a run trained a language model."""
    return (result.summary or {}).get("metric") == "perplexity"


def get_quality(result: Result) -> float:
    """Return the validation accuracy after the last round, or for a language model the negated loss in nats."""
    last = result.rounds[-1]
    return -float(last["loss"]) if is_language_run(result) else float(last["accuracy"])


def rank_rates(results: Sequence[Result]) -> dict[str, list[tuple[float, str]]]:
    """Return the learning rates of each method, best first, with their mean quality after the last round."""
    found: dict[str, dict[str, list[float]]] = {}
    for result in results:
        if result.is_finished:
            rates = found.setdefault(result.point["method"], {})
            rates.setdefault(result.point["learning_rate"], []).append(get_quality(result))
    best = {}
    for method, rates in found.items():
        most = max(len(own) for own in rates.values())
        best[method] = sorted(((fmean(own), rate) for rate, own in rates.items() if len(own) == most), reverse=True)
    return best


def find_tuned_tables(toml: str, preset: str) -> frozenset[str]:
    """Return the tables of a study's file whose rates a tuning preset chooses."""
    name = preset.removesuffix("tuning").removesuffix("_")
    default = tomllib.loads(toml).get("preset", "")
    return frozenset({f"presets.{name}.axes"} if name else {"axes", f"presets.{default}.axes"})


def insert_rates(toml: str, best: dict[str, str], tables: frozenset[str] = frozenset({"axes"})) -> str:
    """Return the study's text with new learning rates in the lines of the given methods and their variants.

    Only lines in `tables` change. If an optimizer with a `head_rate` follows the learning rate, its relative
    `head_rate` changes too, so that the head learns as fast as before.
    """

    def replace_rate(line: re.Match[str]) -> str:
        label = line["label"]
        rate = best.get(label) or best.get(label.rpartition(",")[0])
        if not rate or float(rate) == float(line["rate"]):  # a rewritten line would invalidate its results
            return line[0]
        if not line["optimizer"]:
            return f"{line['before']}{rate}"
        given = re.search(HEAD, line["optimizer"])
        head = float(line["rate"]) * (float(given[1]) if given else USUAL_HEAD) / float(rate)
        text = line["optimizer"]
        text = re.sub(HEAD, f"head_rate={head:g}", text) if given else add_settings(text, head_rate=float(f"{head:g}"))
        return f'{line["before"]}{rate}, optimizer = "{text}"'

    number = "[0-9.e-]+"
    pattern = (
        rf'(?P<before>\{{label = "(?P<label>[^"]*)",[^}}\n]*learning_rate = )(?P<rate>{number})'
        r'(?:, optimizer = "(?P<optimizer>[^"]*)")?'
    )
    pieces = re.split(r"(?m)^(?=\[)", toml)
    return "".join(re.sub(pattern, replace_rate, piece) if _name(piece) in tables else piece for piece in pieces)


def _name(table: str) -> str:
    """Return the name of a piece of TOML that begins with its header."""
    header = re.match(r"\[([^\]]*)\]", table)
    return header[1] if header else ""


def main() -> int:
    """Run the command, and return 2 if there are no results."""
    command = tyro.cli(Command, description=__doc__, prog="python -m experiments.learning_rates")
    folder = FOLDER / command.study
    try:
        if not (folder / "study.toml").is_file():
            raise RunError(f"there is no study experiments/{command.study}/study.toml; take strategies or peft_methods")
        if "learning_rate" not in read_study(folder / "study.toml", command.preset).axes:
            raise RunError(
                f"the preset {command.preset!r} of {command.study} has tried no learning rates; see --preset"
            )
        results = select_latest(ResultsFile(folder / command.preset / "results.jsonl").read())
        found = rank_rates(results)
        if not found:
            raise RunError(
                f"{folder / command.preset} has no finished runs to choose from; make them with: "
                f"fedpeft study experiments/{command.study}/study.toml --preset {command.preset}"
            )
    except FedpeftError as error:
        print(error, file=sys.stderr)
        return 2
    language = any(is_language_run(result) for result in results)
    table = Table("method", "best learning rate", f"tries: validation {'loss (nats)' if language else 'accuracy (%)'}")
    for method, scores in found.items():
        best = scores[0][1]
        tried = sorted((rate for _, rate in scores), key=float)
        edge = " (the least)" if best == tried[0] else " (the highest)" if best == tried[-1] else ""
        shown = (f"{rate}: {-score:.4f}" if language else f"{rate}: {100 * score:.2f}" for score, rate in scores)
        table.add_row(method, best + edge, ", ".join(shown))
    Console().print(table)
    if command.write:
        file = folder / "study.toml"
        rates = {method: scores[0][1] for method, scores in found.items()}
        toml = file.read_text(encoding="utf-8")
        file.write_text(insert_rates(toml, rates, find_tuned_tables(toml, command.preset)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
