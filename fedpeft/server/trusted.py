"""What summary.json holds under `trust` that a server can know, of simulated clients and of real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedpeft.peft.adapter import State
from fedpeft.run.asked import asks_clients
from fedpeft.run.observer import Metrics
from fedpeft.run.records import Records
from fedpeft.run.setup import Setup
from fedpeft.server.calibration import of_clients
from fedpeft.server.energy import summarised
from fedpeft.server.learned import causal, of_run, products
from fedpeft.server.progress import Progress
from fedpeft.server.rounds import Server


def of_clients_rows(server: Server, progress: Progress) -> dict[str, Any] | None:
    """Calibration on clients' held-out rows, while they are there; None: they are not asked."""
    asked = server.setup.measured.calibration
    if asked is None or not asks_clients(server.setup):
        return None
    found = of_clients(server.questions(progress), asked.bins)
    return {"temperature": found.pop("temperature"), "clients": found}


def of_updates(
    setup: Setup, progress: Progress, records: Records, evaluate: Callable[[State], Metrics] | None
) -> dict[str, Any] | None:
    """What the kept adapter has learned, where clients disagreed, and what a direction is worth; None: nobody looked.

    `evaluate`: a state on validation rows; None: there are none.
    """
    asked = setup.measured.disagreement
    if asked is None:
        return None
    found = of_run(setup, progress, records.read("disagreement.jsonl"))
    state, residual = progress.result
    if asked.causal and products(setup) and not residual and evaluate is not None:
        found["causal"] = causal(setup, state, evaluate)
    return found


def of_energy(setup: Setup, records: Records, secret: bool) -> dict[str, Any] | None:
    """What clients have used; None: nobody counted, or who took part is nobody's business (`secret`)."""
    asked = setup.measured.energy
    if asked is None or secret:
        return None
    return summarised(records.read("clients.jsonl"), records.read("rounds.jsonl"), asked.pue)


def named(**found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Without what was not asked; None: nothing was."""
    return {name: one for name, one in found.items() if one is not None} or None
