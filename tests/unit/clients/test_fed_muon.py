"""FedMuon: its momenta against algorithm 1 by hand, its server, clients in one pass, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from fedpeft.clients.drift import parse_drift
from fedpeft.clients.local_training import LocalTraining
from fedpeft.clients.optimizers.muon import orthogonalize
from torch import nn

from fedpeft.aggregation.update import Fold
from fedpeft.conformance.peft_cases import Case, find_largest_difference
from fedpeft.parts.families import LOCAL_OPTIMIZERS, strategies
from tests.refusals import refuses

MUON = "muon(momentum=0.8, head_rate=1.0)"
NAME = "x.lora_A.weight"


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def acting(server, own):
    return parse_drift("fed_muon").select_corrections({"fed_muon": server}, {"fed_muon": own})


def test_steps_are_those_of_algorithm_1():
    """M <- 0.8 M + 0.2 g from C_k, and X moves along M - C_k + C; the next C_k is M."""
    c, c_k = drawn(4, 30, seed=1), drawn(4, 30, seed=2)
    x = nn.Parameter(drawn(4, 30))
    expected, momentum, gradients = x.detach().clone(), c_k.clone(), [drawn(4, 30, seed=10 + i) for i in range(3)]
    for g in gradients:
        momentum = 0.8 * momentum + 0.2 * g
        expected -= 0.1 * 0.2 * 30**0.5 * orthogonalize(momentum - c_k + c)

    rule = LOCAL_OPTIMIZERS.build(MUON)
    optimizer, _ = rule.create_optimizer({NAME: x}, 0.1)
    [of_run] = acting({NAME: c}, {NAME: c_k})
    rule.write_momentum(optimizer, x, of_run.correction.choose_momentum(of_run.server, of_run.own)[NAME])
    for g in gradients:
        x.grad = g + (c - c_k)
        optimizer.step()
    assert torch.allclose(x, expected, rtol=0, atol=1e-9)
    assert torch.allclose(rule.read_momentum(optimizer, x) - (c - c_k), momentum, atol=1e-12)


def states(case, seed):
    return {n: 0.1 * drawn(*t.shape, seed=seed + i) for i, (n, t) in enumerate(case.start.items())}


def corrected(case, **more):
    """Return jobs whose clients have control variates of their own."""
    jobs = case.jobs(optimizer=MUON, rate=1e-2, **more)
    return [replace(job, corrections=acting(states(case, 0), states(case, 50 + job.client))) for job in jobs]


def test_a_client_keeps_the_momentum_of_its_gradients_without_the_correction(tiny):
    """In one step at a rate of 0 the client's next C_k is 0.8 C_k + 0.2 g; the head's is 0."""
    case = Case("lora(rank=4)", tiny)
    [job] = corrected(case, steps=1)[:1]
    job = replace(job, learning_rate=0.0)
    [sgd] = case.sequential.train([replace(case.jobs(optimizer="sgd(head_rate=1.0)", steps=1, rate=1.0)[0])])
    [result] = case.sequential.train([job])
    kept, changes = parse_drift("fed_muon").after(job, result)
    own = job.corrections[0].own
    for name, variate in kept["fed_muon"].items():
        gradient = job.received[name] - sgd.state[name]
        expected = torch.zeros_like(variate) if name.startswith("head.") else 0.8 * own[name] + 0.2 * gradient
        assert torch.allclose(variate, expected, rtol=1e-9, atol=1e-12), name
        assert torch.allclose(changes["fed_muon"][name], expected - own[name], atol=1e-12)


def test_the_server_has_the_mean_momentum_of_all_clients():
    changes = Fold()
    for change in (1.0, 3.0):
        changes.add({NAME: torch.tensor([change])}, 1.0)
    after = parse_drift("fed_muon").step({"fed_muon": {NAME: torch.tensor([10.0])}}, {"fed_muon": changes}, clients=8)
    assert after["fed_muon"][NAME].item() == pytest.approx(10 + (1 + 3) / 8)


def test_all_clients_in_one_pass_train_as_each_alone(tiny):
    """Their momenta, too, although they make different numbers of steps."""
    case = Case("lora(rank=4)", tiny)
    jobs = [
        replace(job, training=job.training.replace_steps(steps))
        for job, steps in zip(corrected(case), (3, 1, 2), strict=True)
    ]
    one, other = list(case.sequential.train(jobs)), list(case.create_batched_executor().train(jobs))
    assert find_largest_difference(one, other, jobs) < 1e-8
    for a, b in zip(one, other, strict=True):
        assert a.momentum.keys() == b.momentum.keys() == {n for n in case.start if not n.startswith("head.")}
        assert all(torch.allclose(a.momentum[n], b.momentum[n], rtol=1e-9, atol=1e-12) for n in a.momentum)


def test_without_variates_the_first_round_is_plain_muon(tiny):
    case = Case("lora(rank=4)", tiny)
    plain = case.jobs(optimizer=MUON, rate=1e-2)
    zeros = {n: torch.zeros_like(t) for n, t in case.start.items()}
    jobs = [replace(job, corrections=acting(zeros, {})) for job in plain]
    assert find_largest_difference(list(case.sequential.train(plain)), list(case.sequential.train(jobs)), jobs) < 1e-9


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon(max_norm=1.0)"])
def test_optimizers_without_a_momentum_are_refused(optimizer):
    training = LocalTraining(optimizer=LOCAL_OPTIMIZERS.build(optimizer))
    correction = parse_drift("fed_muon").corrections[0]
    with refuses("FP1523"):
        correction.check(strategies.build("fedit"), training, [None])
    with refuses("FP1004"):
        correction.check(strategies.build("flexlora"), training, [None])
    correction.check(strategies.build("fedit"), LocalTraining(optimizer=LOCAL_OPTIMIZERS.build("muon")), [None])
