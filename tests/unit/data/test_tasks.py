"""Tasks one after the other: their rows, their classes, who meets which when."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.data.rows import load_dataset, split_off_validation
from fedpeft.data.task_sequence import ClientTasks, TaskSchedule
from fedpeft.parts.families import DATASETS
from fedpeft.simulation.rows import SimulatedRows
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run
from tests.refusals import refuses


def test_the_classes_of_one_set_a_few_at_a_time():
    data = load_dataset("tasks('tiny(classes=5)', classes=2)")
    plain = load_dataset("tiny(classes=5)")
    assert data.tasks.names == ("class 0, class 1", "class 2, class 3", "class 4")
    assert data.tasks.classes == ((0, 1), (2, 3), (4,))
    assert data.train.inputs == plain.train.inputs
    assert np.array_equal(data.train.labels, plain.train.labels)
    assert np.array_equal(data.train.tasks, plain.train.labels // 2)
    train, held = split_off_validation(data)
    assert np.array_equal(np.unique(held.tasks), [0, 1, 2])
    assert len(train) + len(held) == len(plain.train)


def test_several_sets_with_classes_of_their_own_or_in_common():
    text = "tasks('tiny(classes=3)', 'tiny(classes=2, seed=1)'{})"
    apart, shared = (load_dataset(text.format(more)) for more in ("", ", shared=True"))
    assert apart.classes == 5
    assert apart.tasks.classes == ((0, 1, 2), (3, 4))
    assert apart.label_names[3] == "tiny 2: class 0"
    assert shared.classes == 3
    assert shared.tasks.classes == ((0, 1, 2), (0, 1))
    first, second = load_dataset("tiny(classes=3)"), load_dataset("tiny(classes=2, seed=1)")
    assert apart.train.inputs == [*first.train.inputs, *second.train.inputs]
    assert np.array_equal(apart.test.labels, np.concatenate([first.test.labels, second.test.labels + 3]))
    assert apart.train.owners is None


def test_what_a_loss_compares():
    sequence = load_dataset("tasks('tiny(classes=6)', classes=2)").tasks
    assert [sequence.get_competing_classes(task) for task in range(3)] == [(0, 1), (2, 3), (4, 5)]
    seen = load_dataset("tasks('tiny(classes=6)', classes=2, compete=seen)").tasks
    assert [seen.get_competing_classes(task) for task in range(3)] == [(0, 1), (0, 1, 2, 3), (0, 1, 2, 3, 4, 5)]
    assert load_dataset("tasks('tiny(classes=6)', classes=2, compete=all)").tasks.get_competing_classes(1) == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tasks(tiny)", ("FP1098",)),
        ("tasks(tiny, tiny, classes=2)", ("FP1097", "2")),
        ("tasks(tiny, classes=4)", ("FP1104",)),
        ("tasks(tiny, tiny_lm)", ("FP1099",)),
        ("tasks(tiny_lm, classes=2)", ("FP1103",)),
        ('tasks("tasks(tiny, classes=2)", tiny)', ("FP1102",)),
    ],
)
def test_what_is_no_sequence_is_refused(text, words):
    with refuses(*words):
        load_dataset(text)


def test_paths_of_named_sets_are_found():
    text = DATASETS.replace_paths("tasks('file:a.csv', tiny)", lambda path: f"/there/{path}")
    assert text == "tasks('file:/there/a.csv', tiny)"
    assert DATASETS.replace_paths("tasks(tiny, classes=2)", str.upper) == "tasks(tiny, classes=2)"


def test_every_client_meets_every_task():
    config = RunConfig(dataset="tasks('tiny(classes=6)', classes=2)", partition="dirichlet(alpha=0.1)")
    rows = SimulatedRows.load(parse_run(config), 7)
    rows.partition.check(len(rows.train))
    for client in range(7):
        assert set(rows.train.tasks[rows.partition.shard(client)]) == {0, 1, 2}
    with refuses("FP3176", "1", "class 0, class 1", "FP3087 400"):
        SimulatedRows.load(parse_run(config), 400)


def test_a_schedule_says_who_is_where():
    schedule = TaskSchedule(3, late=2).adapt_to_rounds(12)
    assert schedule.every == 4
    assert [schedule.get_current(round_number) for round_number in range(13)] == [0] * 5 + [1] * 4 + [2] * 4
    assert [round_number for round_number in range(1, 13) if schedule.is_task_start(round_number)] == [1, 5, 9]
    assert [round_number for round_number in range(1, 13) if schedule.is_task_end(round_number, 12)] == [4, 8, 12]
    delays = [schedule.draw_delay(client, 5) for client in range(9)]
    assert sorted(delays) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert schedule.select_on_time(list(range(9)), 5) == [client for client in range(9) if delays[client] == 0]
    for client, delay in enumerate(delays):
        met = [schedule.get_client_task(client, round_number, 5) for round_number in range(1, 13)]
        assert met == [0] * (4 + delay) + [1] * 4 + [2] * (4 - delay)
    assert len({tuple(schedule.draw_delay(client, seed) for client in range(3)) for seed in range(9)}) > 1
    rows = ClientTasks(load_dataset("tasks(tiny, classes=2)").tasks.adapt_to_rounds(4), np.array([0, 1, 0, 1]))
    assert rows.get_current(np.arange(4), 0, 1, 0).tolist() == [0, 2]
    assert rows.get_current(np.arange(4), 0, 4, 0).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("schedule", "rounds", "words"),
    [
        (TaskSchedule(3), 2, ("FP1110", "3", "2")),
        (TaskSchedule(3, every=4), 8, ("FP1110", "9")),
        (TaskSchedule(2, late=3), 6, ("FP1111", "2")),
    ],
)
def test_schedules_that_do_not_fit_are_refused(schedule, rounds, words):
    with refuses(*words):
        schedule.adapt_to_rounds(rounds)
