"""What a real client answers beside its work: allowed questions, and the energy that its machine has used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.markup import escape

from fedpeft.communication.messages import LOST, Instruction, Report
from fedpeft.errors import PayloadError, PrivacyError
from fedpeft.machine.energy import Meter
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.trust.question import parse_question


def check_question(instruction: Instruction) -> None:
    """Refuse questions about the examples that the client trains on: only simulated clients answer these.

    Raises:
        PayloadError: names the question.
    """
    if instruction.asks and (question := parse_question(instruction.asks)).of_model:
        raise PayloadError(
            f"FP6085 the server asks {question.text}, which is answered with sums over the examples that a "
            "client trains on and belongs to simulations"
        )


def check_evaluation(instruction: Instruction, mechanism: Mechanism | None) -> None:
    """Refuse to report what is measured on held-out examples if clients keep that secret.

    An honest server does not ask (`fedpeft.deployment.server.settings_checks`).

    Raises:
        PrivacyError: names the mechanism.
    """
    if instruction.kind == "evaluate" and mechanism is not None and mechanism.silent:
        raise PrivacyError(
            f"FP7013 the server asks for losses on its examples, which {mechanism.name} does not protect"
        )


def measure_energy(instruction: Instruction, work: Callable[[Instruction], Report]) -> Report:
    """Return the report of `work`, with the joules of a training."""
    if instruction.kind != "train":
        return work(instruction)
    meter = Meter()
    report = work(instruction)
    return report if report.error else replace(report, joules=meter.measure_joules() or 0.0)


def report_missing_state(instruction: Instruction, folder: Path, say: Callable[[str], None]) -> Report:
    """Return the report of a client whose `folder` lacks its earlier state; the server then sends it everything."""
    say(
        f"[bold yellow]warning[/] what this client has kept of earlier rounds is missing from {escape(str(folder))}: "
        "it takes part as a newcomer from its next round on"
    )
    return Report(instruction.client, instruction.round, b"", error=LOST)
