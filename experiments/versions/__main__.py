"""Run the tests at both ends of the ranges of dependencies.

    python -m experiments.versions --resolve            only print the versions at the ends
    python -m experiments.versions                      install each into an environment, and test
    python -m experiments.versions --only lowest --python 3.13
    python -m experiments.versions --pins transformers==5.0.0 peft==0.19.0 --tests tests/unit/models

With `--pins`, the other packages are those of the present environment, which takes seconds to prepare: it shows how far
a range can go. Otherwise, an environment includes the CUDA build of torch, several GB, unless UV_INDEX selects another
index. The result of each end is a line of results.jsonl beside this file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from experiments import exit_on_error
from experiments.versions.ends import (
    ENDS,
    TESTS,
    VersionEnd,
    list_requirements,
    resolve_end,
    select_own_versions,
    try_end,
    try_pins,
)

RESULTS = Path(__file__).with_name("results.jsonl")


def format_table(ends: Sequence[VersionEnd]) -> str:
    """Return the direct requirements at each end and the results of the tests as a Markdown table."""
    lines = [
        "| | " + " | ".join(f"{end.end}, Python {end.python}" for end in ends) + " |",
        "|---" * (len(ends) + 1) + "|",
    ]
    lines += [
        f"| {name} | " + " | ".join(end.versions.get(name, "") for end in ends) + " |" for name in list_requirements()
    ]
    if any(end.said for end in ends):
        lines.append("| tests | " + " | ".join(end.said for end in ends) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return 1 if tests failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(ENDS), help="test only one end")
    parser.add_argument(
        "--python", default="{}.{}".format(*sys.version_info), help="Python version of the environments"
    )
    parser.add_argument("--resolve", action="store_true", help="only print the versions at the ends")
    parser.add_argument("--folder", type=Path, help="folder that keeps the environments; by default they are removed")
    parser.add_argument("--pins", nargs="+", help="test these versions of single packages instead")
    parser.add_argument("--tests", nargs="+", default=list(TESTS), help="test files")
    options = parser.parse_args(arguments)
    names = [options.only] if options.only else list(ENDS)
    ends = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.pins:
            ends.append(try_pins(options.pins, folder.absolute(), options.tests))
        for name in names if not options.pins else ():
            if options.resolve:
                ends.append(VersionEnd(name, options.python, select_own_versions(resolve_end(name, options.python))))
                continue
            ends.append(try_end(name, options.python, folder.absolute(), options.tests))
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(ends[-1])) + "\n")
    print(format_table(ends))
    return int(any("failed" in end.said or "error" in end.said for end in ends))


if __name__ == "__main__":
    with exit_on_error():
        code = main()
    sys.exit(code)
