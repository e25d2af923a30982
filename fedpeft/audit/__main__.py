"""Audit a privacy mechanism with canaries, or attack finished runs with membership inference.

    fedpeft audit --privacy "user_dp(noise_multiplier=4)" --rounds 10      canaries
    fedpeft audit runs/A runs/B                                            membership inference

The first form checks the claim of a mechanism. The second measures how well losses reveal a run's members.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from fedpeft.audit.canary_audit import CanaryAudit
from fedpeft.errors import ConfigError
from fedpeft.machine.terminal import Console
from fedpeft.parts import check_settings
from fedpeft.reporting.command import (
    run_tool,
    start_command,
    tell_notes,
)
from fedpeft.reporting.console import create_summary_table

if TYPE_CHECKING:
    from fedpeft.audit.canaries import Verdict
    from fedpeft.audit.sums import SumVerdict


@dataclass(frozen=True)
class Command:
    """Audit a privacy mechanism with canaries, or attack finished runs.

    fedpeft audit --privacy "user_dp(noise_multiplier=4)" --rounds 10
    """

    runs: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RUN ...]", help="finished runs to attack")
    ] = ()
    audit: Annotated[CanaryAudit, tyro.conf.arg(name="")] = field(default_factory=CanaryAudit)


def attack(runs: tuple[Path, ...], console: Console) -> None:
    """Attack finished runs with membership inference, and print one line for each.

    Raises:
        FedpeftError: a folder does not contain a finished run.
    """
    from fedpeft.audit.membership import attack_membership
    from fedpeft.reporting.console import ConsoleObserver
    from fedpeft.reporting.run_folder import refuse_servers_run
    from fedpeft.simulation.simulation import Simulation
    from fedpeft.wiring.config import read_config

    rows = []
    for folder in runs:
        refuse_servers_run(folder)
        config = read_config(folder / "config.toml", goes_on=False, of_run=True)
        tell_notes()
        found = attack_membership(Simulation(config, folder, ConsoleObserver(Console(quiet=True))))
        label = config.privacy or "no protection"
        chance = f"by chance {found.by_chance:.3f}, and above {found.high_by_chance:.3f} in 5 % of draws"
        told = f"{found.mean:.3f} (worst client {found.worst_area:.3f}; {chance})"
        rows.append((f"{folder.name}: {label}", told if len(found.areas) else "no members to compare"))
        if found.note:
            rows.append(("", found.note))
    console.print(
        create_summary_table("membership inference: area under the curve, mean over clients; 0.5 is guessing", rows)
    )


def show(verdict: Verdict, console: Console) -> None:
    """Print the claim of a mechanism and the bounds of its audit."""
    rows: list[tuple[str, Any]] = [
        (f"claimed epsilon, delta {verdict.delta:.2g}", f"{verdict.claimed:.2f}"),
        ("at least, one-run bound (99.9 %)", f"{verdict.bounds.one_run:.2f}"),
        ("at least, Gaussian fit (99.9 %)", f"{verdict.bounds.fit:.2f}"),
        *(
            [("change of the sum without one example, in clipping norms", f"{verdict.distance:.2f}")]
            if verdict.distance is not None
            else []
        ),
        *([("uncharged release of cohort sizes, epsilon", f"{verdict.sizes:.2f}")] if verdict.sizes else []),
        ("verdict", _format_verdict(verdict)),
    ]
    console.print(create_summary_table("canary audit", rows))


def show_sums(verdict: SumVerdict, noisy: bool, console: Console) -> None:
    """Print how many colluding clients secure sums tolerate, and that the epsilon of `noisy` sums is not audited."""
    rows = [(f"{clients} clients", str(tolerated)) for clients, tolerated in verdict.tolerated.items()]
    word = f"[bold red]protects less than it claims[/]: {verdict.excess}" if verdict.excess else "consistent"
    rows.append(("verdict", word))
    if noisy:
        rows.append(("epsilon", "not audited: masks hide the single updates that canaries need"))
    console.print(create_summary_table("colluding clients that a secure sum tolerates", rows))


def _format_verdict(verdict: Verdict) -> str:
    if not verdict.has_passed:
        return "[bold red]it protects less than it claims[/]"
    return "consistent" if math.isfinite(verdict.claimed) else "no claim, so nothing can be refuted"


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 if a claim is refuted, 2 for a user's mistake."""
    return run_tool(Command, _run_audit, arguments)


def _run_audit(command: Command, console: Console) -> int:
    if command.runs and command.audit != CanaryAudit():
        raise ConfigError("FP1039 finished runs keep their own mechanism; give their folders or --privacy, not both")
    if command.runs:
        attack(command.runs, console)
        return 0
    if not command.audit.privacy:
        raise ConfigError(
            'FP1040 give --privacy "user_dp(noise_multiplier=4)" to audit, or the folders of finished runs'
        )
    from fedpeft.audit.canaries import run
    from fedpeft.audit.sums import audit_sums
    from fedpeft.privacy.secure_sum.sum import sums_in

    audit = CanaryAudit(**check_settings("the audit", CanaryAudit, vars(command.audit)))
    if (secure := sums_in(audit.privacy)) is not None:  # secure sums hide the single updates that canaries need
        told = audit_sums(secure)
        show_sums(told, secure.noisy, console)
        return 1 if told.excess else 0
    with tempfile.TemporaryDirectory(prefix="fedpeft-audit-") as folder:
        verdict = run(audit, Path(folder))
    show(verdict, console)
    return 0 if verdict.has_passed else 1


if __name__ == "__main__":
    start_command("audit.__main__")
