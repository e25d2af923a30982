"""Where a run's time goes, and that it is never silent for long."""

from __future__ import annotations

import io
import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from rich.console import Console

from fedpeft.reporting import workers
from fedpeft.reporting.console import ConsoleObserver, ServeObserver
from fedpeft.reporting.observer import RoundResult
from fedpeft.reporting.phases import Heartbeat, Phases


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_each_phase_has_its_seconds_and_one_that_comes_again_goes_on():
    clock = Clock()
    phases = Phases(clock)
    for name, seconds in (("rows", 2), ("rounds", 30), ("rows", 3), ("score", 5)):
        phases.enter(name)
        clock.now += seconds
    assert phases.seconds == {"rows": 5, "rounds": 30, "score": 5}
    clock.now += 1
    assert list(phases.seconds.items()) == [("rows", 5), ("rounds", 30), ("score", 6)]


def test_nothing_has_begun_and_nothing_has_taken_time():
    assert Phases().seconds == {}


def test_a_phase_says_how_far_it_is():
    clock = Clock()
    phases = Phases(clock)
    phases.enter("frozen layers", 40)
    phases.advance(4)
    phases.advance(8)
    clock.now += 12.4
    assert str(phases) == "frozen layers: 12 of 40, 12 s"
    phases.enter("rounds")
    assert str(phases) == "rounds: 0 s"
    clock.now += 3
    phases.part("round 7")
    assert str(phases) == "round 7: 0 s"
    clock.now += 1
    phases.reach(3, 10)
    assert str(phases) == "round 7: 3 of 10, 1 s"
    assert phases.seconds == {"frozen layers": pytest.approx(12.4), "rounds": pytest.approx(4)}
    phases.enter("scoring", 2)
    assert str(phases) == "scoring: 0 of 2, 0 s"


def test_a_run_says_which_round_is_silent_and_that_the_last_is_over():
    observer = ConsoleObserver(Console(quiet=True))
    observer.begin_rounds(rounds=2, done=0)
    told = [str(observer.phases)]
    for round_number in (1, 2):
        observer.begin_part()
        for done in (0, 1):
            observer.client_done("train", done, 4)
            told.append(str(observer.phases))
        for part in ("aggregation", "validation"):
            observer.begin_part(part)
            told.append(str(observer.phases))
        observer.round_done(RoundResult(round_number, 4, 0, 0.5, None, None, 1, 1, 1.0, 1.0, 1.0))
        told.append(str(observer.phases))
    assert [text.removesuffix(" 0 s") for text in told] == [
        "round 1:", "round 1: 0 of 4,", "round 1: 1 of 4,", "round 1: aggregation:", "round 1: validation:",
        "round 2:", "round 2: 0 of 4,", "round 2: 1 of 4,", "round 2: aggregation:", "round 2: validation:",
        "after the last round:",
    ]  # fmt: skip
    observer.begin_rounds(rounds=2, done=2)
    assert str(observer.phases) == "after the last round: 0 s", "a run that goes on after its last round"


def test_before_round_1_what_is_counted_ends_with_its_last_client():
    observer = ConsoleObserver(Console(quiet=True))
    observer.phase("starting the workers", 1)
    told = []
    for phase, done in (("keys", 0), ("keys", 2), ("prepare", 0), ("prepare", 1), ("evaluate", 0)):
        observer.client_done(phase, done, 2)
        told.append(str(observer.phases))
    observer.begin_part("validation")
    told.append(str(observer.phases))
    assert [text.removesuffix(" 0 s") for text in told] == [
        "keys of the clients: 0 of 2,", "keys of the clients: 1 of 2,", "head statistics of the clients: 0 of 2,",
        "head statistics of the clients: 1 of 2,", "validation of the clients: 0 of 2,", "validation of the start:",
    ]  # fmt: skip


def test_rounds_go_on_after_a_wait_between_them():
    observer = ConsoleObserver(Console(quiet=True))
    observer.begin_rounds(rounds=3, done=1)
    observer.phase("waiting for clients", 0)
    observer.begin_part()
    observer.client_done("train", 1, 4)
    assert str(observer.phases) == "round 2: 1 of 4, 0 s"
    observer.client_done("evaluate", 0, 9)
    assert str(observer.phases) == "round 2: validation: 0 of 9, 0 s"
    assert list(observer.phases.seconds) == ["rounds", "waiting for clients"]


def test_workers_that_start_are_a_phase_of_their_own(monkeypatch):
    begun = []

    class Started:
        def __init__(self, *_):
            begun.append("pool")

        def submit(self, method):
            begun.append(method)
            future = Future()
            future.set_result(True)
            return future

    monkeypatch.setattr(workers, "Pool", Started)
    observer = ConsoleObserver(Console(quiet=True))
    observer.phase("tokenising the rows", 1)
    several = workers.Workers(None, None, SimpleNamespace(workers=2, cluster=None, devices=("cpu",)), observer)
    several.start()
    assert begun == ["pool", workers.Worker.is_ready, workers.Worker.is_ready]
    assert list(observer.phases.seconds) == ["tokenising the rows", "starting the workers"]
    observer.phase("the next one", 1)
    several.start()
    assert observer.phases.name == "the next one", "they have started"


def test_a_heart_beats_only_in_silence():
    beaten = threading.Event()
    with Heartbeat(beaten.set, silence=0.02):
        assert beaten.wait(60)
    kept = threading.Event()
    with Heartbeat(kept.set, silence=3600) as heart:
        heart.reset()
    assert not kept.is_set()


def observed(console):
    """Return what a silent run prints on a console after the first line that reports progress."""
    beaten = threading.Event()

    class Watched(ConsoleObserver):
        def _print_heartbeat(self):
            super()._print_heartbeat()
            beaten.set()

    with Watched(console, silence=0.02) as observer:
        observer.phase("loading libraries", 1)
        return beaten.wait(60 if not (console.quiet or console.is_terminal) else 0.2), observer


def test_where_the_output_is_a_file_a_silent_run_says_what_it_does():
    told = io.StringIO()
    beaten, observer = observed(Console(file=told, width=40))
    assert beaten
    assert told.getvalue().splitlines()[:2] == ["loading libraries", "...     loading libraries: 0 s"]
    assert list(observer.phases.seconds) == ["loading libraries"]


def test_a_wait_for_others_is_told_of_once_and_work_again_and_again():
    told = io.StringIO()
    observer = ConsoleObserver(Console(file=told, width=80))
    observer.phase("waiting for clients: 1 of 3", 0)
    observer._print_heartbeat()
    observer.wait("waiting for a task")
    for _ in range(3):
        observer._print_heartbeat()
    observer.enter("train round 1")
    for _ in range(2):
        observer._print_heartbeat()
    waited, worked = "...     waiting for a task: 0 s", "...     train round 1: 0 s"
    assert told.getvalue().splitlines() == ["waiting for clients: 1 of 3", waited, worked, worked]


def test_a_server_fills_silence_too():
    told = io.StringIO()
    observer = ServeObserver(Console(file=told, width=80))
    observer._heartbeat._silence = 0.02
    with observer:
        observer.begin_rounds(rounds=3, done=0)
        observer.client_done("train", 1, 4)
        deadline = time.monotonic() + 60
        while "\n" not in told.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert told.getvalue().splitlines()[0] == "...     round 1: 1 of 4, 0 s"


def test_on_a_terminal_the_bars_say_it_and_a_quiet_run_says_nothing():
    for console in (Console(file=io.StringIO(), force_terminal=True), Console(quiet=True)):
        assert not observed(console)[0]
