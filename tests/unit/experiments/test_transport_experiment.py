"""The transport experiment: many light clients at once, and what a client needs."""

from __future__ import annotations

import os

from experiments.transport import clients

SETTINGS = clients.Settings(dataset="tiny", model="tiny", clients=1, rows=16, rounds=2, precisions=("fp32",))
SUMMARY = {"parameters": 1234, "seconds_per_round": 0.5, "uplink_bytes": 9000, "prepare_bytes": 1000,
           "downlink_bytes": 6000}  # fmt: skip


def test_the_table_counts_one_update() -> None:
    text = clients.format_table(SETTINGS, [clients.MeasuredRun("nf4", 300_000_000, 200_000_000, 0.25, SUMMARY)])
    assert "| nf4 | 300 MB | 200 MB | 0.2 | 0.5 | 4 kB | 3 kB |" in text


def test_a_process_is_watched() -> None:
    seen = clients.ProcessPeaks()
    seen.look(os.getpid(), begun=False)
    assert seen.peak > 0
    assert not seen.held
    seen.look(os.getpid(), begun=True)
    assert 0 < seen.held[0] <= seen.peak
    assert seen.cpu[0] > 0
