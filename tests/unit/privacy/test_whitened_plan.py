"""A budget alone under one noise: a head starts from noisy moments, which whiten the features it is trained on."""

import pytest

from fedpeft.privacy.mechanisms import distributed_dp
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.refusals import refuses
from tests.unit.privacy.test_private_plan import QUIET, TINY

ONE_NOISE = "distributed_dp(epsilon=8, start=0.5, mask_neighbours=2, dropouts=0)"
GIVEN = {**TINY, "privacy": ONE_NOISE}
del GIVEN["cohort"], GIVEN["peft"]


def made(folder, **given):
    return Simulation(RunConfig(**{**GIVEN, **given}), folder, ConsoleObserver(QUIET))


@pytest.mark.parametrize("given", [{}, {"peft": "linear_probe"}, {"peft": "head2toe"}])
def test_a_head_alone_is_planned_on_whitened_features_and_stays_planned(given, tmp_path):
    simulation = made(tmp_path / "a", **given)
    config = simulation.config
    assert config.peft == given.get("peft", "linear_probe")  # an adapter is not heard
    assert config.head == "private_ridge(dimensions=512)"
    assert (config.server_optimizer, config.learning_rate, config.cohort) == ("sgd", 4.0, "all")
    assert "whiten=True" in config.privacy
    assert "plan=False" in config.privacy
    again = Simulation(config, tmp_path / "b", ConsoleObserver(QUIET))
    assert again.config == config
    assert again.protection.exposure.whitened > 0
    assert again.protection.mechanism == simulation.protection.mechanism


@pytest.mark.parametrize(("head", "rounds"), [(None, True), ("private_centroids", False)])
def test_on_whitened_features_less_signal_is_enough_for_rounds(head, rounds, tmp_path, monkeypatch):
    given = {} if head is None else {"head": head}
    privacy = ONE_NOISE.replace("start=0.5, ", "")
    signal = made(tmp_path / "a", **given).protection.mechanism.training_signal(
        made(tmp_path / "b", **given).protection.exposure
    )
    monkeypatch.setattr(distributed_dp, "LEAST_SIGNAL_WHITENED", 0.9 * signal)
    monkeypatch.setattr(distributed_dp, "LEAST_SIGNAL_HEAD", 1.1 * signal)
    run = made(tmp_path / "run", privacy=privacy, **given)
    assert run.protection.trains == rounds
    assert ("where " + f"{0.9 * signal:g}" in run.protection.describe_plan()) == rounds


def test_what_is_named_is_kept(tmp_path):
    config = made(tmp_path / "a", privacy=ONE_NOISE.replace("8,", "8, clip=0.2,")).config
    assert "clip=0.2" in config.privacy
    config = made(tmp_path / "b", server_optimizer="momentum(beta=0.5)").config
    assert (config.server_optimizer, config.learning_rate) == ("momentum(beta=0.5)", 2.0)
    config = made(tmp_path / "c", head="private_centroids").config
    assert "whiten" not in config.privacy
    config = made(tmp_path / "d", privacy=ONE_NOISE.replace("8,", "8, whiten=False,")).config
    assert "whiten=False" in config.privacy
    assert config.head == "private_centroids"


def test_more_rounds_lead_no_farther(tmp_path):
    rates = [made(tmp_path / str(n), rounds=n).config.learning_rate for n in (1, 20, 100)]
    assert rates == [4.0, 4.0, 0.8]


@pytest.mark.parametrize(("said", "words"), [
    ({"head": "private_centroids"},
     ("FP1377", "--privacy", "--head private_centroids does not measure how; use --head private_ridge", "--peft")),
    ({"peft": "lora(rank=2, layers=1) + head2toe"},
     ("FP1377", "--privacy", "use --peft head2toe without an adapter", "--peft")),
    ({"privacy": ONE_NOISE.replace("8,", "8, unit=clients,")},
     ("FP1377", "--privacy", "use --privacy distributed_dp(unit=rows)", "--peft")),
    ({"privacy": "dp_sgd(epsilon=8, start=0.5)"},
     ("FP1377", "--privacy", "use --privacy distributed_dp(unit=rows)", "--peft")),
])  # fmt: skip
def test_without_whitening_nothing_is_planned_for_all_blocks(said, words, tmp_path):
    with refuses(*words):
        made(tmp_path, **{"peft": "head2toe", **said})


@pytest.mark.parametrize("said", [{"head": "private_centroids", "peft": "linear_probe"}, {"peft": "lora"}])
def test_whitening_is_of_a_head_alone_from_a_start_that_tells_how(said, tmp_path):
    privacy = ONE_NOISE.replace("8,", "8, whiten=True, plan=False,")
    with refuses("FP1326"):
        made(tmp_path, cohort="all", privacy=privacy, **said)


def test_clients_that_are_clipped_whole_have_no_gradients_to_whiten(tmp_path):
    with refuses("FP7057"):
        made(tmp_path, privacy=ONE_NOISE.replace("8,", "8, unit=clients, whiten=True, plan=False,"), cohort="all")


def test_noise_counts_in_whitened_directions_alone(tmp_path):
    given = {"peft": "head2toe", "head": "private_ridge(dimensions=16)"}
    whitened = made(tmp_path / "a", **given).protection.exposure
    plain = made(tmp_path / "b", **given, cohort="all", learning_rate=0.1).protection.exposure
    classes, _ = plain.layout.shapes["head.weight"]
    assert (plain.whitened, plain.noised_entries) == (0, plain.trained[1])
    assert (whitened.whitened, whitened.noised_entries) == (16, classes * 17)
    assert whitened.trained == plain.trained
