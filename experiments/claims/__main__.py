"""Write docs/claims.md and its files: the registered study first, then older comparisons.

python -m experiments.claims            check that the files match the committed results
python -m experiments.claims --write    write them

The files are docs/claims.md, claims.svg and claims.json, the verdicts in docs/choosing.md, and those that
`fedpeft describe` prints.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import exit_on_error, insert_part, update_files
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
from experiments.decide import page
from experiments.decide.verdicts import decide_all, list_arms, load_results
from fedpeft.study.sections import Section
from fedpeft.study.statistics import LEVEL

ROOT = Path(__file__).parent.parent.parent
PAGE, FIGURE, DATA = (ROOT / "docs" / f"claims.{suffix}" for suffix in ("md", "svg", "json"))
CHOICES = ROOT / "docs" / "choosing.md"
NOTES = ROOT / "fedpeft" / "commands" / "verdicts.json"

MARKS = ("<!-- made by: python -m experiments.claims --write -->\n", "<!-- end -->")

Judged = tuple[Claim, Evidence, float, Verdict]


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


def make_older() -> list[dict[str, Any]]:
    """Return the comparisons of claims.toml as claims.json contains them, corrected within each study."""
    families: dict[str, list[Claim]] = {}
    for claim in read_claims():
        families.setdefault(claim.study, []).append(claim)
    return [make_record(*line) for family in families.values() for line in judge(family)]


def make_record(claim: Claim, evidence: Evidence, thinner: float, said: Verdict) -> dict[str, Any]:
    """Return a comparison with rounded numbers."""
    width = evidence.uncertainty.compute_half_width(LEVEL, 2)
    ends = [round(evidence.difference + side * width, 6) for side in (-1, 1)] if math.isfinite(width) else None
    beside = claim.beside.replace("_accuracy", "").replace("_", " ")
    return {
        "claim": claim.says,
        "source": claim.source,
        "study": claim.study,
        "method": label(claim.method),
        "baseline": beside or label(claim.baseline),
        "where": ", ".join(claim.where.values()),
        "claimed": "better" if claim.margin is None else "no worse",
        "margin": claim.margin,
        "verdict": said.word,
        "difference": round(evidence.difference, 6),
        "interval": ends,
        "corrected_p": float(f"{said.probability:.3g}"),
        "seeds": len(evidence.by_seed),
        "seeds_needed": said.needed,
        "too_few_examples": said.of_rows,
        "fewer_bytes": None if claim.beside else float(f"{thinner:.2g}"),
    }


def label(point: object) -> str:
    """Return a point of a grid as text."""
    assert isinstance(point, dict)
    return ", ".join(point.values()) or "the run"


def format_older(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the page's part about comparisons that were not registered."""
    counts = {word: sum(r["verdict"] == word for r in records) for word in (HOLDS, FAILS, OPEN)}
    decided = "\n".join(_format_decided(r) for r in records if r["verdict"] != OPEN)
    studies = "\n".join(
        _format_counts(study, [r for r in records if r["study"] == study])
        for study in dict.fromkeys(r["study"] for r in records)
    )
    return (
        "## Older comparisons, not registered\n\n"
        f"{len(records)} comparisons of other studies are exploratory: {counts[HOLDS]} hold, {counts[FAILS]} do not "
        f"hold, {counts[OPEN]} are not resolved. Their claims and margins were not fixed before the runs. Holm's "
        "correction covers one study each. [claims.json](claims.json) contains all of them, with intervals.\n\n"
        "| verdict | claim | compared | study | seeds | points (95 %) | p |\n|---|---|---|---|---:|---:|---:|\n"
        f"{decided}\n\n"
        "| study | comparisons | hold | do not hold | not resolved |\n|---|---:|---:|---:|---:|\n"
        f"{studies}\n"
    )


def _format_decided(record: Mapping[str, Any]) -> str:
    low, high = record["interval"]
    margin = "" if record["margin"] is None else f", margin {record['margin']:g}"
    where = record["where"] and f", {record['where']}"
    cells = (
        f"**{record['verdict']}**",
        f"{record['claim']} ({record['source']})",
        f"{record['method']} against {record['baseline']}{where}{margin}",
        record["study"],
        str(record["seeds"]),
        f"{record['difference']:+.2f} ({low:+.2f} to {high:+.2f})",
        f"{record['corrected_p']:.2g}",
    )
    return "| " + " | ".join(cells) + " |"


def _format_counts(study: str, records: Sequence[Mapping[str, Any]]) -> str:
    counts = [sum(record["verdict"] == word for record in records) for word in (HOLDS, FAILS, OPEN)]
    name = f"[{load_section(study).title}](../experiments/{study}/README.md)"
    return f"| {name} | {len(records)} | " + " | ".join(map(str, counts)) + " |"


def format_list(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records as JSON, one per line."""
    return "[\n" + ",\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n]"


def _format_data(lists: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    return "{" + ",\n".join(f'"{name}": {format_list(records)}' for name, records in lists.items()) + "}\n"


def make_files(sections: Mapping[str, Section]) -> dict[Path, str]:
    """Return the contents of all files.

    Args:
        sections: results of the registered study, by task.
    """
    registered = [page.make_record(decision) for decision in decide_all(sections)]
    arms = [page.make_arm_record(arm) for arm in list_arms(sections)]
    older = make_older()
    files = {
        PAGE: insert_part(PAGE, MARKS, f"{page.format_section(registered, arms)}\n{format_older(older)}"),
        CHOICES: insert_part(CHOICES, MARKS, page.format_choices(registered)),
        DATA: _format_data({"registered": registered, "arms": arms, "older": older}),
        NOTES: f"{format_list(page.make_notes(registered))}\n",
    }
    if page.find_results(registered):
        files[FIGURE] = page.draw(registered)
    return files


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return 1 if a file differs from the results and is not written."""
    return update_files(arguments, __doc__, lambda: make_files(load_results()))


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main())
