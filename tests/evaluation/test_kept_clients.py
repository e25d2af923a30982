"""Clients that an evaluation keeps in the run's folder: whole, or not at all."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fedpeft.evaluation import contestants
from fedpeft.evaluation.contestants import Contestants


class Killed(BaseException):
    """As if the evaluation had been killed."""


@pytest.fixture
def kept(tmp_path, observer, monkeypatch):
    """Clients of a run that takes no time; `saves` files, and is killed before the second where it is told to be."""
    run = SimpleNamespace(folder=tmp_path / "run", config=SimpleNamespace(privacy=""))
    found = Contestants(run, observer)
    found.__dict__["simulation"] = SimpleNamespace(setup=None, client_state=lambda client: client)
    state = SimpleNamespace(found=found, kill=False, trained=0, written="1")

    def save(_setup, _state, folder):
        (folder / "config").write_text(state.written)
        if state.kill:
            raise Killed
        (folder / "weights").write_text(state.written)

    def trained(_simulation, client):
        state.trained += 1
        return client

    monkeypatch.setattr(contestants, "save", save)
    monkeypatch.setattr(contestants, "trained_alone", trained)
    return state


def test_a_client_alone_whose_saving_was_killed_is_trained_anew(kept):
    kept.kill = True
    with pytest.raises(Killed):
        kept.found._alone(3)
    kept.kill, kept.written = False, "2"
    folder = kept.found._alone(3)
    assert folder == kept.found._folder("alone-3")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"config": "2", "weights": "2"}
    assert [path.name for path in folder.parent.iterdir()] == ["alone-3"]
    assert kept.found._alone(3) == folder
    assert kept.trained == 2


def test_a_clients_own_adapter_is_replaced_when_the_new_one_is_whole(kept):
    folder = kept.found._own(1)
    kept.kill, kept.written = True, "2"
    with pytest.raises(Killed):
        kept.found._own(1)
    assert {path.read_text() for path in folder.iterdir()} == {"1"}
    kept.kill = False
    assert {path.read_text() for path in kept.found._own(1).iterdir()} == {"2"}
