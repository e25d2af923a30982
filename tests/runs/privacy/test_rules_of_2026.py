"""What the rules of 2026 cost under privacy, and what refuses them."""

import pytest
import torch

from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.privacy.small_runs import QUIET, TINY, trained
from tests.refusals import refuses

NOISE = "(noise_multiplier=1.0)"


def test_the_private_form_of_fedask_costs_what_its_clients_steps_cost(tmp_path):
    """Its server only refactors what clients have released, as that of ffa_lora only averages it."""
    spent, states = [], []
    for strategy in ("fedask(train=B)", "ffa_lora"):
        simulation, progress = trained(tmp_path / strategy[:6], privacy=f"dp_sgd{NOISE}", strategy=strategy)
        spent.append(simulation.protection.epsilons())
        states.append((progress.adapter, simulation.setup.layout))
    assert spent[0] == spent[1]
    assert spent[0][0] > 0
    state, layout = states[0]
    start = states[1][0]
    assert all(not torch.allclose(state[pair.A], start[pair.A]) for pair in layout.pairs)


@pytest.mark.parametrize("strategy", ["flora_na", "rbla", "fedrpca", "fedask", "fedask(train=B)"])
@pytest.mark.parametrize(("privacy", "code"), [(f"user_dp{NOISE}", "FP7067"), ("secure_sum", "FP7100")])
def test_what_needs_more_than_a_sum_is_refused_where_only_a_sum_is_seen(strategy, privacy, code, tmp_path):
    given = {**TINY, "privacy": privacy, "strategy": strategy}
    with refuses(code):
        Simulation(RunConfig(**given), tmp_path / "run", ConsoleObserver(QUIET))


@pytest.mark.parametrize("privacy", [f"dp_sgd{NOISE}", "distributed_dp(noise_multiplier=1.0, unit=rows)"])
def test_steps_without_gradients_are_refused_where_gradients_are_clipped(privacy, tmp_path):
    given = {**TINY, "privacy": privacy, "optimizer": "zeroth_order"}
    with refuses("FP1518"):
        Simulation(RunConfig(**given), tmp_path / "run", ConsoleObserver(QUIET))
