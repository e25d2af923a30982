"""The transport experiment: many light clients at once, and what a client needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.transport import clients
from tests.unit.experiments.test_transport_experiment import SETTINGS


@pytest.mark.long
def test_a_federation_is_measured(tmp_path: Path) -> None:
    measured = clients.Federation(tmp_path, replace(SETTINGS, rounds=8)).run("fp32", "fp32")
    assert measured.peak >= measured.held > 0
    assert measured.cpu > 0
    assert measured.summary["rounds"] == 8
