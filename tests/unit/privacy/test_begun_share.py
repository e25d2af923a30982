"""How a budget is shared between start and rounds: as a run has begun with it, and said where training goes unheard."""

from __future__ import annotations

import pytest

from fedpeft.privacy import mechanism as mechanisms
from fedpeft.privacy.engine import LEDGER
from fedpeft.privacy.mechanisms import distributed_dp, user_dp
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring import catalogue
from fedpeft.wiring.config import RunConfig
from tests.privacy.small_runs import QUIET
from tests.refusals import refuses

TINY = {"dataset": "tiny", "tokens": 32, "clients": 6, "cohort": 3, "rounds": 2, "workers": 1, "dtype": "fp32",
        "peft": "lora(rank=2, layers=1)"}  # fmt: skip
PRIVACY = {"dp_sgd": "dp_sgd(epsilon=50)", "user_dp": "user_dp(epsilon=50)", "shared": "distributed_dp(epsilon=50)"}


def heard(monkeypatch, all_is):
    """From now on training is heard, or is not, as if another version had looked at other runs."""
    least = 0.0 if all_is else 1e9
    monkeypatch.setattr(mechanisms, "LEAST_SIGNAL", least)
    for module, name in ((user_dp, "LEAST_SIGNAL_HEAD"), (distributed_dp, "LEAST_SIGNAL_HEAD"),
                         (distributed_dp, "LEAST_SIGNAL_WHITENED")):  # fmt: skip
        monkeypatch.setattr(module, name, least)


def opened(folder, **given):
    folder.mkdir(exist_ok=True)
    made = Simulation(RunConfig(**{**TINY, **given}), folder, ConsoleObserver(QUIET))
    made.protection.open(resumed=(folder / LEDGER).exists())
    return made


def terms(made):
    own = made.protection
    return own.noise_source.levels, catalogue.format_setup_toml(made.setup)


@pytest.mark.parametrize("privacy", PRIVACY.values(), ids=PRIVACY)
@pytest.mark.parametrize("began", [True, False], ids=["heard", "unheard"])
def test_a_run_goes_on_with_the_share_that_it_began_with(privacy, began, tmp_path, monkeypatch):
    heard(monkeypatch, began)
    first = opened(tmp_path, privacy=privacy)
    was = terms(first)
    assert first.protection.trains is began
    heard(monkeypatch, not began)
    again = opened(tmp_path, **vars(first.config))
    assert terms(again) == was
    (tmp_path / "other").mkdir()
    assert opened(tmp_path / "other", privacy=privacy).protection.trains is not began


def test_a_ledger_of_neither_share_is_refused_as_before(tmp_path, monkeypatch):
    first = opened(tmp_path, privacy="user_dp(epsilon=50, start=0.3)")
    with refuses("FP7042"):
        opened(tmp_path, **{**vars(first.config), "privacy": "user_dp(epsilon=50)"})


@pytest.mark.parametrize(
    ("given", "flags"),
    [({"learning_rate": 0.01}, "--rounds and --learning-rate are"), ({"rounds": 20}, ""), ({}, "--rounds is")],
)
def test_training_that_is_named_and_not_heard_is_said(given, flags, tmp_path, monkeypatch):
    heard(monkeypatch, False)
    made = opened(tmp_path / "new", privacy="user_dp(epsilon=50)", **given)
    told = " ".join(made.setup.notes)
    assert (f"{flags} of no use: training would not rise" in told) is bool(flags)
    assert ("user_dp(start=0.5, ...) trains nevertheless" in told) is bool(flags)
    trained = opened(tmp_path / "trained", privacy="user_dp(epsilon=50, start=0.5)", **given)
    assert "of no use" not in " ".join(trained.setup.notes)
