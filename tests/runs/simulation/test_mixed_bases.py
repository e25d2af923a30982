"""Cohorts whose clients hold the base and the adapter in different precisions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fedpeft.clients.client import ClientSide
from fedpeft.clients.own_bases import train_on_own_bases
from rich.console import Console
from torch import nn

from fedpeft.communication.base_residual import ResidualFiles
from fedpeft.data.cached_rows import load_cached_examples
from fedpeft.models.dtypes import DTYPES
from fedpeft.models.layers import find_linear_layers, replace
from fedpeft.models.quantized_base import PRECISIONS, QuantizedLinear, quantize, round_to_quantized
from fedpeft.peft import saved_adapter
from fedpeft.peft.adapter import State
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.final_score import save
from fedpeft.reporting.records import Records
from fedpeft.rounds.acceptance import ReportReceiver
from fedpeft.simulate import main
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig

TINY = {"dataset": "tiny", "tokens": 32, "clients": 6, "cohort": "all", "rounds": 2, "workers": 1,
        "local_work": "steps(2)",
        "peft": "lora(rank=4, layers=1)", "optimizer": "adamw", "learning_rate": 3e-3, "dtype": "fp32"}  # fmt: skip
MIXED = """
[[profile]]
count = 2
base = "nf4"
adapter = "bf16"
[[profile]]
count = 1
base = "int8"
[[profile]]
count = 1
base = "bf16"
[[profile]]
count = 2
"""


def profiles(folder: Path, text: str = MIXED) -> str:
    (folder / "given.toml").write_text(text)
    return str(folder / "given.toml")


def flags(folder: Path, **more) -> list[str]:
    given = TINY | more
    words = [word for name, value in given.items() for word in ("--" + name.replace("_", "-"), str(value))]
    return [*words, "--output", str(folder / "run")]


@pytest.mark.slow
@pytest.mark.parametrize("peft", [TINY["peft"], "bottleneck(dim=4) + bitfit", "ia3", "prefix(length=4)"])
def test_a_mixed_cohort_trains_and_is_scored_on_every_base(peft, tmp_path, capsys):
    assert main(flags(tmp_path, clients=profiles(tmp_path), codec="small", peft=peft)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["accuracy_by_base"].keys() == {"fp32", "nf4", "int8", "bf16"}
    assert summary["accuracy_by_base"]["fp32"] == summary["accuracy"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "clients.jsonl").read_text().splitlines()]
    assert not any("rejected" in line for line in lines)
    assert {line["client"]: line["base_precision"] for line in lines} == {
        **dict.fromkeys((0, 1), "nf4"), 2: "int8", 3: "bf16", **dict.fromkeys((4, 5), None)
    }  # fmt: skip
    assert "one after another" in capsys.readouterr().out.replace("\n", " ")


def test_clients_train_on_their_own_base_and_the_server_knows_what_they_hold(tmp_path, monkeypatch):
    """The deltas of two clients with the same rows differ by their bases; what a bf16 adapter holds are bf16 values."""
    folder = tmp_path / "run"
    folder.mkdir()
    simulation = Simulation(
        RunConfig(**TINY | {"clients": profiles(tmp_path)}), folder, ConsoleObserver(Console(quiet=True))
    )
    seen = {}
    report = ClientSide._report

    def spy(self, begun, result, seconds):
        seen[begun.job.client] = (
            begun.job.received,
            result.state,
            self.bench.set_precision(begun.instruction.base_precision),
        )
        return report(self, begun, result, seconds)

    monkeypatch.setattr(ClientSide, "_report", spy)
    received = {}
    add = ReportReceiver.add

    def note(self, report, sent):
        received[report.client] = sent.state
        return add(self, report, sent)

    monkeypatch.setattr(ReportReceiver, "add", note)
    simulation.train(simulation.server(Records(folder)))
    for client in range(6):
        start, after, _ = seen[client]
        assert all(torch.equal(start[n], received[client][n]) for n in start)
        is_bf16 = all(torch.equal(t, t.bfloat16().float()) for t in (*start.values(), *after.values()))
        assert is_bf16 == (client < 2)
    layers = [seen[client][2].executor.model for client in (0, 2, 4)]
    packed = [sum(isinstance(m, QuantizedLinear) for m in model.modules()) for model in layers]
    assert packed[0] > 0
    assert packed[1] > 0
    assert packed[2] == 0
    plain = simulation.setup.task.base(simulation.setup.model_directory, torch.float32)
    path, layer = next(reversed(find_linear_layers(plain).items()))
    held = seen[0][2].executor.get_frozen_layer(path)
    assert torch.equal(held.values(), round_to_quantized(layer.weight, "nf4"))


def made(folder: Path, **more) -> Simulation:
    folder.mkdir(exist_ok=True)
    return Simulation(RunConfig(**TINY | more), folder, ConsoleObserver(Console(quiet=True)))


class StopError(Exception):
    pass


def weight_of(layer: nn.Module) -> torch.Tensor:
    """Return the weights that a linear layer computes with, quantized or not."""
    return layer.values() if isinstance(layer, QuantizedLinear) else layer.weight.detach()


def weight_of_base(plain: Mapping[str, nn.Linear], module: str, base: str, residual: State) -> torch.Tensor:
    """Return a layer's weight in a precision, with the residual if there is one."""
    precision = base if base in PRECISIONS else ""
    weight = round_to_quantized(plain[module].weight.detach(), precision).to(DTYPES.get(base, torch.float32))
    return (weight.float() + residual[module]).to(weight.dtype) if residual else weight


@pytest.mark.parametrize("strategy", ["fedex_lora", pytest.param("flora", marks=pytest.mark.slow)])
def test_what_exact_rules_put_into_the_base_reaches_every_precision(strategy, tmp_path, monkeypatch):
    """Each client trains on its own base + R, whether the run goes on or is resumed; each base is scored with R."""
    given = {"strategy": strategy, "clients": profiles(tmp_path), "rounds": 3, "head": "zero"}
    simulation = made(tmp_path / "run", **given)
    plain = find_linear_layers(simulation.setup.task.base(simulation.setup.model_directory, torch.float32))
    expected = partial(weight_of_base, plain)
    seen = []

    def look(workbench, rounds):
        results = train_on_own_bases(workbench, rounds)
        for asked in (client_round.instruction for client_round in rounds):
            bench, version = workbench.set_precision(asked.base_precision), asked.base
            residual = ResidualFiles(bench.plan.residuals).get(version)
            for module in {pair.module for pair in bench.plan.layout.pairs}:
                held = weight_of(bench.executor.get_frozen_layer(module))
                assert torch.equal(held, expected(module, asked.base_precision, residual))
            seen.append((asked.base_precision, version))
        return results

    monkeypatch.setattr("fedpeft.clients.client.train_on_own_bases", look)
    progress = simulation.train(simulation.server(Records(simulation.folder)))
    assert {(base, version) for base, version in seen if version == 2} == {(b, 2) for b in ("nf4", "int8", "bf16", "")}
    assert all(float(R.norm()) > 0 for R in progress.residual.total.values())

    save(simulation.setup, progress.adapter, simulation.folder, progress.residual.total)
    rows = load_cached_examples(simulation.workers.work.data_key).batch(np.arange(8))
    form = simulation.setup.layout.form
    for base in ("nf4", "int8", "bf16", "fp32"):
        reference = simulation.setup.task.base(simulation.setup.model_directory, DTYPES.get(base, torch.float32))
        quantize(reference, base if base in PRECISIONS else "")
        for pair in simulation.setup.layout.pairs:  # the sum as one dense weight, in a layer of its own
            layer = nn.Linear(pair.in_features, pair.out_features).requires_grad_(False)
            layer.bias = reference.get_submodule(pair.module).bias
            change = form.scale * progress.adapter[pair.B] @ progress.adapter[pair.A]
            whole = expected(pair.module, base, {}).float() + progress.residual.total[pair.module] + change
            layer.weight.data = whole.to(DTYPES.get(base, torch.float32))
            replace(reference, pair.module, layer)
        model = simulation.setup.task.model(reference, simulation.setup.facts.classes)
        model.load_state_dict({n: t for n, t in progress.adapter.items() if n.startswith("head.")}, strict=False)
        own = simulation.setup.task.base(simulation.setup.model_directory, DTYPES.get(base, torch.float32))
        quantize(own, base if base in PRECISIONS else "")
        loaded = saved_adapter.load(simulation.folder, simulation.setup.task, own, simulation.setup.facts.classes)
        with torch.no_grad():
            there, here = loaded(rows).float(), model.eval()(rows).float()
        assert torch.allclose(there, here, atol=3e-2 if base == "bf16" else 1e-4), base

    def stop(_self, result):
        if result.round == 2:
            raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(ConsoleObserver, "round_done", stop)
        cut = made(tmp_path / "cut", **given)
        with pytest.raises(StopError):
            cut.train(cut.server(Records(cut.folder)))
    resumed = made(tmp_path / "cut", **given)
    again = resumed.train(resumed.server(Records(resumed.folder)))
    assert all(torch.equal(again.adapter[n], t) for n, t in progress.adapter.items())
    assert all(torch.equal(again.residual.total[m], R) for m, R in progress.residual.total.items())
