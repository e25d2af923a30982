"""The kit for a CUDA machine: what it measures, on the CPU with tiny models; and how it stops and goes on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from experiments.gpu.__main__ import Settings, main, run_steps
from experiments.gpu.assets import collect
from experiments.gpu.kit import Kit
from experiments.gpu.measures import load_of, measure_parity, measure_ratio, train_clients
from experiments.gpu.page import render_page
from experiments.gpu.record import Record
from experiments.gpu.shapes import LLAMA_1B, MINILM
from experiments.gpu.steps import explain_omission
from experiments.gpu.training import BATCHED, PLAIN, SEQUENTIAL, compute_distance
from experiments.gpu.worker import Worker
from tests.experiments.few_steps import few
from tests.unit.experiments.test_gpu_kit import MACHINE, kit

# ------------------------------------------------------------------------------------------------------ what is trained


@pytest.mark.slow
@pytest.mark.parametrize("shape", [MINILM, LLAMA_1B])
def test_all_ways_train_the_same(shape, tmp_path):
    load = replace(load_of(kit(tmp_path), shape, "fp32", 2, 2, 2, 16), optimizer="sgd", rate=0.1)
    start, found = load.start(), {name: train_clients(load, name, "cpu") for name in (BATCHED, SEQUENTIAL, PLAIN)}
    for name in (BATCHED, PLAIN):
        for ours, one in zip(found[name], found[SEQUENTIAL], strict=True):
            assert compute_distance(ours.state, one.state, start) < 1e-4, name
            assert ours.loss == pytest.approx(one.loss, rel=1e-5)


@pytest.mark.slow
def test_parity_of_the_cpu_with_itself(tmp_path):
    row = measure_parity(kit(tmp_path), MINILM, "int8")
    assert row["gradients differ by"] == 0
    assert row["loss, CPU"] == row["loss, here"]


@pytest.mark.slow
def test_a_point_of_the_curve(tmp_path):
    row = measure_ratio(kit(tmp_path), MINILM, 32)
    assert row["tokens of a client's step"] == 32
    assert row["plain / batched"] > 0


# --------------------------------------------------------------------------------------------- stopping and going on


@pytest.fixture
def worker(tmp_path):
    made = Worker(Kit("cpu", tmp_path), few, tmp_path / "log")
    yield made
    made.close()


def test_a_step_that_fails_dies_or_takes_too_long_stops_no_other(tmp_path, worker):
    record, said = Record(tmp_path / "found.json", MACHINE), []
    run_steps(record, few(), worker, 3600, explain_omission, said.append)
    found = {name: (outcome.status, outcome.reason) for name, outcome in record.outcomes.items()}
    assert found["quick"] == found["again"] == ("done", "")
    assert found["slow"] == ("too slow", "not done after 0 s")
    assert found["wrong"] == ("failed", "ValueError: no such kernel")
    assert found["dies"][0] == "failed"
    assert "no_such_package" in found["missing"][1]
    assert "--assets FOLDER" in found["real"][1]
    assert found["large"][0] == "left out"
    assert record.outcomes["quick"].row["process"] != record.outcomes["again"].row["process"]
    assert "and more" in (tmp_path / "log").read_text()
    assert len(said) == len(few())
    text = render_page(record, few(), "the command")
    assert all(step.name in text for step in few() if record.outcomes[step.name].status != "done")
    assert "<td>42</td>" in text


@pytest.mark.long
def test_the_whole_kit_on_the_cpu(tmp_path):
    """Every step but Ray's, with real weights of the tiny model."""
    collect(tmp_path / "assets", "tiny", "tiny")
    settings = Settings(60, tmp_path / "assets", output=tmp_path / "gpu.json", device="cpu", tiny=True)
    main(settings)
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: step["reason"] for name, step in record["steps"].items() if step["status"] != "done"} == {}
    assert (tmp_path / "gpu.html").read_text().count("<table>") == 9
