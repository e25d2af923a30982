"""What a private run does where its user names a budget alone: formulas, by another way of counting, and whole runs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fedpeft.clients.local_training import Schedule

from fedpeft.parts.families import LOCAL_OPTIMIZERS, MECHANISMS, PEFT_METHODS, SERVER_OPTIMIZERS, strategies
from fedpeft.privacy import mechanism as mechanisms
from fedpeft.privacy import training_plans
from fedpeft.privacy.accountant import Event, epsilon
from fedpeft.privacy.engine import make_engine
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.mechanism import LEAST_SIGNAL
from fedpeft.privacy.mechanisms import distributed_dp, dp_sgd
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.privacy.small_runs import QUIET
from tests.refusals import refuses
from tests.unit.privacy.test_user_dp import LAYOUT

TINY = {"dataset": "tiny", "tokens": 32, "clients": 6, "cohort": 3, "rounds": 2, "workers": 1, "dtype": "fp32",
        "peft": "lora(rank=2, layers=1)"}  # fmt: skip


def exposure(rows=400, clients=20, often=2, entries=1000, cohort=20, rounds=8) -> Exposure:
    full = np.full(clients, rows)
    return Exposure(
        strategy=strategies.build("fedit"), method=PEFT_METHODS.build("lora"), layout=LAYOUT, rows=full,
        steps=np.ones(clients, np.int64), participations=np.full(clients, often), batch_size=4, rounds=rounds,
        cohort=cohort, even=True, start=True, start_entries=12, trained=(entries, entries),
    )  # fmt: skip


def rates(plan, rounds):
    """Return the sum of the rates of all rounds, relative to the first one."""
    own = LOCAL_OPTIMIZERS.build(plan.optimizer)
    schedule = Schedule(1.0, rounds, own.schedule, own.floor, repeats=False)
    return sum(schedule.get_rate(round_number) for round_number in range(1, rounds + 1))


@pytest.mark.parametrize("rounds", [1, 3, 19, 20, 100])
def test_rows_all_take_part_once_a_round_and_the_way_is_as_long_whatever_the_rounds(rounds):
    plan = MECHANISMS.build("dp_sgd(epsilon=8, clip=0.5)").plan_training(exposure(rounds=rounds))
    assert plan.steps * rounds >= training_plans.STEPS
    assert plan.steps == 1 or (plan.steps - 1) * rounds < training_plans.STEPS
    assert plan.mechanism.rate * plan.steps == pytest.approx(1)
    assert plan.batch_size == pytest.approx(400 / plan.steps, abs=0.5)
    assert plan.mechanism.clip == 0.5
    falling = plan.learning_rate * plan.steps * rates(plan, rounds)
    assert falling * 0.5 / (1 - plan.momentum) == pytest.approx(training_plans.OWN_NOISE.distance, rel=0.01)


@pytest.mark.parametrize("optimizer", ["sgd(learning_rate=0.5)", "momentum(beta=0.5)", "averaged(of=momentum)"])
@pytest.mark.parametrize("entries", [12, 1000])
@pytest.mark.parametrize("name", ["dp_sgd", "user_dp"])
def test_whatever_steps_the_server_takes_they_lead_as_far_in_the_end(name, entries, optimizer):
    """By the server's own steps along updates that all agree: the length of one, once momentum has come to rest."""
    federation = exposure(rounds=20, entries=entries, rows=2, clients=1000, cohort=1000)
    mechanism = MECHANISMS.build(f"{name}(epsilon=0.1, start=0.5)")

    def way(plan, server):
        update = plan.mechanism.clip * (1 if name == "user_dp" else plan.learning_rate)
        state, memory = {"a": torch.zeros(1, dtype=torch.float64)}, {}
        for _ in range(300):
            before = state
            state, memory = server.step(state, {"a": torch.full((1,), update, dtype=torch.float64)}, memory)
        return float(state["a"] - before["a"])

    usual = mechanism.plan_training(federation)
    server = SERVER_OPTIMIZERS.build(optimizer)
    plan = mechanism.plan_training(federation, server.pace)
    assert plan.momentum == 0
    assert plan.steps == usual.steps
    planned = SERVER_OPTIMIZERS.build(f"momentum(beta={usual.momentum})")
    assert way(plan, server) == pytest.approx(way(usual, planned), rel=0.01)


def test_the_plan_for_twenty_rounds_is_the_documented_run():
    plan = MECHANISMS.build("dp_sgd(epsilon=8)").plan_training(exposure(rounds=20))
    assert (plan.learning_rate, plan.mechanism.clip, plan.momentum) == (2.6, 0.3, 0.9)


@pytest.mark.parametrize(("budget", "rounds", "least"), [(1.0, 20, 0.97), (4.0, 20, 0.97), (1.0, 2, 0.6)])
def test_signal_to_noise_is_the_way_over_what_noise_moves_the_mean_by(budget, rounds, least):
    """Counted step by step at a constant rate: noise z C / batch in each entry of a client's step; the cohort's mean.

    With all rows in a step that is exact. Where they are drawn the noise falls by less than the sums are smaller.
    """
    federation = replace(exposure(rounds=rounds, cohort=10), participations=np.full(20, rounds // 2))
    mechanism = MECHANISMS.build(f"dp_sgd(epsilon={budget}, start=0.5)")
    plan = mechanism.plan_training(federation)
    trained = replace(federation, steps=np.full(20, plan.steps), batch_size=plan.batch_size)
    noise = plan.mechanism.multiplier(trained)
    each = noise * plan.mechanism.clip / plan.mechanism.example_sampling.divisor(plan.batch_size, 400)
    moved = each * math.sqrt(plan.steps * rounds) * math.sqrt(1000 / 10)
    way = plan.mechanism.clip * plan.steps * rounds
    assert least < way / moved / mechanism.training_signal(federation) < 1.03


def test_the_clients_mean_of_sums_over_a_common_divisor_is_the_sum_over_all_rows():
    """Shards of 10 and 390 rows at one rate: noise enters once for each client, and no shard costs more."""
    mechanism = MECHANISMS.build("dp_sgd(epsilon=8, rate=0.25)")
    federation = replace(exposure(), rows=np.array([10, 390]), participations=np.array([1, 1]), steps=np.array([2, 2]))
    assert mechanism.plan_releases(federation) == [(0.25, 2), (0.25, 2)]
    assert mechanism.charges(federation, [0, 1], 1.0)[0] == mechanism.charges(federation, [0, 1], 1.0)[1]
    sampling = mechanism.example_sampling
    assert sampling.divisor(50, 10) == sampling.divisor(50, 390) == 50
    plain = MECHANISMS.build("dp_sgd(epsilon=8)").example_sampling
    assert (plain.rate_of(50, 10), plain.rate_of(50, 100)) == (1.0, 0.5)
    assert (plain.divisor(50, 10), plain.divisor(50, 100)) == (10, 50)


@pytest.mark.parametrize("budget", [0.5, 1.0, 2.0, 8.0])
def test_a_head_alone_goes_until_noise_has_moved_a_class_so_far(budget):
    """Counted step by step, as far as a step's mean gradient and its noise lead; all rows in each of 20 rounds."""
    federation = replace(exposure(entries=12, rounds=20), participations=np.full(20, 20), cohort=20)
    mechanism = MECHANISMS.build(f"dp_sgd(epsilon={budget}, start=0.5)")
    assert federation.head_alone
    assert not exposure(entries=1000).head_alone
    plan = mechanism.plan_training(federation)
    assert (plan.mechanism.clip, plan.optimizer) == (2.0, "sgd(warmup=0, head_rate=1.0, schedule=linear)")
    way = plan.mechanism.clip * plan.learning_rate / (1 - plan.momentum) * rates(plan, 20)
    farthest = training_plans.OF_ROWS.stride * 20 * 10
    assert way <= farthest * 1.01
    entries_of_a_class = 12 / LAYOUT.shapes["head.weight"][0]
    noise = plan.mechanism.multiplier(replace(federation, steps=np.ones(20, np.int64), batch_size=400))
    moved = way * noise * math.sqrt(entries_of_a_class) / (400 * math.sqrt(20 * 20))
    assert moved <= training_plans.OF_ROWS.noise * 1.02
    assert moved > 0.98 * training_plans.OF_ROWS.noise or way > 0.99 * farthest


def test_less_is_heard_of_an_adapter_than_of_a_head_alone():
    mechanism = MECHANISMS.build("dp_sgd(epsilon=0.2)")
    head, adapter = exposure(entries=12), exposure(entries=13)
    assert dp_sgd.LEAST_SIGNAL_HEAD < mechanism.training_signal(adapter) < mechanisms.LEAST_SIGNAL
    assert mechanism.trains(head)
    assert not mechanism.trains(adapter)
    clients = MECHANISMS.build("user_dp(epsilon=8)")
    assert (clients.least_signal(head), clients.least_signal(adapter)) == (
        training_plans.LEAST_SIGNAL_HEAD,
        mechanisms.LEAST_SIGNAL,
    )
    other = MECHANISMS.build("local_dp(epsilon=8)")
    assert other.least_signal(head) == other.least_signal(adapter) == mechanisms.LEAST_SIGNAL


def test_of_clients_the_way_is_rounds_times_clip_and_a_given_clip_stays():
    plan = MECHANISMS.build("user_dp(epsilon=8)").plan_training(exposure(rounds=8))
    assert plan.mechanism.clip * 8 == pytest.approx(training_plans.CLIENTS_DISTANCE)
    assert (plan.steps, plan.batch_size) == (1, 400)
    own = MECHANISMS.build("user_dp(epsilon=8, clip=0.2)").plan_training(exposure(rounds=8))
    assert own.mechanism.clip == 0.2


@pytest.mark.parametrize(("budget", "rounds"), [(0.1, 20), (1.0, 100), (8.0, 20), (8.0, 5)])
def test_of_clients_a_head_alone_goes_until_noise_has_moved_a_class_so_far(budget, rounds):
    """Counted by what rounds of all clients' clipped steps and their noise lead to."""
    federation = exposure(rows=2, clients=5000, entries=12, rounds=rounds, cohort=5000)
    mechanism = MECHANISMS.build(f"user_dp(epsilon={budget}, start=0.5)")
    plan = mechanism.plan_training(federation)
    assert plan.momentum == (0.9 if rounds >= 20 else 0.0)
    assert plan.optimizer == "sgd(warmup=0, head_rate=1.0, schedule=constant)"
    far = 1 / (1 - plan.momentum)
    noise = plan.mechanism.multiplier(federation) * plan.mechanism.clip / 5000
    entries_of_a_class = 12 / LAYOUT.shapes["head.weight"][0]
    moved = noise * far * math.sqrt(rounds * entries_of_a_class)
    assert moved <= 1.02 * training_plans.OF_CLIENTS.noise
    assert plan.mechanism.clip <= training_plans.OF_CLIENTS.stride
    assert moved > 0.98 * training_plans.OF_CLIENTS.noise or plan.mechanism.clip == training_plans.OF_CLIENTS.stride
    own = MECHANISMS.build(f"user_dp(epsilon={budget}, start=0.5, clip=0.2)").plan_training(federation)
    assert (own.mechanism.clip, own.learning_rate) == (0.2, 0.4)


@pytest.mark.parametrize(("budget", "rounds", "entries"), [(0.5, 20, 12), (8.0, 20, 12), (8.0, 4, 12), (8.0, 20, 1000)])
def test_rows_under_one_noise_all_join_each_round_and_lead_as_far_as_their_noise_lets_them(budget, rounds, entries):
    """Counted round by round: a sum over all rows, and one noise, at a rate that falls to 0."""
    federation = exposure(entries=entries, rounds=rounds)
    mechanism = MECHANISMS.build(f"distributed_dp(epsilon={budget}, start=0.5)")
    plan = mechanism.plan_training(federation)
    trained = replace(federation, batch_size=plan.batch_size)
    rate = 1.0 if entries == 12 else training_plans.ONE_NOISE_RATE
    assert (plan.steps, plan.mechanism.rate(trained), plan.mechanism.bits) == (1, rate, 24)
    assert plan.momentum == (0.9 if rounds >= 20 else 0.0)
    way = plan.mechanism.clip * plan.learning_rate / (1 - plan.momentum) * rates(plan, rounds)
    if entries == 1000:
        assert way == pytest.approx(training_plans.ONE_NOISE.distance, rel=0.01)
        return
    farthest = training_plans.OF_ROWS.stride * rounds / (1 - plan.momentum)
    entries_of_a_class = 12 / LAYOUT.shapes["head.weight"][0]
    noise = plan.mechanism.multiplier(trained)
    moved = way * noise * math.sqrt(entries_of_a_class) / (20 * 400 * math.sqrt(rounds))
    assert moved <= 1.25 * training_plans.OF_ROWS.noise  # whole Renyi orders and Skellam cost more than a Gaussian does
    assert moved > 0.98 * training_plans.OF_ROWS.noise or way == pytest.approx(farthest, rel=0.01)


@pytest.mark.parametrize(("said", "batch"), [("", 400), (", rows=12000", 600), (", rows=2000", 100)])
def test_all_rows_join_however_many_there_are_said_to_be(said, batch):
    federation = exposure(entries=12, rounds=20)
    plan = MECHANISMS.build(f"distributed_dp(epsilon=8{said})").plan_training(federation)
    assert plan.batch_size == batch
    assert plan.mechanism.rate(replace(federation, batch_size=plan.batch_size)) == 1


@pytest.mark.parametrize("unit", ["rows", "clients"])
@pytest.mark.parametrize(("cohort", "collude"), [(10, 0), (100, 0), (200, 0), (200, 0.3), (200, 0.6)])
def test_known_cohorts_have_less_to_say_than_all_clients_and_so_has_noise_that_is_told(unit, cohort, collude):
    """Counted: the mean of all rounds' sums over what noise moves it by; who is drawn most often is paid for."""
    federation = replace(exposure(rows=10, clients=200, cohort=cohort, rounds=20), batch_size=10)
    mechanism = MECHANISMS.build(f"distributed_dp(epsilon=8, start=0.5, unit={unit}, bits=28, collude={collude})")
    summed = cohort * (10 if unit == "rows" else 1)
    counted = 20 * summed / (mechanism.multiplier(federation) * math.sqrt(20 * 1000))
    assert 0.75 < counted / mechanism.training_signal(federation) < 1.05


def test_clients_under_one_noise_are_planned_alike_whoever_adds_it():
    federation = exposure(rows=2, clients=5000, entries=12, rounds=20, cohort=5000)
    central, shared = (
        MECHANISMS.build(f"{name}(epsilon=8, start=0.5{unit})").plan_training(federation)
        for name, unit in (("user_dp", ""), ("distributed_dp", ", unit=clients"))
    )
    assert replace(central, mechanism=shared.mechanism) == shared
    assert central.mechanism.clip == shared.mechanism.clip


@pytest.mark.parametrize("budget", [0.5, 2.0, 8.0])
def test_as_many_entries_are_heard_as_reach_the_least_signal_to_noise(budget):
    mechanism = MECHANISMS.build(f"dp_sgd(epsilon={budget})")
    most = mechanism.count_trainable_entries(exposure())
    assert mechanism.training_signal(exposure(entries=most)) >= LEAST_SIGNAL
    assert mechanism.training_signal(exposure(entries=most + 1)) < LEAST_SIGNAL * (1 + 1e-9)
    assert mechanism.trains(exposure(entries=most))
    assert not mechanism.trains(exposure(entries=most + 1))


def test_of_a_head_alone_as_many_entries_are_heard_as_by_its_own_least_signal():
    mechanism = MECHANISMS.build("distributed_dp(epsilon=0.1)")
    federation = exposure(entries=12)
    share = mechanism.training_signal(federation) / training_plans.LEAST_SIGNAL_HEAD
    assert mechanism.count_trainable_entries(federation) == math.floor(12 * share**2)


def test_rules_that_train_one_factor_are_heard_as_such():
    """What is trained counts, not what is held: ffa_lora and its kin have less noise."""
    half = exposure(entries=500)
    mechanism = MECHANISMS.build("dp_sgd(epsilon=8)")
    assert mechanism.training_signal(half) == pytest.approx(math.sqrt(2) * mechanism.training_signal(exposure()))


def test_no_training_is_said_with_what_would_be_heard(tmp_path):
    mechanism = MECHANISMS.build("dp_sgd(epsilon=0.5)")
    federation = exposure(entries=10**6)
    engine = make_engine(mechanism, federation, tmp_path, "", 0)
    assert "no round of training is planned" in engine.describe_plan()
    assert (
        f"at most {mechanism.count_trainable_entries(federation):,} trained numbers rise above the noise"
        in engine.describe_plan()
    )


def made(folder, **given):
    return made_of(folder, {**TINY, **given})


def made_of(folder, given):
    return Simulation(RunConfig(**given), folder, ConsoleObserver(QUIET)).config


@pytest.mark.medium
def test_a_run_is_planned_where_nothing_is_said_of_training_and_stays_planned(tmp_path, monkeypatch):
    monkeypatch.setattr(mechanisms, "LEAST_SIGNAL", 0.0)
    config = made(tmp_path / "a", privacy="dp_sgd(epsilon=8)")
    assert config.local_work == "steps(count=10, walk=False)"  # in each of two rounds
    assert "plan=False" in config.privacy
    assert "rate=0.1" in config.privacy
    assert (config.optimizer, config.strategy) == ("sgd(warmup=0, head_rate=10.0, schedule=linear)", "fedit")
    again = Simulation(config, tmp_path / "b", ConsoleObserver(QUIET))
    assert again.config == config
    assert again.protection.mechanism.rate == 0.1


def test_the_plan_goes_by_the_server_optimizer_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(mechanisms, "LEAST_SIGNAL", 0.0)
    given = {"privacy": "dp_sgd(epsilon=8)", "rounds": 20}
    usual = made(tmp_path / "a", **given)
    assert usual.server_optimizer == "momentum(beta=0.9)"
    named = made(tmp_path / "b", **given, server_optimizer="sgd(learning_rate=1.0)")
    assert named.server_optimizer == "sgd(learning_rate=1.0)"
    assert named.learning_rate == pytest.approx(10 * usual.learning_rate)
    with refuses("FP1376", "--server-optimizer adam"):
        made(tmp_path / "c", **given, server_optimizer="adam")
    unplanned = {"privacy": "local_dp(epsilon=8)", "head": "zero", "server_optimizer": "adam"}
    config = made(tmp_path / "d", **unplanned)
    assert (config.server_optimizer, config.learning_rate) == ("adam", RunConfig().learning_rate)


def test_all_clients_are_asked_where_known_cohorts_would_have_less_to_say(tmp_path, monkeypatch):
    monkeypatch.setattr(mechanisms, "LEAST_SIGNAL", 0.0)
    given = {**TINY, "privacy": "distributed_dp(epsilon=8, mask_neighbours=2, dropouts=0)"}
    left = {name: value for name, value in given.items() if name != "cohort"}
    simulation = Simulation(RunConfig(**left), tmp_path / "a", ConsoleObserver(QUIET))
    assert (simulation.config.cohort, simulation.sampler.size) == ("all", 6)
    assert simulation.protection.exposure.cohort == 6
    mean = training_plans.ONE_NOISE_RATE * simulation.protection.exposure.rows.mean()
    assert simulation.config.batch_size == round(mean)
    assert "plan=False" in simulation.config.privacy
    again = Simulation(simulation.config, tmp_path / "b", ConsoleObserver(QUIET))
    assert again.config == simulation.config
    assert made(tmp_path / "c", **given).cohort == 3  # as it is named
    with refuses("FP7079", "1"):  # as it is named
        made_of(tmp_path / "d", {**left, "cohort": 0.1})


def test_a_start_alone_is_no_matter_of_cohorts_and_adapters(tmp_path, monkeypatch):
    for least in ("LEAST_SIGNAL_HEAD", "LEAST_SIGNAL_WHITENED"):
        monkeypatch.setattr(distributed_dp, least, 1e9)
    given = {**TINY, "privacy": "distributed_dp(epsilon=4, mask_neighbours=2, dropouts=0)"}
    del given["cohort"], given["peft"]
    simulation = Simulation(RunConfig(**given), tmp_path, ConsoleObserver(QUIET))
    assert not simulation.protection.trains
    assert simulation.sampler.size == 6
    assert simulation.config.peft == "linear_probe"


@pytest.mark.parametrize("said", [{"privacy": "dp_sgd(epsilon=8, start=0.5)"}, {"head": "zero"}])
def test_an_adapter_that_is_not_heard_is_not_trained_where_training_is_asked_for(said, tmp_path, monkeypatch):
    given = {**TINY, "peft": "lora", "privacy": "dp_sgd(epsilon=8)", **said}
    monkeypatch.setattr(mechanisms, "LEAST_SIGNAL", 0.0)
    assert made_of(tmp_path / "heard", given).peft == "lora"
    monkeypatch.setattr(mechanisms, "LEAST_SIGNAL", 1e9)
    simulation = Simulation(RunConfig(**given), tmp_path / "not", ConsoleObserver(QUIET))
    assert simulation.config.peft == "linear_probe"
    assert simulation.protection.trains


@pytest.mark.medium
@pytest.mark.parametrize("peft", ["head2toe", "lora + head2toe"])
def test_a_head_on_all_blocks_is_not_trained_by_a_plan_made_for_others(peft, tmp_path):
    given = {"peft": peft, "privacy": "dp_sgd(epsilon=8, start=0.5)"}
    with refuses("FP1377", "--privacy"):
        made(tmp_path / "planned", **given)
    assert made(tmp_path / "said", **given, learning_rate=0.5).learning_rate == 0.5
    assert made(tmp_path / "start", peft=peft, privacy="dp_sgd(epsilon=8, start=1)").peft == peft


def test_a_start_of_the_whole_budget_has_no_adapter_though_one_would_be_heard(tmp_path, monkeypatch):
    monkeypatch.setattr(mechanisms, "LEAST_SIGNAL", 0.0)
    assert made(tmp_path, peft="lora", privacy="dp_sgd(epsilon=8, start=1)").peft == "linear_probe"


@pytest.mark.parametrize("given", [{"learning_rate": 0.01}, {"privacy": "dp_sgd(epsilon=8, plan=False)"}, {}])
def test_who_says_something_of_training_says_all_and_where_none_is_planned_nothing_changes(
    given, tmp_path, monkeypatch
):
    if given:
        monkeypatch.setattr(mechanisms, "LEAST_SIGNAL", 0.0)
    given = {"privacy": "dp_sgd(epsilon=0.9)", **given}
    config = made(tmp_path, **given)
    assert config.local_work == RunConfig().local_work
    assert config.privacy == given["privacy"]


def test_no_protection_takes_no_budget_and_costs_nothing():
    MECHANISMS.build("none").check(exposure())
    assert MECHANISMS.build("none").charges(exposure(), [0, 1], 0.0) == {}
    for text in ("none(epsilon=8)", "none(noise_multiplier=1)"):
        with refuses("FP7066"):
            MECHANISMS.build(text).check(exposure())


def test_adaptive_clipping_needs_noise_on_the_count_above_half_the_multiplier():
    """Andrew et al., arXiv 1905.03871: z^-2 = z_sum^-2 + (2 s_b)^-2 has a solution z_sum only then."""
    adaptive = "user_dp(noise_multiplier=2, quantile=0.5, count_noise={})"
    assert MECHANISMS.build(adaptive.format(1.01)).multiplier(exposure()) == 2
    for count_noise in (1, 0.5):
        with refuses("FP7072", "multiplier 2 needs count_noise above 1, ", f"got {count_noise};"):
            MECHANISMS.build(adaptive.format(count_noise)).multiplier(exposure())
    usual = MECHANISMS.build("user_dp(noise_multiplier=2, quantile=0.5)")  # a twentieth of the cohort
    assert usual.multiplier(exposure(cohort=21)) == 2
    with refuses("FP7072", "got 1;"):
        usual.multiplier(exposure(cohort=20))


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_without_a_budget_a_start_costs_its_share_beside_the_rounds(share):
    mechanism = MECHANISMS.build(f"user_dp(noise_multiplier=2, start={share})")
    federation = exposure()
    rounds = max(
        epsilon({Event(2.0, rate): n}, mechanism.delta(federation)) for rate, n in mechanism.plan_releases(federation)
    )
    start = mechanism.start_noise(federation)
    alone = epsilon({Event(start * math.sqrt(share / (1 - share)), 1.0): 1}, mechanism.delta(federation))
    assert alone == pytest.approx(rounds, rel=0.01)
