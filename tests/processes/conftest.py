"""Tests of this folder are slow: each starts a program of its own, such as a server or a command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiers import add_marks


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    add_marks(items, Path(__file__).parent)
