"""The phases of a run beside the bound of their products: counts by hand, and the table."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from experiments.speed import limit
from experiments.speed.workload import SilentObserver
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig


def test_counted_operations_are_those_of_the_blocks_products(tmp_path: Path) -> None:
    config = RunConfig(dataset="tiny", clients=4, peft="lora(rank=1, layers=1)", workers=1, tokens=32)
    simulation = Simulation(config, tmp_path, SilentObserver())
    work = limit.count_operations(simulation)
    base = simulation.setup.task.base(simulation.setup.model_directory, torch.float32)
    width, inner, blocks = base.config.hidden_size, base.config.intermediate_size, base.config.num_hidden_layers
    products = 2 * (4 * width**2 + 2 * width * inner)
    assert work.below == pytest.approx((blocks - 1) * products, rel=0.1)  # the rest is attention
    assert work.adapted == pytest.approx(products, rel=0.2)  # and the adapter
    assert 1.5 * work.adapted <= work.step <= 2.5 * work.adapted  # no gradient leaves the lowest adapted block
    assert limit.count_tokens(simulation)["all"] == simulation.workers._lengths.sum()


def test_phases_without_products_are_added_up() -> None:
    cold, warm = {"loading": 2.0, limit.SCORE: 10.0, "rounds": 3.0}, {"loading": 1.0, limit.SCORE: 9.0, "rounds": 3.0}
    out = io.StringIO()
    Console(file=out, width=200).print(limit.build_table(cold, warm, {limit.SCORE: 4e12}, {limit.SCORE: 1e12}))
    words = [line.replace("│", " ").split() for line in out.getvalue().splitlines()]
    assert any(line == ["scoring", "10.0", "9.0", "4.00", "4.0", "40", "%"] for line in words)
    assert any(line[-2:] == ["5.0", "4.0"] for line in words)
    assert any(line[-2:] == ["15.0", "13.0"] for line in words)
