"""Trackers: they get what was recorded, and never stop a run."""

import errno
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedpeft.reporting.trackers import TRACKERS, TrackedRecords, check_trackers
from tests.refusals import refuses


class Notebook:
    def __init__(self, broken: bool = False) -> None:
        self.broken = broken
        self.calls: list[tuple[Any, ...]] = []

    def begin(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.calls.append(("begin", folder.name, dict(settings)))

    def measure(self, step: int, values: Mapping[str, float]) -> None:
        if self.broken:
            raise ConnectionError("the server is down")
        self.calls.append(("measure", step, dict(values)))

    def end(self, values: Mapping[str, float]) -> None:
        self.calls.append(("end", dict(values)))


def record(folder: Path, *trackers: Any, config: str = "format = 1\nrounds = 1\n") -> TrackedRecords:
    records = TrackedRecords(folder, list(trackers))
    records.write("config.toml", config)
    records.append("rounds.jsonl", {"round": 1, "loss": 0.5, "train_loss": None})
    records.append("clients.jsonl", {"round": 1, "client": 3})
    records.write_json("summary.json", {"accuracy": 0.75, "versions": {}, "epsilon": None})
    return records


@pytest.mark.parametrize("config", ["format = 1\nrounds = 1\n", "rounds = 1\n"], ids=["format 1", "version 0.2.0"])
def test_rounds_and_summary_are_sent(config: str, tmp_path: Path) -> None:
    notebook = Notebook()
    record(tmp_path, notebook, config=config)
    assert notebook.calls == [
        ("begin", tmp_path.name, {"rounds": 1}),
        ("measure", 1, {"round": 1.0, "loss": 0.5}),
        ("end", {"accuracy": 0.75}),
    ]


def test_a_failing_tracker_is_left_out_and_the_records_are_whole(tmp_path: Path) -> None:
    broken, sound = Notebook(broken=True), Notebook()
    with pytest.warns(RuntimeWarning, match="Notebook failed and is left out from here on: the server is down"):
        records = record(tmp_path, broken, sound)
    assert [call[0] for call in broken.calls] == ["begin"]
    assert [call[0] for call in sound.calls] == ["begin", "measure", "end"]
    assert records.read("rounds.jsonl") == [{"round": 1, "loss": 0.5, "train_loss": None}]
    assert json.loads((tmp_path / "summary.json").read_text())["accuracy"] == 0.75


def test_unknown_or_missing_trackers_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_trackers("") == []
    with refuses("FP1395", "did you mean 'tensorboard"):
        check_trackers("tensorbord")
    monkeypatch.setattr(TRACKERS["mlflow"], "needs", "no_such_package")
    with refuses("FP1396"):
        check_trackers("mlflow")


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_an_identity_that_the_disk_has_no_room_for_is_not_kept_in_part(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: Any = SimpleNamespace(id="a1", info=SimpleNamespace(run_id="a1"))
    client = SimpleNamespace(init=lambda **_: run, set_experiment=lambda _: None, start_run=lambda **_: run)
    monkeypatch.setitem(sys.modules, name, client)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        TRACKERS[name]().begin(tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_writes_event_files(tmp_path: Path) -> None:
    pytest.importorskip("torch.utils.tensorboard")
    record(tmp_path, *check_trackers("tensorboard"))
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_mlflow_keeps_the_identity_of_a_run_that_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    record(tmp_path, *check_trackers("mlflow"))
    identity = (tmp_path / "mlflow_run").read_text()
    record(tmp_path, *check_trackers("mlflow"))
    assert (tmp_path / "mlflow_run").read_text() == identity
    assert mlflow.MlflowClient().get_run(identity.strip()).data.metrics["final/accuracy"] == 0.75


def test_wandb_keeps_the_identity_of_a_run_that_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    record(tmp_path, *check_trackers("wandb"))
    identity = (tmp_path / "wandb_run").read_text()
    record(tmp_path, *check_trackers("wandb"))
    assert (tmp_path / "wandb_run").read_text() == identity
    kept = list((tmp_path / "wandb").glob(f"offline-run-*-{identity.strip()}"))
    assert kept
    assert all(list(folder.glob("*.wandb")) for folder in kept)
