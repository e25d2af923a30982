"""Entropy coding: there and back, within its bound, near the entropy; garbage is noticed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedpeft.communication.entropy import decode_symbols, encode_bound, encode_symbols, estimate_coded_size
from fedpeft.communication.levels import read_scales, scale_symbols, scale_values, scale_words
from fedpeft.communication.payload import Reader
from fedpeft.communication.symbols import Symbols
from fedpeft.errors import PayloadError
from tests.refusals import refuses


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 300), st.integers(0, 2**32)), max_size=5))
def test_entropy_coding_round_trips_within_its_bound(kinds):
    streams = []
    for alphabet, count, seed in kinds:
        draw = np.random.default_rng(seed).geometric(0.3, count) - 1
        streams.append(Symbols(np.minimum(draw, alphabet - 1).astype(np.min_scalar_type(alphabet)), alphabet))
    data = encode_symbols(streams)
    expected = [s.expectation for s in streams]
    assert len(data) <= encode_bound(expected)
    reader = Reader(data)
    for stream, back in zip(streams, decode_symbols(reader, expected), strict=True):
        assert np.array_equal(stream.values, back)
    reader.end()


def test_garbage_in_place_of_coded_words_is_noticed():
    """A decoder of the right symbols ends in the empty state; one that went astray hardly ever does."""
    stream = Symbols(np.random.default_rng(0).binomial(12, 0.5, 2000).astype(np.uint8), 13)
    data = encode_symbols([stream])
    refused = 0
    for at in range(40, 240):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        try:
            (back,) = decode_symbols(Reader(bytes(damaged)), [stream.expectation])
            assert (back < 13).all()
        except PayloadError:
            refused += 1
    assert refused >= 190


def test_entropy_coding_reaches_the_entropy():
    q = np.random.default_rng(0).binomial(12, 0.5, 100_000).astype(np.uint8)
    p = np.bincount(q) / len(q)
    entropy = -(p[p > 0] * np.log2(p[p > 0])).sum() * len(q) / 8
    stream = Symbols(q, 13)
    assert entropy <= len(encode_symbols([stream])) <= 1.002 * entropy + 40
    assert abs(estimate_coded_size([stream]) - len(encode_symbols([stream]))) < 0.002 * entropy + 10


@given(hnp.arrays(np.float64, st.integers(0, 20), elements=st.floats(0, 1e30)), st.sampled_from([2, 3]))
def test_scales_round_up_or_to_nearest(scales, width):
    up = read_scales([s.values for s in scale_symbols(scale_words(scales, width, up=True), width)])
    near = scale_values(scale_words(scales, width, up=False), width)
    relative = 2.0 ** (-7 if width == 2 else -15)
    assert (up >= scales.astype(np.float32)).all()
    assert (up <= scales * (1 + relative) + 1e-37).all()
    assert (np.abs(near - scales) <= scales * relative / 2 * 1.001 + 1e-37).all()


@pytest.mark.parametrize("word", [0xBF80, 0x7F80, 0x7FC0])
def test_a_scale_below_zero_or_beyond_numbers_is_refused(word):
    """-1, infinity and not a number, as the upper halves of fp32."""
    with refuses("FP6051"):
        read_scales([np.array([word & 255], np.uint8), np.array([word >> 8], np.uint8)])
