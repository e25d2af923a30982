"""A client that makes a number of steps a round goes on where it stopped, and all its rows have their turn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fedpeft.clients.executor import Job
from fedpeft.clients.local_training import LocalTraining

from fedpeft.communication.messages import Report
from fedpeft.parts.families import LOCAL_WORK
from fedpeft.rounds.acceptance import check_report
from tests.refusals import refuses

LENGTHS = np.random.default_rng(0).integers(2, 60, size=200)


def job(rows=23, steps=3, size=4, round_number=1, walked: int | None = 0, client=5, seed=7):
    local = LocalTraining(size, LOCAL_WORK.build(f"steps({steps})"))
    own = np.arange(100, 100 + rows)
    return Job(client, round_number, seed, own, {}, frozenset(), local, 0.1, walked=walked)


def visits(count, **given):
    """Return the batches of `count` rounds, one after another."""
    steps = given.get("steps", 3)
    return [
        b for v in range(count) for b in job(walked=v * steps, round_number=2 * v + 1, **given).create_batches(LENGTHS)
    ]


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
        assert job(walked=3 * visit).count_used_rows(LENGTHS) == len(set(seen.tolist()))
    assert job(walked=None).count_used_rows(LENGTHS) == 0


def test_passes_draw_as_they_always_did():
    """The rows of a round that is a number of passes: kept, so that such runs stay what they were, bit for bit."""
    one = replace(job(walked=None), training=LocalTraining(4, LOCAL_WORK.build("epochs(1.0)")))
    assert [b.tolist() for b in one.create_batches(LENGTHS)] == KEPT
    assert not one.training.walks
    still = LocalTraining(4, LOCAL_WORK.build("steps(count=3, walk=False)"))
    assert not still.walks
    assert not still.replace_steps(5).walks
    assert one.training.replace_steps(5).walks


KEPT = [
    [102, 103, 117, 111], [116, 108, 110, 120], [115, 104, 101, 118],
    [106, 107, 119], [113, 100, 121, 109], [122, 114, 105, 112],
]  # fmt: skip


@pytest.mark.parametrize("used", [-1, 8])
def test_more_rows_used_than_there_are_is_no_report(used):
    with refuses("FP6149", used, "7"):
        check_report(Report(1, 1, b"", rows=7, loss=0.5, used=used))
