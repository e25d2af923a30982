"""Training of clients whose frozen bases have different precisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedpeft.clients.executor import Trained
from fedpeft.clients.stages import ClientRound
from fedpeft.clients.workbench import Workbench

from fedpeft.peft.adapter import round_to_precision


def train_on_own_bases(bench: Workbench, rounds: Sequence[ClientRound]) -> list[Trained]:
    """Train clients and return the results in their order; those whose bases have one precision train together."""
    results: dict[int, Trained] = {}
    for precision in dict.fromkeys(r.instruction.base_precision for r in rounds):
        own = bench.set_precision(precision)
        own.rebase(rounds[0].instruction.base)
        group = [r for r in rounds if r.instruction.base_precision == precision]
        for client_round, result in zip(group, own.executor.train([r.job for r in group]), strict=True):
            results[result.client] = _hold(client_round, result)
    return [results[r.job.client] for r in rounds]


def _hold(client_round: ClientRound, result: Trained) -> Trained:
    """Return the result with the adapter in the client's precision; a sum of gradients stays as it is."""
    if client_round.job.has_summed_gradients:
        return result
    return replace(result, state=round_to_precision(result.state, client_round.instruction.adapter_precision))
