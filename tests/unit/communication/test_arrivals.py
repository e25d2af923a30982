"""What clients of one form share of what they are sent alike."""

from __future__ import annotations

import pytest
import torch

from fedpeft.communication.codec import parse_codec
from fedpeft.communication.downlink import Arrivals, decode_arrival
from fedpeft.errors import PayloadError
from tests.unit.communication.test_downlink import SHAPES


def state(seed):
    random = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=random) for name, shape in SHAPES.items()}


def test_what_is_sent_alike_is_decoded_once_without_loss():
    codec = parse_codec("fp32")
    arrivals = Arrivals(codec)
    one, other = (codec.encode(state(seed), seed=0) for seed in (1, 2))
    first = arrivals.of(one, SHAPES, {}, {})
    assert arrivals.of(bytes(bytearray(one)), dict(SHAPES), {}, {}) is first
    for payload in (other, one, one):
        found, alone = arrivals.of(payload, SHAPES, {}, {}), decode_arrival(payload, codec, SHAPES, {}, {})
        assert all(torch.equal(found.state[name], alone.state[name]) for name in SHAPES)
    with pytest.raises(PayloadError):  # those of another form are sent something else
        arrivals.of(one, {name: (*shape[:-1], shape[-1] + 1) for name, shape in SHAPES.items()}, {}, {})


def test_with_loss_each_goes_by_what_it_holds():
    codec = parse_codec("grid(bits=5.0) | rans")
    arrivals, payload = Arrivals(codec), codec.encode(state(1), seed=0)
    starts = [state(2), state(3)]
    for start in starts:
        found, alone = arrivals.of(payload, SHAPES, start, {}), decode_arrival(payload, codec, SHAPES, start, {})
        assert all(torch.equal(found.state[name], alone.state[name]) for name in SHAPES)
