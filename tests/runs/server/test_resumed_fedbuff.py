"""A FedBuff run that is interrupted and resumed is the run without an interruption, bit for bit."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedpeft.aggregation.safeguard import SafeguardState
from fedpeft.aggregation.safeguards.undo import Undo
from fedpeft.communication.downlink import Package, SentState
from fedpeft.communication.messages import Instruction, Report
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.rounds.acceptance import ReportReceiver
from fedpeft.rounds.in_flight import InFlight
from fedpeft.rounds.progress import Checkpoints, RunStore
from fedpeft.simulate import main
from fedpeft.simulation.grid import CohortGrid
from tests.conftest import SilentObserver
from tests.here import Direct, Federation
from tests.runs.server.test_fedbuff import TINY, adapter

ROUNDS = 6
BUFFERED = [*TINY, "--strategy", "fedbuff(buffer=2)", "--rounds", str(ROUNDS)]
TIMES = ("seconds", "training_seconds", "aggregation_seconds")
STATEFUL = ("--codec", "ef14 | small")
SETTINGS = {"plain": (), "memories and versions of the state": STATEFUL}


class CutError(Exception):
    pass


def lines(folder: Path, name: str) -> list[dict]:
    found = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in found]


def same_run(one: Path, other: Path) -> None:
    """Assert that both folders hold the same run: adapter, records, and the last checkpoint's clients in flight."""
    first, second = adapter(one), adapter(other)
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in ("clients.jsonl", "rounds.jsonl"):
        assert lines(one, name) == lines(other, name)
    last, again = (Checkpoints(folder / "checkpoint").load() for folder in (one, other))
    assert [s.instruction for s in last.in_flight.sent] == [s.instruction for s in again.in_flight.sent]


def cut_at(owner: type, name: str, count: int, run: Callable[[], int]) -> None:
    """Run until `owner.name` is called for the `count`th time."""
    real, calls = getattr(owner, name), []

    def counted(*given, **more):
        calls.append(0)
        if len(calls) == count:
            raise CutError
        return real(*given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, counted)
        with pytest.raises(CutError):
            run()


def resumed_as_unbroken(folder: Path, words: list[str], cuts: list[tuple[type, str, int]]) -> None:
    assert main([*words, "--output", str(folder / "whole")]) == 0
    cut = folder / "cut"
    for owner, name, count in cuts:
        again = ["--resume", str(cut)] if cut.exists() else [*words, "--output", str(cut)]
        cut_at(owner, name, count, lambda again=again: main(again))
    assert main(["--resume", str(cut)]) == 0
    same_run(folder / "whole", cut)


BETWEEN_ROUNDS = [(ConsoleObserver, "round_done", 1), (ConsoleObserver, "round_done", 3)]
WITHIN_ROUNDS = [(ReportReceiver, "add", 4), (CohortGrid, "pull_messages", 1), (RunStore, "_tell", 2)]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_run_that_is_interrupted_between_rounds_is_the_unbroken_run(tmp_path, settings):
    resumed_as_unbroken(tmp_path, [*BUFFERED, *SETTINGS[settings]], BETWEEN_ROUNDS)
    staleness = {line.get("staleness") for line in lines(tmp_path / "cut", "clients.jsonl")}
    assert staleness & {1, 2}, "nobody was in flight between two rounds"


@pytest.mark.parametrize("settings", ["plain", "memories and versions of the state"])
def test_a_run_that_is_interrupted_within_a_round_is_the_unbroken_run(tmp_path, settings):
    resumed_as_unbroken(tmp_path, [*BUFFERED, *SETTINGS[settings]], WITHIN_ROUNDS)


def test_batteries_are_as_full_in_a_resumed_run_as_in_the_unbroken_run(tmp_path):
    """A client's battery is drained in the round that takes its update, not in the round that asked for it."""
    profiles = tmp_path / "clients.toml"
    profiles.write_text(
        "[[profile]]\ncount = 8\nbattery_wh = 0.007\ncharge_watts = 1\nstep_seconds = 1.0\n", encoding="utf-8"
    )
    words = ["--clients", str(profiles), "--measure", "energy(watts=5, idle_watts=1, round_hours=0.001)"]
    resumed_as_unbroken(tmp_path, [*BUFFERED, *words], BETWEEN_ROUNDS)
    assert any("battery" in line.get("rejected", "") for line in lines(tmp_path / "cut", "clients.jsonl"))


def test_updates_in_flight_when_a_step_is_undone_lower_the_rate_once_after_a_restart_too(tmp_path, monkeypatch):
    """The safeguard undoes all steps: those of clients that were sent the higher rate must not lower it again."""

    def judge(_self, loss, standing):
        start = math.isinf(standing.lowest)
        return start, SafeguardState(min(standing.lowest, loss), standing.rate * (1 if start else 0.25))

    monkeypatch.setattr(Undo, "judge", judge)
    words = [*BUFFERED, "--measure", "validation(every=1)"]
    resumed_as_unbroken(tmp_path, words, [(ConsoleObserver, "round_done", 1), (ConsoleObserver, "round_done", 1)])
    rates = [line["learning_rate"] for line in lines(tmp_path / "cut", "rounds.jsonl")[1:]]
    assert len(set(rates)) > 1
    assert Checkpoints(tmp_path / "cut" / "checkpoint").load().standing.rate > 0.25**ROUNDS


def test_bytes_that_are_sent_to_real_clients_again_count(tmp_path, monkeypatch):
    """Clients answer one at a time; those that have not when the server stops are sent their instructions again."""
    real = Direct.pull_messages

    def pull_one(grid, message_ids):
        ready = real(grid, message_ids)
        grid._ready = ready[1:]
        return ready[:1]

    monkeypatch.setattr(Direct, "pull_messages", pull_one)
    given = {"strategy": "fedbuff(buffer=1)", "clients": 4, "rounds": 3, "safeguard": "none"}
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    runs = {name: Federation(tmp_path / name, SilentObserver(), **given) for name in ("whole", "cut")}
    runs["whole"].run()
    cut_at(RunStore, "_tell", 2, runs["cut"].run)
    before = Checkpoints(tmp_path / "cut" / "server" / "checkpoint").load()
    waiting = {i.client for wave in before.in_flight.iterate_waves() for i in wave}
    resent = sum(s.bytes for s in before.in_flight.sent if s.instruction.client in waiting)
    runs["cut"].start(runs["cut"].server.edges)
    runs["cut"].run()
    whole, cut = (lines(tmp_path / name / "server", "rounds.jsonl") for name in runs)
    assert resent > 0
    assert [line["round"] for line in cut] == [line["round"] for line in whole]
    for line, plain in zip(cut, whole, strict=True):
        expected = resent if line["round"] == before.round + 1 else 0
        assert line["downlink_bytes"] - plain["downlink_bytes"] == expected


POINTS = [
    (CohortGrid, "push_messages", 2),
    (ReportReceiver, "add", 3),
    (RunStore, "_tell", 3),
    (Checkpoints, "save", 2),
]

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([__name__, "fedpeft.simulation.simulation", "fedpeft.clients.preload"])


def killed_at(owner: type, name: str, count: int, words: list[str]) -> None:
    """Run a simulation, and kill this process at the `count`th call of `owner.name`."""
    real, calls = getattr(owner, name), []

    def counted(*given, **more):
        calls.append(0)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **more)

    setattr(owner, name, counted)
    raise SystemExit(main(words))


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), STATEFUL], ids=["plain", "stateful"])
def test_a_run_that_is_killed_again_and_again_is_the_unbroken_run(tmp_path, more):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*BUFFERED, *more, "--output", str(whole)]) == 0
    for owner, name, count in POINTS:
        words = ["--resume", str(cut)] if (cut / "checkpoint").exists() else [*BUFFERED, *more, "--output", str(cut)]
        process = _forks.Process(target=killed_at, args=(owner, name, count, words))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, f"{owner.__name__}.{name} was not reached"
    assert main(["--resume", str(cut)]) == 0
    same_run(whole, cut)


@pytest.mark.fast
def test_clients_in_flight_come_back_from_a_checkpoint_as_they_were():
    shared = {"a": torch.arange(6.0).reshape(2, 3), "empty": torch.zeros(0)}
    others = {"a": shared["a"][:1]}
    asked = [
        Instruction("train", round_number, k, b"x" * round_number, 1e-3, trained=(0, 2), bits=0.1)
        for k, round_number in enumerate((1, 2, 2))
    ]
    states = (shared, others, others)
    sent = tuple(SentState(i, Package(i.payload, s, None, (1, 0)), 7) for i, s in zip(asked, states, strict=True))
    report = Report(1, 2, b"update", rows=3, loss=math.inf, error="é\ud800", correction=b"c", used=2)
    before = InFlight(sent, (report,))
    after = InFlight.from_tensors(before.to_tensors())
    assert after.arrived == before.arrived
    assert [s.instruction for s in after.sent] == asked
    assert [(s.package.base, s.package.ranks, s.base_bytes) for s in after.sent] == 3 * [(None, (1, 0), 7)]
    for one, other in zip(after.sent, states, strict=True):
        assert one.package.state.keys() == other.keys()
        assert all(torch.equal(one.package.state[name], other[name]) for name in other)
    assert after.sent[1].package.state is after.sent[2].package.state, "what clients share is kept once"
    assert [[i.client for i in wave] for wave in after.iterate_waves()] == [[0], [2]]
    assert replace(before, sent=(), arrived=()).to_tensors() == {}
