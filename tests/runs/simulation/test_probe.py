"""The linear probe: which regularisation it takes, and that it finds what is there to find."""

import io
import os
import signal
import threading

import pytest
from rich.console import Console

from fedpeft.machine import cache
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulate import simulate
from fedpeft.simulation import probe
from fedpeft.simulation.probe import fit_linear_probe
from fedpeft.wiring.config import RunConfig
from tests.unit.simulation.test_probe import begun


class Heard(ConsoleObserver):
    """What is said, and a way to wait for a line."""

    def __init__(self):
        super().__init__(Console(file=io.StringIO(), width=300))
        self.lines = []
        self.told = threading.Event()

    def say(self, text):
        self.lines.append(text)
        if "probe" in text and "is fitted beside" not in text:
            self.told.set()


def test_a_probe_beside_the_rounds_finds_what_one_before_them_does(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path))
    observer = Heard()
    probed, parts = begun(observer)
    here = fit_linear_probe(*parts)
    with probed:
        assert probed.wait_for_result() == (here.accuracy, here.predicted.tolist())
        assert observer.told.wait(300)
    assert "fitted in" in observer.lines[-1]
    assert cache.is_cached("probe", "of-tests")
    with begun(observer)[0] as again:  # which is read, and begins nothing
        assert again._beside is None
        assert again.wait_for_result() == (here.accuracy, here.predicted.tolist())


def test_a_probe_that_is_left_early_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path))
    observer = Heard()
    with begun(observer, rows=3000)[0] as probed:
        process = probed._beside.pid
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert list(tmp_path.iterdir()) == []
    assert len(observer.lines) == 1


def test_a_probe_that_fails_is_told_at_once_and_raised_when_it_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path))
    observer = Heard()
    with begun(observer, label=3)[0] as probed:
        assert observer.told.wait(300)
        assert probed.has_failed
        assert "can't be fitted" in observer.lines[-1]
        assert "class" in observer.lines[-1]
        with pytest.raises(ValueError, match="class"):
            probed.wait_for_result()
    assert not cache.is_cached("probe", "of-tests")


def test_a_probe_whose_process_is_killed_is_fitted_here(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path))
    observer = Heard()
    probed, parts = begun(observer)
    with probed:
        os.kill(probed._beside.pid, signal.SIGKILL)
        assert observer.told.wait(300)
        assert not probed.has_failed
        assert probed.wait_for_result()[0] == fit_linear_probe(*parts).accuracy
    assert "another program ended its process" in observer.lines[1]


@pytest.mark.slow
def test_a_run_with_its_probe_beside_has_the_results_of_one_without(tmp_path, monkeypatch):
    settings = {"clients": 4, "peft": "lora(rank=2, layers=1)", "workers": 1, "rounds": 2, "tokens": 16}
    found = []
    for name, entries in (("before", 10**12), ("beside", 0)):
        monkeypatch.setattr(probe, "WORTH_A_PROCESS", entries)
        monkeypatch.setattr(probe, "count_usable_cores", lambda: 2)
        monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / name))
        console = Console(file=io.StringIO(), width=300)
        summary = simulate(RunConfig(dataset="tiny", **settings), tmp_path / f"run-{name}", False, console)
        found.append((summary.quality.baseline_accuracy, summary.quality.accuracy, summary.quality.loss))
        assert ("beside" in console.file.getvalue()) == (name == "beside")
    assert found[0] == found[1]
