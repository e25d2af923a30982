"""Cohorts whose clients hold the base and the adapter in different precisions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fedpeft.clients.client import ClientSide
from rich.console import Console

from fedpeft.adapter import held_in
from fedpeft.config import RunConfig
from fedpeft.console import ConsoleObserver
from fedpeft.layers import linear_layers
from fedpeft.quantized import QuantizedLinear, dequantized
from fedpeft.records import Records
from fedpeft.server import Server
from fedpeft.simulate import main
from fedpeft.simulation import Simulation

TINY = {"dataset": "tiny", "tokens": 32, "clients": 6, "cohort": "all", "rounds": 2, "workers": 1, "local_steps": 2,
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
def test_a_mixed_cohort_trains_and_is_scored_on_every_base(tmp_path, capsys):
    assert main(flags(tmp_path, profiles=profiles(tmp_path), codec="small")) == 0
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
        RunConfig(**TINY, profiles=profiles(tmp_path)), folder, ConsoleObserver(Console(quiet=True))
    )
    seen = {}
    report = ClientSide._report

    def spy(self, task, result, seconds):
        seen[task.job.client] = (task.job.received, result.state, self.bench.at(task.instruction.base_precision))
        return report(self, task, result, seconds)

    monkeypatch.setattr(ClientSide, "_report", spy)
    received = {}
    take = Server._take

    def note(self, report, round, sent, total, tally, progress):
        package = sent.package(self.form(report.client, progress), 0, newcomer=not progress.acknowledged)
        received[report.client] = held_in(package.state, self.profiles[report.client].adapter)
        return take(self, report, round, sent, total, tally, progress)

    monkeypatch.setattr(Server, "_take", note)
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
    plain = simulation.task.base(simulation.model_directory, torch.float32)
    path, layer = next(reversed(linear_layers(plain).items()))
    held = seen[0][2].executor.frozen(path)
    assert torch.equal(held.values(), dequantized(layer.weight, "nf4"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"strategy": "fedex_lora"}, "would lose it"),
        ({"dtype": "fp64"}, "leave base out"),
        ({"text": '[[profile]]\ncount = 6\nbase = "int3"\n'}, "must be one of"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(tmp_path, capsys, more, words):
    given = profiles(tmp_path, more.pop("text", MIXED))
    assert main(flags(tmp_path, profiles=given, **more)) == 2
    assert words in capsys.readouterr().err.replace("\n", " ")


def test_a_missing_bitsandbytes_is_named_before_anything_is_trained(tmp_path, capsys, monkeypatch):
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a))
    assert main(flags(tmp_path, profiles=profiles(tmp_path))) == 2
    assert "pip install 'fedpeft[quantized]'" in capsys.readouterr().err.replace("\n", " ")
