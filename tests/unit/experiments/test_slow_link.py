"""The slow line: the rate, the delay, the queue and the loss of each direction, and what the study records."""

from __future__ import annotations

import os
import random

import pytest

from experiments.slow_link.__main__ import (
    CASES,
    README,
    compute_full_rate_seconds,
    extrapolate_hours,
    format_table,
    read_results,
)
from experiments.slow_link.bridge import Direction, Line
from experiments.slow_link.federation import LLAMA_1B
from experiments.slow_link.probes import compute_checksum


@pytest.fixture
def pipe():
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


def make_direction(target, **settings):
    line = Line(**{"megabits": 10, "loss": 0.0, "delay": 0.05, **settings})
    return Direction(-1, target, line, random.Random(0))


def test_packets_take_their_length_and_arrive_after_the_delay(pipe):
    read, write = pipe
    direction = make_direction(write)
    for packet in (b"a" * 1250, b"b" * 625):  # 1 ms and 0.5 ms at 10 Mbit/s
        direction.take(packet, 2.0)
    assert direction.next_arrival == pytest.approx(2.051)
    direction.deliver(2.0505)
    assert direction.carried == 0
    direction.deliver(2.0511)
    assert os.read(read, 4000) == b"a" * 1250
    assert direction.next_arrival == pytest.approx(2.0515)
    direction.take(b"c" * 1250, 3.0)  # the line was idle
    direction.deliver(2.0516)
    assert direction.next_arrival == pytest.approx(3.051)
    assert direction.count() == {"bytes": 1875, "packets": 2, "lost": 0, "dropped": 0}


def test_what_the_queue_has_no_room_for_is_dropped(pipe):
    direction = make_direction(pipe[1], queue=3000)
    for _ in range(6):
        direction.take(bytes(1500), 0.0)
    assert direction.dropped == 3
    direction.take(bytes(1500), 0.0013)  # one has left
    assert direction.dropped == 3


def test_a_share_is_lost_and_a_cut_loses_everything(pipe):
    direction = make_direction(pipe[1], loss=0.01, queue=10**9)
    for _ in range(10_000):
        direction.take(bytes(100), 0.0)
    assert 60 < direction.lost < 140
    before = direction.lost
    direction.cut_until = 5.0
    direction.take(bytes(100), 4.9)
    direction.take(bytes(100), 4.95)
    assert direction.lost == before + 2


def test_the_checksum_is_that_of_the_rfc():
    """RFC 1071, section 3: the sum of these bytes is ddf2."""
    assert compute_checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2


def test_the_adapter_has_the_size_of_the_1b_model():
    """Projections q and o map 2048 to 2048, k and v 2048 to 512, in 16 layers, at rank 16."""
    assert LLAMA_1B.parameters == 16 * 16 * (2 * (2048 + 2048) + 2 * (2048 + 512)) == 3_407_872


def test_recorded_cases_have_the_rounds_of_their_case():
    rounds = {case.name: case.rounds for _, case in CASES}
    assert [record["case"] for record in read_results()] == list(rounds)
    for record in read_results():
        assert record["parameters"] == LLAMA_1B.parameters
        assert [line["round"] for line in record["rounds"]] == list(range(1, rounds[record["case"]] + 1))


def test_the_readme_has_the_recorded_results():
    assert format_table(read_results()) in README.read_text(encoding="utf-8")


def test_a_round_at_the_full_rate_takes_its_bits_over_the_rate():
    assert compute_full_rate_seconds({"uplink_bytes": 5_000_000, "downlink_bytes": 2_500_000}, 10) == pytest.approx(6)


def test_a_larger_update_is_extrapolated_in_proportion():
    """758 MB are 100 times an update of 1,895,000 numbers in fp32: 36 s become an hour."""
    record = {"rounds": [{"seconds": 99.0}, {"seconds": 36.0}], "parameters": 1_895_000}
    assert extrapolate_hours(record) == pytest.approx(1.0)


def test_the_interrupted_run_has_the_adapter_of_the_whole_one():
    adapters = {record["case"]: record["adapter_sha256"] for record in read_results()}
    assert adapters["int8-interrupted"] == adapters["int8"]
