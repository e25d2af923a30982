"""The tiers of the tests: which tests belong to each, what the fast tier covers, and the tenth that `.ci/run` adds.

The folder of a test sets its tier: `unit` is fast, `runs` is medium, `processes` is slow. A mark on the test overrides
the folder. `fast` takes a sentence, and the header of the fast tier prints it: `@pytest.mark.fast("one study")`.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
FOLDERS = {"runs": "medium", "processes": "slow"}
"""The mark of each folder whose tests are not fast."""

SLOWER = ("medium", "slow", "long")
FAST = "not medium and not slow and not long"
"""The mark expression in pyproject.toml."""

REST = (
    "python -m pytest -n 2 -m medium    # whole runs: about 5 minutes",
    "python -m pytest -m slow           # servers, clients and commands as processes",
    "python -m pytest -m long           # attacks at full size, fuzzing: hours",
)
MINUTES = 5
"""How long the fast tier takes at most on two free cores."""


def add_marks(items: Iterable[pytest.Item], folder: Path) -> None:
    """Mark the tests below a folder with the folder's tier, unless they have a mark of their own."""
    mark = getattr(pytest.mark, FOLDERS[folder.name])
    for item in items:
        if item.path.is_relative_to(folder) and not any(item.get_closest_marker(m) for m in ("fast", *SLOWER)):
            item.add_marker(mark)


def has_fast_tests(file: Path) -> bool:
    """Whether a test file is in the fast tier's folder or has a `fast` mark."""
    folder = file.relative_to(TESTS).parts[0]
    return folder not in FOLDERS or "pytest.mark.fast" in file.read_text(encoding="utf-8")


def compute_tenth(text: str) -> int:
    """Return a number from 0 to 9 that depends on the text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10


def is_in_tenth(nodeid: str, commit: str) -> bool:
    """Whether a commit selects the test. Thirty commits select 96 % of all tests on average."""
    return compute_tenth(strip_tier(nodeid)) == compute_tenth(commit)


def strip_tier(nodeid: str) -> str:
    """Return a node id without its tier's folder, so that a test keeps its random numbers when it moves."""
    return re.sub(r"^tests/(unit|runs|processes)/", "tests/", nodeid)


def get_package(file: Path) -> str:
    """Return the package that a test file covers: its folder below the tier's."""
    parts = file.relative_to(ROOT).parts
    if parts[0] != "tests":
        return parts[1]
    return parts[2] if len(parts) > 3 else "commands"


def find_functions(file: Path) -> Iterator[tuple[ast.FunctionDef, list[ast.expr]]]:
    """Yield the test functions of a file, each with its decorators."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node, node.decorator_list


def get_mark(decorator: ast.expr) -> str:
    """Return the name in `@pytest.mark.NAME` or `@pytest.mark.NAME(...)`; empty: the decorator is no mark."""
    name = ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator)
    return name.removeprefix("pytest.mark.") if name.startswith("pytest.mark.") else ""


@lru_cache
def count_functions() -> Counter[str]:
    """Count the test functions of the fast tier by package."""
    counts: Counter[str] = Counter()
    for file in [*(TESTS / "unit").rglob("test_*.py"), *(ROOT / "fedpeft" / "conformance").glob("test_*.py")]:
        for _, decorators in find_functions(file):
            counts[get_package(file)] += not any(get_mark(decorator) in SLOWER for decorator in decorators)
    for file, _ in find_fast_marks():
        counts[get_package(file)] += 1
    return counts


@lru_cache
def find_fast_marks() -> tuple[tuple[Path, str], ...]:
    """Return the file of each `fast` mark in the other tiers, and its sentence if it has one."""
    found = []
    for file in (file for folder in FOLDERS for file in sorted((TESTS / folder).rglob("test_*.py"))):
        if has_fast_tests(file):
            marks = [d for _, decorators in find_functions(file) for d in decorators if get_mark(d) == "fast"]
            found += [(file, mark.args[0].value if isinstance(mark, ast.Call) else "") for mark in marks]
    return tuple(found)


def describe_coverage() -> list[str]:
    """Return the lines that the fast tier prints before it starts."""
    counts = count_functions()
    packages = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count)
    end_to_end = "; ".join(sorted({sentence for _, sentence in find_fast_marks() if sentence}))
    return [
        f"fast tier: {counts.total()} test functions, less than {MINUTES} minutes on two free cores",
        f"functions per package: {packages}",
        f"end to end: {end_to_end}",
    ]
