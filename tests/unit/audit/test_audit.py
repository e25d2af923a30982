"""The audit: its bounds where the truth is known, honest mechanisms, planted faults, membership inference."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import reduce
from types import SimpleNamespace

import numpy as np
import pytest
from fedpeft.clients import private, releasing
from scipy.optimize import brentq
from scipy.stats import binom

from fedpeft.audit.__main__ import _format_verdict, main
from fedpeft.audit.attacks import audit_run, run_attacks
from fedpeft.audit.bounds import (
    Bounds,
    compute_bounds,
    compute_gaussian_epsilon,
    compute_one_run_bound,
    compute_p_value,
)
from fedpeft.audit.canaries import Verdict, _Clients, create_layout, run
from fedpeft.audit.canary import CanaryExecutor
from fedpeft.audit.canary_audit import CanaryAudit
from fedpeft.audit.cohorts import compute_size_epsilon
from fedpeft.audit.membership import Membership
from fedpeft.communication.uplink import parse_uplink
from fedpeft.parts.families import MECHANISMS, PEFT_METHODS, strategies
from fedpeft.privacy import server_noise
from fedpeft.privacy.accountant import Event, epsilon
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.mechanisms import local_dp, user_dp
from fedpeft.privacy.noise import RunKey
from fedpeft.privacy.server_noise import count_turns
from fedpeft.reporting.observer import RoundResult
from fedpeft.rounds import acceptance
from fedpeft.rounds.acceptance import ReportReceiver
from tests.refusals import has_error, refuses

QUIET_Q1 = {"rounds": 10, "canaries": 400}
DELTA = 1e-5
HONEST = ["user_dp", "dp_sgd", "local_dp"]


def audited(mechanism: str, folder, **given):
    text = f"{mechanism}(noise_multiplier=4, clip=0.5, dp_delta={DELTA})"
    return run(CanaryAudit(**{**QUIET_Q1, "privacy": text, **given}), folder)


# ---------------------------------------------------------------------------------------------------------- the bounds


@pytest.mark.parametrize("true_epsilon", [0.5, 2.0, 4.0])
def test_randomized_response_is_never_refuted_and_strong_leaks_are(true_epsilon):
    """Each canary's bit is told rightly with probability e^eps / (1 + e^eps): exactly eps-DP."""
    random = np.random.default_rng(0)
    for _ in range(20):
        included = random.random(1000) < 0.5
        right = random.random(1000) < 1 / (1 + np.exp(-true_epsilon))
        scores = np.where(right == included, 1.0, 0.0) + 1e-6 * random.random(1000)
        found = compute_one_run_bound(scores, included, 1e-9)
        assert found <= true_epsilon
        assert found > 0.5 * true_epsilon - 0.5


def test_scores_that_say_nothing_refute_nothing():
    random = np.random.default_rng(1)
    for _ in range(50):
        found = compute_bounds(random.standard_normal(400), random.random(400) < 0.5, DELTA)
        assert found.largest == 0


def test_the_gaussian_profile_is_the_accountants():
    for mu in (0.3, 0.79, 2.0):
        assert compute_gaussian_epsilon(mu, DELTA) == pytest.approx(epsilon({Event(1 / mu, 1.0): 1}, DELTA), abs=0.03)
    assert compute_gaussian_epsilon(-1.0, DELTA) == 0


# -------------------------------------------------------------------------------------------------- honest and faulty


@pytest.mark.medium
@pytest.mark.parametrize("mechanism", HONEST)
def test_an_honest_mechanism_passes_and_is_not_trivially_bounded(mechanism, tmp_path):
    verdict = audited(mechanism, tmp_path)
    assert verdict.claimed == pytest.approx(3.35, abs=0.03)
    assert verdict.has_passed
    assert verdict.bounds.fit > 0.3


@pytest.mark.medium
@pytest.mark.parametrize(
    ("strategy", "codec"), [("fedsvd", "bf16"), ("rolora", "topk(fraction=0.5) | quantize(bits=8) | pack")]
)
def test_codec_and_strategy_do_not_change_what_is_claimed(strategy, codec, tmp_path):
    verdict = audited("user_dp", tmp_path, strategy=strategy, codec=codec)
    assert verdict.has_passed
    assert verdict.bounds.fit > 0.3


def halve(monkeypatch):
    for module in (user_dp, local_dp, private):
        whole = module.draw_gaussian
        monkeypatch.setattr(module, "draw_gaussian", lambda stream, like, whole=whole: 0.5 * whole(stream, like))


def skip_clipping(monkeypatch):
    for module in (user_dp, local_dp):
        monkeypatch.setattr(module, "compute_norm", lambda _state: 0.0)

    def add_up(self):
        for parameter in self.params:
            parameter.summed_grad = parameter.grad_sample.sum(0)

    monkeypatch.setattr(private.SecretNoise, "clip_and_accumulate", add_up)


def reuse_noise(monkeypatch):
    stream = RunKey.stream

    def once(self, purpose, *ids):
        if "noise" in purpose:
            ids = ids[-1:] if purpose == "local noise" else ()  # forgets the round
        return stream(self, purpose, *ids)

    monkeypatch.setattr(RunKey, "stream", once)


@pytest.mark.medium
@pytest.mark.parametrize("mechanism", HONEST)
@pytest.mark.parametrize("fault", [halve, skip_clipping, reuse_noise])
def test_planted_faults_are_caught(fault, mechanism, tmp_path, monkeypatch):
    fault(monkeypatch)
    verdict = audited(mechanism, tmp_path)
    assert not verdict.has_passed
    assert verdict.bounds.fit > verdict.claimed


def encode_first(monkeypatch):
    """Make the client encode before it clips and adds noise, so that it sends the bare update."""
    release = releasing.release

    def bare(own, uplink, guard, *more):
        return release(own, uplink, None, *more)

    monkeypatch.setattr(releasing, "release", bare)


def hand_on_twice(monkeypatch):
    """Make the server add each update twice after clipping it once."""
    add = ReportReceiver.add

    def twice(self, report, sent):
        add(self, report, sent)
        return add(self, report, sent)

    monkeypatch.setattr(ReportReceiver, "add", twice)


@pytest.mark.medium
@pytest.mark.parametrize(("mechanism", "fault"), [("local_dp", encode_first), ("user_dp", hand_on_twice)])
def test_a_wrong_order_in_what_rounds_do_is_caught(mechanism, fault, tmp_path, monkeypatch):
    fault(monkeypatch)
    assert not audited(mechanism, tmp_path).has_passed


def test_what_the_server_does_not_take_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(acceptance, "ABSURD", 1e-3)
    with refuses("FP7012"):
        audited("user_dp", tmp_path)


def test_a_row_that_moves_the_dropout_masks_of_others_is_caught(tmp_path, monkeypatch):
    """Masks drawn one after another from what everyone may know: a row more moves those of all rows after it."""
    fill = CanaryExecutor._fill

    def in_sequence(self, rows, chosen):
        public = np.random.default_rng(0)
        self.dropout.clients = [(public, *rest) for _, *rest in self.dropout.clients]
        return fill(self, rows, chosen)

    monkeypatch.setattr(CanaryExecutor, "_fill", in_sequence)
    verdict = audited("dp_sgd", tmp_path, canaries=100)
    assert verdict.distance > 2
    assert not verdict.has_passed


@pytest.mark.medium
@pytest.mark.parametrize("mechanism", ["user_dp", "dp_sgd"])
def test_missing_clipping_is_caught_by_the_one_run_bound_too(mechanism, tmp_path, monkeypatch):
    skip_clipping(monkeypatch)
    text = f"{mechanism}(noise_multiplier=4, clip=0.5, dp_delta=1e-6)"
    verdict = audited(mechanism, tmp_path, privacy=text, canaries=1000)
    assert verdict.bounds.one_run > verdict.claimed


def test_sampling_amplifies_as_claimed(tmp_path):
    """With q = 1/2, canaries take part in about half of the rounds."""
    verdict = audited("user_dp", tmp_path, rate=0.5)
    assert verdict.claimed < 2.5
    assert verdict.has_passed


def test_the_command(capsys):
    given = ["--rounds", "2", "--canaries", "40"]
    assert main(["--privacy", "local_dp(noise_multiplier=4)", *given]) == 0
    assert "consistent" in capsys.readouterr().out
    assert main(["--privacy", "none", *given]) == 2
    assert has_error(capsys.readouterr().err, "FP7010")
    assert main([]) == 2


# ------------------------------------------------------------------------------------------------------- membership


def test_a_run_without_rounds_has_no_canaries(monkeypatch):
    told = Membership(np.array([0.4, 0.6]), by_chance=0.55, members=20, left_out=3)
    monkeypatch.setattr("fedpeft.audit.membership.attack_membership", lambda simulation: told)
    said = []
    observer = SimpleNamespace(say=said.append)
    summary = run_attacks(SimpleNamespace(protection=SimpleNamespace(trains=False), observer=observer))
    assert summary == {"membership_auc": 0.5, "membership_auc_worst": 0.6, "membership_auc_worst_by_chance": 0.55}
    assert "3 of 20 members left out" in said[0]


def test_runs_and_a_mechanism_are_not_given_together(tmp_path, capsys):
    assert main([str(tmp_path), "--privacy", "user_dp(noise_multiplier=4)"]) == 2
    assert has_error(capsys.readouterr().err, "FP1039")
    (tmp_path / "serve.toml").write_text("")
    assert main([str(tmp_path)]) == 2
    assert has_error(capsys.readouterr().err, "FP5184")


@pytest.mark.parametrize(("claimed", "word"), [(np.inf, "no claim"), (9.0, "consistent"), (1.0, "less")])
def test_a_mechanism_that_claims_nothing_is_not_called_consistent(claimed, word):
    verdict = Verdict(claimed, 1e-3, Bounds(2.0, 2.0), None)
    assert word in _format_verdict(verdict)


# ------------------------------------------------------------------------------------------------ cohorts, and turns


@pytest.mark.parametrize(
    ("clients", "rate", "rounds", "delta"), [(3, 0.5, 2, 0.05), (4, 0.3, 3, 0.01), (2, 0.7, 1, 0.2)]
)
def test_the_cost_of_sizes_is_that_of_all_their_sequences(clients, rate, rounds, delta):
    """Hockey-stick divergence by enumeration of every sequence of sizes, in both directions."""
    sizes = np.arange(clients + 1)
    inside, outside = binom.pmf(sizes, clients, rate), binom.pmf(sizes, clients - 1, rate)

    def smallest(p, q):
        every, other = (reduce(np.multiply.outer, [chances] * rounds) for chances in (p, q))

        def reached(epsilon):
            return np.maximum(0.0, every - np.exp(epsilon) * other).sum()

        if reached(20) > delta:
            return np.inf
        return brentq(lambda epsilon: reached(epsilon) - delta, 0, 20) if reached(0) > delta else 0.0

    expected = max(smallest(inside, outside), smallest(outside, inside))
    found = compute_size_epsilon(clients, rate, rounds, delta)
    assert found == pytest.approx(expected, abs=0.01) or found == expected == np.inf


@pytest.mark.medium
def test_the_size_of_whole_cohorts_tells_all():
    assert compute_size_epsilon(50, 1.0, 1, 1e-3) == np.inf
    assert compute_size_epsilon(100, 0.1, 100, 1e-3) == pytest.approx(
        0.8525, abs=0.003
    )  # by 400,000 draws of the sizes
    assert compute_size_epsilon(20, 0.5, 100, 0.005) > 8


@pytest.mark.parametrize("told", ["clients", "rejected", "seconds"])
def test_a_server_that_tells_the_size_of_a_secret_cohort_is_caught(told, tmp_path, monkeypatch):
    plain = RoundResult.hide_cohort
    monkeypatch.setattr(
        RoundResult, "hide_cohort", lambda self, size: replace(plain(self, size), **{told: getattr(self, told)})
    )
    verdict = audited("user_dp", tmp_path, rate=0.5, canaries=100)
    assert verdict.sizes > 1
    assert verdict.bounds.largest <= verdict.claimed
    assert not verdict.has_passed


def banded(folder, noise=2.0, **given):
    text = f"user_dp(noise_multiplier={noise}, clip=0.5, dp_delta={DELTA}, noise=banded)"
    return run(CanaryAudit(**{**QUIET_Q1, "privacy": text, "rate": 0.25, "rounds": 12, **given}), folder)


def test_related_noise_is_audited_with_clients_that_take_turns(tmp_path):
    """Three turns at z = 1 cost what one release at z = 1 / sqrt 3 does, and the bound is not trivial."""
    verdict = banded(tmp_path, noise=1.0)
    assert verdict.claimed == pytest.approx(epsilon({Event(1.0, 1.0): 3}, DELTA), abs=0.03)
    assert verdict.has_passed
    assert verdict.bounds.fit > 0.3 * verdict.claimed  # of 120 audits: 0.59 to 0.97 by their own noise, 0.75 +- 0.07


@pytest.mark.parametrize(("clients", "cohort"), [(99, 10), (40, 10), (11, 4), (59, 2), (7, 3)])
def test_canaries_of_a_run_take_turns_as_often_as_its_clients(clients, cohort, tmp_path):
    """Of 99 clients in cohorts of 10 each comes back after 9 rounds, and of 400 canaries at that rate after 10."""
    mechanism = MECHANISMS.build("user_dp(noise_multiplier=1, noise=banded)")
    ones = np.ones(clients, np.int64)
    federation = Exposure(
        strategy=strategies.build("fedit"), method=PEFT_METHODS.build("lora"), layout=create_layout(4), rows=ones,
        steps=ones, participations=ones, batch_size=1, rounds=20, cohort=cohort, even=True,
    )  # fmt: skip
    setup = SimpleNamespace(strategy=federation.strategy, uplink=parse_uplink("fp32"))
    engine = SimpleNamespace(exposure=federation, mechanism=mechanism, noise_multiplier=1.0, delta=1e-3)
    config = SimpleNamespace(strategy="fedit", seed=0)
    audit = audit_run(SimpleNamespace(protection=engine, setup=setup, config=config))
    made = _Clients(audit, MECHANISMS.build(audit.privacy), tmp_path, np.ones(audit.canaries, bool))
    canaries = made.protection.exposure
    assert count_turns(canaries.clients, canaries.cohort) == count_turns(clients, cohort)
    assert mechanism.plan_releases(canaries) == mechanism.plan_releases(federation)
    assert 300 < audit.canaries < 500


@pytest.mark.parametrize("fault", ["half", "unclipped", "wider"])
def test_faults_of_related_noise_are_caught(fault, tmp_path, monkeypatch):
    if fault == "half":
        whole = server_noise.draw_gaussian
        monkeypatch.setattr(server_noise, "draw_gaussian", lambda stream, like: 0.5 * whole(stream, like))
    if fault == "unclipped":
        monkeypatch.setattr(user_dp, "compute_norm", lambda _state: 0.0)
    if fault == "wider":  # columns longer than 1 are noise too small
        factor = user_dp.UserDP.noise_factor
        monkeypatch.setattr(user_dp.UserDP, "noise_factor", lambda self, at: 2 * factor(self, at))
    verdict = banded(tmp_path)
    assert not verdict.has_passed


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
@pytest.mark.parametrize(("guesses", "right"), [(1, 1), (3, 2), (7, 7), (7, 0)])
def test_without_delta_the_p_value_is_a_binomial_tail(epsilon, guesses, right):
    """Steinke, Nasr, Jagielski, arXiv 2305.08846, theorem 5.2, written out."""
    q = 1 / (1 + np.exp(-epsilon))
    tail = tail_of(guesses, right, q)
    assert compute_p_value(20, guesses, right, epsilon, 0.0) == pytest.approx(tail)
    within = max((tail_of(guesses, right - i, q) - tail) / i for i in range(1, right + 1)) if right else 0.0
    assert compute_p_value(20, guesses, right, epsilon, 1e-3) == pytest.approx(min(1.0, tail + 2 * 20 * 1e-3 * within))


def tail_of(guesses, least, q):
    return sum(math.comb(guesses, k) * q**k * (1 - q) ** (guesses - k) for k in range(least, guesses + 1))
