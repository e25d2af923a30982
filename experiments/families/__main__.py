"""The table of model families in docs/families.md, tested with a tiny random checkpoint of each.

    python -m experiments.families               print the table
    python -m experiments.families --write       insert it into docs/families.md
    python -m experiments.families --only T5     only families whose names begin with T5

A family passes if lora trains it in fp32 and bf16, the sequential and the batched executor agree, and the saved model
gives the same outputs as the trained one. Other methods are tried in fp32.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.families.checkpoints import FAMILIES, Family
from experiments.families.trial import APART, LEARNS, Subject

METHODS = ("ia3", "bottleneck", "prefix_tuning", "prompt_tuning", "bitfit", "full")
"""Methods that are tried beside lora."""

TASKS = ("classification", "causal_lm", "seq2seq")
DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "families.md"
BEGIN, END = "<!-- made by: python -m experiments.families --write -->\n", "<!-- end -->"
RELOADED = 1e-4
"""Largest difference between the logits of the saved and the trained model, from rounding of merged weights."""


class WrongError(AssertionError):
    """A family runs, but its results differ between executors or after saving."""


def build_row(name: str, family: Family, notes: list[str]) -> list[str]:
    """Return the family's row, and add the sentences that refuse it to `notes`.

    Raises:
        WrongError: the results of executors or of the saved model differ.
    """
    cells, refused = [], set()
    for task in TASKS:
        if not family.of(task):
            cells.append("")
            continue
        with Subject.create(family, task) as subject:
            answer = _answer(name, subject, notes)
            cells.append(answer)
            if not answer.startswith("no"):
                refused |= {peft for peft in METHODS if not subject.try_method(peft, thoroughly=False).learns}
    return [name, "images" if family.images else "texts", *cells, ", ".join(p for p in METHODS if p in refused)]


def _answer(name: str, subject: Subject, notes: list[str]) -> str:
    """Return whether lora trains a family, with the number of the note that gives the reason if it does not."""
    for dtype, most in APART.items():
        trial = subject.try_method("lora", dtype)
        if not trial.learns:
            if trial.answer not in notes:
                notes.append(trial.answer)
            return f"{'no' if dtype == 'fp32' else 'fp32'} ({notes.index(trial.answer) + 1})"
        for what, value, limit in (("executors", trial.apart, most), ("saved model", trial.reloaded, RELOADED)):
            if value is None or not value <= limit:
                raise WrongError(f"{name}, {dtype}: {what} differ by {value}")
    return LEARNS


def build_table(names: Iterable[str]) -> str:
    """Return the table of these families, followed by the sentences that refuse some of them."""
    notes: list[str] = []
    lines = [
        "| family | reads | classification | language modeling | seq2seq | refused |",
        "|---|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(build_row(name, FAMILIES[name], notes)) + " |" for name in names]
    said = [f"{i}. {note}" for i, note in enumerate(notes, 1)]
    return "\n".join([*lines, "", *said] if said else lines) + "\n"


def read_table(document: str) -> str:
    """Return the table in the document."""
    found = re.search(f"{BEGIN}(.*?){END}", document, re.DOTALL)
    assert found, "docs/families.md has no place for the table"
    return found.group(1).strip() + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or write it."""
    from transformers.utils import logging

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only families whose names begin with this text")
    parser.add_argument("--write", action="store_true", help="write the table into docs/families.md")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    made = build_table(name for name in FAMILIES if name.startswith(options.only))
    if options.write:
        before = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(before.replace(read_table(before), made), encoding="utf-8")
    print(made, end="")


if __name__ == "__main__":
    main()
