"""Golden numbers on a model of three numbers, worked out by hand from the equations."""

from types import SimpleNamespace

import pytest
import torch

from fedpeft.aggregation.server_optimizer import AVERAGE
from fedpeft.parts.families import MECHANISMS, SERVER_OPTIMIZERS
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.privacy.secure_sum.sum import parse_privacy
from fedpeft.rounds.progress import Checkpoints, ServerState
from fedpeft.wiring.checks.private import check_server_noise
from tests.refusals import refuses

X = {"x": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)}
D1 = {"x": torch.tensor([0.1, -0.2, 0.0], dtype=torch.float64)}
D2 = {"x": torch.tensor([0.3, 0.2, -0.1], dtype=torch.float64)}

EXPECTED = {
    # plain steps: x + 0.5 (d1 + d2)
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


def test_the_average_of_states_beside_another_optimizer():
    """With decay 0.5, the weights are 1/3 and 2/3 after two rounds, and 1/7, 2/7 and 4/7 after three."""
    optimizer = SERVER_OPTIMIZERS.build("averaged(of=momentum(learning_rate=0.5), decay=0.5)")
    plain = SERVER_OPTIMIZERS.build("momentum(learning_rate=0.5)")
    state, memory, own, kept, states = X, {}, X, {}, []
    for direction in (D1, D2, D1):
        state, memory = optimizer.step(state, direction, memory)
        own, kept = plain.step(own, direction, kept)
        states.append(own["x"])
        assert torch.equal(state["x"], own["x"])
    expected = (states[0] + 2 * states[1] + 4 * states[2]) / 7
    assert memory[AVERAGE]["x"].tolist() == pytest.approx(expected.tolist(), abs=1e-12)


def test_an_average_is_what_a_run_has_reached_and_survives_its_checkpoint(tmp_path):
    optimizer = SERVER_OPTIMIZERS.build("averaged(decay=0.5)")
    state, memory = optimizer.step(X, D1, {})
    state, memory = optimizer.step(state, D2, memory)
    progress = ServerState(round=2, adapter=state, memory=memory)
    Checkpoints(tmp_path).save(progress)
    loaded = Checkpoints(tmp_path).load()
    assert torch.equal(loaded.result[0]["x"], memory[AVERAGE]["x"])
    assert not torch.equal(loaded.result[0]["x"], loaded.adapter["x"])
    assert optimizer.step(state, D1, loaded.memory)[1][AVERAGE]["x"].tolist() == pytest.approx(
        optimizer.step(state, D1, memory)[1][AVERAGE]["x"].tolist()
    )


def test_an_average_of_no_server_optimizer_is_one_sentence():
    with refuses("FP1231", "momentum"):
        SERVER_OPTIMIZERS.build("averaged(of=momentun)")


def test_known_noise_is_taken_out_of_v():
    """Two rounds by hand; w holds what the noise has put into v."""
    spec = "adam(learning_rate=0.1, tau=0.01, beta2=0.9, corrected=True, floor=0.5)"
    optimizer = SERVER_OPTIMIZERS.build(spec).correct_for_noise(0.02)
    state, memory = optimizer.step(X, D1, {})
    state, memory = optimizer.step(state, D2, memory)
    for i in range(3):
        m, v, w, x = 0.0, 1e-4, 0.0, float(X["x"][i])
        for d in (float(D1["x"][i]), float(D2["x"][i])):
            m, v, w = 0.9 * m + 0.1 * d, 0.9 * v + 0.1 * d * d, 0.9 * w + 0.1 * 0.02
            x += 0.1 * m / (max(v - w, 0.5 * w) ** 0.5 + 0.01)
        assert float(state["x"][i]) == pytest.approx(x, abs=1e-12)


@pytest.mark.parametrize("spec", ["adam(corrected=True)", "averaged(of=adam(corrected=True))"])
@pytest.mark.parametrize("privacy", ["", "none", "local_dp(noise_multiplier=1)", "secure_sum"])
def test_noise_that_the_server_does_not_add_is_not_taken_out(spec, privacy):
    optimizer, mechanism = SERVER_OPTIMIZERS.build(spec), parse_privacy(privacy) if privacy else None
    mechanism = mechanism if isinstance(mechanism, Mechanism) else None
    setup = SimpleNamespace(
        server_optimizer=optimizer, mechanism=mechanism, config=SimpleNamespace(server_optimizer=spec)
    )
    with refuses("FP1322", "--privacy"):
        check_server_noise(setup)
    setup.mechanism = MECHANISMS.build("user_dp(noise_multiplier=1)")
    check_server_noise(setup)
    setup.server_optimizer, setup.mechanism = SERVER_OPTIMIZERS.build("averaged(of=adam)"), mechanism
    check_server_noise(setup)


def test_noise_is_heard_of_by_those_that_use_it_alone():
    for spec in ("sgd", "momentum", "adam", "averaged(of=adam)"):
        optimizer = SERVER_OPTIMIZERS.build(spec)
        assert (
            optimizer.correct_for_noise(1.0).step(X, D1, {})[0]["x"].tolist()
            == optimizer.step(X, D1, {})[0]["x"].tolist()
        )
    corrected = SERVER_OPTIMIZERS.build("averaged(of=adam(corrected=True))")
    assert (
        corrected.correct_for_noise(1.0).step(X, D1, {})[0]["x"].tolist() != corrected.step(X, D1, {})[0]["x"].tolist()
    )
