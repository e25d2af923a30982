"""The wire format: headers, subsets, dtypes, packing, and every check that stands without the checksum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.communication.codec import parse_codec
from fedpeft.communication.decoding import decode
from fedpeft.communication.payload import Reader, compute_layout_digest, encode_varint, seal
from fedpeft.communication.symbols import compute_packed_size, pack_symbols, unpack_symbols
from fedpeft.errors import PayloadError
from tests.refusals import refuses

settings.register_profile("codecs", deadline=None)  # machines are shared: time is no property of a codec
settings.load_profile("codecs")

SHAPES = {"q.lora_A": (2, 7), "q.lora_B": (5, 2), "head": (3,), "scale": ()}


def state(shapes=SHAPES, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def same(a, b):
    return list(a) == list(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def test_default_is_exact_and_costs_a_short_header():
    payload = parse_codec("fp32").encode(state())
    assert same(decode(payload, SHAPES), state())
    assert len(payload) <= 4 * 28 + 40


def test_fp64_survives_when_asked():
    assert same(decode(parse_codec("fp64").encode(state(dtype=torch.float64)), SHAPES), state(dtype=torch.float64))


def test_dtypes_survive_each_by_itself():
    mixed = state() | {"head": torch.randn(3).bfloat16(), "scale": torch.tensor(0.5, dtype=torch.float16)}
    assert same(decode(parse_codec("fp32").encode(mixed), SHAPES), mixed)


def test_result_follows_the_receivers_order():
    reordered = dict(reversed(list(SHAPES.items())))
    assert list(decode(parse_codec("fp32").encode(state()), reordered)) == list(reordered)


@given(st.sets(st.sampled_from(sorted(SHAPES))))
def test_declared_subsets_survive(names):
    some = {name: tensor for name, tensor in state().items() if name in names}
    assert same(decode(parse_codec("fp32").encode(some, shapes=SHAPES), SHAPES), some)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p[:20], ("FP6068",)),
        (lambda p: b"", ("FP6062", "magic")),
        (lambda p: p[:-1], ("FP6068",)),
        (lambda p: p + b"\0", ("FP6068",)),
        (lambda p: b"PK\3\4" + p[4:], ("FP6066",)),
        (lambda p: p[:3] + b"\2" + p[4:], ("FP6067", "2")),
        (lambda p: p[:30] + bytes((p[30] ^ 1,)) + p[31:], ("FP6068",)),
        (lambda p: seal(p[:8] + b"x" + p[9:]), ("FP6069",)),
        (lambda p: seal(p[:16] + b"\x80" + p[17:]), ("FP6070",)),
        (lambda p: seal(p[:17] + b"\x09" + p[18:]), ("FP6071",)),
        (lambda p: seal(p[:18] + b"\x63" + p[19:]), ("FP6073", "99")),
        (lambda p: seal(p.replace(b"cast", b"lost")), ("FP6044", "FP1231", "codec step 'lost")),
        (lambda p: seal(p.replace(b"cast", b"pack")), ("FP6044", "FP1065")),
        (lambda p: seal(p[:-1]), ("FP6034", "111", "112")),
        (lambda p: seal(p + b"\0"), ("FP6046", "112")),
        (lambda p: seal(p[:-112] + b"\xff" * 112), ("FP6084",)),
        (lambda p: seal(p[:16] + b"\1" + b"\xff" + p[17:]), ("FP6072", "4")),
    ],
)
def test_bad_payloads_are_one_clear_error(change, words):
    with refuses(*words):
        decode(change(parse_codec("fp32").encode(state())), SHAPES)


def test_another_adapter_is_refused():
    with refuses("FP6069"):
        decode(parse_codec("fp32").encode(state()), SHAPES | {"head": (4,)})


def test_a_state_that_is_not_finite_is_not_sent():
    with refuses("FP6084", "head"):
        parse_codec("fp32").encode(state() | {"head": torch.tensor([0.0, float("nan"), 0.0])})


def test_unknown_and_misshapen_tensors_are_not_sent():
    with refuses("FP6026", "bias"):
        parse_codec("fp32").encode({"bias": torch.zeros(2)}, shapes=SHAPES)
    with refuses("FP6027"):
        parse_codec("fp32").encode({"head": torch.zeros(2)}, shapes=SHAPES)


def test_zstd_bombs_are_refused_before_they_grow():
    import zstandard

    payload = parse_codec("cast | zstd").encode(state())
    start = payload.index(b"\x28\xb5\x2f\xfd")
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 24))
    assert len(bomb) < 1024
    with refuses("FP6038", "16777216"):
        decode(seal(payload[:start] + bomb), SHAPES)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64))
    with refuses("FP6038"):
        decode(seal(payload[:start] + unsized), SHAPES)
    with refuses("FP6037"):
        decode(seal(payload + payload[start:]), SHAPES)


@given(st.integers(1, 70000), st.integers(0, 200), st.randoms(use_true_random=False))
def test_packing_round_trips_in_the_stated_size(alphabet, count, random):
    symbols = np.array([random.randrange(alphabet) for _ in range(count)], np.uint32)
    packed = pack_symbols(symbols, alphabet)
    assert len(packed) == compute_packed_size(count, alphabet)
    assert np.array_equal(unpack_symbols(packed, count, alphabet), symbols)


@given(st.binary(max_size=40), st.integers(1, 300), st.integers(0, 100))
def test_unpacking_garbage_stays_below_the_alphabet(data, alphabet, count):
    try:
        symbols = unpack_symbols(data, count, alphabet)
    except PayloadError:
        return
    assert len(symbols) == count
    assert (symbols < alphabet).all()


def test_trits_take_their_share():
    assert compute_packed_size(8000, 3) == 1600
    assert compute_packed_size(8000, 16) == 4000


@given(st.integers(0, 2**62))
def test_varints_round_trip(number):
    assert Reader(encode_varint(number)).read_varint("number", 2**62) == number


def test_the_digest_ignores_order_and_sees_shapes():
    assert compute_layout_digest(SHAPES) == compute_layout_digest(dict(reversed(list(SHAPES.items()))))
    assert compute_layout_digest(SHAPES) != compute_layout_digest(SHAPES | {"scale": (1,)})
