"""How many clients a round asks: the default, and what a user says."""

import json

import pytest
from rich.console import Console

from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulate import main
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig

TINY = {"dataset": "tiny", "tokens": 16, "clients": 6, "rounds": 2, "workers": 1, "dtype": "fp32", "head": "zero",
        "peft": "lora(rank=2, layers=1)", "local_work": "steps(2)"}  # fmt: skip


def test_a_first_run_of_few_clients_asks_all_of_them(tmp_path):
    given = ["--dataset", "tiny", "--tokens", "16", "--clients", "6", "--rounds", "1", "--workers", "1"]
    assert main([*given, "--local-work", "steps(1)", "--output", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["cohort"] == 6


@pytest.mark.parametrize("given", ["dp_sgd(noise_multiplier=2)", "user_dp(noise_multiplier=2, clip=0.2)"])
@pytest.mark.parametrize(("cohort", "size"), [("auto", 6), (2, 2)])
def test_a_budget_counts_on_the_clients_that_a_round_asks(given, cohort, size, tmp_path):
    with ConsoleObserver(Console(quiet=True)) as observer:
        made = Simulation(RunConfig(**TINY, privacy=given, cohort=cohort), tmp_path, observer)
    counted = made.protection.exposure
    assert (made.sampler.size, counted.cohort) == (size, size)
    assert counted.participations.sum() == 2 * size
    assert (counted.participations == 2).all() == (size == 6)
