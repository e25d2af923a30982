"""python .ci/long_tests.py [REPORT.xml ...]: list the long tests in docs/reliability.md with the dates of their passes.

Nothing runs the long tests automatically. Whoever runs them records it:

    python -m pytest -m long --junitxml report.xml; python .ci/long_tests.py report.xml
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reliability.md"
TABLE = re.compile(r"(?<=\| long test \| last passed \|\n\|---\|---\|\n)(?:\|.*\n)*")
NEVER = "not recorded"


def find_tests() -> list[str]:
    """Return the node ids of the functions that have a long case, without parameters."""
    return [
        f"{file.relative_to(ROOT)}::{node.name}"
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and any("mark.long" in ast.unparse(d) for d in node.decorator_list)
    ]


def read_table(page: str) -> dict[str, str]:
    """Return the date of each test that the page lists."""
    found = TABLE.search(page)
    if found is None:
        raise SystemExit(f"{PAGE} has no table of long tests")
    return dict(re.findall(r"\| `(.*)` \| (.*) \|", found[0]))


def read_passes(report: Path) -> dict[str, str]:
    """Return the date of a pytest report for each test whose cases in it have all passed."""
    dates: dict[str, str] = {}
    failed = set()
    for suite in ElementTree.parse(report).iter("testsuite"):
        for case in suite.iter("testcase"):
            test = f"{case.attrib['classname'].replace('.', '/')}.py::{case.attrib['name'].partition('[')[0]}"
            dates[test] = suite.attrib["timestamp"][:10]
            if any(child.tag in ("failure", "error", "skipped") for child in case):
                failed.add(test)
    return {test: date for test, date in dates.items() if test not in failed}


def make_page(page: str, reports: Iterable[Path]) -> str:
    """Return the page with a line for each long test."""
    dates = read_table(page)
    for report in reports:
        dates |= read_passes(report)
    lines = "".join(f"| `{test}` | {dates.get(test, NEVER)} |\n" for test in find_tests())
    return TABLE.sub(lambda _: lines, page)


if __name__ == "__main__":
    PAGE.write_text(make_page(PAGE.read_text(encoding="utf-8"), map(Path, sys.argv[1:])), encoding="utf-8")
