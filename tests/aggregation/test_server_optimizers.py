"""Golden numbers on a model of three numbers, worked out by hand from the equations."""

import pytest
import torch

from fedpeft.aggregation.server_optimizer import SERVER_OPTIMIZERS

X = {"x": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)}
D1 = {"x": torch.tensor([0.1, -0.2, 0.0], dtype=torch.float64)}
D2 = {"x": torch.tensor([0.3, 0.2, -0.1], dtype=torch.float64)}

EXPECTED = {
    # x + 0.5 (d1 + d2)
    "sgd(learning_rate=0.5)": [1.2, 2.0, 2.95],
    # m1 = d1; m2 = 0.9 d1 + d2; x + 0.5 (m1 + m2)
    "momentum(learning_rate=0.5, beta=0.9)": [1.245, 1.91, 2.95],
}


def adaptive(rule: str, d1: float, d2: float, x: float, eta=0.1, b1=0.9, b2=0.99, tau=0.01) -> float:
    m, v = 0.0, tau**2
    for d in (d1, d2):
        m = b1 * m + (1 - b1) * d
        if rule == "adam":
            v = b2 * v + (1 - b2) * d * d
        elif rule == "adagrad":
            v = v + d * d
        else:
            v = v - (1 - b2) * d * d * (1 if v > d * d else -1 if v < d * d else 0)
        x = x + eta * m / (v**0.5 + tau)
    return x


def two_steps(spec: str):
    optimizer = SERVER_OPTIMIZERS.build(spec)
    state, memory = optimizer.step(X, D1, {})
    state, memory = optimizer.step(state, D2, memory)
    return state["x"].tolist(), memory


@pytest.mark.parametrize("spec", EXPECTED)
def test_golden_numbers(spec):
    assert two_steps(spec)[0] == pytest.approx(EXPECTED[spec], abs=1e-12)


@pytest.mark.parametrize("rule", ["adam", "yogi", "adagrad"])
def test_adaptive_rules(rule):
    got, memory = two_steps(f"{rule}(learning_rate=0.1, beta1=0.9, tau=0.01)")
    expected = [adaptive(rule, float(a), float(b), float(x)) for a, b, x in zip(D1["x"], D2["x"], X["x"], strict=True)]
    assert got == pytest.approx(expected, abs=1e-12)
    assert set(memory) == {"m", "v"}


@pytest.mark.parametrize("name", SERVER_OPTIMIZERS.names)
def test_tensors_without_a_direction_stay_and_inputs_are_untouched(name):
    state = {"x": torch.ones(2), "y": torch.ones(2)}
    after, _ = SERVER_OPTIMIZERS.build(name).step(state, {"x": torch.ones(2)}, {})
    assert torch.equal(after["y"], state["y"])
    assert torch.equal(state["x"], torch.ones(2))
    assert not torch.equal(after["x"], state["x"])
