"""Golden numbers on a model of three numbers, worked out by hand from the equations."""

from dataclasses import replace
from types import SimpleNamespace

import torch

from fedpeft.reporting import final_score
from fedpeft.reporting.observer import Metrics
from fedpeft.rounds.best_state import BestState
from fedpeft.rounds.questions import select_kept_state
from fedpeft.simulate import _score_last_state
from tests.runs.simulation.test_run_strategies import settings, trained


def test_what_is_asked_of_an_averaged_run_is_asked_of_the_average(tmp_path, monkeypatch):
    """Clients' own rows, clients' own models, questions, and what is saved as the last state."""
    given = settings("fedper", server_optimizer="averaged(decay=0.99)", learning_rate=0.02, rounds=3)
    simulation, server, progress = trained(tmp_path / "run", **given)
    bare = replace(progress, memory={})
    last, average = (server.evaluate_own_rows(p) for p in (bare, replace(bare, adapter=progress.reached_state)))
    assert last != average == server.evaluate_own_rows(progress)
    own = simulation.load_client_state(0)
    shared = [n for n in own if n not in simulation.setup.strategy.list_private(simulation.setup.layout)]
    assert all(torch.equal(own[n], progress.reached_state[n]) for n in shared)
    assert select_kept_state(progress, server.store.bases).adapter is progress.reached_state
    saved = []
    monkeypatch.setattr(final_score, "save", lambda _setup, state, *_: saved.append(state))
    unscored = SimpleNamespace(score=lambda *_: None)
    scored = SimpleNamespace(validation=SimpleNamespace(score_last=True))
    setup = replace(simulation.setup, measured=scored)
    seen = SimpleNamespace(setup=setup, folder=simulation.folder, scorer=unscored)
    _score_last_state(seen, replace(progress, best=BestState(1, Metrics(1.0, 0.5), bare.adapter, {})))
    assert saved == [progress.reached_state]
