"""What a client's machine uses while it trains, as it tells its server, where it can measure that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fedpeft.communication.messages import Instruction, Report
from fedpeft.machine.energy import Meter


def metered(instruction: Instruction, work: Callable[[Instruction], Report]) -> Report:
    """The report of `work`, with the joules of a training; sums under masks say nothing of one client's work."""
    if instruction.kind != "train" or instruction.step:
        return work(instruction)
    meter = Meter()
    report = work(instruction)
    return report if report.error else replace(report, joules=meter.joules() or 0.0)
