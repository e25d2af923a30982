"""FLoRA-NA against a general optimizer on dense matrices."""

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch

from fedpeft.conformance.cohorts import Client, create_random_state
from tests.aggregation.one_round import EQUAL, FORM, MIXED, a_round, layout, pair, shares


def padded(tensor, rows, columns):
    return torch.nn.functional.pad(tensor, (0, columns - tensor.shape[1], 0, rows - tensor.shape[0]))


def exact_mean(updates):
    return sum(
        p * u.scale * u.get_trained(pair.B) @ u.get_trained(pair.A)
        for p, u in zip(shares(updates), updates, strict=True)
    )


def error(state, updates):
    return float((exact_mean(updates) - FORM.scale * state[pair.B] @ state[pair.A]).square().sum())


def dense_error(weights, updates):
    """|dW* - s B A|^2 of the weights a and b (2 K,), written out."""
    count, s = len(updates), FORM.scale
    a, b = torch.as_tensor(weights[:count]), torch.as_tensor(weights[count:])
    lora_a = sum(w * padded(u.get_trained(pair.A), 4, 9) for w, u in zip(a, updates, strict=True))
    lora_b = sum(w * u.scale / s * padded(u.get_trained(pair.B), 12, 4) for w, u in zip(b, updates, strict=True))
    return float((exact_mean(updates) - s * lora_b @ lora_a).square().sum())


@pytest.mark.parametrize("clients", [EQUAL, MIXED], ids=["equal", "mixed"])
def test_no_general_optimizer_finds_better_weights_from_the_same_start(clients):
    result, updates, _ = a_round("flora_na(passes=500, ridge=0.0)", clients)
    p = np.array(shares(updates) * 2)
    best = scipy.optimize.minimize(dense_error, p, args=(updates,), method="BFGS", options={"gtol": 1e-9})
    assert error(result.state, updates) == pytest.approx(best.fun, rel=1e-6)
    assert error(result.state, updates) < 0.97 * dense_error(p, updates)


@pytest.mark.parametrize("clients", [EQUAL, MIXED], ids=["equal", "mixed"])
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 1.0])
def test_each_pass_lowers_the_error_from_that_of_the_plain_means(clients, ridge):
    errors = []
    for passes in (1, 2, 5, 20):
        result, updates, _ = a_round(f"flora_na(passes={passes}, ridge={ridge})", clients)
        errors.append(error(result.state, updates))
    start = dense_error(np.array(shares(updates) * 2), updates)
    assert errors[0] < start
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(errors))


def test_the_factors_are_weighted_sums_of_the_clients():
    result, updates, _ = a_round("flora_na", EQUAL)
    for name in (pair.A, pair.B):
        columns = torch.stack([u.get_trained(name).flatten() for u in updates], dim=1)
        fit = columns @ torch.linalg.lstsq(columns, result.state[name].flatten()[:, None]).solution
        assert torch.allclose(fit[:, 0], result.state[name].flatten())


def test_factors_of_zero_leave_the_other_ones_as_they_are():
    state = create_random_state(layout, 1, torch.float64)
    state[pair.B].zero_()
    still, _, _ = a_round("flora_na(ridge=0.0)", [Client(FORM)] * 3, size=0.0, state=state)
    assert torch.equal(still.state[pair.B], state[pair.B])
    assert torch.allclose(still.state[pair.A], state[pair.A])
