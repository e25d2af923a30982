"""Attacks on a finished private run, if its mechanism sets `audit=True`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.aggregation.shared_sums import is_shared_sum
from fedpeft.audit.canaries import FORM, create_layout, run
from fedpeft.audit.canary_audit import CanaryAudit
from fedpeft.privacy.accountant import Event, rdp_epsilon
from fedpeft.privacy.mechanism import CohortForm
from fedpeft.privacy.server_noise import count_turns

if TYPE_CHECKING:
    from fedpeft.simulation.simulation import Simulation

CANARIES = 400
"""Approximate number of canaries."""


def run_attacks(simulation: Simulation) -> dict[str, Any]:
    """Attack a finished run and return the results for `summary.json`; canaries need rounds of training."""
    from fedpeft.audit.membership import attack_membership

    found = attack_membership(simulation)
    if found.note:
        simulation.observer.say(f"[bold]note[/]    membership inference: {found.note}")
    summary: dict[str, Any] = {
        "membership_auc": found.mean,
        "membership_auc_worst": found.worst_area,
        "membership_auc_worst_by_chance": found.by_chance,
    }
    if simulation.protection is not None and simulation.protection.trains:
        simulation.observer.phase("attack: canaries on the run's mechanism", 1)
        with tempfile.TemporaryDirectory(prefix="fedpeft-audit-") as folder:
            verdict = run(audit_run(simulation), Path(folder))
        summary |= {
            "audit_epsilon": verdict.bounds.fit,
            "audit_epsilon_one_run": verdict.bounds.one_run,
            "audit_claimed": verdict.claimed,
            "audit_passed": verdict.has_passed,
        }
    return summary


def audit_run(simulation: Simulation) -> CanaryAudit:
    """Return the audit of a run's own mechanism: its noise, clipping and codec.

    Rate and number of releases are those of the client that spends most. A strategy that does not suit the audit's
    small layer is replaced by fedit, since aggregation comes after the noise.
    """
    protection = simulation.protection
    assert protection is not None
    federation, mechanism = protection.exposure, protection.mechanism
    spends = max(
        mechanism.plan_releases(federation),
        key=lambda plan: rdp_epsilon({Event(protection.noise_multiplier, plan[0]): plan[1]}, protection.delta),
    )
    steps = int(federation.steps.max()) if mechanism.per_example else 1
    rounds, rate, more, canaries = max(1, round(spends[1] / steps)), spends[0], "", CANARIES
    if mechanism.cohort_form is CohortForm.TURNS:  # the canaries' distance is that of clients, despite uneven division
        turns = count_turns(federation.clients, federation.cohort)
        rounds, rate, canaries = federation.rounds, 1 / turns, turns * max(1, round(CANARIES / turns))
        more = f", noise={vars(mechanism)['noise']!r}"
    strategy = (
        simulation.config.strategy if is_shared_sum(simulation.setup.strategy, create_layout(FORM.rank)) else "fedit"
    )
    return CanaryAudit(
        privacy=f"{mechanism.name}(noise_multiplier={protection.noise_multiplier!r}, clip={mechanism.clip!r}{more})",
        rounds=rounds,
        rate=rate,
        steps=steps,
        strategy=strategy,
        codec=str(simulation.setup.uplink.codec),
        canaries=canaries,
        seed=simulation.config.seed,
    )
