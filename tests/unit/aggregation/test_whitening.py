"""Whitened features: what they are, the gradients of a head on them, and the steps that these lead to."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from fedpeft.aggregation.head_start import VARIANCE, require_variation
from fedpeft.aggregation.whitening import BIAS, WEIGHT, Whitening, create_projection
from fedpeft.communication.codec import parse_codec
from fedpeft.communication.decoding import decode
from fedpeft.parts.families import HEADS
from tests.refusals import refuses

CLASSES, WIDTH, ROWS = 4, 12, 600


def rows(common=5.0):
    """Features of about one length whose longest part all have in common, and labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 1, WIDTH)
    y = (x @ torch.randn(WIDTH, CLASSES, generator=generator, dtype=torch.float64)).argmax(1)
    x[:, -1] += common
    return 3 * functional.normalize(x, dim=1), y


def whitening(x, y, dimensions=WIDTH, noise=0.0, seed=0):
    head = HEADS.build(f"private_ridge(dimensions={dimensions}, strength=1e-9)")
    total = head.statistics(x, y, CLASSES)
    assert head.whitened_directions(WIDTH) == len(total["sums"]) == dimensions
    generator = torch.Generator().manual_seed(seed)
    total = {n: t + noise * torch.randn(t.shape, generator=generator, dtype=torch.float64) for n, t in total.items()}
    total[VARIANCE] = torch.tensor([noise**2], dtype=torch.float64)
    return head.compute_whitening(total, WIDTH)


def whitened(x, w):
    return x @ create_projection(WIDTH, len(w.center)).T @ w.turn.T - w.center


def gradients(x, y, weight, bias):
    """Of each row, by W and b."""
    errors = torch.softmax(x @ weight.T + bias, 1) - functional.one_hot(y, CLASSES)
    return {WEIGHT: errors[:, :, None] * x[:, None, :], BIAS: errors}


def zeros():
    return torch.zeros(CLASSES, WIDTH, dtype=torch.float64), torch.zeros(CLASSES, dtype=torch.float64)


def test_rows_are_centred_vary_alike_and_have_length_one():
    x, y = rows()
    z = whitened(x, whitening(x, y))
    torch.testing.assert_close(z.mean(0), torch.zeros(WIDTH, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(z.T @ z / ROWS, torch.eye(WIDTH, dtype=torch.float64) / WIDTH, atol=1e-6, rtol=0)


@given(st.integers(1, WIDTH), st.integers(0, 5))
def test_gradients_are_those_of_the_head_on_whitened_features_and_nothing_else(dimensions, seed):
    x, y = rows()
    w = whitening(x, y, dimensions, noise=2.0, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    head_weight = torch.randn(CLASSES, dimensions, generator=generator, dtype=torch.float64)
    v = torch.randn(CLASSES, generator=generator, dtype=torch.float64)
    weight, bias = head_weight @ w.turn @ create_projection(WIDTH, dimensions), v - head_weight @ w.center
    z = whitened(x, w)
    torch.testing.assert_close(z @ head_weight.T + v, x @ weight.T + bias)
    found = w.compute_gradients(gradients(x, y, weight, bias))
    errors = torch.softmax(z @ head_weight.T + v, 1) - functional.one_hot(y, CLASSES)
    assert found[WEIGHT].shape == (ROWS, CLASSES, WIDTH)
    torch.testing.assert_close(found[WEIGHT][:, :, :dimensions], errors[:, :, None] * z[:, None, :])
    assert not found[WEIGHT][:, :, dimensions:].any()
    torch.testing.assert_close(found[BIAS], errors)


def test_a_row_without_an_error_has_no_gradient():
    x, y = rows()
    nothing = {WEIGHT: torch.zeros(2, CLASSES, WIDTH), BIAS: torch.zeros(2, CLASSES)}
    found = whitening(x, y).compute_gradients({name: t.double() for name, t in nothing.items()})
    assert not any(t.any() for t in found.values())


def test_a_step_changes_logits_as_the_step_of_the_whitened_head_does():
    x, y = rows()
    w = whitening(x, y, dimensions=7)
    mean = {name: t.mean(0) for name, t in w.compute_gradients(gradients(x, y, *zeros())).items()}
    mean[WEIGHT][:, 7:] = 100.0  # noise where no direction is
    step = w.step(mean)
    changed = x @ step[WEIGHT].T + step[BIAS]
    torch.testing.assert_close(changed, whitened(x, w) @ (w.gain * mean[WEIGHT][:, :7]).T + mean[BIAS])


@pytest.mark.parametrize("common", [0.0, 20.0])
def test_steps_fall_to_the_least_loss_whatever_all_rows_have_in_common(common):
    x, y = rows(common)
    w, losses, ends = whitening(x, y), [], []
    for whiten in (True, False):
        weight, bias = zeros()
        for _ in range(60):
            of_rows = gradients(x, y, weight, bias)
            mean = {name: t.mean(0) for name, t in (w.compute_gradients(of_rows) if whiten else of_rows).items()}
            step, rate = (w.step(mean), 2.0) if whiten else (mean, 2 / 10)  # as long as never overshoots
            weight, bias = weight - rate * step[WEIGHT], bias - rate * step[BIAS]
            losses.append(functional.cross_entropy(x @ weight.T + bias, y).item())
        ends.append(losses[-1])
    assert all(after < before for before, after in itertools.pairwise(losses[:60]))
    assert ends[0] < 0.5 * ends[1]


@pytest.mark.parametrize("noise", [1.0, 30.0, 1e4])
def test_whatever_noise_makes_of_the_moments_features_stay_finite(noise):
    x, y = rows()
    for seed in range(20):
        w = whitening(x, y, noise=noise, seed=seed)
        assert all(bool(torch.isfinite(t).all()) for t in (w.turn, w.center))
        assert 1 <= w.gain <= WIDTH


def test_what_noise_has_made_of_known_eigenvalues_is_taken_out():
    """Of a matrix of rank 3 whose eigenvalues are above the noise's own."""
    from fedpeft.aggregation.heads.private_ridge import _remove_noise

    generator, m = torch.Generator().manual_seed(1), 400
    basis = torch.linalg.qr(torch.randn(m, 3, generator=generator, dtype=torch.float64)).Q
    noise = torch.randn(m, m, generator=generator, dtype=torch.float64)
    noise, edge = (noise + noise.T) / 2, math.sqrt(2 * m)
    true = torch.tensor([60.0, 80.0, 120.0], dtype=torch.float64)
    found = _remove_noise(torch.linalg.eigvalsh((basis * true) @ basis.T + noise), edge)
    torch.testing.assert_close(found[-3:], true, rtol=0.05, atol=0)
    assert (found[:-3] < 5).all()
    assert (found[:-3] == 0).sum() > 0.95 * m
    assert _remove_noise(torch.tensor([-9.0, 3.0, 5.0]), 4.0).tolist() == [0.0, 0.0, 4.0]  # (5 + sqrt(25 - 16)) / 2


def test_it_is_sent_and_read_and_what_turns_no_such_features_is_refused():
    x, y = rows()
    w = whitening(x, y, dimensions=5)
    again = Whitening.from_state(decode(parse_codec("fp32").encode(w.state), Whitening.shapes(5)), WIDTH)
    torch.testing.assert_close(again.turn, w.turn.float().double())
    assert again.gain == pytest.approx(w.gain)
    for wrong in (
        {"turn": torch.eye(13), "centre": torch.zeros(13), "gain": torch.ones(1)},
        {"turn": torch.eye(5), "centre": torch.zeros(4), "gain": torch.ones(1)},
        {"turn": torch.zeros(0, 0), "centre": torch.zeros(0), "gain": torch.ones(1)},
        {"turn": torch.full((5, 5), math.nan), "centre": torch.zeros(5), "gain": torch.ones(1)},
        {"turn": torch.eye(5), "centre": torch.zeros(5), "gain": torch.zeros(1)},
        {},
    ):
        with refuses("FP6020", "12"):
            Whitening.from_state(wrong, WIDTH)


@pytest.mark.parametrize("name", ["ridge", "centroids", "private_centroids", "zero"])
def test_other_heads_tell_nothing_of_it(name):
    with refuses("FP1014"):
        require_variation(HEADS.build(name))


@pytest.mark.parametrize("huge", [3e38, 1e200, 1e308])
def test_a_hostile_whitening_leaves_every_row_within_the_clipping_norm(huge):
    from fedpeft.clients.private import compute_clipping_factors

    x, y = rows()
    w = Whitening(
        torch.full((5, 5), huge, dtype=torch.float64), torch.full((5,), -huge, dtype=torch.float64), 1.0, WIDTH
    )
    found = w.compute_gradients(gradients(x, y, *zeros()))
    factors = compute_clipping_factors(found.values(), 1.0)
    clipped = [factors[:, None] * t.flatten(1) for t in found.values()]
    norms = torch.cat(clipped, 1).norm(dim=1)
    assert torch.isfinite(norms).all()
    assert (norms <= 1 + 1e-9).all()


def test_gradients_stay_on_the_device_that_they_are_on():
    x, y = rows()
    of_rows = {name: t.to("meta") for name, t in gradients(x, y, *zeros()).items()}
    found = whitening(x, y, dimensions=5).compute_gradients(of_rows)
    assert {t.device.type for t in found.values()} == {"meta"}
    assert found[WEIGHT].shape == (ROWS, CLASSES, WIDTH)


def test_the_projection_is_the_same_everywhere():
    expected = torch.tensor([[0.1192, 0.9924, -0.0293], [-0.9624, 0.1082, -0.2492]], dtype=torch.float64)
    torch.testing.assert_close(create_projection(3, 2), expected, rtol=0, atol=1e-4)


def test_sums_of_noise_alone_turn_nothing_and_scale_all_directions_alike():
    total = HEADS.build("private_ridge(dimensions=5)").statistics(*rows(), CLASSES)
    nothing = {name: torch.zeros_like(tensor) for name, tensor in total.items()} | {VARIANCE: torch.ones(1)}
    w = HEADS.build("private_ridge(dimensions=5)").compute_whitening(nothing, WIDTH)
    gram = w.turn @ w.turn.T
    torch.testing.assert_close(gram, gram[0, 0] * torch.eye(5, dtype=torch.float64))
