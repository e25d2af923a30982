"""A client that makes a number of steps a round goes on where it stopped, and all its rows have their turn."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from fedpeft.rounds.progress import Checkpoints
from fedpeft.simulate import main
from tests.finished import as_flags
from tests.kept_states import kept

SETTINGS = {"dataset": "tiny", "clients": 4, "cohort": 2, "rounds": 6, "local_work": "steps(2)", "seed": 1,
            "peft": "lora(rank=2, layers=1)", "dtype": "fp32", "head": "zero",
            "measure": "validation(every=100)"}  # fmt: skip
RUN = as_flags(workers=1, **SETTINGS)


@pytest.fixture
def finished(finished_run):
    return finished_run(**SETTINGS)


def lines(folder):
    return [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]


def test_a_run_says_how_many_rows_it_has_used(finished):
    summary = json.loads((finished / "summary.json").read_text())
    found = {}
    for line in lines(finished):
        assert found.get(line["client"], 0) <= line["used"] <= line["rows"]
        visits_ = sum(
            other["client"] == line["client"] and other["round"] <= line["round"] for other in lines(finished)
        )
        assert line["used"] <= min(line["rows"], 4 * 2 * visits_)
        assert line["used"] > 4 * 2 * (visits_ - 1) or line["used"] == line["rows"]
        found[line["client"]] = line["used"]
    assert summary["distinct_rows"] == sum(found.values())


def test_a_walk_survives_an_interruption(finished, tmp_path, monkeypatch):
    """A round that was trained and not recorded counts for nothing: continued, the run ends as the other did."""
    folder, save = tmp_path / "run", Checkpoints.save

    def dies(self, progress):
        if progress.round == 4:
            raise KeyboardInterrupt
        return save(self, progress)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", dies)
        assert main([*RUN, "--output", str(folder)]) == 130
    assert main(["--resume", str(folder)]) == 0
    one, other = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (finished, folder))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [line["used"] for line in lines(folder)] == [line["used"] for line in lines(finished)]
    last = {line["client"]: line["round"] for line in lines(folder)}
    for client, round_number in last.items():
        state = kept(folder / "clients")[client][round_number]
        assert int(state["walk/steps"]) == 2 * sum(line["client"] == client for line in lines(folder))


def test_real_clients_walk_too(federation):
    made = federation(dataset="tiny", rounds=3, local_work="steps(2)", cohort="all")
    made.run()
    grid = made.server.direct
    used = [report.used for report in grid.reports if report.client == 0 and report.round]
    assert used == [8, 16, 24]
    asked = [i for i in grid.asked if i.client == 0 and i.kind == "train"][-1]
    again = [made.edge(0).handle(replace(asked, attempt=a)) for a in (1, 2)]
    assert [report.used for report in again] == [24, 24], "a round that is asked for again is made again"


def test_under_dp_sgd_rows_join_by_chance_and_nobody_counts_them(tmp_path):
    words = [*RUN, "--privacy=dp_sgd(noise_multiplier=1, clip=1)", "--rounds=2"]
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["distinct_rows"] is None
    assert all("used" not in line for line in lines(tmp_path / "run"))
    assert not (tmp_path / "run" / "clients").exists()


def test_passes_leave_nothing_with_clients(tmp_path):
    words = [word for word in RUN if "local-work" not in word]
    assert main([*words, "--rounds=1", "--output", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["distinct_rows"] is None
    assert not (tmp_path / "run" / "clients").exists()
