"""Judge each claim of claims.toml by the committed studies, and write docs/claims.md.

python -m experiments.claims            check that the page matches the results
python -m experiments.claims --write    write the page
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import exit_on_error, update_page
from experiments.claims.records import Claim, collect_evidence, load_section, read_claims
from experiments.claims.verdicts import (
    FAILS,
    HOLDS,
    OPEN,
    Evidence,
    Verdict,
    compute_probability,
    correct_holm,
    decide_verdict,
    open_factor,
)
from fedpeft.study.statistics import LEVEL

PAGE = Path(__file__).parent.parent.parent / "docs" / "claims.md"

BEGIN, END = "<!-- made by: python -m experiments.claims --write -->\n", "<!-- end -->"

Judged = tuple[Claim, Evidence, float, Verdict]

OF_SEVERAL = {HOLDS: "hold", FAILS: "do not hold", OPEN: "are not resolved"}
"""Plural forms of the verdicts."""


def judge(family: Sequence[Claim]) -> list[Judged]:
    """Return the verdicts of a family of claims, corrected together."""
    found = [collect_evidence(claim) for claim in family]
    corrected = correct_holm(
        [compute_probability(own, claim.margin) for claim, (own, _) in zip(family, found, strict=True)]
    )
    factor = open_factor(corrected)
    return [
        (claim, own, thinner, decide_verdict(own, claim.margin, p, factor))
        for claim, (own, thinner), p in zip(family, found, corrected, strict=True)
    ]


def format_row(claim: Claim, evidence: Evidence, thinner: float, said: Verdict) -> str:
    """Format a claim as a row of a table."""
    width = evidence.uncertainty.compute_half_width(LEVEL, 2)
    interval = (
        f"{evidence.difference - width:+.2f} to {evidence.difference + width:+.2f}" if math.isfinite(width) else ""
    )
    sought = "better" if claim.margin is None else f"no worse by {claim.margin:g}"
    needed = ", for want of test rows" if said.of_rows else ""
    needed = needed if said.needed is None else f", about {said.needed} seeds would do"
    where = ", ".join(claim.where.values())
    named = claim.beside.replace("_accuracy", "").replace("_", " ") if claim.beside else label(claim.baseline)
    cells = (
        f"{claim.says} ({claim.source})",
        f"**{said.word}**{needed}",
        f"{label(claim.method)} against {named}" + (f", {where}" if where else ""),
        sought,
        str(len(evidence.by_seed)),
        f"{evidence.difference:+.2f} ({interval})",
        f"{thinner:.2g} x" if not claim.beside else "",
        f"{said.probability:.2g}",
    )
    return "| " + " | ".join(cells) + " |"


def label(point: object) -> str:
    """Return a point of a grid as text."""
    assert isinstance(point, dict)
    return ", ".join(point.values()) or "the run"


def format_page() -> str:
    """Return the tables of all families and a sentence on how many claims hold."""
    families: dict[str, list[Claim]] = {}
    for claim in read_claims():
        families.setdefault(claim.study, []).append(claim)
    tables, words = [], []
    for study, family in families.items():
        lines = judge(family)
        words += [said.word for *_, said in lines]
        table = "\n".join(format_row(*line) for line in lines)
        tables.append(
            f"## {load_section(study).title}\n\n{load_section(study).question} "
            f"[experiments/{study}](../experiments/{study}/README.md), {len(family)} comparisons.\n\n"
            "| claim | verdict | compared | claimed to be | seeds | points (95 %) | fewer bytes | p |\n"
            f"|---|---|---|---|---:|---:|---:|---:|\n{table}\n"
        )
    counts = ", ".join(f"{words.count(word)} {said}" for word, said in OF_SEVERAL.items())
    return f"{len(words)} comparisons: {counts}.\n\n" + "\n".join(tables)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return 1 if the page differs from the results and is not written."""
    return update_page(arguments, __doc__, PAGE, (BEGIN, END), format_page)


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main())
