"""Secure sums in whole runs: exact whoever drops out, nothing of a single client at the server, refusals."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from fedpeft.clients.masking import FILE
from rich.console import Console

from fedpeft.aggregation.safeguard import SafeguardState
from fedpeft.aggregation.safeguards.undo import Undo
from fedpeft.communication.messages import Instruction, Report
from fedpeft.privacy.secure_sum.coordinator import Coordinator
from fedpeft.privacy.secure_sum.masks import unpack
from fedpeft.privacy.secure_sum.member import Member
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.records import Records
from fedpeft.rounds.exchange import Transport
from fedpeft.rounds.progress import Checkpoints, ServerState
from fedpeft.rounds.rounds import Server
from fedpeft.simulate import simulate
from fedpeft.simulation.simulation import Simulation
from fedpeft.study.measures import BY_KEY
from fedpeft.study.results import read_run
from fedpeft.wiring.config import RunConfig
from tests.refusals import refuses

TINY = {"dataset": "tiny", "tokens": 32, "clients": 6, "cohort": 5, "rounds": 2, "workers": 1, "seed": 3,
        "head": "zero", "local_work": "steps(2)", "peft": "lora(rank=2, layers=1)", "dtype": "fp32",
        "learning_rate": 3e-3, "optimizer": "adamw(warmup=8, head_rate=1.0)", "privacy": "secure_sum(threshold=0.5)",
        "measure": "validation(every=100)", "safeguard": "none"}  # fmt: skip


def trained(folder: Path, **given) -> ServerState:
    simulation = Simulation(RunConfig(**{**TINY, **given}), folder, ConsoleObserver(Console(quiet=True)))
    folder.mkdir(parents=True, exist_ok=True)
    return simulation.train(simulation.server(Records(folder)))


def same(one: ServerState, other: ServerState) -> bool:
    return all(torch.equal(tensor, other.adapter[name]) for name, tensor in one.adapter.items())


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


class Plain(Member):
    """A member whose masks are off: its integers as they are."""

    def vector(self, sealed, numbers):
        from fedpeft.privacy.secure_sum.masks import pack

        super().vector(sealed, numbers)
        return pack(numbers, self.terms.bits)


def plain_sum(self):
    return self._sum.copy()


@pytest.mark.fast("one secure sum")
@pytest.mark.parametrize("strategy", ["fedit", "rolora"])
def test_a_run_is_that_of_the_plain_sums_bit_for_bit(tmp_path, monkeypatch, strategy):
    masked = trained(tmp_path / "masked", strategy=strategy)
    monkeypatch.setattr("fedpeft.clients.masking.Member", Plain)
    monkeypatch.setattr(Coordinator, "sum", plain_sum)
    plain = trained(tmp_path / "plain", strategy=strategy)
    assert same(masked, plain)
    assert masked.losses == plain.losses


def test_a_run_comes_close_to_one_without_masks(tmp_path):
    masked = trained(tmp_path / "masked", head="ridge")
    plain = trained(tmp_path / "plain", head="ridge", privacy="")
    moved = sum(float((t - plain.started[n]).square().sum()) for n, t in plain.adapter.items()) ** 0.5
    apart = sum(float((t - masked.adapter[n]).square().sum()) for n, t in plain.adapter.items()) ** 0.5
    assert 0 < apart < 0.02 * moved
    assert masked.losses == pytest.approx(plain.losses, rel=1e-3)
    for name, tensor in plain.started.items():  # the head, from sums that are exact but for their unit
        torch.testing.assert_close(masked.started[name], tensor, rtol=1e-3, atol=1e-3)


class Dropping:
    """Lets clients drop out before a step: what they answer does not arrive."""

    def __init__(self, monkeypatch, dropping: dict[int, tuple[int, ...]], round_number: int = 2):
        self.seen: list[tuple[Instruction, Report]] = []
        real = Transport.send_in_order

        def in_order(exchange, instructions, total, phase, *early):
            asked = list(instructions)
            by_client = {i.client: i for i in asked}
            for report in real(exchange, asked, total, phase, *early):
                instruction = by_client[report.client]
                gone = instruction.round == round_number and report.client in dropping.get(instruction.step, ())
                self.seen.append((instruction, report))
                yield Report(report.client, report.round, b"", error="gone") if gone else report

        monkeypatch.setattr(Transport, "send_in_order", in_order)


@pytest.mark.parametrize("step", [3, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 2, 4, 5))])
def test_a_run_with_dropouts_is_that_of_those_who_have_sent(tmp_path, monkeypatch, step):
    with monkeypatch.context() as patch:
        Dropping(patch, {step: (2,)})
        masked = trained(tmp_path / "masked", clients=5, cohort="all")
    taken = [
        line["client"]
        for line in lines(tmp_path / "masked", "clients.jsonl")
        if line["round"] == 2 and "rejected" not in line
    ]
    assert taken == ([0, 1, 3, 4] if step <= 3 else [0, 1, 2, 3, 4])
    assert masked.acknowledged == {k: 2 if k in taken else 1 for k in range(5)}
    monkeypatch.setattr("fedpeft.clients.masking.Member", Plain)
    monkeypatch.setattr(Coordinator, "sum", plain_sum)
    Dropping(monkeypatch, {min(step, 3): (2,)} if step <= 3 else {})
    assert same(masked, trained(tmp_path / "plain", clients=5, cohort="all"))


def test_a_void_round_leaves_the_model_and_the_run_goes_on(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(ConsoleObserver, "say", lambda self, text: said.append(text))
    Dropping(monkeypatch, {4: (0, 1, 2)}, round_number=1)
    after = trained(tmp_path, clients=5, cohort="all", rounds=2)
    first, second = lines(tmp_path, "rounds.jsonl")[-2:]
    assert (first["rejected"], first["update_norm"], first["train_loss"]) == (5, 0.0, None)
    assert (second["rejected"], second["update_norm"] > 0, len(after.losses)) == (0, True, 1)
    assert any("round 1:" in text and "the model stays as it is" in text for text in said)
    assert all("void" in line["rejected"] for line in lines(tmp_path, "clients.jsonl")[:5])


def test_no_sum_before_round_1_is_one_sentence(tmp_path, monkeypatch):
    Dropping(monkeypatch, {2: (0, 1, 2, 3)}, round_number=0)
    with refuses("FP5198"):
        trained(tmp_path)


def test_the_server_hears_nothing_but_uniform_bytes(tmp_path, monkeypatch):
    """Of every step that brings numbers; equal rounds have other bytes, and without masks the same test fails."""

    def nibbles(folder, patch) -> tuple[list[bytes], list[float]]:
        seen = Dropping(patch, {}).seen
        trained(folder, rounds=1, head="ridge")
        vectors = [(i, r) for i, r in seen if i.step == 3]
        assert {i.kind for i, _ in vectors} == {"prepare", "train"}
        assert all((r.rows, r.steps, r.loss, r.seconds, r.used) == (0, 0, 0.0, 0.0, 0) for _, r in seen)
        statistics = []
        for instruction, report in vectors:
            bits = 16 if instruction.kind == "train" else 32
            numbers = unpack(report.payload, 8 * len(report.payload) // bits, bits)
            for shift in (0, bits - 4):
                counts = np.bincount((numbers >> shift) & 15, minlength=16)
                statistics.append(float(((counts - counts.mean()) ** 2 / counts.mean()).sum()))
        return [report.payload for _, report in vectors], statistics

    with monkeypatch.context() as patch:
        first, statistics = nibbles(tmp_path / "first", patch)
    assert max(statistics) < 60  # 15 degrees of freedom: p = 2e-7 for each of 22
    with monkeypatch.context() as patch:
        second, _ = nibbles(tmp_path / "second", patch)
    assert not set(first) & set(second)
    monkeypatch.setattr("fedpeft.clients.masking.Member", Plain)
    monkeypatch.setattr(Coordinator, "sum", plain_sum)
    _, statistics = nibbles(tmp_path / "bare", monkeypatch)
    assert min(statistics[1::2]) > 1000


def test_nothing_of_a_single_client_is_recorded(tmp_path):
    trained(tmp_path)
    for line in lines(tmp_path, "clients.jsonl"):
        assert {name for name, value in line.items() if value is not None} <= {
            "round", "client", "rank", "uplink_bytes", "downlink_bytes", "downlink_from", "base_precision"
        }  # fmt: skip
    assert all(line["train_loss"] > 0 for line in lines(tmp_path, "rounds.jsonl")[1:])


def test_a_study_reads_a_run_whose_clients_tell_no_steps(tmp_path):
    simulate(RunConfig(**TINY), tmp_path / "run", False, Console(quiet=True))
    result = read_run(tmp_path / "run")
    assert result.is_finished
    assert (result.local_steps, result.trained_rows) == (None, None)
    assert BY_KEY["local_steps"].value(result) is None


def test_a_killed_run_goes_on_with_identical_results(tmp_path, monkeypatch):
    whole = trained(tmp_path / "whole", rounds=3)
    real = Server.commit

    def killed(self, progress):
        real(self, progress)
        if progress.round == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Server, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "killed", rounds=3)
    assert same(whole, trained(tmp_path / "killed", rounds=3))


def test_secrets_lie_where_nobody_else_reads_and_not_for_long(tmp_path, monkeypatch):
    modes: list[int] = []
    real = Transport.send_in_order

    def in_order(exchange, *given):
        yield from real(exchange, *given)
        modes.extend(stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "clients").glob(f"*/{FILE}"))

    monkeypatch.setattr(Transport, "send_in_order", in_order)
    trained(tmp_path)
    assert modes
    assert set(modes) == {0o600}
    assert not list((tmp_path / "clients").glob(f"*/{FILE}"))


def test_after_an_undone_round_the_grid_reaches_as_far_as_the_lower_rate_leads(tmp_path, monkeypatch):
    clips, verdicts = [], iter([True, True, False, True])
    monkeypatch.setattr(
        Undo, "judge", lambda _self, _loss, s: (True, s) if next(verdicts) else (False, SafeguardState(1, 0.01))
    )
    monkeypatch.setattr(
        ConsoleObserver,
        "round_done",
        lambda _self, _result: clips.append(Checkpoints(tmp_path / "run" / "checkpoint").load().clip),
    )
    given = {"rounds": 3, "safeguard": "undo", "optimizer": "adamw(warmup=8, head_rate=1.0, schedule=constant)"}
    trained(tmp_path / "run", **given)
    assert clips[1] == pytest.approx(0.01 * clips[0])
    assert clips[2] < 3 * clips[1], "updates at the lower rate are about as long as was foreseen"
