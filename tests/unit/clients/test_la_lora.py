"""LA-LoRA: factors take turns, gradients are smoothed after the noise, and what it would be wrong with is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fedpeft.clients.corrections.la_lora import smooth_rows
from fedpeft.clients.drift import parse_drift
from rich.console import Console

from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.refusals import refuses
from tests.runs.clients.test_la_lora import TINY


def test_smoothing_is_the_convolution_written_out():
    rows = torch.randn(3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = np.array([1, 4, 6, 4, 1]) / 16
    for row, found in zip(rows.numpy(), smooth_rows(rows).numpy(), strict=True):
        wide = [row[0], row[0], *row, row[-1], row[-1]]
        expected = [sum(w[i] * wide[n + i] for i in range(5)) for n in range(9)]
        assert np.allclose(found, expected, atol=1e-12)
    assert torch.allclose(smooth_rows(torch.ones(2, 6)), torch.ones(2, 6))


def test_b_takes_the_odd_steps_and_a_the_even_ones():
    (rule,) = parse_drift("la_lora").corrections
    name_a, name_b, head = "layer.lora_A.weight", "layer.lora_B.weight", "head.weight"
    assert [[rule.moves(n, step) for n in (name_a, name_b, head)] for step in range(3)] == [
        [False, True, True],
        [True, False, True],
        [False, True, True],
    ]


REFUSED = {
    "one factor is frozen": {"strategy": "ffa_lora"},
    "no factors": {"peft": "ia3(layers=0)"},
    "factors with other names": {"peft": "lora_sb(rank=4)", "strategy": "fed_sb"},
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_would_be_wrong_with_is_refused(case, tmp_path):
    with refuses("FP1339", "la_lora", "....lora_A.weight"):
        Simulation(RunConfig(**(TINY | REFUSED[case])), tmp_path / "run", ConsoleObserver(Console(quiet=True)))


def test_variates_of_tensors_that_take_turns_are_refused():
    with refuses("FP1007"):
        parse_drift("scaffold + la_lora")
    assert str(parse_drift("fedprox + la_lora(smooth=False)")) == "fedprox + la_lora(smooth=False)"
