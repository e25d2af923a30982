"""Requirements of every codec step; new steps are found and tested automatically."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest
import torch

from fedpeft.communication.codec import make_codec, parse_codec
from fedpeft.communication.decoding import decode
from fedpeft.communication.payload import seal
from fedpeft.communication.steps import ByteStep, Packer, Quantizer, Step, TensorStep, Transform, get_step_name
from fedpeft.conformance import list_required_settings, list_tested_parts
from fedpeft.conformance.conftest import build_with_defaults
from fedpeft.errors import ConfigError, PayloadError
from fedpeft.parts import Bounds
from fedpeft.parts.families import PRESETS, codecs

NAMES = list_tested_parts(codecs)

SHAPES = {
    **{f"layer.{i}.lora_A": (4, 33) for i in range(3)},
    **{f"layer.{i}.lora_B": (50, 4) for i in range(3)},
    "head": (5, 9),
    "bias": (7,),
    "scale": (),
}
EMPTY_SHAPES = {"a": (0, 3), "b": (2,), "c": (1, 1)}


def create_state(shapes=SHAPES, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {
        n: (torch.randn(s, generator=generator) * 0.01 * (i + 1)).to(dtype) for i, (n, s) in enumerate(shapes.items())
    }


def list_variants(name):
    """Return the part with its defaults, and with each setting's choices and ends of range."""
    part = codecs.part(name)
    made = [] if list_required_settings(part) else [part()]
    for field in dataclasses.fields(part) if made else ():
        bounds = field.metadata.get("bounds", Bounds())
        values = bounds.choices or [v for v in (bounds.low, bounds.high) if v is not None]
        for value in values:
            number = type(field.default) if isinstance(field.default, (int, float)) else lambda v: v
            try:
                made.append(part(**{field.name: number(value)}))
            except ConfigError:
                continue
    return made


def build_pipeline(step):
    return make_codec([step])


CASES = [pytest.param(step, id=str(step)) for name in NAMES for step in list_variants(name)]
PIPELINES = (
    [
        *PRESETS,
        "topk(fraction=0.1) | quantize(bits=4) | rans",
        "topk | sign | rans | zstd",
        "rotate | quantize(step=0.5, rounding=stochastic) | rans",
        "rotate | topk | lowrank | nf4 | zstd",
        "segments(count=2, gain=none) | topk(fraction=0.5) | quantize(bits=4) | rans",
        "lowrank(share=1.0) | adaptive(bits=3.0, rounding=dither) | rans",
        "lowrank(share=0.3) | rotate | widths(bits=3.0) | pack | zstd | zstd",
        "topk(fraction=0.5) | adaptive(bits=2.0, per=tensor) | rans",
    ]
    if codecs.own_names == NAMES
    else [str(step) for name in NAMES for step in list_variants(name)]
)
"""Combinations of the built-in steps, or each step of a plugin alone."""


def encode(codec, state, **options):
    return codec.encode(
        state, seed=5, reference=(3, create_state({n: tuple(t.shape) for n, t in state.items()}, 9)), **options
    )


def decode_whole(payload, shapes=SHAPES):
    return decode(payload, shapes, references={3: create_state(shapes, 9)})


@pytest.mark.parametrize("name", NAMES)
def test_a_part_is_a_documented_frozen_dataclass_of_one_kind(name):
    part = codecs.part(name)
    assert issubclass(part, (Transform, Quantizer, Packer, ByteStep))
    assert dataclasses.is_dataclass(part)
    assert part.__dataclass_params__.frozen
    assert part.__doc__
    assert all(f.metadata.get("help") and "bounds" in f.metadata for f in dataclasses.fields(part))
    step = build_with_defaults(codecs, name)
    assert isinstance(step, Step)
    assert get_step_name(step) == name


@pytest.mark.parametrize("step", CASES)
def test_text_form_round_trips(step):
    assert parse_codec(str(build_pipeline(step))) == build_pipeline(step)


@pytest.mark.parametrize("step", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_states_come_back_with_names_shapes_and_dtypes(step, dtype):
    state = create_state(dtype=dtype)
    back = decode_whole(encode(build_pipeline(step), state))
    assert list(back) == list(SHAPES)
    for name, tensor in back.items():
        assert tuple(tensor.shape) == SHAPES[name]
        assert tensor.dtype == dtype
        assert bool(tensor.isfinite().all())


@pytest.mark.parametrize("step", CASES)
def test_lossless_means_bit_for_bit(step):
    codec = build_pipeline(step)
    state = create_state()
    back = decode_whole(encode(codec, state))
    if codec.lossless:
        assert all(torch.equal(back[n], state[n]) for n in state)


@pytest.mark.parametrize("step", CASES)
def test_equal_seeds_give_equal_bytes_and_decoding_is_a_function_of_them(step):
    first, second = encode(build_pipeline(step), create_state()), encode(build_pipeline(step), create_state())
    assert first == second
    assert all(
        torch.equal(a, b) for a, b in zip(decode_whole(first).values(), decode_whole(second).values(), strict=True)
    )


@pytest.mark.parametrize("step", CASES)
@pytest.mark.parametrize("fill", [0.0, 1e-42, 3e38, -1.0])
def test_extreme_but_finite_states_survive_as_finite_ones(step, fill):
    state = {n: torch.full(s, fill) for n, s in SHAPES.items()}
    try:
        payload = build_pipeline(step).encode(state, reference=(3, {n: torch.zeros(s) for n, s in SHAPES.items()}))
        back = decode(payload, SHAPES, references={3: {n: torch.zeros(s) for n, s in SHAPES.items()}})
    except PayloadError:
        assert abs(fill) > 1e30
        return
    assert all(bool(t.isfinite().all()) for t in back.values())
    if fill == 0:
        assert all(not t.any() for t in back.values())


@pytest.mark.parametrize("step", CASES)
def test_empty_tensors_and_empty_states_survive(step):
    for shapes in (EMPTY_SHAPES, {}):
        state = create_state(shapes)
        back = decode_whole(encode(build_pipeline(step), state), shapes)
        assert {n: tuple(t.shape) for n, t in back.items()} == shapes


@pytest.mark.parametrize("step", CASES)
def test_subsets_and_weights_are_taken(step):
    state = {n: t for n, t in create_state().items() if "lora" in n}
    weights = {n: torch.rand(t.shape) for n, t in state.items()}
    assert list(decode_subset(encode(build_pipeline(step), state, weights=weights, shapes=SHAPES))) == list(state)
    zeros = {n: torch.zeros(t.shape) for n, t in state.items()}
    assert list(decode_subset(encode(build_pipeline(step), state, weights=zeros, shapes=SHAPES))) == list(state)


def decode_subset(payload):
    lora = {n: s for n, s in SHAPES.items() if "lora" in n}
    return decode(
        payload,
        SHAPES,
        references={3: create_state(lora, 9) | {n: torch.zeros(s) for n, s in SHAPES.items() if n not in lora}},
    )


@pytest.mark.parametrize("text", PIPELINES)
def test_pipelines_round_trip_and_shrink(text):
    codec = parse_codec(text)
    assert parse_codec(str(codec)) == codec
    state = create_state()
    back, nearest = (decode_whole(encode(c, state)) for c in (codec, codec.remove_gain()))
    before, stretched, after = (torch.cat([t.reshape(-1) for t in s.values()]) for s in (state, back, nearest))
    assert before @ stretched <= 1.01 * before @ before or "dither" in text, "a gain makes nothing longer than it was"
    limit = 2 if "dither" in text else 1.01  # an unbiased code need not be a contraction
    if codec.gain != "none":  # <x, x'> = norm(x)^2 and norm(x') <= 2 norm(x), since the gain is at most 4
        limit *= 3**0.5
    assert (before - after).norm() <= limit * before.norm()


@pytest.mark.parametrize("text", PIPELINES)
def test_truncated_and_extended_payloads_are_refused(text):
    payload = encode(parse_codec(text), create_state())
    for cut in sorted({*range(0, min(60, len(payload)), 7), len(payload) // 2, len(payload) - 1}):
        for damaged in (payload[:cut], seal(payload[:cut])):
            with pytest.raises(PayloadError):
                decode_whole(damaged)
    with pytest.raises(PayloadError):
        decode_whole(seal(payload + b"\1"))


@pytest.mark.parametrize(
    "text", [*PIPELINES, "lowrank(share=1.0) | rotate | topk(fraction=1.0) | adaptive(bits=10.0) | rans | zstd"]
)
@pytest.mark.parametrize(
    ("shapes", "dtype", "factor"),
    [
        ({f"{i}.{f}": s for i in range(12) for f, s in (("A", (8, 384)), ("B", (384, 8)))}, torch.float32, 16),
        ({str(i): (256, 256) for i in range(2)}, torch.float64, 32),
    ],
    ids=["lora", "square"],
)
def test_decoding_stays_within_the_stated_memory(text, shapes, dtype, factor):
    payload = encode(parse_codec(text), create_state(shapes, dtype=dtype))
    references = {3: create_state(shapes, 9)}
    decode(payload, shapes, references=references)
    tracemalloc.start()
    decode(payload, shapes, references=references)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= factor * 4 * sum(int(np.prod(s)) for s in shapes.values()) + (1 << 20)


@pytest.mark.parametrize("name", [n for n in NAMES if issubclass(codecs.part(n), TensorStep)])
def test_a_step_needs_only_the_payload(name):
    """A payload made with unusual settings decodes without them: `decode` takes no configuration."""
    for step in list_variants(name):
        assert list(decode_whole(encode(build_pipeline(step), create_state()))) == list(SHAPES)
