"""Tests of this folder are fast: none starts a run."""

from __future__ import annotations

import pytest

from fedpeft.rounds.rounds import Server
from tests.tiers import SLOWER


@pytest.fixture(autouse=True)
def unit_tests_start_no_run(request, monkeypatch):
    if not any(map(request.node.get_closest_marker, SLOWER)):
        message = "a unit test starts a run; move it to tests/runs, or mark it medium"
        monkeypatch.setattr(Server, "run", lambda _server: pytest.fail(message))
