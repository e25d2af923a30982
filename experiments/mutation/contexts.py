"""pytest plugin: measure each test case in a coverage context of its own, and record how long it took."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path

import coverage
import pytest

_seconds: dict[str, float] = defaultdict(float)
_failed: set[str] = set()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Switch to the test's context while it runs."""
    measured = coverage.Coverage.get_current()
    if measured is not None:
        measured.switch_context(item.nodeid)
    try:
        return (yield)
    finally:
        if measured is not None:
            measured.switch_context("")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up the seconds of a test's set-up, call and tear-down."""
    _seconds[report.nodeid] += report.duration
    if not report.has_passed:
        _failed.add(report.nodeid)


def pytest_sessionfinish() -> None:
    """Append one line for each test that passed: its id and its seconds."""
    with Path(os.environ["TEST_TIMES"]).open("a", encoding="utf-8") as file:
        for nodeid, seconds in _seconds.items():
            if nodeid not in _failed:
                file.write(json.dumps([nodeid, round(seconds, 4)]) + "\n")
