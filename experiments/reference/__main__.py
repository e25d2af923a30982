"""Insert generated tables of the code's parts into the documentation.

python -m experiments.reference            check that the documents match the code
python -m experiments.reference --write    write them
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from experiments.reference.choices import combinations
from experiments.reference.tables import format_commands, format_records

DOCS = Path(__file__).parent.parent.parent / "docs"

MADE: Mapping[str, Callable[[], str]] = {
    "commands.md": format_commands,
    "files.md": format_records,
    "rules.md": combinations,
}
"""Documents with a generated part between two marks, and the function that generates it."""

BEGIN, END = "<!-- made by: python -m experiments.reference --write -->\n", "<!-- end -->"


def find_part(document: str) -> str:
    """Return the text between a document's marks."""
    found = re.search(f"{re.escape(BEGIN)}(.*?){END}", document, re.DOTALL)
    assert found, "the document has no place for it"
    return found.group(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return 1 if a document differs from the code and is not written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write them")
    options = parser.parse_args(arguments)
    differ = []
    for name, make in MADE.items():
        before = (DOCS / name).read_text(encoding="utf-8")
        after = before.replace(f"{BEGIN}{find_part(before)}{END}", f"{BEGIN}\n{make()}\n{END}")
        if after != before:
            differ.append(name)
            if options.write:
                (DOCS / name).write_text(after, encoding="utf-8")
    print(
        "\n".join(f"{'written' if options.write else 'differs'}: docs/{name}" for name in differ) or "all as they are"
    )
    return int(bool(differ) and not options.write)


if __name__ == "__main__":
    sys.exit(main())
