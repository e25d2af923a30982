"""FedLEASE: experts chosen at each token, clusters found after a warm-up, and what each client is sent of them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from fedpeft.clients.rule_half import prepare_job
from fedpeft.strategies.fedlease import CLUSTERS, cluster_clients, compute_distances

from fedpeft.aggregation.grouped_rules import GroupedRound
from fedpeft.aggregation.update import Update
from fedpeft.conformance.peft_cases import Case
from fedpeft.parts.families import strategies
from fedpeft.peft.adapter import State
from fedpeft.peft.methods.expert_lora import SHUT, ExpertLoras
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.refusals import refuses
from tests.runs.simulation.test_run_strategies import settings

EXPERTS = 3
SLOTS = {1: [0], 2: [0, 1, 3], 3: [0, 1, 2, 3, 4]}
"""By the number of experts, the slots that are open, where there is room for three."""


@pytest.fixture
def case(tiny):
    return Case(f"expert_lora(rank=2, experts={EXPERTS}, alpha=4, layers=1)", tiny)


def with_slots(state, number):
    shut = [p not in SLOTS[number] for p in range(2 * EXPERTS - 1)]
    return {n: t.masked_fill(torch.tensor(shut), SHUT) if ".bias." in n else t for n, t in state.items()}


@pytest.mark.parametrize("number", SLOTS)
def test_the_layer_takes_the_chosen_experts_at_each_token(case, number):
    """Token by token, with the softmax and the choice written out; one expert is LoRA."""
    layer = next(m for m in case.model.modules() if isinstance(m, ExpertLoras))
    case.sequential.load(with_slots({n: 2 * t for n, t in case.start.items()}, number))
    x = torch.randn(2, 3, layer.base_layer.in_features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = {name: layer.get_submodule(name).weight for name in layer.shapes}
    chosen = set()
    with torch.no_grad():
        found = layer(x)
        for one, y in zip(x.flatten(0, 1), found.flatten(0, 1), strict=True):
            logits = {slot: float(p["gate"][slot] @ one + p["bias"][slot]) for slot in SLOTS[number]}
            total = sum(np.exp(v) for v in logits.values())
            taken = sorted(logits, key=lambda slot: -logits[slot])[:number]
            expected = layer.base_layer(one)
            for slot in taken:
                if slot < EXPERTS:
                    down, up = p["own_A"], p["own_B"]
                else:
                    ranks = slice(2 * (slot - EXPERTS), 2 * (slot - EXPERTS) + 2)
                    down, up = p["others_A"][ranks], p["others_B"][:, ranks]
                expected = expected + 2 * np.exp(logits[slot]) / total * (up @ (down @ one))
            assert any(slot < EXPERTS for slot in taken)
            chosen.add(tuple(taken))
            assert torch.allclose(y, expected, atol=1e-12)
    assert len(chosen) > 1 or number == 1


def test_others_stand_still_executors_agree_and_wrong_slots_are_refused(case):
    rule = strategies.build("fedlease")
    trains = rule.list_trained(case.layout, 1)
    jobs = [
        prepare_job(replace(job, received=with_slots(job.received, number), trained=trains), rule, case.layout, ())
        for job, number in zip(case.jobs(), (1, 2, 3), strict=True)
    ]
    for one, other, job in zip(
        case.sequential.train(jobs), case.create_batched_executor().train(jobs), jobs, strict=True
    ):
        assert set(one.state) == trains
        assert not any(".others_" in name for name in one.state)
        for name, tensor in one.state.items():
            assert torch.allclose(other.state[name], tensor, rtol=1e-9, atol=1e-11)
        moved = {name for name in one.state if not torch.equal(one.state[name], job.received[name])}
        assert len(moved) > len(trains) / 2
    for shut in ([2], [0], [0, 1, 2, 3, 4], [1, 2, 4]):
        bias = torch.zeros(5).index_fill(0, torch.tensor(shut), SHUT)
        wrong = {n: bias if ".bias." in n else t for n, t in case.start.items()}
        with refuses("FP6175", "3"):
            rule.prepare_start(wrong, case.layout)


def slow_clusters(distance, most, clear):
    """Average linkage and the silhouette as their definitions say."""
    n = len(distance)
    best = -np.inf, [set(range(n))]
    groups = [{i} for i in range(n)]
    while len(groups) > 1:
        pairs = itertools.combinations(range(len(groups)), 2)
        a, b = min(pairs, key=lambda ab: distance[np.ix_(list(groups[ab[0]]), list(groups[ab[1]]))].mean())
        groups = [g for i, g in enumerate(groups) if i not in (a, b)] + [groups[a] | groups[b]]
        if not 2 <= len(groups) <= min(most, n - 1):
            continue
        scores = []
        for i in range(n):
            own = next(g for g in groups if i in g)
            if len(own) == 1:
                scores.append(0.0)
                continue
            inner = sum(distance[i, j] for j in own) / (len(own) - 1)
            outer = min(distance[i, list(g)].mean() for g in groups if g is not own)
            scores.append((outer - inner) / max(inner, outer))
        if np.mean(scores) > best[0]:
            best = float(np.mean(scores)), groups
    found = best[1] if best[0] >= clear else [set(range(n))]
    found = sorted(found, key=lambda g: (-len(g), min(g)))
    return [next(c for c, g in enumerate(found) if i in g) for i in range(n)]


def test_clusters_are_those_of_the_definitions():
    noise, sizes = np.random.default_rng(0), set()
    for trial in range(30):
        n, centres = int(noise.integers(2, 12)), noise.normal(size=(4, 6))
        points = centres[noise.integers(0, 1 + trial % 4, n)] + noise.choice([0.1, 1.0]) * noise.normal(size=(n, 6))
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        distance = compute_distances([{"B": torch.from_numpy(x)} for x in points])
        assert np.allclose(distance, (1 - points @ points.T) * (1 - np.eye(n)))
        for clear in (-1.0, 0.25):
            found = cluster_clients(distance, 4, clear)
            assert found == slow_clusters(distance, 4, clear)
            sizes.add(max(found) + 1)
    assert sizes == {1, 2, 3, 4}


def test_rounds_are_those_of_a_list_of_clients(case):  # noqa: C901
    """Warm-up, clusters, steps, and one who comes late, against what each client and each cluster holds."""
    rule, layout = strategies.build("fedlease(warmup=2, clear=-1)"), case.layout
    noise = torch.Generator().manual_seed(2)
    start, learned, names = case.first, {}, sorted(rule.list_trained(layout, 1))
    own_up_names = [n for n in names if ".own_B." in n]
    pulls = [{n: torch.randn(start[n].shape, generator=noise, dtype=torch.float64) for n in names} for _ in range(2)]
    kind = {0: 0, 1: 1, 2: 0, 3: 1, 4: 1, 5: 0}
    alone, weights, experts, state = {}, {}, {}, start

    def check_received(round_number: int, k: int, received: State) -> None:
        """Compare what a client receives with its expert, or before there are experts with its own adapter."""
        if experts:
            mine = experts[kind[k]] if k in alone else start
        else:
            mine = alone.get(k, start)
        for n in names:
            if ".bias." not in n:
                assert torch.allclose(received[n], mine[n], atol=1e-12), (round_number, k, n)
        if experts and k in alone:
            for n in own_up_names:
                other = experts[1 - kind[k]]
                assert torch.allclose(received[n.replace("own", "others")][:, :2], other[n], atol=1e-12)
                assert not received[n.replace("own", "others")][:, 2:].any()

    for round_number, cohort in enumerate(([0, 1, 2], [2, 3, 4], [0, 1, 5], [1, 3, 5], [4]), 1):
        updates = []
        for k in cohort:
            received = rule.get_group_state(rule.find_group(k, learned), state, learned, layout)
            assert rule.prepare_start(received, layout) is received
            check_received(round_number, k, received)
            jitter = {n: torch.randn(start[n].shape, generator=noise, dtype=torch.float64) for n in names}
            delta = {n: (pulls[kind[k]][n] + 0.1 * jitter[n]) * (".bias." not in n) for n in names}
            updates.append(Update(k, 1.0 + k, None, received, delta))
        state, learned = rule.regroup(GroupedRound(round_number, state, learned, layout, lambda u=updates: iter(u)))
        if round_number <= 2:
            for u in updates:
                alone[u.client], weights[u.client] = {n: u.get_trained(n) for n in names}, u.weight
        if round_number == 2:
            for c in (0, 1):
                members = [k for k in alone if kind[k] == c]
                total = sum(weights[k] for k in members)
                experts[c] = {n: sum(weights[k] * alone[k][n] for k in members) / total for n in names}
        elif round_number > 2:
            for c in (0, 1):
                counted = [u for u in updates if kind[u.client] == c and u.client in alone]
                for n in names if counted else ():
                    step = sum(u.weight * u.delta[n] for u in counted) / sum(u.weight for u in counted)
                    experts[c][n] = experts[c][n] + step
            alone |= {u.client: {} for u in updates}
    where = dict(learned[CLUSTERS].tolist())
    assert where == {0: 1, 1: 0, 2: 1, 3: 0, 4: 0, 5: 1}  # the larger one, of clients 1, 3 and 4, is the first
    assert all(torch.allclose(state[n], experts[1][n], atol=1e-12) for n in names if ".bias." not in n)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"peft": "lora"}, ("FP1488", "--peft")),
        ({"server_optimizer": "adam"}, ("FP1335", "--server-optimizer")),
        ({"codec": "small"}, ("FP1304", "--downlink")),
        ({"codec": "ef14 | small", "downlink": "fp32"}, ("FP1305", "--codec", "adaptive")),
        ({"privacy": "secure_sum"}, ("FP7087", "secure_sum")),
        ({"privacy": "dp_sgd(epsilon=8, raw_metrics=True)"}, ("FP7088",)),
        ({"measure": "validation(keep=best)"}, ("FP1390",)),
    ],
)
def test_what_does_not_go_with_groups_is_said(given, words, tmp_path, observer):
    with refuses(*words):
        Simulation(RunConfig(**{**settings("fedlease"), **given}), tmp_path, observer)
