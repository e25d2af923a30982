"""A server of tasks and its clients as processes, killed as the second task begins."""

from __future__ import annotations

import json

import pytest

from fedpeft.simulate import main as simulate
from fedpeft.simulation.rows import SimulatedRows
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run
from tests.fleet import NAMES, Fleet, distance

TASKS = {
    "dataset": "tasks('tiny(classes=4)', classes=2, late=1)", "strategy": "o_lora", "rounds": 8, "head": "zero",
    "peft": "lora(rank=2, layers=1)", "measure": "validation(every=1)",
}  # fmt: skip


def give_rows(made: Fleet) -> None:
    """Give each client the examples that it has in the simulation."""
    rows = SimulatedRows.load(parse_run(RunConfig(**made.settings)), len(NAMES))
    labels = rows.dataset.label_names
    for k, name in enumerate(NAMES):
        own = [{"text": rows.train.inputs[i], "label": labels[rows.train.labels[i]]} for i in rows.partition.shard(k)]
        (made.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))


@pytest.mark.slow
def test_a_kill_between_two_tasks_changes_nothing(tmp_path):
    made = Fleet(tmp_path, **TASKS)
    give_rows(made)
    server = made.serve("--eval-data", "dataset", "--quorum", "1")
    clients = {name: made.join(name) for name in NAMES}
    made.wait(lambda: len(made.rounds()) >= 4, server)  # the last round of the first task is recorded
    clients["b"].kill()
    server.kill()
    server.wait()
    done = len(made.rounds())
    assert 4 <= done < 8, "the run was over before it could be interrupted"
    clients["b"].wait()
    clients["b"] = made.join("b")
    server = made.serve()
    assert [made.end(p) for p in (server, *clients.values())] == [0, 0, 0, 0], made.logs()
    assert simulate([str(made.folder / "run.toml"), "--output", str(made.folder / "simulated")]) == 0
    assert distance(made.folder / "run", made.folder / "simulated") < 1e-12
    real, simulated = (json.loads((made.folder / f / "summary.json").read_text()) for f in ("run", "simulated"))
    assert real["tasks"] == simulated["tasks"]
    assert real["rejected"] == 0
