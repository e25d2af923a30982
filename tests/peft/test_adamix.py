"""AdaMix: counts of the paper, who is drawn, and what is left of the experts in the end."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedpeft.conformance.peft_cases import Case
from tests.peft.test_prefix_tuning_plus import of_size


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
    case = Case("adamix(dim=6, experts=8)", tiny)
    job = case.jobs(steps=1)[0]
    first = moved(case, job)
    assert all(len(experts) == 1 for experts in first.values())
    assert moved(case, job) == first, "the same draw again"
    others = [moved(case, replace(job, round=round)) for round in range(2, 8)]
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
