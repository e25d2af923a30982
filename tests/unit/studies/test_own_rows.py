"""A study's rows of a data set of one's own lie as they would in a simulation."""

from __future__ import annotations

import json
from pathlib import Path

from fedpeft.parts import plugins
from fedpeft.simulation.rows import SimulatedRows
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run
from tests.unit.studies.test_study import BASE, study

OWN_ROWS = """
from dataclasses import dataclass

from fedpeft.data.rows import load_dataset


@dataclass(frozen=True)
class Words:
    def load(self):
        return load_dataset("tiny_lm")


@dataclass(frozen=True)
class Classes:
    def load(self):
        return load_dataset("tiny")


parts = {"datasets": {"words": Words, "classes": Classes}}
"""


def test_rows_lie_as_in_a_simulation_where_a_study_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN_ROWS)
    sets = [
        "words",
        "classes",
        "sample(of=words)",
        "tasks(words, 'tiny_lm(seed=1)')",
        "tasks(tiny_lm, 'tiny_lm(seed=1)')",
    ]
    base = BASE.replace('dataset = "tiny"\n', "")
    text = f'plugin = "mine.py"\nseeds = [0]\n{base}[axes]\ndataset = {json.dumps(sets)}\n'
    with plugins.use_parts({}):
        partitions = [run.config.partition for run in study(tmp_path, text).plan_runs()]
        assert partitions == ["iid", "dirichlet(alpha=0.5)", "iid", "iid", "iid"]
        assert partitions == [
            SimulatedRows.load(parse_run(RunConfig(dataset=name, clients=6)), 6).spec.config.partition for name in sets
        ]
