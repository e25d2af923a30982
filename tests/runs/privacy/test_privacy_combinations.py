"""Every mechanism with every strategy, codecs and error feedback: it runs a round as the order demands, or refuses."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console

from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.errors import FedpeftError
from fedpeft.parts.families import MECHANISMS, strategies
from fedpeft.peft.adapter import Layout, State, compute_norm
from fedpeft.privacy.ledger import POPULATION
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.records import Records
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig

TINY = {"dataset": "tiny(rows=120)", "tokens": 16, "clients": 3, "cohort": "all", "rounds": 1, "workers": 1, "seed": 3,
        "head": "zero", "local_work": "steps(1)", "dtype": "fp32", "measure": "validation(every=100)"}  # fmt: skip
CODECS = ["fp32", "topk(fraction=0.1) | quantize(bits=4) | rans", "ef14 | topk(fraction=0.1) | quantize(bits=4) | rans",
          "ef21 | topk(fraction=0.1) | quantize(bits=4) | rans"]  # fmt: skip
CLIP = 0.05


@pytest.mark.fast
def test_there_are_mechanisms():
    assert {"dp_sgd", "user_dp", "local_dp", "distributed_dp", "none"} <= set(MECHANISMS.names)


def in_first_factors(state: State, started: State, layout: Layout) -> State:
    """Return the same B A as B times the A of the start: the release before a strategy changed the factors."""
    found = dict(state)
    for pair in layout.pairs:
        found[pair.A] = started[pair.A]
        found[pair.B] = state[pair.B] @ state[pair.A] @ torch.linalg.pinv(started[pair.A])
    return found


PEFT = {
    "fed_sb": "lora_sb(rank=2, layers=1)",
    "florg": "lora_gram(rank=2, layers=1)",
    "fedalt": "row_lora(rank=2, layers=1)",
    "fedlease": "expert_lora(rank=2, layers=1)",
}


@pytest.mark.long
@pytest.mark.parametrize("strategy", strategies.names)
def test_all_combinations_pass_or_refuse(strategy, tmp_path):
    ran = 0
    for mechanism in MECHANISMS.names:
        for i, codec in enumerate(CODECS):
            if i and strategy not in ("fedit", "ffa_lora", "flexlora"):
                continue  # what a codec may do does not depend on the strategy beyond linear, half, gathered
            noise = "" if mechanism == "none" else f"(noise_multiplier=1, clip={CLIP}, test_noise=True)"
            peft = PEFT.get(strategy, "lora(rank=2, layers=1)")
            given = {**TINY, "privacy": mechanism + noise, "strategy": strategy, "codec": codec, "peft": peft}
            folder = tmp_path / f"{mechanism}-{i}"
            try:
                simulation = Simulation(RunConfig(**given), folder, ConsoleObserver(Console(quiet=True)))
            except FedpeftError:
                continue  # refused, in a sentence
            folder.mkdir(parents=True, exist_ok=True)
            progress = simulation.train(simulation.server(Records(folder)))
            ran += 1
            assert progress.round == 1
            assert all(torch.isfinite(t).all() for t in progress.adapter.values())
            if mechanism == "none":
                continue
            assert isinstance(simulation.setup.strategy, LinearStrategy) or mechanism != "user_dp"
            accounts = set(simulation.protection.ledger.spent)
            assert accounts == ({POPULATION} if mechanism == "user_dp" else {0, 1, 2})
            if mechanism == "user_dp":
                released = progress.adapter
                if simulation.setup.strategy.new_factors:
                    released = in_first_factors(released, progress.started, simulation.setup.layout)
                moved = compute_norm({n: released[n] - progress.started[n] for n in released})
                # noise of z C / (q N) on every released entry, and a mean within C
                trained = simulation.setup.strategy.list_trained(simulation.setup.layout, 1)
                entries = sum(simulation.setup.layout.by_name[n].numel for n in trained)
                assert moved <= CLIP * (1 + 1.5 * entries**0.5 / 3)
                assert moved >= 0.5 * CLIP * entries**0.5 / 3
    if strategy in ("fedit", "ffa_lora", "rolora", "fedsvd", "flexlora", "krum"):
        assert ran
