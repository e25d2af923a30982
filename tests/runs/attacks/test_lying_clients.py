"""One client lies about itself in secure sums: the others' sums still move the model, in the lie's round and after it.

Real server, real clients, and their own protocol, in one process. `-s` prints the table of docs/privacy-attacks.md:

    python -m pytest tests/runs/attacks/test_lying_clients.py -q -s -m "slow or not slow"
"""

from __future__ import annotations

import contextlib
import json
import statistics

import pytest

from fedpeft.attack import lies
from fedpeft.attack.lies import CLAIMS, LIES, UPDATES
from fedpeft.privacy.secure_sum.contribution import Contribution
from tests.conftest import SilentObserver
from tests.here import Federation

CLIENTS, LIAR, ROUNDS = 5, 3, 4
GIVEN = {"privacy": "secure_sum", "clients": CLIENTS, "rounds": ROUNDS, "safeguard": "none"}
KINDS = [*LIES, *CLAIMS, *UPDATES]
FAST = {"norm: huge", "norm: minus huge", "weight: huge", "weight: cancels the others'", "update: 1e9 times as long"}
SLOWEST = 0.5
"""The least share of the honest run's progress that is left, whatever one client states in every round."""


@contextlib.contextmanager
def lying(monkeypatch, kind, liar, rounds):
    """Let the client lie in these rounds (0: before round 1)."""
    with monkeypatch.context() as patch:
        patch.setattr(Contribution, "integers", lies.create_lie(kind, liar, rounds)(Contribution.integers))
        yield


def rounds_of(made):
    return [json.loads(line) for line in (made.folder / "server" / "rounds.jsonl").read_text().splitlines()][-ROUNDS:]


def moved(progress):
    return {name: (tensor - progress.started[name]).double().ravel() for name, tensor in progress.adapter.items()}


def along(progress, honest):
    """Return how far the run has come in the direction of the honest one, as a share of its length."""
    one, other = moved(progress), moved(honest)
    return float(sum((one[n] * other[n]).sum() for n in other) / sum(other[n].square().sum() for n in other))


class Lines(SilentObserver):
    """Keeps what the server tells its user."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    observer = Lines()
    progress = Federation(tmp_path_factory.mktemp("honest"), observer, **GIVEN).run()
    assert not [line for line in observer.lines if "lies" in line]
    return progress


@pytest.fixture(scope="module")
def without_liar(tmp_path_factory, honest):
    """Return the progress of the others alone: the update of the fifth client is refused by its own software."""
    with pytest.MonkeyPatch.context() as patch, lying(patch, "update: not a number", LIAR, range(ROUNDS + 1)):
        return along(Federation(tmp_path_factory.mktemp("others"), SilentObserver(), **GIVEN).run(), honest)


def run(folder, monkeypatch, kind, rounds):
    observer = Lines()
    made = Federation(folder, observer, **GIVEN)
    with lying(monkeypatch, kind, LIAR, rounds):
        return made, made.run(), observer.lines


@pytest.mark.parametrize(
    "kind", [kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_a_lie_in_every_round_leaves_at_least_half_of_the_progress(tmp_path, monkeypatch, honest, without_liar, kind):
    made, progress, _ = run(tmp_path, monkeypatch, kind, range(ROUNDS + 1))
    share, clip = along(progress, honest), progress.clip / honest.clip
    print(f"\n| {kind} | {share:.2f} | {clip:.3g} |", end="")
    assert all(line["update_norm"] > 0 for line in rounds_of(made))
    if kind in LIES:
        assert SLOWEST < share < 2
    elif kind in CLAIMS:
        assert 310 / (310 + 9 * 50) - 0.1 < share < 1
    elif kind != "update: 1e9 times as long":  # masks can't bound a vector, which moves the sum itself
        assert SLOWEST < share / without_liar < 2
    assert 1 / 10 < clip < 10


@pytest.mark.parametrize("kind", ["norm: huge", "norm: minus huge", "weight: huge", "update: 1e9 times as long"])
def test_after_one_lie_the_next_round_is_that_of_an_honest_run(tmp_path, monkeypatch, honest, kind):
    """The defect: clients' updates were rounded to nothing for good, and the server said that all was well."""
    made, progress, _ = run(tmp_path, monkeypatch, kind, range(1, 2))
    norms = [line["update_norm"] for line in rounds_of(made)]
    assert norms[-1] > statistics.median(norms) / 4
    assert progress.clip == pytest.approx(honest.clip, rel=0.5)


def test_impossible_weights_are_told(tmp_path, monkeypatch):
    _, _, lines = run(tmp_path, monkeypatch, "weight: huge", range(1, 2))
    assert any("at least one client lies; the server takes 310" in line for line in lines)


def test_a_sum_of_zero_is_told(tmp_path, monkeypatch):
    real = Contribution.integers

    def nothing(self, told, secure, seed, round_number, client, secret=None):
        for tensor in self.update.values():
            tensor.zero_()
        sent = real(self, told, secure, seed, round_number, client, secret)
        sent[: told.size] = 0  # without rounding
        return sent

    observer = Lines()
    made = Federation(tmp_path, observer, **GIVEN)
    with monkeypatch.context() as patch:
        patch.setattr(Contribution, "integers", nothing)
        progress = made.run()
    assert sum("the sum of all updates is zero: it moves nothing" in line for line in observer.lines) == ROUNDS
    assert progress.clip is not None
    assert progress.clip > 0


@pytest.mark.parametrize("kind", ["loss: huge", "loss: minus huge", "examples: minus huge", "examples: huge"])
def test_an_impossible_loss_is_told_and_not_recorded(tmp_path, monkeypatch, kind):
    made, _, lines = run(tmp_path, monkeypatch, kind, range(2, 3))
    losses = [line["train_loss"] for line in rounds_of(made)]
    assert losses[1] is None
    assert all(0 < loss < 10 for loss in losses[:1] + losses[2:])
    assert sum("the loss is not recorded" in line for line in lines) == 1
