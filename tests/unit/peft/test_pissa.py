"""PiSSA's start: the base model at first, the leading part of its weights in the factors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedpeft.conformance.peft_cases import Case
from fedpeft.models.adapters_off import disable_adapters
from fedpeft.parts.families import strategies
from fedpeft.peft.methods.pissa import Remainder, compute_leading_factors
from fedpeft.wiring.checks.rules import check_method
from tests.refusals import refuses

ROWS = np.arange(20)


@pytest.fixture
def case(tiny):
    return Case("pissa(rank=4, alpha=8)", tiny)


def test_at_first_it_is_the_base_model(case, tiny):
    plain = Case("linear_probe", tiny)
    head = {name: tensor for name, tensor in case.first.items() if name.startswith("head.")}
    expected = plain.sequential.compute_logits(head, ROWS)
    for executor in (case.sequential, case.create_batched_executor()):
        assert torch.allclose(executor.compute_logits(case.first, ROWS), expected, atol=1e-10)


def test_the_factors_are_the_leading_part_of_the_weight():
    weight = torch.randn(7, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lora_b, lora_a = compute_leading_factors(weight, 3, 2.0, torch.float64)
    left, singular, right = torch.linalg.svd(weight)
    assert torch.allclose(2.0 * lora_b @ lora_a, (left[:, :3] * singular[:3]) @ right[:3])
    assert torch.allclose(lora_b.T @ lora_b, lora_a @ lora_a.T)
    layer = nn.Linear(11, 7).double()
    layer.weight.data = weight
    dense = torch.linalg.svdvals(weight - 2.0 * lora_b @ lora_a)
    assert torch.allclose(dense[:4], singular[3:])
    x = torch.eye(11, dtype=torch.float64)
    found = Remainder(layer, lora_b, lora_a, 2.0)(x) - layer.bias
    assert torch.allclose(found.T, weight - 2.0 * lora_b @ lora_a)


def test_a_has_a_gradient_in_the_first_step(case, tiny):
    """LoRA's A has none, since B is 0."""
    moved = {}
    for found in (case, Case("lora(rank=4)", tiny)):
        head = {name: tensor for name, tensor in found.start.items() if name.startswith("head.")}  # away from zero
        [job] = found.jobs(found.first | head, steps=1, optimizer="sgd")[:1]
        [trained] = found.sequential.train([job])
        steps = [trained.state[n] - job.received[n] for n in found.layout.names if n.endswith("lora_A.weight")]
        moved[found.method.name] = max(float(step.abs().max()) for step in steps)
    assert moved["pissa"] > 0
    assert moved["lora"] == 0


def test_with_its_adapters_off_it_is_the_base_model(case, tiny):
    expected = Case("linear_probe", tiny).sequential.compute_logits(
        {n: t for n, t in case.start.items() if n.startswith("head.")}, ROWS
    )
    moved = case.sequential.compute_logits(case.start, ROWS)
    with disable_adapters(case.model):
        off = case.sequential.compute_logits(case.start, ROWS)
    assert torch.allclose(off, expected, atol=1e-10)
    assert not torch.allclose(moved, expected, atol=1e-3)


def test_other_ranks_are_refused(case):
    form = replace(case.layout.form, rank=2)
    with refuses("FP1334"):
        check_method(case.method, case.strategy, [form, case.layout.form])


@pytest.mark.parametrize("strategy", ["flexlora", "rank_budget", "hetlora", "flasc", "flora"])
def test_rules_that_may_drop_a_part_of_the_weight_are_refused(case, strategy):
    with refuses("FP1332", strategy, "pissa"):
        check_method(case.method, strategies.build(strategy), [case.layout.form])


def test_a_cut_to_the_leading_ranks_keeps_what_is_learned(case):
    """Why rules that cut are allowed: up to second order, the change of the mean product is one of its factors."""
    jobs = case.jobs(case.first, steps=3)
    results = list(case.sequential.train(jobs))
    names = [n.removesuffix(".lora_A.weight") for n in case.layout.names if n.endswith("lora_A.weight")]
    lost = total = 0.0
    for module in names:

        def product(state, module=module):
            return 2.0 * state[f"{module}.lora_B.weight"].double() @ state[f"{module}.lora_A.weight"].double()

        start = product(case.first)
        mean = sum(product(r.state) for r in results) / len(results)
        left, singular, right = torch.linalg.svd(mean)
        cut = (left[:, :4] * singular[:4]) @ right[:4]
        lost += float((mean - cut).square().sum())
        total += float((mean - start).square().sum())
    assert lost < 1e-3 * total
