"""Gradient assembly: each factor passes for an honest one, their product does not, and robust rules see the product."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from fedpeft.clients.attacks.gradient_assembly import minimize_product
from rich.console import Console

from fedpeft.aggregation.factors import change, compute_effective_weight
from fedpeft.conformance.cohorts import (
    Client,
    create_lora_layout,
    create_random_state,
    create_random_updates,
    run_round,
)
from fedpeft.parts.families import ATTACKS, strategies
from fedpeft.peft.adapter import AdapterShape
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.refusals import refuses

FORM = AdapterShape(4, 8.0)
layout = create_lora_layout([(12, 9), (7, 15)], FORM, head=(3, 5))
state = create_random_state(layout, 1, torch.float64)


def honest_update():
    (update,) = create_random_updates(strategies.build("fedit"), state, layout, [Client(FORM)], 5, size=0.3)
    return update


def cosine(x, y):
    return float((x * y).sum() / (x.norm() * y.norm()))


@pytest.mark.parametrize("likeness", [0.0, 0.3, 0.8])
def test_factors_look_benign_and_their_product_does_not(likeness):
    honest = honest_update()
    attack = ATTACKS.build(f"gradient_assembly(likeness={likeness})")
    delta = attack.update(honest.delta, honest.received, layout, torch.Generator())
    hostile = dataclasses.replace(honest, delta=delta)
    for pair in layout.pairs:
        for name in (pair.A, pair.B):
            assert torch.allclose(delta[name].norm(), honest.delta[name].norm(), atol=1e-10)
            assert cosine(delta[name], honest.delta[name]) >= likeness - 1e-10
        products = cosine(change(pair, hostile).to_dense(), change(pair, honest).to_dense())
        factors = min(cosine(delta[name], honest.delta[name]) for name in (pair.A, pair.B))
        assert products < factors - 0.1
        assert products < 0 or likeness > 0.5
    assert torch.equal(delta["head.weight"], honest.delta["head.weight"])


def test_a_likeness_of_1_is_honest():
    honest = honest_update()
    delta = ATTACKS.build("gradient_assembly(likeness=1)").update(honest.delta, honest.received, layout, None)
    assert all(torch.allclose(delta[n], honest.delta[n], atol=1e-12) for n in delta)


@pytest.mark.parametrize("likeness", [0.0, 0.3, 0.9])
def test_no_other_change_that_passes_is_worse(likeness):
    draws = torch.Generator().manual_seed(0)
    gradient, honest = (torch.randn(2, 3, generator=draws, dtype=torch.float64) for _ in range(2))
    found = float((minimize_product(gradient, honest, likeness) * gradient).sum())
    tried = torch.randn(200_000, 2, 3, generator=draws, dtype=torch.float64)
    tried = tried / tried.flatten(1).norm(dim=1)[:, None, None] * honest.norm()
    passes = (tried * honest).sum((1, 2)) >= likeness * honest.norm() ** 2
    best = float((tried[passes] * gradient).sum((1, 2)).min())
    assert found <= best + 1e-10
    assert found == pytest.approx(best, abs=0.05 * float(gradient.norm() * honest.norm()))


def test_one_factor_alone_is_enough():
    honest = honest_update()
    half = {n: t for n, t in honest.delta.items() if "lora_A" not in n}
    delta = ATTACKS.build("gradient_assembly").update(half, honest.received, layout, torch.Generator())
    assert delta.keys() == half.keys()
    for pair in layout.pairs:
        assert cosine(delta[pair.B] @ state[pair.A], half[pair.B] @ state[pair.A]) < 0


def test_rules_that_see_the_product_leave_it_out():
    fedit = strategies.build("fedit")
    common = honest_update()
    noise = create_random_updates(fedit, state, layout, [Client(FORM)] * 10, 6, size=0.03)
    honest = [dataclasses.replace(u, delta={n: common.delta[n] + d for n, d in u.delta.items()}) for u in noise]
    attack = ATTACKS.build("gradient_assembly(likeness=0)")
    spoilt = [
        dataclasses.replace(u, delta=attack.update(u.delta, u.received, layout, None)) if u.client < 3 else u
        for u in honest
    ]
    (pair, _) = layout.pairs

    def after(rule, updates):
        return compute_effective_weight(
            pair, run_round(strategies.build(rule), state, layout, updates).state, FORM
        ).to_dense()

    aim = after("flexlora", honest[3:])
    moved = (aim - compute_effective_weight(pair, state, FORM).to_dense()).norm()
    assert (after("fedit", spoilt) - aim).norm() > 0.3 * moved
    assert (after("krum(selected=3)", spoilt) - aim).norm() < 0.2 * moved
    assert (after("median", spoilt) - aim).norm() < 0.2 * moved


@pytest.mark.parametrize("attack", ["gradient_assembly", "factor_rescaling"])
def test_an_attack_on_factors_is_refused_where_there_are_none(attack, tmp_path):
    """It would do nothing, and every rule would look robust."""
    for peft, refused in (("bitfit(layers=1)", True), ("lora(rank=2, layers=1)", False)):
        config = RunConfig(dataset="tiny", clients=4, cohort=2, peft=peft, attack=f"{attack}(fraction=0.3)", workers=1)
        with refuses("FP1416") if refused else nullcontext():
            Simulation(config, tmp_path, ConsoleObserver(Console(quiet=True)))
