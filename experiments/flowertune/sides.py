"""One side of the comparison, in a process of its own."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.flowertune.processor import ProcessorTime
from experiments.flowertune.rows import write
from experiments.flowertune.settings import Settings, SideResult

TEST_SEED = 1_000_003


def run_side(side: str, settings: Settings, seed: int) -> SideResult:
    """Run one side while measuring memory and processor time of this process and its children."""
    from fedpeft.machine.memory import PeakMemory

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows, test = write(folder / "rows.jsonl", settings.rows, seed), folder / "test.jsonl"
        write(test, settings.test_rows, TEST_SEED)
        started = time.perf_counter()
        with PeakMemory() as memory, ProcessorTime() as processor:
            if side == "template":
                from experiments.flowertune import template

                found: dict[str, Any] = template.run(settings, seed, rows, folder)
            else:
                from experiments.flowertune import ours

                found = ours.run(settings, seed, rows, test, folder)
        seconds = time.perf_counter() - started
        from experiments.flowertune.judge import judge

        loss, exact = judge(settings, test, folder / "peft")
    found |= {"peak_memory_mb": memory.bytes / 1e6, "seconds": seconds, "processor_seconds": processor.seconds}
    return SideResult(side, seed, loss=loss, exact_match=exact, **found)
