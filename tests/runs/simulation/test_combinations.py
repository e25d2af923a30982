"""Strategies on both executors, and PEFT methods on every kind of base: a few of them fast, all of them slow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console

from fedpeft.errors import ModelError
from fedpeft.parts.families import PEFT_METHODS, strategies
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.records import Records
from fedpeft.rounds.progress import ServerState
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.grid import EXECUTORS
from tests.covering import cover, make_pairs
from tests.runs.simulation.test_run_strategies import settings

BASES = {"tiny": "tiny", "tiny_lm": "tiny_lm", "tiny_vision": "digits", "tiny_seq2seq": "tiny_seq2seq"}
"""A base of each kind, and a data set for it."""

METHODS = sorted({*PEFT_METHODS.names} - {"adapter_fusion"})  # which needs finished runs: test_run_peft_methods.py
RULES = {"vera": "rolora", "adalora": "flexlora", "lora_gram": "florg"}
NO_CLASSIFIER = ("tiny_lm", "tiny_seq2seq")
NO_TOKENS_OR_TWO_STACKS = ("tiny_vision", "tiny_seq2seq")
REFUSED = {
    "bitfit": ("tiny_lm", "tiny_seq2seq"), "head2toe": NO_CLASSIFIER, "linear_probe": NO_CLASSIFIER,
    "whitened_probe": (*NO_CLASSIFIER, "tiny"), "p_tuning": NO_TOKENS_OR_TWO_STACKS,
    "prompt_tuning": NO_TOKENS_OR_TWO_STACKS, "prompt_ensemble": NO_TOKENS_OR_TWO_STACKS,
    "prefix_tuning": ("tiny_seq2seq",), "prefix_tuning_plus": ("tiny_seq2seq",),
    "unipelt": ("tiny_seq2seq",),
}  # fmt: skip
"""The bases that a method refuses."""

PAIRS = make_pairs(METHODS, list(BASES), lambda method, base: base not in REFUSED.get(method, ()))
SMALL = {"tokens": 16, "clients": 2, "cohort": "all", "rounds": 1, "workers": 1, "local_work": "steps(1)",
         "partition": "iid", "dtype": "fp32", "measure": "validation(every=9)"}  # fmt: skip


def train(folder: Path, **given: object) -> ServerState:
    """Return what a run has learned, without its last scores."""
    simulation = Simulation(RunConfig(**given), folder, ConsoleObserver(Console(quiet=True)))
    folder.mkdir(parents=True, exist_ok=True)
    return simulation.train(simulation.server(Records(folder)))


def assert_learned(progress: ServerState, rounds: int) -> None:
    assert progress.round == rounds
    assert all(bool(torch.isfinite(tensor).all()) for tensor in progress.adapter.values())
    assert any(bool(tensor.any()) for tensor in progress.adapter.values())


@pytest.mark.fast("each strategy, on alternating executors")
@pytest.mark.parametrize(("strategy", "executor"), cover(sorted(strategies.names), EXECUTORS))
def test_each_strategy_trains_on_an_executor(strategy, executor, tmp_path):
    """All pairs: `test_executors_agree_for_every_strategy`."""
    given = settings(strategy, dtype="fp32", grid=f"cohort(executor={executor})")
    assert_learned(train(tmp_path / "run", **given), 2)


def name_parts(method: str, base: str) -> dict[str, object]:
    return {"peft": method, "model": base, "dataset": BASES[base], "strategy": RULES.get(method, "fedit")}


@pytest.mark.parametrize(("method", "base"), PAIRS)
def test_each_method_trains_on_each_kind_of_base(method, base, tmp_path):
    assert_learned(train(tmp_path / "run", **SMALL, **name_parts(method, base)), 1)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "base"), [(method, base) for method, bases in REFUSED.items() for base in bases])
def test_a_method_that_does_not_fit_a_base_is_refused(method, base, tmp_path):
    with pytest.raises(ModelError):
        train(tmp_path / "run", **SMALL, **name_parts(method, base))


@pytest.mark.fast
def test_the_fast_selection_has_each_part():
    names = sorted(strategies.names)
    fast = [pair.values for pair in PAIRS if pair.marks[0].name == "fast"]
    assert [method for method, _ in fast] == METHODS
    assert {base for _, base in fast} == set(BASES)
    assert len(PAIRS) == len(METHODS) * len(BASES) - sum(map(len, REFUSED.values()))
    chosen = cover(names, EXECUTORS)
    assert [name for name, _ in chosen] == names
    assert {executor for _, executor in chosen} == set(EXECUTORS)
