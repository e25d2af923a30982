"""The main job on the tiny data set, as a user runs it: processes, files, kills, resumes."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from fedpeft.clients.pool import Worker
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedpeft.errors import DataError
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.final_score import Scorer
from fedpeft.reporting.observer import RoundResult
from fedpeft.reporting.summary import Costs, Quality, Summary, show
from fedpeft.rounds.progress import Checkpoints
from fedpeft.simulate import main, simulate
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig, read_config
from tests.finished import as_flags
from tests.refusals import has_error

SETTINGS = {"dataset": "tiny", "clients": 8, "cohort": 4, "rounds": 3, "dtype": "fp32",
            "optimizer": "adamw(head_rate=1)", "learning_rate": 0.003, "local_work": "steps(4)"}  # fmt: skip
TINY = as_flags(workers=1, **SETTINGS)
QUIET = Console(quiet=True)
LONG = 40
"""Rounds of a run that is interrupted: enough that the signal arrives while it goes on."""


def run(folder: Path, *more: str) -> dict:
    assert main([*TINY, "--output", str(folder), *more]) == 0
    return json.loads((folder / "summary.json").read_text())


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors") | load_file(folder / "adapter/head.safetensors")


def same(one: Path, other: Path) -> bool:
    a, b = adapter(one), adapter(other)
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def distance(one: Path, other: Path) -> float:
    a, b = adapter(one), adapter(other)
    return max(float((a[n] - b[n]).abs().max()) for n in a)


@pytest.fixture(scope="module")
def finished(finished_run):
    folder = finished_run(**SETTINGS)
    return folder, json.loads((folder / "summary.json").read_text())


def test_a_run_leaves_the_files_of_the_contract(finished):
    folder, summary = finished
    for name in ("config.toml", "rounds.jsonl", "clients.jsonl", "summary.json", "rounds.svg", "predictions.npz"):
        assert (folder / name).stat().st_size > 0
    for key in ("accuracy", "loss", "baseline_accuracy", "rounds", "clients", "uplink_bytes", "downlink_bytes",
                "uplink_bytes_per_parameter", "epsilon", "dp_delta", "seconds", "seconds_per_round",
                "peak_memory_bytes", "seed", "versions", "hardware"):  # fmt: skip
        assert key in summary
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    clients = [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]
    assert [r["round"] for r in rounds] == [0, 1, 2, 3]
    assert len(clients) == 12
    assert summary["uplink_bytes"] == sum(r["uplink_bytes"] for r in rounds)
    for r in rounds[1:]:
        own = [c for c in clients if c["round"] == r["round"]]
        assert r["uplink_bytes"] == sum(c["uplink_bytes"] for c in own)
        assert r["downlink_bytes"] == sum(c["downlink_bytes"] for c in own)
    assert 4 <= summary["uplink_bytes_per_parameter"] < 4.01
    assert read_config(folder / "config.toml").clients == 8


def test_the_reported_accuracy_is_that_of_the_saved_files(finished):
    """The lines of the README, on the tiny model: load what was saved, on the untouched base, and count."""
    from peft import PeftModel
    from transformers import AutoModel, AutoTokenizer

    from fedpeft.data.rows import load_dataset
    from fedpeft.models.base_model import resolve_model

    folder, summary = finished
    base = resolve_model("tiny")
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder / "adapter").eval()
    head = load_file(folder / "adapter" / "head.safetensors")
    labels = json.loads((folder / "adapter" / "labels.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(base)
    data = load_dataset("tiny")
    test, names = data.test, data.label_names
    correct = 0
    for text, label in zip(test.inputs, test.labels, strict=True):
        inputs = tokenizer(text, truncation=True, max_length=128, return_tensors="pt")
        with torch.no_grad():
            hidden = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        logits = hidden.mean(1) @ head["head.weight"].T + head["head.bias"]
        correct += labels[int(logits.argmax())] == names[label]
    assert correct / len(test) == pytest.approx(summary["accuracy"], abs=1e-9)


def test_the_score_reuses_the_frozen_part_where_the_disk_has_room_for_it(tmp_path, monkeypatch):
    run(tmp_path / "run", "--peft", "lora(rank=2, layers=1)")
    config = read_config(tmp_path / "run" / "config.toml")

    def scored(cache):
        monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / cache))
        simulation = Simulation(config, tmp_path / "run", ConsoleObserver(QUIET))
        scores = simulation.scorer.score(tmp_path / "run", "score").scores
        hidden = [f for f in (tmp_path / cache).glob("frozen-*/hidden.bin") if f.stat().st_size]
        return scores, len(hidden)

    reused, stores = scored("roomy")
    assert stores == 2, "test and validation rows"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fedpeft.models.frozen_blocks.os.posix_fallocate", full)
    whole, stores = scored("full")
    assert not stores
    np.testing.assert_allclose(reused.loss, whole.loss, rtol=1e-4)


def test_equal_seeds_give_equal_runs_and_others_do_not(finished, tmp_path):
    folder, _ = finished
    run(tmp_path / "same")
    run(tmp_path / "other", "--seed", "1")
    assert same(folder, tmp_path / "same")
    assert not same(folder, tmp_path / "other")


@pytest.mark.fast("both executors")
def test_executors_give_the_same_run_in_fp64(tmp_path):
    run(tmp_path / "batched", "--dtype", "fp64")
    run(tmp_path / "sequential", "--dtype", "fp64", "--grid", "cohort(executor=sequential)")
    assert distance(tmp_path / "batched", tmp_path / "sequential") < 1e-6  # files are fp32


@pytest.mark.slow
def test_worker_processes_give_the_same_run_as_one(tmp_path):
    run(tmp_path / "one", "--dtype", "fp64")
    run(tmp_path / "two", "--dtype", "fp64", "--workers", "2")
    assert distance(tmp_path / "one", tmp_path / "two") < 1e-6


def start(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fedpeft.simulate", *TINY, "--output", str(folder), "--rounds", str(LONG), *more]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it in background jobs
    )


def test_a_run_that_is_continued_on_a_machine_without_its_kernel_takes_another(tmp_path, monkeypatch):
    class CutError(Exception):
        pass

    def cut(*_):
        raise CutError

    with monkeypatch.context() as here:
        here.setattr("fedpeft.models.kernels.list_kernels", lambda dtype: ("native", "onednn"))
        here.setattr(ConsoleObserver, "round_done", cut)
        with pytest.raises(CutError):
            main([*TINY, "--output", str(tmp_path / "run")])
    assert Checkpoints(tmp_path / "run" / "checkpoint").load().fixed["kernel"] == "onednn"
    monkeypatch.setattr("fedpeft.models.kernels.list_kernels", lambda dtype: ("native",))
    assert main(["--resume", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["hardware"]["kernel"] == "native"


@pytest.mark.parametrize("strategy", ["ffa_lora", "rolora", "flexlora", "krum"])
def test_other_strategies_run_through_the_same_loop(tmp_path, strategy):
    summary = run(tmp_path / strategy, "--strategy", strategy)
    assert summary["accuracy"] > 0.25


@pytest.mark.parametrize("peft", ["ia3(layers=0)", "full"])
def test_other_methods_run_and_reload(tmp_path, peft):
    summary = run(tmp_path / "run", "--peft", peft, "--learning-rate", "0.001")
    assert summary["accuracy"] > 0.25
    assert np.isfinite(summary["loss"])


def test_language_modelling_reports_perplexity(tmp_path):
    summary = run(tmp_path / "run", "--dataset", "tiny_lm", "--partition", "natural", "--clients", "0", "--cohort", "2")
    assert summary["metric"] == "perplexity"
    assert summary["perplexity"] == pytest.approx(np.exp(summary["loss"]))
    assert summary["baseline_accuracy"] is None


def test_the_configuration_file_is_overridden_by_flags(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('dataset = "tiny"\nclients = 6\nrounds = 1\nworkers = 1\ndtype = "fp32"\ncohort = "all"\n')
    assert main([str(file), "--clients", "5", "--output", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["clients"], summary["cohort"], summary["rounds"]) == (5, 5, 1)


def test_the_python_call_does_what_the_command_does(finished, tmp_path):
    folder, _ = finished
    training = {"optimizer": "adamw(head_rate=1.0)", "learning_rate": 0.003}
    config = RunConfig(dataset="tiny", clients=8, cohort=4, rounds=3, dtype="fp32", workers=1, **training)
    simulate(config, tmp_path / "run", False, QUIET)
    assert same(folder, tmp_path / "run")


def test_the_pooled_reference_sees_as_many_rows_as_the_federation(tmp_path, monkeypatch):
    seen = []
    train = Worker.train
    monkeypatch.setattr(Worker, "train", lambda self, job: (seen.append(len(job.rows)), train(self, job))[1])
    small = ("--local-work", "steps(2)", "--batch-size", "4", "--learning-rate", "0.0003")
    assert 0 < run(tmp_path, "--measure", "pooled", *small)["centralised_accuracy"] <= 1
    lines = [json.loads(line) for line in (tmp_path / "clients.jsonl").read_text().splitlines()]
    a_round = 4 * sum(line["steps"] for line in lines) / 3
    assert seen
    assert seen == pytest.approx([a_round] * len(seen), rel=0.05)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: no space")])
def test_a_result_that_does_not_fit_on_the_disk_is_one_sentence(tmp_path, monkeypatch, capfd, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr("fedpeft.peft.saved_adapter.save_file", full)
    assert main([*TINY, "--output", str(tmp_path / "run")]) == 2
    said = "".join(capfd.readouterr())
    assert has_error(said, "FP5102", tmp_path / "run" / "adapter")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("kept", "said"), [(0, "the start (no round was clearly better)"), (1, "round 1 of 2"), (2, "")]
)
def test_a_summary_says_which_round_is_kept(finished, kept, said):
    folder, summary = finished
    quality, costs = ({f.name: summary[f.name] for f in fields(group)} for group in (Quality, Costs))
    quality |= {"kept_round": kept, "last_accuracy": 0.1234}
    shown = Console(record=True, width=200, file=io.StringIO())
    show(Summary(quality=Quality(**quality), costs=Costs(**(costs | {"rounds": 2}))), folder, shown)
    text = shown.export_text()
    assert said in text
    assert ("after the last round, 2" in text) == ("0.1234" in text) == bool(said)


def test_workers_import_the_libraries_while_the_rows_are_read(tmp_path, monkeypatch):
    happened = []

    def load(*_):
        happened.append("rows")
        raise DataError("FP3028 a file has no rows")

    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    monkeypatch.setattr("fedpeft.machine.processes.get_forkserver", lambda: happened.append(dict(os.environ)))
    monkeypatch.setattr("fedpeft.simulation.rows.SimulatedRows.load", load)
    flags = [*as_flags(**SETTINGS), "--output", str(tmp_path / "run")]
    assert main([*flags, "--workers", "2"]) == 2
    environment, rows = happened
    assert rows == "rows"
    assert environment["HF_HUB_DISABLE_PROGRESS_BARS"] == "1", "the workers inherit the environment"
    happened.clear()
    assert main([*flags, "--workers", "1"]) == 2
    monkeypatch.setattr("fedpeft.simulate.count_usable_cores", lambda: 1)
    assert main([*flags, "--workers", "0"]) == 2
    assert happened == ["rows", "rows"], "one worker is this process"


@pytest.mark.parametrize(("more", "scores"), [("", 1), (", score_last=True", 2)])
def test_a_run_is_scored_once_whichever_round_it_keeps(tmp_path, monkeypatch, more, scores):
    asked, score = [], Scorer.score
    monkeypatch.setattr(Scorer, "score", lambda self, *a, **k: asked.append(a[0]) or score(self, *a, **k))
    monkeypatch.setattr("fedpeft.rounds.progress.ServerState.kept_round", 1)
    summary = run(tmp_path / "run", "--rounds", "2", "--measure", f"validation(every=1{more})")
    assert len(asked) == scores
    assert (summary["last_accuracy"] is None) == (scores == 1)
    assert (tmp_path / "run" / "last").is_dir() == (scores == 2)


@pytest.mark.parametrize(("metric", "said"), [("skill", "mean skill"), ("perplexity", "mean accuracy")])
def test_a_summary_says_what_clients_alone_are_judged_by(finished, metric, said):
    folder, summary = finished
    quality, costs = ({f.name: summary[f.name] for f in fields(group)} for group in (Quality, Costs))
    shown = Console(record=True, width=200, file=io.StringIO())
    quality |= {"metric": metric, "alone_accuracy": 0.25}
    show(Summary(quality=Quality(**quality), costs=Costs(**costs)), folder, shown)
    assert f"clients alone ({said})" in shown.export_text()


def test_beside_a_perplexity_the_worst_clients_are_said_to_be_judged_by_accuracy(finished):
    folder, summary = finished
    quality, costs = ({f.name: summary[f.name] for f in fields(group)} for group in (Quality, Costs))
    quality |= {"worst_accuracy": 0.25, "shared_accuracy": 0.5}
    for perplexity, said in ((None, "worst tenth"), (3.5, "next-token accuracy, worst tenth")):
        shown = Console(record=True, width=200, file=io.StringIO())
        show(Summary(quality=Quality(**quality | {"perplexity": perplexity}), costs=Costs(**costs)), folder, shown)
        text = shown.export_text()
        assert f"│ {said} of the clients" in text
        assert "global model alone, test rows" in text


def test_a_summary_without_updates_is_shown(finished, capsys):
    folder, summary = finished
    quality, costs = ({f.name: summary[f.name] for f in fields(group)} for group in (Quality, Costs))
    none = costs | {"uplink_bytes": 0, "uplink_bytes_per_parameter": None}
    show(Summary(quality=Quality(**quality), costs=Costs(**none)), folder, Console())
    assert "no update was sent" in capsys.readouterr().out


@pytest.mark.fast
def test_what_has_diverged_is_said_shortly():
    told = io.StringIO()
    with ConsoleObserver(Console(file=told, width=200), "perplexity") as observer:
        for loss in (2.0, 650.0):
            observer.round_done(RoundResult(1, 2, 0, loss, loss, 0.1, 10, 10, 1.0, None, None))
    first, last = told.getvalue().splitlines()
    assert "validation: loss 2.000, perplexity 7.389  " in first
    assert "validation: loss 650.000, perplexity 1.956e+282  " in last


@pytest.mark.fast
def test_redirected_lines_are_whole(tmp_path):
    told = io.StringIO()
    console = Console(file=told, width=40)
    words = "a line that is longer than forty columns, with a command to copy: --resume runs/somewhere"
    with ConsoleObserver(console) as observer:
        observer.say(words)
    assert told.getvalue() == f"{words}\n"
