"""What a finished private run is attacked with, where its mechanism asks for it (`audit=True`)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.audit.canaries import of_run, run

if TYPE_CHECKING:
    from fedpeft.simulation.simulation import Simulation


def attacks(simulation: Simulation) -> dict[str, Any]:
    """What attacks find out about a finished run; for `summary.json`."""
    from fedpeft.audit.membership import membership

    found = membership(simulation)
    summary: dict[str, Any] = {"membership_auc": found.mean, "membership_auc_worst": found.worst}
    if simulation.protection is not None:
        with tempfile.TemporaryDirectory(prefix="fedpeft-audit-") as folder:
            verdict = run(of_run(simulation), Path(folder))
        summary |= {
            "audit_epsilon": verdict.bounds.fit,
            "audit_epsilon_one_run": verdict.bounds.one_run,
            "audit_claimed": verdict.claimed,
            "audit_passed": verdict.passed,
        }
    return summary
