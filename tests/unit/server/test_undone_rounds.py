"""What a user is told when the safeguard undoes one round after another."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from fedpeft.parts.families import SAFEGUARDS
from fedpeft.rounds.progress import ServerState
from fedpeft.rounds.safeguard import IN_A_ROW, SafeguardHook


def list_hints(losses):
    """Return the numbers of the rounds after which the hint is printed, for these validation losses."""
    setup = SimpleNamespace(
        config=SimpleNamespace(learning_rate=0.5), strategy=None, server_optimizer=SimpleNamespace(pace=1.0)
    )
    store = SimpleNamespace(bases=SimpleNamespace(put=lambda *_: None))
    given, lines = iter([1.0, *losses]), []
    hook = SafeguardHook(setup, store, SAFEGUARDS.build("undo"), lambda *_: next(given), lines.append)
    state = hook.after_start(ServerState(0, {"a": torch.zeros(1)}), None)
    hints = []
    for number in range(1, len(losses) + 1):
        lines.clear()
        log = SimpleNamespace(earliest_asked=number, undone=False)
        state = hook.after_step(state, ServerState(number, {"a": torch.ones(1)}), log)
        hints += [number for line in lines if "--learning-rate below 0.5" in line]
    return hints


def test_a_hint_follows_several_undone_rounds_in_a_row_and_only_once():
    bad = [9.0] * IN_A_ROW
    assert list_hints(bad[1:]) == []
    assert list_hints([*bad[1:], 0.5, *bad[1:]]) == []
    assert list_hints([*bad, *bad, 0.5, *bad]) == [IN_A_ROW]
