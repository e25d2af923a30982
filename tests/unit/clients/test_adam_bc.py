"""Adam that knows the noise in its gradients: golden steps, and what it takes out of the second moment."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fedpeft.clients.drift import parse_drift
from fedpeft.clients.executor import Job, RowPrivacy
from torch import nn

from fedpeft.parts.families import LOCAL_OPTIMIZERS
from fedpeft.privacy.noise import RunKey
from tests.unit.clients.test_executors import local_training

KEY = RunKey(b"0123456789abcdef0123456789abcdef")


def steps(spec: str, gradients, variance=0.0, rate=0.1):
    parameter = nn.Parameter(torch.tensor(gradients[0], dtype=torch.float64) * 0)
    optimizer, _ = LOCAL_OPTIMIZERS.build(spec).create_optimizer({"w": parameter}, rate, lambda name: variance)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    return parameter.detach().numpy()


def by_hand(gradients, variance, rate=0.1, b1=0.9, b2=0.999, floor=0.1):
    x = m = v = np.zeros(len(gradients[0]))
    for t, g in enumerate(np.array(gradients), start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        square = np.maximum(v / (1 - b2**t) - variance, floor * variance)
        x = x - rate * (m / (1 - b1**t)) / (np.sqrt(square) + 1e-8)
    return x


GRADIENTS = [[0.3, -2.0, 0.0], [0.1, 1.0, 0.02], [-0.4, 3.0, 0.01]]


@pytest.mark.parametrize("variance", [0.0, 0.05, 10.0])
def test_golden_steps(variance):
    assert steps("adam_bc", GRADIENTS, variance) == pytest.approx(by_hand(GRADIENTS, variance), abs=1e-12)


def test_without_noise_it_is_adam():
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    reference = torch.optim.Adam([parameter], lr=0.1)
    for gradient in GRADIENTS:
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        reference.step()
    assert steps("adam_bc", GRADIENTS) == pytest.approx(parameter.detach().numpy(), abs=1e-9)


def test_a_constant_signal_in_noise_moves_all_entries_alike_as_adam_without_noise_does():
    """Signals of 0.1 and 0.5 in noise of deviation 1: plain Adam moves them as 1 to 5 or so, this one more alike."""
    random = np.random.default_rng(0)
    signal = np.repeat([0.1, 0.5], 500)
    noisy = [(signal + random.standard_normal(1000)).tolist() for _ in range(400)]
    plain, corrected = (steps(spec, noisy, v) for spec, v in (("adam_bc", 0.0), ("adam_bc(floor=0.001)", 1.0)))
    ratio = [moved[500:].mean() / moved[:500].mean() for moved in (plain, corrected)]
    assert ratio[0] > 4
    assert ratio[1] < 0.7 * ratio[0]


def test_a_parameter_that_rests_keeps_its_moments():
    one, other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer, _ = LOCAL_OPTIMIZERS.build("adam_bc").create_optimizer({"a": one, "b": other}, 0.1)
    one.grad, other.grad = torch.ones(1), None
    optimizer.step()
    assert one.item() != 0
    assert other.item() == 0
    assert other not in optimizer.state


def of_job(privacy, drift=""):
    corrections = parse_drift(drift).select_corrections({}, {}) if drift else ()
    return Job(
        0, 1, 0, np.arange(20), {}, frozenset(), local_training(), 1e-3, corrections=corrections, privacy=privacy
    )


def test_a_job_knows_the_variance_of_its_noise():
    privacy = RowPrivacy(clip=0.5, noise=2.0, rate=0.25, key=KEY, attempt=0)
    assert of_job(None).compute_noise_variance("head.weight") == 0
    assert of_job(privacy).compute_noise_variance("head.weight") == pytest.approx((2 * 0.5 / 5) ** 2)
    fixed = RowPrivacy(clip=0.5, noise=2.0, rate=0.25, key=KEY, attempt=0, expected=8.0)
    assert of_job(fixed).compute_noise_variance("head.weight") == pytest.approx((2 * 0.5 / 8) ** 2)


@pytest.mark.parametrize("name", ["w.lora_A.weight", "w.lora_B.weight", "head.weight"])
def test_what_smoothing_leaves_of_noise_is_what_is_found(name):
    privacy = RowPrivacy(clip=1.0, noise=1.0, rate=0.5, key=KEY, attempt=0)
    work = of_job(privacy, "la_lora")
    noise = torch.from_numpy(np.random.default_rng(1).standard_normal((400, 400)))
    turned = work.correct_gradient(name, noise)
    inside = (noise if turned is None else turned)[4:-4, 4:-4]
    assert float(inside.var()) * 0.01 == pytest.approx(work.compute_noise_variance(name), rel=0.03)
