"""What a real client answers beside its work: which questions, and what its machine has used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fedpeft.communication.messages import Instruction, Report
from fedpeft.errors import PayloadError
from fedpeft.machine.energy import Meter
from fedpeft.trust.question import asked


def check_question(instruction: Instruction) -> None:
    """Refuse questions about the rows that the client trains on: only simulated ones answer these.

    Raises:
        PayloadError: which one.
    """
    if instruction.asks and (question := asked(instruction.asks)).of_model:
        raise PayloadError(
            f"the server asks {question.text}, which is answered with sums over the rows that a client trains on and "
            "belongs to simulations"
        )


def metered(instruction: Instruction, work: Callable[[Instruction], Report]) -> Report:
    """The report of `work`, with the joules of a training; sums under masks say nothing of one client's work."""
    if instruction.kind != "train" or instruction.step:
        return work(instruction)
    meter = Meter()
    report = work(instruction)
    return report if report.error else replace(report, joules=meter.joules() or 0.0)
