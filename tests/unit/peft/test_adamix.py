"""AdaMix: counts of the paper, who is drawn, and what is left of the experts in the end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpeft.aggregation.update import Fold, Update
from fedpeft.conformance.peft_cases import Case
from fedpeft.parts.families import strategies
from fedpeft.peft.adapter import subtract_states
from fedpeft.peft.methods.adamix import Mixture, compute_symmetric_divergence
from tests.unit.peft.test_prefix_tuning_plus import of_size


@pytest.mark.medium
def test_it_has_the_paper_s_numbers():
    """Merged 0.9 M in BERT-base and 0.8 M in RoBERTa-large (arXiv 2205.12410, table 1); trained are all experts."""
    up_and_rest = 12 * (768 * 48 + 768)
    one = 12 * (768 * 48 + 48)
    assert round((up_and_rest + one) / 1e6, 1) == 0.9
    assert of_size("adamix(dim=48, layers=0)", 768, 12, 12) == 4 * one + up_and_rest
    assert of_size("adamix(dim=48, layers=0, experts=1)", 768, 12, 12) == 894_528
    assert of_size("adamix(dim=16, layers=0, experts=1)", 1024, 24, 16) == 811_392


def moved(case, job):
    """By module, the experts that have moved."""
    [trained] = case.sequential.train([job])
    found = {}
    for name, tensor in trained.state.items():
        if name.endswith("down.weight"):
            steps = (tensor - job.received[name]).unflatten(0, (case.method.experts, -1)).flatten(1).norm(dim=1)
            found[name] = tuple(steps.nonzero().flatten().tolist())
    return found


def test_each_pass_draws_one_expert_of_each_adapter_from_the_run_s_seeds(tiny):
    case = Case("adamix(dim=6, experts=8, consistency=0)", tiny)
    job = case.jobs(steps=1)[0]
    first = moved(case, job)
    assert all(len(experts) == 1 for experts in first.values())
    assert moved(case, job) == first, "the same draw again"
    others = [moved(case, replace(job, round=round_number)) for round_number in range(2, 8)]
    assert any(other != first for other in others)
    assert any(len(set(other.values())) > 1 for other in others), "adapters draw by themselves"
    assert all(len(experts) > 1 for experts in moved(case, case.jobs(steps=12)[0]).values())


def test_outside_training_the_experts_are_their_mean(tiny):
    many, one = Case("adamix(dim=6, experts=3)", tiny), Case("adamix(dim=6, experts=1)", tiny)
    merged = {name: t.unflatten(0, (3, -1)).mean(0) if ".down." in name else t for name, t in many.start.items()}
    batch = many.rows.batch(torch.arange(9).numpy())
    [_] = many.sequential.train(many.jobs(steps=1)[:1])  # after which nothing is drawn any more
    many.sequential.load(many.start)
    one.sequential.load(merged)
    with torch.no_grad():
        assert torch.allclose(many.model(batch), one.model(batch), atol=1e-12)
        many.sequential.load(merged | {n: t for n, t in many.first.items() if ".down." in n})
        assert not torch.allclose(many.model(batch), one.model(batch), atol=1e-6)


def test_the_divergence_is_that_of_the_two_answers_each_taken_as_given():
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    found = compute_symmetric_divergence(*logits)
    p, q = logits.softmax(-1)
    for row in range(5):
        both = [(b * (b / a).log()).sum() for a, b in ((p[row], q[row]), (q[row], p[row]))]
        assert torch.allclose(found[row], sum(both) / 2)
    [gradient] = torch.autograd.grad(found.sum(), logits)
    assert torch.allclose(gradient[0], (p - q).detach() / 2), "of cross-entropy with the other as labels"
    assert torch.allclose(gradient[1], (q - p).detach() / 2)


def test_a_step_minimises_the_loss_of_one_pass_and_what_another_says_otherwise(tiny):
    case = Case("adamix(dim=6, experts=4, consistency=2.5, layers=2)", tiny)
    case.sequential.load({n: 4 * t for n, t in case.start.items()})
    layers = [m for m in case.model.modules() if isinstance(m, Mixture)]
    batch, passes = case.rows.batch(np.arange(7)), [[1, 3], [0, 2]]

    def said(experts):
        for layer, expert in zip(layers, experts, strict=True):
            layer.draw_from(lambda _, expert=expert: [expert])
        return case.model(batch).detach()

    one, other = (said(experts) for experts in passes)
    left = [expert for experts in passes for expert in experts]
    for layer in layers:
        layer.draw_from(lambda _: [left.pop(0)])
    found = case.task.step_losses(case.model, batch)
    expected = case.task.losses(one, batch).sums + 2.5 * compute_symmetric_divergence(one, other)
    assert torch.allclose(found.sums, expected, atol=1e-12)
    assert float((expected - case.task.losses(one, batch).sums).min()) > 1e-4
    assert not left


def test_the_server_counts_what_clients_have_drawn(tiny):
    case = Case("adamix(dim=6, experts=4)", tiny)
    layers = [m for m in case.model.modules() if isinstance(m, Mixture)]
    job, drawn = case.jobs(steps=9)[1], []
    for layer in layers:
        draw = layer._draw
        layer.draw_from(lambda count, draw=draw, layer=layer: drawn.append((layer, draw(count))) or drawn[-1][1])
    [trained] = case.sequential.train([job])
    owned = case.method.compute_owned_shares(case.layout, job.seed, job.round, job.client, trained.steps)
    names = [t.name for t in case.layout.tensors if t.name.endswith("down.weight")]
    for layer, name in zip(layers, names, strict=True):
        own = [expert for seen, [expert] in drawn if seen is layer]
        assert len(own) == 2 * 9
        expected = torch.tensor([own.count(e) / 18 for e in range(4)]).repeat_interleave(6)
        assert torch.allclose(owned[name][:, 0], expected)
        assert torch.allclose(owned[name.replace("weight", "bias")], expected)


def test_of_a_client_that_does_not_say_how_many_steps_it_has_made_all_experts_count(tiny):
    """As under local_dp, where the number of steps would tell that of rows: no expert's change is thrown away."""
    case = Case("adamix(dim=6, experts=4)", tiny)
    delta = {name: torch.ones_like(tensor) for name, tensor in case.start.items()}
    owned, rule, total = (
        case.method.compute_owned_shares(case.layout, 0, 1, 2, 0),
        strategies.build("owned_mean"),
        Fold(),
    )
    rule.fold(total, Update(2, 1.0, None, case.start, delta, owned=owned), case.start, case.layout)
    assert all(torch.equal(step, delta[name]) for name, step in rule.pseudo_gradient(total, case.layout).items())


def test_an_expert_is_averaged_by_how_often_it_was_trained(tiny):
    case = Case("adamix(dim=6, experts=16)", tiny)
    jobs, rule, total = case.jobs(steps=2), strategies.build("owned_mean"), Fold()
    weights, updates = [20.0, 30.0, 7.0], []
    for trained, weight, job in zip(case.sequential.train(jobs), weights, jobs, strict=True):
        owned = case.method.compute_owned_shares(case.layout, job.seed, job.round, job.client, trained.steps)
        delta = subtract_states(trained.state, case.start)
        updates.append(Update(job.client, weight, None, case.start, delta, owned=owned))
        rule.fold(total, updates[-1], case.start, case.layout)
    step = rule.pseudo_gradient(total, case.layout)
    for name, found in step.items():
        if name.endswith("down.bias"):
            for entry in range(96):
                shares = [u.weight * float(u.owned[name][entry]) for u in updates]
                mean = sum(s * float(u.delta[name][entry]) for s, u in zip(shares, updates, strict=True))
                assert abs(float(found[entry]) - (mean / sum(shares) if sum(shares) else 0.0)) < 1e-12
        elif ".down." not in name:
            mean = sum(w * u.delta[name] for w, u in zip(weights, updates, strict=True)) / sum(weights)
            assert torch.allclose(found, mean, atol=1e-12)
    biases = [name for name in step if name.endswith("down.bias")]
    counts = torch.stack([torch.stack([u.owned[name].view(16, 6)[:, 0] for name in biases]) for u in updates])
    assert torch.allclose(counts.sum(-1), torch.ones(()))
    assert int((counts.sum(0) == 0).sum()) >= 4 * len(biases), "12 draws leave some of 16 experts out"
