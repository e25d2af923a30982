"""A client that makes a number of steps a round goes on where it stopped, and all its rows have their turn."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from fedpeft.clients.executor import Job
from fedpeft.clients.local_training import LocalTraining
from fedpeft.clients.local_work import LOCAL_WORK
from safetensors.torch import load_file

from fedpeft.communication.messages import Report
from fedpeft.server.acceptance import check_report
from fedpeft.server.progress import Checkpoints
from fedpeft.simulate import main
from tests.kept_states import kept
from tests.refusals import refuses

LENGTHS = np.random.default_rng(0).integers(2, 60, size=200)


def job(rows=23, steps=3, size=4, round=1, walked: int | None = 0, client=5, seed=7):
    local = LocalTraining(size, LOCAL_WORK.build(f"steps({steps})"))
    own = np.arange(100, 100 + rows)
    return Job(client, round, seed, own, {}, frozenset(), local, 0.1, walked=walked)


def visits(count, **given):
    """The batches of that many rounds, one behind the other."""
    steps = given.get("steps", 3)
    return [b for v in range(count) for b in job(walked=v * steps, round=2 * v + 1, **given).batches(LENGTHS)]


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 23, 100])
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_every_pass_has_every_row_once(rows, steps):
    of_a_pass = -(-rows // 4)
    seen = visits(-(-3 * of_a_pass // steps), rows=rows, steps=steps)
    passes = [np.concatenate(seen[p * of_a_pass : (p + 1) * of_a_pass]) for p in range(3)]
    for one in passes:
        assert sorted(one.tolist()) == list(range(100, 100 + rows))
    if rows > 5:
        assert passes[0].tolist() != passes[1].tolist()


def test_a_walk_is_the_same_whatever_rounds_it_is_cut_into():
    short, long = visits(20, steps=3), visits(6, steps=10)
    assert [b.tolist() for b in short] == [b.tolist() for b in long]
    other = visits(20, steps=3, seed=8)
    assert [b.tolist() for b in short] != [b.tolist() for b in other]
    assert [b.tolist() for b in short] != [b.tolist() for b in visits(20, steps=3, client=6)]


def test_distinct_rows_are_counted():
    for visit in range(8):
        seen = np.concatenate(visits(visit + 1))
        assert job(walked=3 * visit).used(LENGTHS) == len(set(seen.tolist()))
    assert job(walked=None).used(LENGTHS) == 0


def test_passes_draw_as_they_always_did():
    """The rows of a round that is a number of passes: kept, so that such runs stay what they were, bit for bit."""
    one = replace(job(walked=None), training=LocalTraining(4, LOCAL_WORK.build("epochs(1.0)")))
    assert [b.tolist() for b in one.batches(LENGTHS)] == KEPT
    assert not one.training.walks
    still = LocalTraining(4, LOCAL_WORK.build("steps(count=3, walk=False)"))
    assert not still.walks
    assert not still.of_steps(5).walks
    assert one.training.of_steps(5).walks


KEPT = [
    [102, 103, 117, 111], [116, 108, 110, 120], [115, 104, 101, 118],
    [106, 107, 119], [113, 100, 121, 109], [122, 114, 105, 112],
]  # fmt: skip

RUN = ["--dataset=tiny", "--clients=4", "--cohort=2", "--rounds=6", "--workers=1", "--local-work=steps(2)", "--seed=1",
       "--peft=lora(rank=2, layers=1)", "--dtype=fp32", "--head=zero", "--measure=validation(every=100)"]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walk") / "run"
    assert main([*RUN, "--output", str(folder)]) == 0
    return folder


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
    for client, round in last.items():
        state = kept(folder / "clients")[client][round]
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


@pytest.mark.parametrize("used", [-1, 8])
def test_more_rows_used_than_there_are_is_no_report(used):
    with refuses("FP6149", used, "7"):
        check_report(Report(1, 1, b"", rows=7, loss=0.5, used=used))


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
