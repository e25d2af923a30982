"""One client per owner, `--clients 0`, and partitions that need a number: refused before any example is read."""

from __future__ import annotations

import pytest

from fedpeft.data.datasets import code_types, office
from fedpeft.simulation.rows import SimulatedRows
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run
from tests.refusals import refuses


def fail(self):
    raise AssertionError("the examples are read")


@pytest.mark.parametrize(
    ("partition", "text"), [("auto", "dirichlet(alpha=0.5)"), ("iid", "iid"), ("resample(rows=5)", "resample(rows=5)")]
)
def test_a_partition_that_needs_a_number_is_refused_early(monkeypatch, partition, text):
    monkeypatch.setattr(code_types.CodeTypes, "load", fail)
    with refuses("FP1781", "--clients 0", text, "--partition natural"):
        SimulatedRows.load(parse_run(RunConfig(dataset="code_types", clients=0, partition=partition)), 0)


def test_datasets_whose_own_partition_is_natural_need_no_number(monkeypatch):
    made = SimulatedRows.load(parse_run(RunConfig(dataset="office(rows=2, test_rows=1)", clients=0)), 0)
    assert len(made.partition) == len(office.KINDS)
