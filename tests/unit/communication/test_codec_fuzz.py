"""Hostile payloads: whatever the bytes, decoding gives a valid state or one PayloadError, within bounded memory.

The short runs are part of the ordinary tests. The long one runs for as long as FUZZ_SECONDS says (an hour by default):

    FUZZ_SECONDS=3600 python -m pytest tests/unit/communication/test_codec_fuzz.py -m long
"""

from __future__ import annotations

import os
import random
import time
import tracemalloc
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedpeft.communication.codec import parse_codec
from fedpeft.communication.decoding import decode
from fedpeft.communication.downlink import DOWNLINKS, compute_balanced_weights
from fedpeft.communication.payload import (
    MAX_STEPS,
    Header,
    compute_layout_digest,
    encode_varint,
    read_payload,
    seal,
    write_payload,
)
from fedpeft.errors import PayloadError
from fedpeft.parts.families import PRESETS, codecs

SHAPES = {"q.lora_A": (4, 30), "q.lora_B": (40, 4), "head.bias": (5,), "scale": ()}
PARAMETERS = 286
LIMIT = 16 * 4 * PARAMETERS + (1 << 20)
TEXTS = [
    "fp32",
    "cast(dtype=bf16) | rans",
    "cast(dtype=fp64) | zstd",
    "quantize(bits=3) | pack | zstd",
    "quantize(step=1.0, rounding=dither) | rans",
    "nf4 | rans | zstd",
    "rotate(block=64) | sign(scale=drive)",
    "topk(fraction=0.2) | sign | rans",
    "lowrank(share=0.5) | adaptive(bits=6.0) | rans",
    "adaptive(bits=6.0, rounding=dither, per=row) | rans | zstd",
    "widths(bits=4.0) | pack",
    "lowrank | widths(bits=5.0) | rans",
    "delta | quantize(bits=5) | pack",
    "grid(bits=6.0) | rans | zstd",
    "rotate | topk(fraction=0.5) | quantize | rans",
    *(PRESETS[name] for name in ("medium", "small", "tiny")),
    *DOWNLINKS.values(),
]


def state(seed=0, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


REFERENCES = {3: state(1)}
SEEDS = [parse_codec(text).encode(state(), seed=7, reference=(3, REFERENCES[3])) for text in TEXTS]
SEEDS += [parse_codec(text).encode(state(), seed=7) for text in DOWNLINKS.values()]  # from the start
SEEDS += [
    parse_codec(text).encode(state(), seed=7, reference=reference, weights=compute_balanced_weights(state(2)))
    for text in DOWNLINKS.values()
    for reference in (None, (3, REFERENCES[3]))
]
SEEDS += [parse_codec("quantize(bits=4) | rans").encode({"q.lora_A": state()["q.lora_A"]}, shapes=SHAPES)]
SEEDS += [
    parse_codec("fp32").encode(
        {n: t.to(d) for (n, t), d in zip(state().items(), (torch.float16, torch.bfloat16) * 2, strict=True)}
    )
]


def judge(payload):
    """Decode; anything but a valid state or a PayloadError with one sentence fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            result = decode(payload, SHAPES, references=REFERENCES)
        except PayloadError as error:
            verdict = str(error)
            result = {}
        else:
            verdict = None
    if verdict is not None:
        assert verdict
        assert "\n" not in verdict
        assert "Error: " not in verdict, f"a check is missing: {verdict}"  # the last resort in `decode` caught it
    assert set(result) <= set(SHAPES)
    for name, tensor in result.items():
        assert tuple(tensor.shape) == SHAPES[name]
        assert bool(tensor.isfinite().all())
    return verdict


def bounded(payload):
    tracemalloc.start()
    try:
        verdict = judge(payload)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= LIMIT, f"{peak} bytes for {PARAMETERS} parameters"
    return verdict


def edited(payload, random):
    """Return the payload with a few random edits, mostly with a valid checksum and often a header that parses."""
    if random.random() < 0.5:
        payload = reheaded(payload, random)
    data = bytearray(payload)
    for _ in range(random.choice((0, 1, 1, 2, 4, 16))):
        at = random.randrange(len(data) or 1) if random.random() < 0.5 else random.randrange(min(90, len(data) or 1))
        kind = random.randrange(6)
        if kind == 0 and data:
            data[at] ^= 1 << random.randrange(8)
        elif kind == 1 and data:
            data[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
        elif kind == 2:
            del data[at : at + random.choice((1, 2, 4, 50))]
        elif kind == 3:
            data[at:at] = random.randbytes(random.choice((1, 2, 4, 50)))
        elif kind == 4:
            other = random.choice(SEEDS)
            start = random.randrange(len(other))
            data[at : at + 20] = other[start : start + 20]
        else:
            data[at : at + 4] = random.choice(
                (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\x80\x7f", b"\0\0\xc0\x7f", b"\xff\xff\x7f\x7f")
            )
    return bytes(data) if random.random() < 0.1 else seal(bytes(data))


def reheaded(payload, random):
    """Return the payload with other steps, parameters, dtypes, subset or seed in a well-formed header."""
    header, body = read_payload(payload, SHAPES)
    steps = list(header.steps)
    for _ in range(random.randrange(1, 4)):
        kind = random.randrange(5)
        at = random.randrange(len(steps))
        name, parameters = steps[at]
        if kind == 0:
            steps[at] = (random.choice(codecs.names), parameters)
        elif kind == 1:
            edges = (0, 1, 2, 3, 5, 63, 64, 127, 128, 255, 286, 287, 4096, 2**31, 2**32, 2**62)
            steps[at] = (name, b"".join(encode_varint(random.choice(edges)) for _ in range(random.randrange(5))))
        elif kind == 2:
            steps[at] = (name, random.randbytes(random.choice((0, 1, 2, 8, 40))))
        elif kind == 3 and len(steps) < MAX_STEPS:
            steps.insert(at, random.choice(steps))
        elif len(steps) > 1:
            del steps[at]
    sent = header.sent if random.random() < 0.8 else tuple(random.random() < 0.5 for _ in SHAPES)
    count = len(SHAPES) if sent is None else sum(sent)
    dtypes = tuple(random.choice((torch.float32, torch.bfloat16, torch.float16, torch.float64)) for _ in range(count))
    dtypes = dtypes if random.random() < 0.3 else (torch.float32,) * count
    seed = header.seed if random.random() < 0.8 else random.choice((None, 0, 2**64 - 1))
    return write_payload(Header(compute_layout_digest(SHAPES), sent, dtypes, seed, tuple(steps)), bytes(body))


@pytest.mark.parametrize("payload", SEEDS, ids=range(len(SEEDS)))
def test_the_unedited_payloads_are_valid(payload):
    assert bounded(payload) is None


@given(st.binary(max_size=400))
@settings(deadline=None)
def test_random_bytes(data):
    judge(data)
    judge(seal(data))
    judge(seal(SEEDS[0][:16] + data))


@pytest.mark.medium
@given(st.sampled_from(SEEDS), st.randoms(use_true_random=False))
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_edited_payloads(payload, random):
    bounded(edited(payload, random))


@pytest.mark.parametrize("payload", SEEDS, ids=range(len(SEEDS)))
def test_every_flipped_bit_of_the_header_and_some_of_the_body(payload):
    for at in (*range(8, min(len(payload), 80)), *range(80, len(payload), 17)):
        for bit in (0, 3, 7):
            damaged = bytearray(payload)
            damaged[at] ^= 1 << bit
            assert judge(bytes(damaged)) is not None  # the checksum catches every single accident
            judge(seal(bytes(damaged)))  # and without it nothing worse than another valid state comes out


@pytest.mark.long
def test_an_hour_of_edited_payloads():
    seconds = float(os.environ.get("FUZZ_SECONDS", "3600"))
    start, runs, valid = time.monotonic(), 0, 0
    source = random.Random(int(os.environ.get("FUZZ_SEED", str(time.time_ns()))))
    while time.monotonic() - start < seconds:
        number = source.randrange(2**63)
        draw = random.Random(number)
        try:
            valid += (bounded if runs % 20 == 0 else judge)(edited(draw.choice(SEEDS), draw)) is None
        except BaseException:
            print(f"failing draw: random.Random({number})")
            raise
        runs += 1
    print(f"{runs} payloads, {valid} of them valid, in {seconds:.0f} s")
