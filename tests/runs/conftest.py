"""Tests of this folder are medium: each starts a run, a server or workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiers import add_marks


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    add_marks(items, Path(__file__).parent)
