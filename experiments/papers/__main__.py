"""Write docs/papers.md: the papers behind the parts, their numbers, and ours.

python -m experiments.papers            check that the page matches the code and the committed results
python -m experiments.papers --write    write the page
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import exit_on_error, update_page
from experiments.papers import message_sizes, rbla
from experiments.papers.rbla.__main__ import format_table
from experiments.papers.rbla.__main__ import read_results as read_rbla
from experiments.papers.registry import (
    LEVELS,
    ROOT,
    Paper,
    find_citations,
    format_results,
    read_papers,
)
from fedpeft.errors import RunError

PAGE = ROOT / "docs" / "papers.md"
BEGIN, END = "<!-- made by: python -m experiments.papers --write -->\n", "<!-- end -->"

NO_NUMBER = "No number read."
"""Stands in the text of a paper of which settings were read, but no result."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Aggregation rules": ("strategies",),
    "Clients: optimizers, corrections, attacks": ("clients",),
    "PEFT methods": ("fedpeft/peft",),
    "Fewer bytes": ("fedpeft/communication",),
    "Privacy": ("fedpeft/privacy", "fedpeft/audit"),
    "Server optimizers and heads": ("fedpeft/aggregation",),
    "Data and base models": ("fedpeft/data", "fedpeft/models"),
    "Trust, search, energy and measures": ("fedpeft",),
}
"""Headings of the page, and the folders whose papers stand there. A paper stands under the first that fits."""


def find_group(modules: Sequence[Path]) -> str:
    """Return the first heading under which one of the modules belongs."""
    folders = [module.as_posix() for module in modules]
    return next(
        group for group, starts in GROUPS.items() if any(f.startswith(f"{s}/") for f in folders for s in starts)
    )


def format_parts(modules: Sequence[Path]) -> str:
    """Return links to the modules that cite a paper."""
    return ", ".join(f"[`{module.stem}`](../{module.as_posix()})" for module in modules)


def format_paper(paper: Paper) -> str:
    """Return the paper's name with a link, and its title if it was looked up."""
    named = f"{paper.name}, [{paper.number}](https://arxiv.org/abs/{paper.number})"
    return f"{named}: *{paper.title}*" if paper.title else named


def format_reported(paper: Paper) -> str:
    """Return the paper's setting and number, how they are known, and where they were read."""
    known = f"{LEVELS[paper.level]}: {paper.read}" if paper.read else LEVELS[paper.level]
    return f"{paper.reported} ({known})" if paper.reported else known


def format_protocol_row(paper: Paper, modules: Sequence[Path]) -> str:
    """Return the row of a paper with a protocol."""
    file = f"[{paper.protocol}](../experiments/papers/protocols/{paper.protocol})"
    named = f"{format_paper(paper)}. {format_parts(modules)}"
    cells = (named, format_reported(paper), file, format_results(paper), paper.differs)
    return f"| {' | '.join(cells)} |"


def format_row(paper: Paper, modules: Sequence[Path]) -> str:
    """Return the row of a paper without a protocol."""
    cells = (format_paper(paper), format_parts(modules), format_reported(paper), format_results(paper))
    return f"| {' | '.join(cells)} |"


def format_page() -> str:
    """Return the tables of the page.

    Raises:
        RunError: papers.toml lacks a paper that the code cites, or has one that no code cites.
    """
    papers, citations = read_papers(), find_citations()
    if odd := sorted(papers.keys() ^ citations.keys()):
        where = "papers.toml lacks it" if odd[0] in citations else "no production code cites it"
        raise RunError(f"{odd[0]} stands on one side only: {where}")
    with_protocol = [paper for paper in papers.values() if paper.protocol]
    read = sum(bool(paper.reported) for paper in papers.values())
    numbers = sum(bool(paper.reported) and NO_NUMBER not in paper.reported for paper in papers.values())
    parts = [
        f"{len(papers)} papers: {len(with_protocol)} have a protocol file. "
        f"Settings or numbers of {read} were read, and numbers of {numbers}.\n",
        "## Papers with a protocol\n",
        "| paper and part | the paper's setting and number | our file | our accuracy | differences |\n"
        "|---|---|---|---|---|",
        "\n".join(format_protocol_row(paper, citations[paper.number]) for paper in with_protocol),
    ]
    others = [paper for paper in papers.values() if not paper.protocol]
    for group in GROUPS:
        rows = [format_row(p, citations[p.number]) for p in others if find_group(citations[p.number]) == group]
        if rows:
            parts += [f"\n## {group}\n", "| paper | part | the paper's number | our accuracy |\n|---|---|---|---|"]
            parts.append("\n".join(rows))
    sizes = message_sizes.read_results()
    parts += [
        "\n## Table: RBLA's rule on Fashion-MNIST\n",
        f"`python -m experiments.papers.rbla`; the protocol is in [its README]({_link(rbla.__file__)}).\n",
        format_table(read_rbla()),
        "\n## Table: messages of a Llama-3.2-1B, in exact bytes\n",
        "`python -m experiments.papers.message_sizes`; more in "
        "[the README](../experiments/papers/README.md). NVFlare's table, cell by cell:\n",
        message_sizes.format_quoted(message_sizes.LLAMA_1B),
        "\nThe same tensors, encoded by our codecs:\n",
        message_sizes.format_measured(sizes),
    ]
    return "\n".join(parts) + "\n"


def _link(module: str | None) -> str:
    assert module is not None
    return f"../{(Path(module).parent / 'README.md').relative_to(ROOT).as_posix()}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return 1 if the page differs from the results and is not written."""
    return update_page(arguments, __doc__, PAGE, (BEGIN, END), format_page)


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main())
