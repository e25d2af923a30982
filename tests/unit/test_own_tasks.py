"""Tasks of one's own: what they say of themselves, of rows and of all rows is tried before a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedpeft.data.rows import Rows, load_dataset
from fedpeft.models import scoring
from fedpeft.models.task import Task
from fedpeft.models.tasks.classification import Classification
from fedpeft.parts import plugins
from fedpeft.reporting.command import MISTAKE
from fedpeft.simulate import main as simulate
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.refusals import has_error, refuses


class PlainTask(Task):
    """All that a task has to do, as classification does it."""

    tokenise, model, base, losses = (getattr(Classification, name) for name in ("tokenise", "model", "base", "losses"))
    labels = Classification.labels


@pytest.mark.parametrize(
    ("base", "said", "words"),
    [
        (Classification, {"metric": None}, ("FP1257", "the task mine of", "metric", "str", "None")),
        (
            Classification,
            {"metric": ""},
            ("FP1343", "mine"),
        ),
        (
            Classification,
            {"targets": "class"},
            ("FP1256", "targets", "classes', 'numbers', 'labels", "class"),
        ),
        (Classification, {"targets": None}, ("FP1256", "targets", "None")),
        (Classification, {"asks": "no"}, ("FP1257", "asks", "bool", "a str ('no')")),
        (PlainTask, {}, ("FP1257", "the task mine of", "metric", "str", "None")),
        (
            PlainTask,
            {"metric": "accuracy", "targets": "classes"},
            ("FP1344", "fedpeft.models.tasks"),
        ),
    ],
)
def test_what_a_task_says_of_itself_is_told_before_a_run(base, said, words, tmp_path, observer):
    mine = dataclass(frozen=True)(type("Mine", (base,), {"__module__": "m", **said}))

    @dataclass(frozen=True)
    class Mined:
        def load(self):
            return replace(load_dataset("tiny"), task="mine")

    given = {"tasks": {"mine": mine}, "datasets": {"rows": Mined}}
    with plugins.use_parts(given), refuses(*words):
        Simulation(RunConfig(dataset="rows", clients=3, dtype="fp32", workers=1), tmp_path, observer)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"x": np.arange(3)}, ("FP1211", "mine", "x", "ndarray")),
        ({"x": {"y": [object()]}}, ("FP1211", "x", "dict")),
        (None, ("FP1259", "measures", "dict[str, Any]", "None")),
    ],
)
def test_what_a_task_tells_of_all_rows_is_tried_before_a_run(told, words, tmp_path, observer):
    @dataclass(frozen=True)
    class Mine(Classification):
        def measures(self, outputs, labels, names):
            assert outputs.shape == (len(labels), len(names))
            return told

    @dataclass(frozen=True)
    class Mined:
        def load(self):
            return replace(load_dataset("tiny"), task="mine")

    given = {"tasks": {"mine": Mine}, "datasets": {"rows": Mined}}
    with plugins.use_parts(given), refuses(*words):
        Simulation(RunConfig(dataset="rows", clients=3, dtype="fp32", workers=1), tmp_path, observer)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (torch.detach, ("FP1213",)),
        (torch.mean, ("FP1212", "sums", "6", "shape ()")),
        (lambda sums: sums * float("nan"), ("FP1212", "6", "NaN or infinity")),
    ],
)
def test_losses_of_a_task_that_are_none_of_rows_are_told(change, words):
    @dataclass(frozen=True)
    class Mine(Classification):
        def losses(self, logits, batch):
            made = super().losses(logits, batch)
            return replace(made, sums=change(made.sums))

    test = Rows(["a text"] * 6, np.arange(6) % 3)
    scoring.check_task_outputs(Classification(), test, ("a", "b", "c"))
    with refuses(*words):
        scoring.check_task_outputs(Mine(), test, ("a", "b", "c"))


def test_rows_that_are_right_by_more_than_one_are_told():
    @dataclass(frozen=True)
    class Mine(Classification):
        def losses(self, logits, batch):
            made = super().losses(logits, batch)
            return replace(made, correct=100 * made.correct + 100)

    with refuses("FP1214"):
        scoring.check_task_outputs(Mine(), Rows(["a text"] * 3, np.arange(3)), ("a", "b", "c"))


def test_numbers_of_libraries_are_told_as_they_are():
    given = {"a": np.float32(1), "b": torch.tensor(2.0), "c": [1, "x", None], "d": {"e": np.array([3])}}
    task = SimpleNamespace(targets="classes", measures=lambda *_: given)
    assert scoring.compute_measures(task, np.zeros((2, 3)), np.zeros(2), None) == {"rows": 2, **given}


UNREADABLE = """
from dataclasses import dataclass, replace

from fedpeft.data.rows import load_dataset
from fedpeft.models.tasks.classification import Classification


@dataclass(frozen=True)
class Mine(Classification):
    def tokenise(self, rows, model_directory, max_tokens):
        open("/nowhere/words.txt")


@dataclass(frozen=True)
class Rows:
    def load(self):
        return replace(load_dataset("tiny"), task="mine")


parts = {"tasks": {"mine": Mine}, "datasets": {"rows": Rows}}
"""


def test_a_file_that_one_s_own_code_misses_is_no_failure_of_the_cache(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(UNREADABLE)
    with plugins.use_parts({}):
        assert simulate(["--plugin", str(file), "--dataset", "rows", "--clients", "3", "--workers", "1"]) == MISTAKE
    said = capsys.readouterr().err
    assert has_error(said, "FP0001", file, 11, "tokenise", "FileNotFoundError")
    assert "cache" not in said
