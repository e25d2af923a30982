"""Codecs: error bounds and unbiasedness part by part, their text form, states with zeros."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedpeft.communication.codec import parse_codec
from fedpeft.communication.codecs.cast import Cast
from fedpeft.communication.decoding import decode
from fedpeft.communication.levels import scale_values, scale_words
from fedpeft.communication.payload import Reader
from fedpeft.communication.steps import Context, Encoded
from fedpeft.communication.symbols import Symbols
from fedpeft.parts.families import PRESETS
from tests.communication.vectors import lora_state, rows, through
from tests.refusals import refuses

finite = st.floats(-1e6, 1e6, width=32)
vectors = hnp.arrays(np.float32, st.integers(1, 200), elements=finite)


# error bounds


@given(vectors)
def test_fp32_is_exact(x):
    assert np.array_equal(through("fp32", x), x)


@given(hnp.arrays(np.float64, st.integers(1, 50), elements=st.floats(allow_nan=False, allow_infinity=False)))
def test_fp64_is_exact(x):
    assert np.array_equal(through("fp64", x), x)


@given(vectors, st.sampled_from([("bf16", 2.0**-8, 0), ("fp16", 2.0**-11, 2.0**-24)]))
def test_narrow_floats_round_to_nearest_and_saturate(x, form):
    name, relative, absolute = form
    limit = float(torch.finfo(torch.bfloat16 if name == "bf16" else torch.float16).max)
    wanted = np.clip(x, -limit, limit)
    assert (np.abs(through(name, x) - wanted) <= relative * np.abs(wanted) + absolute + 1e-37).all()


@given(vectors, st.integers(1, 8), st.sampled_from(["nearest", "stochastic", "dither"]), st.integers(8, 100))
def test_absmax_blocks_keep_the_error_within_a_step(x, bits, rounding, block):
    back = through(f"quantize(bits={bits}, rounding={rounding}, block={block})", x, seed=1)
    for start in range(0, len(x), block):
        piece = x[start : start + block]
        largest = np.abs(piece).max()
        step = 2 * largest if bits == 1 else largest / (2 ** (bits - 1) - 1)
        bound = step if rounding == "stochastic" else step / 2
        if bits == 1 and rounding == "nearest":
            bound = largest  # levels at the mean magnitude
        assert np.abs(back[start : start + block] - piece).max() <= 1.01 * bound + 1e-30


@given(vectors, st.floats(0.1, 4), st.sampled_from(["nearest", "dither"]))
def test_sigma_steps_keep_the_error_within_half_a_step_and_never_clip(x, step, rounding):
    sigma = float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))
    width = max(step * sigma, np.abs(x).max() / 127)
    assert (
        np.abs(through(f"quantize(step={step!r}, rounding={rounding})", x, seed=2) - x).max() <= 0.505 * width + 1e-30
    )


@given(vectors)
def test_nf4_keeps_the_error_within_half_its_widest_gap(x):
    back = through("nf4", x)
    for start in range(0, len(x), 64):
        piece = x[start : start + 64]
        assert np.abs(back[start : start + 64] - piece).max() <= 0.1535 * np.abs(piece).max() + 1e-30


def test_nf4_sends_zeros_as_its_level_zero():
    *_, codes = parse_codec("nf4").create_symbols({"x": torch.zeros(70)})[0]
    assert codes.values.tolist() == [7] * 70


@given(vectors)
def test_signs_with_the_mean_are_the_least_squares_code(x):
    scale = np.abs(x, dtype=np.float64).mean()
    assert np.allclose(through("sign", x), np.where(x >= 0, scale, -scale), rtol=1e-4, atol=1e-30)


@given(vectors, st.floats(0.01, 1))
def test_topk_keeps_the_largest_exactly_and_contracts(x, fraction):
    back = through(f"topk(fraction={fraction!r})", x)
    keep = max(1, round(fraction * len(x)))
    kept = back != 0
    assert kept.sum() <= keep
    assert np.array_equal(back[kept], x[kept])
    if kept.sum() == keep and keep < len(x):
        assert np.abs(x[kept]).min() >= np.abs(x[~kept]).max()
    error = np.square(x - back, dtype=np.float64).sum()
    assert error <= (1 - keep / len(x)) * np.square(x, dtype=np.float64).sum() * (1 + 1e-6)


def test_topk_follows_the_weights():
    x = torch.tensor([5.0, 4.0, 3.0, 2.0])
    payload = parse_codec("topk(fraction=0.5)").encode({"x": x}, weights={"x": torch.tensor([0.1, 0.1, 1.0, 1.0])})
    assert decode(payload, {"x": (4,)})["x"].tolist() == [0, 0, 3, 2]


@given(st.integers(2, 12), st.integers(2, 30), st.integers(0, 99), st.booleans(), st.floats(0.05, 1))
def test_lowrank_is_the_best_approximation_of_its_rank(m, n, seed, tall, share):
    x = np.random.default_rng(seed).standard_normal((n, m) if tall else (m, n)).astype(np.float32)
    rank = max(1, round(np.float64(np.float32(share)) * min(x.shape)))
    left, s, right = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    best = (left[:, :rank] * s[:rank]) @ right[:rank]
    back = through(f"lowrank(share={share!r})", x)
    assert np.linalg.norm(x - back) <= np.linalg.norm(x - best) + 1e-4 * np.linalg.norm(x)


@pytest.mark.parametrize(
    "text",
    ["lowrank(share=0.5) | adaptive(bits=0.99) | rans", "lowrank(share=0.25) | adaptive(bits=0.312) | rans",
     "lowrank(share=1) | quantize(bits=4) | rans"],
)  # fmt: skip
def test_what_is_sent_does_not_depend_on_the_signs_of_eigenvectors(text, monkeypatch):
    """Libraries and last bits of the state choose them; bytes, and so the step that meets a budget, must not follow."""
    state, draws, whole = lora_state(), np.random.default_rng(0), np.linalg.eigh

    def others(x):
        values, vectors = whole(x)
        return values, vectors * draws.choice([-1.0, 1.0], (*vectors.shape[:-2], 1, vectors.shape[-1]))

    payload = parse_codec(text).encode(state, seed=3)
    monkeypatch.setattr(np.linalg, "eigh", others)
    assert all(parse_codec(text).encode(state, seed=3) == payload for _ in range(3))


@given(hnp.arrays(np.float32, st.integers(1, 5000), elements=st.floats(-1, 1, width=32)), st.integers(0, 2**64 - 1))
@settings(max_examples=30)
def test_rotation_is_undone(x, seed):
    assert np.abs(through("rotate(block=64)", x, seed=seed) - x).max() <= 1e-5


def test_rotation_keeps_the_norm_and_spreads_a_spike():
    from fedpeft.communication.codecs.rotate import Rotate
    from fedpeft.communication.steps import Context, Signal

    spike = np.zeros(1024, np.float32)
    spike[3] = 1
    values = Rotate().encode(Signal(spike, ((1024,),)), Context(7, 0, np.dtype(np.float32))).signal.values
    assert np.allclose(np.abs(values), 1 / 32)


@given(vectors, vectors, st.integers(0, 2**40))
def test_delta_goes_back_to_the_state(x, base, version):
    n = min(len(x), len(base))
    x, base = torch.from_numpy(x[:n]), torch.from_numpy(base[:n])
    payload = parse_codec("delta").encode({"x": x}, reference=(version, {"x": base}))
    back = decode(payload, {"x": (n,)}, references={version: {"x": base}})["x"]
    assert ((back - x).abs() <= 1e-6 * (x.abs() + base.abs())).all()


def test_delta_refuses_a_reference_that_is_missing_or_differs():
    x, base = {"x": torch.ones(3)}, {"x": torch.zeros(3)}
    with refuses("FP1054"):
        parse_codec("delta").encode(x)
    payload = parse_codec("delta").encode(x, reference=(4, base))
    with refuses("FP1072", "x", "(3,)"):
        parse_codec("delta").encode(x, reference=(4, {"x": torch.zeros(4)}))
    with refuses("FP6076", "4"):
        decode(payload, {"x": (3,)}, references={5: base})
    with refuses("FP6077"):
        decode(payload, {"x": (3,)}, references={4: {"x": torch.tensor([0.0, 0.0, 1e-6])}})


# unbiasedness


@rows(
    "text",
    [
        "quantize(bits=1, rounding=stochastic)",
        "quantize(bits=1, rounding=dither)",
        "quantize(bits=2, rounding=stochastic)",
        "quantize(bits=3, rounding=dither)",
        "quantize(step=1.0, rounding=stochastic)",
        "quantize(step=2.0, rounding=dither)",
        "rotate | quantize(step=2.0, rounding=dither) | rans",
        "rotate | sign(scale=drive)",
        "unbiased",
        "adaptive(bits=6.0, rounding=dither)",
        "lowrank(share=1.0) | adaptive(bits=9.0, rounding=dither)",
    ],
)
def test_unbiased(text):
    """The mean over seeds approaches x as 1 / sqrt(seeds) does, entry by entry and along x itself."""
    x = torch.from_numpy(np.random.default_rng(0).laplace(size=(8, 32)).astype(np.float32))
    codec = parse_codec(text)
    draws = 400
    backs = torch.stack([decode(codec.encode({"x": x}, seed=s), {"x": (8, 32)})["x"].double() for s in range(draws)])
    spread = backs.std(dim=0)
    spread = spread.clamp(min=0.3 * float(spread.square().mean().sqrt()))  # rare roundings are far from normal
    off = (backs.mean(dim=0) - x) / (spread / math.sqrt(draws))
    assert float(off.abs().max()) < 5
    assert float(off.square().mean()) < 1.6
    along = backs.reshape(draws, -1) @ x.reshape(-1).double() / x.double().square().sum()
    slack = 0.01 if "sign" in text else 0.002  # the Hadamard rotation is not quite the uniform one
    assert abs(float(along.mean()) - 1) < 4 * float(along.std()) / math.sqrt(draws) + slack


def test_dither_has_the_error_of_uniform_noise_whatever_the_signal():
    x = np.random.default_rng(1).standard_normal(100_000).astype(np.float32)
    error = through("quantize(step=1.0, rounding=dither)", x, seed=3) - x
    step = float(scale_values(scale_words(np.array([np.sqrt(np.mean(x**2))]), 2, up=True), 2)[0])
    assert abs(error.var() / (step**2 / 12) - 1) < 0.02
    assert abs(np.corrcoef(error, x)[0, 1]) < 0.01


def test_seeds_give_independent_errors_so_averages_improve():
    x = np.random.default_rng(1).standard_normal(20_000).astype(np.float32)
    errors = [through("unbiased", x, seed=s) - x for s in range(8)]
    assert np.linalg.norm(np.mean(errors, axis=0)) < 0.38 * np.linalg.norm(errors[0])
    codec, state = parse_codec("unbiased"), {"x": torch.from_numpy(x)}
    assert codec.encode(state) == codec.encode(state, seed=0)
    (one, *_), (other, *_) = (codec.create_symbols(state, **given)[0] for given in ({}, {"seed": 0}))
    assert np.array_equal(one.values, other.values)


# text form


@rows(
    ("text", "words"),
    [
        ("smal", ("FP1050", "'smal'", "fp64", "topk")),
        ("topk(fraction=0) | pack", ("FP1227", "topk", "fraction", 0, 1, "0.0")),
        ("quantize(bits=9)", ("FP1227", "quantize", "bits", 1, 8, 9)),
        ("quantize(bit=4)", ("FP1225", "quantize", "'bit'", "did you mean 'bits'")),
        ("rans | zstd | quantize", ("FP1065", "rans | zstd | quantize")),
        ("quantize | topk", ("FP1065", "quantize | topk | pack")),
        ("quantize | nf4", ("FP1065", "quantize | nf4 | pack")),
        ("pack | rans", ("FP1065", "cast | pack | rans")),
        ("topk || rans", ("FP1049", "'topk || rans'")),
        ("topk + quantize(bits=4)", ("FP1048", "'topk + quantize(bits=4)'", "|")),
        ("rotate(block=100)", ("FP1057", "rotate", "block", 100)),
        (" | ".join(["topk"] * 20), ("FP1066", 16, 22)),
    ],
)
def test_wrong_codecs_are_one_clear_error(text, words):
    with refuses(*words):
        parse_codec(text)


def test_a_codec_of_sixteen_steps_goes_through_and_one_more_is_refused():
    longest = ["rotate"] * 14 + ["cast", "pack"]
    assert through(" | ".join(longest), np.ones(4, np.float32)) == pytest.approx(np.ones(4))
    with refuses("FP1066", 16, 17):
        parse_codec(" | ".join(["rotate", *longest]))


@rows("name", PRESETS)
def test_presets_parse_and_round_trip(name):
    codec = parse_codec(name)
    assert parse_codec(str(codec)) == codec
    assert codec.lossless == (name in ("fp32", "fp64"))


def test_precision_can_be_set_from_round_to_round_and_client_to_client():
    assert str(parse_codec("small").set_bits(1.5)) == "adaptive(bits=1.5, gain=length) | rans"
    assert str(parse_codec("int8").set_bits(3.4)) == "quantize(bits=3) | rans"
    assert parse_codec("int8").set_bits(99) == parse_codec("int8")
    for text in ("fp32", "unbiased", "topk | sign"):
        with refuses("FP1046"):
            parse_codec(text).set_bits(2.0)


# zeros


@rows("codec", ["fp32", "fp64", "bf16", "fp16", "cast(dtype=fp32) | rans", "cast(dtype=bf16) | pack"])
@given(hnp.arrays(np.float32, st.integers(0, 300), elements=st.floats(-1e4, 1e4, width=32)), st.floats(0, 1))
@settings(max_examples=20)
def test_states_with_zeros_arrive_as_dense_ones_do(codec, x, share):
    """Bit for bit, the sign of -0 included, and never larger than without the mask."""
    zero = np.random.default_rng(len(x)).random(len(x)) < share
    x = np.where(zero, np.float32(0), x).astype(np.float32)
    x[:1] = -0.0
    dtype = {"fp64": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    rounded = torch.from_numpy(x).to(next((d for name, d in dtype.items() if name in codec), torch.float32)).float()
    back = through(codec, x)
    assert back.tobytes() == rounded.numpy().tobytes()


@rows(("codec", "size"), [("fp32", 4), ("fp64", 8), ("cast(dtype=bf16) | pack", 2)])
def test_a_sparse_state_costs_its_values_and_a_bit_an_entry(codec, size):
    x = np.zeros(64_000, np.float32)
    x[::10] = np.random.default_rng(0).standard_normal(6400)
    sparse, dense = (len(parse_codec(codec).encode({"x": torch.from_numpy(v)})) for v in (x, x + np.float32(1)))
    assert dense - 64_000 * size < 100
    assert 6400 * size + 8000 < sparse < 6400 * size + 8000 + 100


def test_a_mask_that_does_not_match_its_count_is_refused():
    from fedpeft.communication.codecs.cast import SPARSE, Cast

    context = Context(0, 0, np.dtype(np.float32))
    plan = Cast.plan(Reader(bytes((SPARSE, 2))), ((3,),), context)
    planes = [np.array([0, 0], np.uint8)] * 2 + [np.array([128, 128], np.uint8), np.array([63, 63], np.uint8)]
    assert plan.undo(np.zeros(0), [np.array([1, 0, 1]), *planes]).tolist() == [1, 0, 1]
    with refuses("FP6030", "2"):
        plan.undo(np.zeros(0), [np.array([1, 1, 1]), *planes])
    with refuses("FP6029", "9"):
        Cast.plan(Reader(bytes((9,))), ((3,),), context)
    with refuses("FP6064", "values that are not 0"):
        Cast.plan(Reader(bytes((SPARSE, 4))), ((3,),), context)


@pytest.mark.parametrize(
    ("values", "alphabet", "says"),
    [
        (np.array([0, 300], np.uint16), 256, ("FP1068", 0, 300, 256, 0, 255)),
        (np.array([-1, 3], np.int8), 4, ("FP1068", -1, 3, 4, 0, 3)),
        (np.array([0, 1], np.uint8), 1, ("FP1068", 0, 1, 1, 0, 0)),
        (np.array([0.5]), 4, ("FP1067", "float64")),
        (np.array([0, 255], np.uint8), 256, None),
        (np.array([0, 3], np.int64), 4, None),
        (np.zeros(0, np.int64), 4, None),
    ],
)
def test_symbols_beyond_their_alphabet_are_refused(values, alphabet, says):
    """They were packed, and arrived as others."""
    if says is None:
        Symbols(values, alphabet).check("mine")
        return
    with refuses(says[0], "mine", *says[1:]):
        Symbols(values, alphabet).check("mine")


def test_a_step_whose_symbols_lie_beyond_their_alphabet_is_refused_before_they_are_packed():
    class Wide(Cast):
        def encode(self, signal, context):
            return Encoded(None, b"", (Symbols(np.array([0, 300], np.uint16), 256),))

    with refuses("FP1068", 300, 256):
        replace(parse_codec("fp32"), tensor_steps=(Wide(),)).encode({"x": torch.zeros(2)})


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_weights_below_zero_or_beyond_numbers_are_refused(weight):
    state = {"a": torch.ones(20)}
    with refuses("FP6081"):
        parse_codec("topk | rans").encode(state, weights={"a": torch.tensor([weight] + [1.0] * 19)})
