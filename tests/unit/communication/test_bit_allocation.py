"""Budgets: kept by whole payloads, spent where they matter, divided as the optimality conditions say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedpeft.communication.bit_allocation import (
    allocate_real_widths,
    allocate_widths,
    compute_sensitivity,
    cut_slices,
)
from fedpeft.communication.codec import parse_codec
from fedpeft.communication.codecs.widths import DISTORTION, STEP
from fedpeft.communication.decoding import decode
from fedpeft.peft.adapter import AdapterShape, Layout, TensorSpec
from tests.communication.vectors import LARGER, LORA, flat, lora_state, relative_error, rows


def bits_per_parameter(payload, state):
    return 8 * len(payload) / flat(state).numel()


# size


@rows("bits", [0.5, 1.0, 2.0, 4.0])
@rows("head", ["adaptive", "widths", "lowrank(share=1.0) | adaptive", "lowrank(share=1.0) | widths"])
def test_budgets_cover_the_whole_payload(bits, head):
    state = lora_state(shapes=LARGER)
    payload = parse_codec(f"{head}(bits={bits}) | rans").encode(state)
    spent = bits_per_parameter(payload, state)
    assert spent <= bits
    assert spent >= 0.75 * bits - 0.05
    assert relative_error(state, decode(payload, LARGER)) < 1


def test_three_bits_that_fill_no_word_are_paid_for_by_slices_of_one_bit():
    """Half of the rows have a twentieth of the energy: of 2 bits each, 3 and 1 would take 2.02 when packed."""
    x = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))
    x = x / x.square().mean(1, keepdim=True).sqrt() * torch.where(torch.arange(64) < 32, 1.0, 0.05**0.5)[:, None]
    for bits in (2.0, 2.03, 2.06):
        payload = parse_codec(f"widths(bits={bits}, per=row) | pack").encode({"x": x})
        assert bits - 0.05 < bits_per_parameter(payload, {"x": x}) <= bits


@rows("bits", range(1, 9))
def test_levels_are_the_best_uniform_ones_for_a_normal_entry(bits):
    """Max, Quantizing for minimum distortion, 1960: integrated here with the normal density."""
    x = np.linspace(-9, 9, 400_001)
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi) * (x[1] - x[0])

    def error(step):
        level = np.clip(np.floor(x / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return float((density * (x - step * (level + 0.5)) ** 2).sum())

    assert error(STEP[bits]) == pytest.approx(DISTORTION[bits], rel=0.01)
    assert error(STEP[bits]) < min(error(0.97 * STEP[bits]), error(1.03 * STEP[bits]))


def test_more_bits_mean_less_error():
    state = lora_state()
    for head in ("adaptive", "widths", "lowrank(share=1.0) | adaptive"):
        errors = [
            relative_error(state, decode(parse_codec(f"{head}(bits={b}) | rans").encode(state), LORA))
            for b in (0.5, 1.0, 2.0, 4.0)
        ]
        assert errors == sorted(errors, reverse=True)


def test_adaptive_precision_beats_uniform_precision_at_equal_bytes():
    """Tensors of unlike energy: uniform widths waste bits on those that hardly count."""
    state = {n: t * 4.0 ** -(i % 4) for i, (n, t) in enumerate(lora_state(spectrum=0.9).items())}
    uniform = parse_codec("quantize(bits=2) | pack").encode(state)
    bits = bits_per_parameter(uniform, state)
    error = relative_error(state, decode(uniform, LORA))
    for head in ("adaptive", "widths"):
        payload = parse_codec(f"{head}(bits={bits}) | rans").encode(state)
        assert len(payload) <= len(uniform)
        assert relative_error(state, decode(payload, LORA)) < 0.6 * error


def test_weights_move_precision_to_where_it_matters():
    state = lora_state(spectrum=0.9)
    weights = {n: torch.full(t.shape, 10.0 if n.startswith("0") else 0.1) for n, t in state.items()}
    for head in ("adaptive", "widths", "lowrank(share=1.0) | adaptive"):
        codec = parse_codec(f"{head}(bits=1.5) | rans")
        plain, weighted = (decode(codec.encode(state, weights=w), LORA) for w in (None, weights))
        assert (weighted["0.lora_A"] - state["0.lora_A"]).norm() < 0.5 * (plain["0.lora_A"] - state["0.lora_A"]).norm()


def test_presets_reach_their_ratios_on_steep_updates():
    state = lora_state(shapes=LARGER)
    for preset, ratio in (("fp32", 0.99), ("int4", 7), ("unbiased", 14), ("medium", 16), ("small", 32), ("tiny", 100)):
        payload = parse_codec(preset).encode(state)
        assert 32 / bits_per_parameter(payload, state) >= ratio, preset


# allocation

energies = hnp.arrays(np.float64, st.integers(1, 12), elements=st.one_of(st.just(0.0), st.floats(1e-9, 1e6)))


@given(energies, st.floats(0, 12), st.integers(0, 99))
def test_water_filling_meets_its_budget_and_the_optimality_conditions(c, rate, seed):
    n = np.random.default_rng(seed).integers(1, 50, len(c))
    b = allocate_real_widths(c, n, rate * n.sum())
    assert (b >= 0).all()
    assert (b <= 8).all()
    used = float((n * b).sum())
    assert used <= rate * n.sum() * (1 + 1e-9) + 1e-6
    slope = c / n * 4.0**-b  # gain of the next bit: equal where 0 < b < 8, less at 0, more at 8
    inside = (b > 1e-9) & (b < 8 - 1e-9)
    if inside.any():
        water = slope[inside].max()
        assert slope[inside].min() >= water * (1 - 1e-6)
        assert (slope[b <= 1e-9] <= water * (1 + 1e-6)).all()
        assert (slope[b >= 8 - 1e-9] >= water * (1 - 1e-6)).all()
    if (c > 0).any() and not (b[c > 0] >= 8 - 1e-9).all():
        assert used == pytest.approx(rate * n.sum(), rel=1e-6, abs=1e-6)


@given(energies, st.floats(0, 8), st.integers(0, 99))
@settings(max_examples=50)
def test_integer_widths_stay_within_budget_and_near_the_best(c, rate, seed):
    n = np.full(len(c), 7)
    b = allocate_widths(c, n, rate * n.sum(), DISTORTION)
    assert (n * b).sum() <= rate * n.sum() + 1e-6
    error = (c * np.array(DISTORTION)[b]).sum()
    uniform = (c * np.array(DISTORTION)[int(rate)]).sum()
    assert error <= uniform * (1 + 1e-9)


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=5),
    st.sampled_from(["tensor", "row", "rank"]),
)
def test_slices_cover_every_entry_once(shapes, per):
    cut = cut_slices(tuple(shapes), per)
    values = np.arange(sum(m * n for m, n in shapes))
    assert np.array_equal(cut.scatter(cut.gather(values)), values)
    assert cut.sizes.sum() == len(values)


def test_rank_slices_are_the_ranks_of_both_factors():
    cut = cut_slices(((2, 3), (3, 2)), "rank")
    assert cut.sizes.tolist() == [3, 3, 3, 3]
    assert cut.gather(np.arange(12)).tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 10, 7, 9, 11]


def test_sensitivity_is_the_partners_norm():
    layout = Layout(
        (
            TensorSpec("q.A", (2, 5), "lora_A", "q"),
            TensorSpec("q.B", (3, 2), "lora_B", "q"),
            TensorSpec("head", (4,), "head", "head"),
        ),
        AdapterShape(2, 4.0),
    )
    state = {n: torch.randn(s, generator=torch.Generator().manual_seed(1)) for n, s in layout.shapes.items()}
    weights = compute_sensitivity(state, layout)
    lora_a, lora_b = state["q.A"], state["q.B"]
    ratio = weights["q.A"][0, 0] / weights["q.B"][0, 1]
    assert float(ratio) == pytest.approx(float(lora_b[:, 0].norm() / lora_a[1].norm()), rel=1e-5)
    assert torch.equal(weights["head"], torch.ones(4))
    fresh = compute_sensitivity(state | {"q.B": torch.zeros(3, 2)}, layout)
    assert float(fresh["q.A"].min()) == pytest.approx(0.1)
