"""`--budget-megabytes`: fewer bits, then fewer clients, and the end of a run before its budget is exceeded."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fedpeft.commands.report import main as report
from fedpeft.communication.round_plan import RoundPlan
from fedpeft.rounds import traffic_budget
from fedpeft.rounds.features import check_features
from fedpeft.rounds.private_rounds import PrivacyHook
from fedpeft.rounds.progress import Checkpoints, ServerState
from fedpeft.rounds.traffic_budget import MEGABYTE, SHARES, TrafficBudget, count_bytes, draw_clients
from fedpeft.simulate import main as simulate
from tests.refusals import refuses
from tests.runs.server.test_loop import CLIENTS, LAST, ROUNDS, events, make_server, make_setup  # noqa: F401
from tests.runs.server.test_user_hooks import TINY, read_lines

fast = pytest.mark.fast("the traffic budget of a run")

LOCAL_DP = {"privacy": "local_dp(noise_multiplier=1, test_noise=True)"}


def cost_of_a_client(**settings) -> float:
    """Return the predicted bytes of a client in a round, both ways."""
    setup = make_setup(budget_megabytes=1.0, **settings)
    moved = {"head.weight": torch.full((2, 3), 0.1)}  # the start, which is zero, is shorter
    hook, state = TrafficBudget(setup, True, print), ServerState(round=1, adapter=moved)
    return hook._predict(RoundPlan(1, [0]), state)[1.0]


def budget_of(turns: float) -> float:
    """Return the budget in megabytes that has room for so many turns of a client."""
    return turns * cost_of_a_client() / MEGABYTE


@fast
@pytest.mark.parametrize(("turns", "asked"), [(6, [3, 3]), (4, [2, 2]), (3, [1, 2]), (2, [1, 1]), (1, [1])])
def test_a_run_stays_within_its_budget_by_fewer_clients(tmp_path, events, turns, asked):  # noqa: F811
    server = make_server(tmp_path, events, budget_megabytes=budget_of(turns) * 1.001, **LAST)
    state = server.run()
    rounds = server.store.records.read("rounds.jsonl")
    assert [line["clients"] for line in rounds] == asked
    assert count_bytes(state) <= server.setup.config.budget_megabytes * MEGABYTE
    lines = server.store.records.read("hooks.jsonl")
    assert [line["left_out"] for line in lines] == [CLIENTS - clients for clients in asked]
    section = server.sections(state)["budget_megabytes"]
    assert section["used_megabytes"] == pytest.approx(count_bytes(state) / MEGABYTE)
    assert section["turns_left_out"] == sum(CLIENTS - clients for clients in asked)


@fast
def test_a_budget_for_less_than_a_client_ends_the_run_before_anything_is_charged(tmp_path, events):  # noqa: F811
    server = make_server(tmp_path, events, private=True, budget_megabytes=budget_of(0.7), **LAST, **LOCAL_DP)
    assert server.run().round == 0
    assert "charge" not in events
    assert not [event for event in events if event.startswith("send")]
    assert "--budget-megabytes" in server.observer.sentences[-1]


@fast
def test_clients_that_are_left_out_are_not_charged(tmp_path, events):  # noqa: F811
    given = {"budget_megabytes": budget_of(2) * 1.001, "rounds": 1, **LAST, **LOCAL_DP}
    server = make_server(tmp_path, events, private=True, **given)
    server.run()
    (privacy,) = (hook for hook in server.hooks if isinstance(hook, PrivacyHook))
    asked = [line["client"] for line in server.store.records.read("clients.jsonl")]
    assert len(asked) == 2
    assert sorted(privacy.engine.ledger.spent) == asked


@fast
def test_a_resumed_run_asks_the_same_clients_and_counts_the_same_bytes(tmp_path, events, monkeypatch):  # noqa: F811
    given = {"budget_megabytes": budget_of(4) * 1.001, **LAST}
    whole = make_server(tmp_path / "whole", events, **given)
    expected = whole.run()
    real = Checkpoints.save

    def kill(self, progress):
        if progress.round == ROUNDS:
            raise KeyboardInterrupt
        real(self, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", kill)
        with pytest.raises(KeyboardInterrupt):
            make_server(tmp_path / "cut", events, **given).run()
    server = make_server(tmp_path / "cut", events, **given)
    state = server.run()
    assert torch.equal(state.adapter["head.weight"], expected.adapter["head.weight"])
    assert state.hooks == expected.hooks
    for name in ("hooks.jsonl", "rounds.jsonl"):
        lines, whole_lines = (one.store.records.read(name) for one in (server, whole))
        times = {"seconds", "training_seconds", "aggregation_seconds"}
        assert [{k: v for k, v in line.items() if k not in times} for line in lines] == [
            {k: v for k, v in line.items() if k not in times} for line in whole_lines
        ]


@fast
def test_who_is_left_out_is_drawn_anew_in_each_round():
    drawn = [draw_clients(list(range(10)), 3, 0, number) for number in range(1, 9)]
    assert all(len(cohort) == 3 and cohort == sorted(cohort) for cohort in drawn)
    assert len({client for cohort in drawn for client in cohort}) > 7
    assert draw_clients([4, 9], 3, 0, 1) == [4, 9]


@fast
@pytest.mark.parametrize("privacy", ["user_dp(epsilon=8)", "user_dp(epsilon=8, noise=banded)", "secure_sum"])
def test_rounds_whose_clients_the_server_must_not_choose_are_refused(privacy):
    with refuses("FP7128", "--budget-megabytes"):
        check_features(make_setup(budget_megabytes=1.0, privacy=privacy))


@fast
def test_asynchronous_rounds_are_refused_and_others_are_not():
    with refuses("FP1514", "--budget-megabytes"):
        check_features(make_setup(budget_megabytes=1.0, strategy="fedbuff(buffer=2)"))
    check_features(make_setup(budget_megabytes=1.0, privacy="dp_sgd(epsilon=8)"))


@fast
def test_a_client_that_sends_too_much_doubles_the_prediction_at_most(tmp_path, events):  # noqa: F811
    server = make_server(tmp_path, events, budget_megabytes=100.0, **LAST)
    (hook,) = (hook for hook in server.hooks if isinstance(hook, TrafficBudget))
    server.run()
    hook._predicted = 1.0
    log = SimpleNamespace(
        result=SimpleNamespace(uplink_bytes=10**9, downlink_bytes=0),
        plan=SimpleNamespace(bits_share=1.0, number=3), lines={},
    )  # fmt: skip
    hook.measure(ServerState(round=2, adapter={}), log)
    assert hook.correction == 2.0


def run_with(folder: Path, *flags: str) -> tuple[dict, list[dict]]:
    """Return summary.json and hooks.jsonl of a run."""
    assert simulate([*TINY, "--codec=int8", "--downlink=small", *flags, "--output", str(folder)]) == 0
    return json.loads((folder / "summary.json").read_text()), read_lines(folder / "hooks.jsonl") if flags else []


def test_a_simulation_lowers_bits_first_and_leaves_clients_out_then(tmp_path):
    usual, _ = run_with(tmp_path / "usual")
    rounds_of = usual["uplink_bytes"] - usual["prepare_bytes"] + usual["downlink_bytes"]
    seen = {}
    for share in (0.8, 0.35):
        budget = (usual["prepare_bytes"] + share * rounds_of) / MEGABYTE
        summary, lines = run_with(tmp_path / str(share), f"--budget-megabytes={budget}")
        section = summary["hooks"]["budget_megabytes"]
        assert section["used_megabytes"] <= budget
        used = summary["uplink_bytes"] + summary["downlink_bytes"]
        assert section["used_megabytes"] * MEGABYTE == pytest.approx(used)
        seen[share] = section, lines
    section, lines = seen[0.8]
    assert section["turns_left_out"] == 0
    assert section["rounds_with_fewer_bits"] > 0
    section, lines = seen[0.35]
    assert section["turns_left_out"] > 0
    assert all(line["bits_share"] == 0.25 for line in lines if line["left_out"])
    page = tmp_path / "report.html"
    assert report([str(tmp_path / "0.35"), "--output", str(page)]) == 0
    assert "budget_megabytes: turns left out" in page.read_text()


@fast
def test_a_prediction_is_that_of_the_tensors_that_the_round_trains(monkeypatch):
    """Some strategies train A in one round and B in the next, whose sizes differ."""

    class Planned:
        def __init__(self, setup, state, remote, steps):
            self.size = {1: 1000, 2: 10}[state.round]
            self.downlink = SimpleNamespace(shared=frozenset({f"tensors of round {state.round}"}))

        def estimate_traffic(self, clients, share):
            return SimpleNamespace(uplink_bytes=clients * self.size * share, downlink_bytes=clients * 5)

    monkeypatch.setattr(traffic_budget, "Broadcast", Planned)
    hook = TrafficBudget(make_setup(budget_megabytes=1.0), True, print)
    hook.shares = SHARES
    for number, size in ((1, 1000), (2, 10), (1, 1000)):
        costs = hook._predict(RoundPlan(number, [0]), SimpleNamespace(round=number))
        assert costs == {share: size * share + 5 for share in SHARES}
