"""The slow line between two network namespaces: pings and transfers cross it, and a federation survives it."""

from __future__ import annotations

import pytest

from experiments.slow_link.bridge import Line
from experiments.slow_link.federation import SMALL, Case, Federation
from experiments.slow_link.link import SlowLink, verify

LACKS = ("PermissionError:", "FileNotFoundError:", "OSError: [Errno 19]", "OSError: [Errno 30]")
"""Beginnings of the bridge's last line where rights, the device or programs are missing, or /proc is read-only."""


@pytest.fixture
def link():
    try:
        made = SlowLink(Line(megabits=10, loss=0.02, delay=0.01))
    except OSError as error:
        if not str(error).startswith(LACKS):
            raise
        pytest.skip(f"no network namespaces with TUN devices here: {error}")
    with made:
        yield made


def test_probes_cross_the_line(link):
    measured = verify(link, pings=20, seconds=0.5)
    assert measured["ping"]["lost"] < 1
    assert measured["ping"]["median_ms"] >= 20  # twice the delay
    assert all(found["bytes"] > 0 for name, found in measured.items() if name != "ping")
    counts = link.count()
    assert counts["from_clients"]["bytes"] > measured["tcp, 1 connection"]["bytes"]
    assert counts["from_clients"]["lost"] > 0


def test_an_interrupted_federation_ends_with_the_same_adapter(link, tmp_path):
    federation = Federation(tmp_path, SMALL, clients=2)
    whole = federation.run(link, Case("whole", "int8", 6))
    again = federation.run(link, Case("interrupted", "int8", 6, cut_seconds=2))
    assert whole["parameters"] == SMALL.parameters
    assert len(again["events"]) == 2
    assert [line["round"] for line in again["rounds"]] == [1, 2, 3, 4, 5, 6]
    assert again["adapter_sha256"] == whole["adapter_sha256"]
