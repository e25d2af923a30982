"""Segments: a share of each update in turn, and all of it in a cycle."""

from __future__ import annotations

import torch

from fedpeft.communication.codec import parse_codec
from fedpeft.communication.decoding import decode
from fedpeft.communication.downlink import parse_downlink
from fedpeft.communication.uplink import parse_uplink
from tests.refusals import refuses


def in_turn(text, state, turns):
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return [decode(parse_codec(text).encode(state, turn=turn), shapes) for turn in turns]


def test_segments_of_one_cycle_add_up_to_the_update():
    draws = torch.Generator().manual_seed(0)
    state = {"a": torch.randn(5, 7, generator=draws).double(), "b": torch.randn(6, generator=draws).double()}
    for start in (0, 3, 11):
        parts = in_turn("segments(count=4, gain=none) | cast(dtype=fp64)", state, range(start, start + 4))
        means = in_turn("segments(count=4) | cast(dtype=fp64)", state, range(start, start + 4))
        for name, tensor in state.items():
            assert torch.equal(sum(p[name] for p in parts), tensor)
            assert torch.allclose(sum(p[name] for p in means) / 4, tensor, atol=1e-15)
        sizes = [sum(int(p[name].count_nonzero()) for name in state) for p in parts]
        assert sum(sizes) == 41
        assert max(sizes) - min(sizes) <= 1


def test_it_is_client_plus_round_whose_turn_it_is():
    state = {"a": torch.arange(1.0, 13.0)}
    (first,) = in_turn("segments(count=3, gain=none) | cast", state, [1 + 4])
    assert torch.equal(first["a"].nonzero().flatten(), torch.arange(8, 12))
    assert len(parse_codec("segments(count=3) | cast").encode(state, turn=2)) < 12 * 4 / 3 + 60


def test_segments_go_with_what_is_right_for_them():
    for text, words in {
        "ef14 | segments | quantize | rans": ("FP1063",),
        "segments(count=0) | cast": ("FP1227", "1"),
    }.items():
        with refuses(*words):
            parse_uplink(text)
    parse_uplink("ef14 | segments(gain=none) | quantize | rans")
    with refuses("FP1059"):
        parse_downlink("segments(gain=none) | cast", "fp32", "fp32")
    assert str(parse_codec("segments | cast").remove_gain()) == "segments(gain=none) | cast | pack"


def test_with_a_memory_segments_arrive_by_and_by():
    """What was received is the sum of the inputs less the memory, which never holds more than two inputs."""
    feedback = parse_uplink("ef14 | segments(count=3, gain=none) | cast(dtype=fp64)").feedback
    constant = {"a": torch.arange(1.0, 10.0, dtype=torch.float64)}
    memory, received = {}, torch.zeros(9, dtype=torch.float64)
    for turn in range(9):
        payload, memory = feedback.encode(constant, memory, turn=turn)
        received += decode(payload, {"a": (9,)})["a"]
    assert torch.allclose(received + memory["a"], 9 * constant["a"], atol=1e-10)
    assert float(memory["a"].abs().max()) <= 2 * 9
