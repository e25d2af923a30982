"""Secure sums in whole runs: exact whoever drops out, nothing of a single client at the server, refusals."""

from __future__ import annotations

import pytest
from fedpeft.clients.masking import FILE
from rich.console import Console

from fedpeft.communication.messages import Instruction
from fedpeft.privacy.secure_sum.announcement import Announcement
from fedpeft.privacy.secure_sum.contribution import BESIDE
from fedpeft.privacy.secure_sum.sum import parse_privacy
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.refusals import has_error, refuses
from tests.runs.privacy.test_masked_runs import TINY

# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"strategy": "krum"}, ("FP7100", "krum", "use fedit")),
        ({"strategy": "median"}, ("FP7100", "median")),
        ({"strategy": "flora"}, ("FP7100", "flora")),
        ({"strategy": "fedsa_lora"}, ("FP7100", "fedsa_lora")),
        ({"strategy": "norm_bound"}, ("FP7100", "norm_bound")),
        ({"strategy": "fedbuff"}, ("FP7100", "fedbuff")),
        ({"codec": "small"}, ("FP7101",)),
        ({"drift": "scaffold", "optimizer": "sgd"}, ("FP7103", "scaffold")),
        ({"clients": 2, "cohort": "all"}, ("FP7079", "3", "2")),
        ({"privacy": "secure_sum(bits=6)"}, ("FP7078", "7")),
        ({"privacy": "secure_sum(bits=5)"}, ("FP1227", "bits")),
        ({"privacy": "secure_sum(epsilon=1)"}, ("FP1225", "epsilon")),
    ],
)
def test_what_is_no_sum_is_refused(tmp_path, given, says):
    with refuses(*says):
        Simulation(RunConfig(**{**TINY, **given}), tmp_path, ConsoleObserver(Console(quiet=True)))


def test_clients_say_nothing_without_masks(tmp_path):
    simulation = Simulation(RunConfig(**TINY), tmp_path, ConsoleObserver(Console(quiet=True)))
    for asked in (
        Instruction("train", 1, 0, b""), Instruction("prepare", 0, 0, b""), Instruction("evaluate", 1, 0, b"", step=3)
    ):  # fmt: skip
        with refuses("FP7002", "without masks"):
            simulation.workers.answer(asked)
    plain = Simulation(RunConfig(**{**TINY, "privacy": ""}), tmp_path, ConsoleObserver(Console(quiet=True)))
    with refuses("FP7002", "for a secure sum"):
        plain.workers.answer(Instruction("sum", 1, 0, b"", step=1))


def test_a_step_out_of_turn_is_a_dropout(tmp_path):
    workers = Simulation(RunConfig(**TINY), tmp_path, ConsoleObserver(Console(quiet=True))).workers
    assert has_error(workers.answer(Instruction("sum", 1, 0, b"", step=2)).error, "FP6018")
    told = Announcement(bytes(16), 5, 10, BESIDE, 1.0).to_bytes()
    assert not workers.answer(Instruction("sum", 1, 0, b"", step=1, said=told)).error
    assert has_error(workers.answer(Instruction("sum", 1, 0, b"", step=4)).error, "FP6132", "4", "1")
    assert not (tmp_path / "clients" / "000000" / FILE).exists()


def test_other_mechanisms_are_what_they_were():
    assert parse_privacy("dp_sgd(epsilon=8)").name == "dp_sgd"
    assert parse_privacy("secure_sum(bits=12)").bits == 12
