"""Requirements of a PEFT method's updates: every codec, and the mean that is right for the method."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedpeft.aggregation.aggregator import AggregationResult, create_aggregator
from fedpeft.aggregation.exactness import Changes, MeasuringAggregator
from fedpeft.aggregation.update import Update
from fedpeft.clients.executor import Trained
from fedpeft.communication.codec import parse_codec
from fedpeft.communication.decoding import decode
from fedpeft.conformance.peft_cases import NAMES, SMALL, SPECS, Case, each_method
from fedpeft.errors import ConfigError
from fedpeft.parts.families import PEFT_METHODS, PRESETS, SERVER_OPTIMIZERS, strategies
from fedpeft.peft.abilities import ChangesWeights, ViewedAsFactors, WeightChanges
from fedpeft.peft.adapter import subtract_states
from fedpeft.wiring.checks.rules import check_method


@each_method
@pytest.mark.parametrize("codec", sorted(PRESETS))
def test_updates_pass_through_every_codec(spec, tiny, codec):
    case = Case(spec, tiny, "fp32")
    noise = torch.Generator().manual_seed(1)
    update = {t.name: 0.01 * torch.randn(t.shape, generator=noise) for t in case.layout.tensors}
    made = parse_codec(codec)
    back, plain = (
        decode(c.encode(update, seed=1, shapes=case.layout.shapes), case.layout.shapes)
        for c in (made, made.remove_gain())
    )
    assert {n: tuple(t.shape) for n, t in back.items()} == case.layout.shapes
    sent, arrived, short = (torch.cat([x[n].flatten() for n in update]) for x in (update, back, plain))
    torch.testing.assert_close(arrived * short.norm(), short * arrived.norm())
    assert float(arrived @ sent) > 0.2 * float(sent @ sent), "small as it is, it arrives"
    error = sum(float((plain[n] - update[n]).square().sum()) for n in update)
    assert error <= 1.001 * sum(float(t.square().sum()) for t in update.values())


SHARES = (20 / 57, 30 / 57, 7 / 57)


def aggregate_round(case: Case, folder: Path) -> tuple[list[Trained], AggregationResult]:
    """Return what the clients of a case train in round 1, and its aggregate with the weights 20, 30 and 7."""
    strategy = case.strategy
    names = strategy.list_trained(case.layout, 1)  # a part of them, if the rule alternates
    trained = [
        replace(t, state={n: x for n, x in t.state.items() if n in names}) for t in case.sequential.train(case.jobs())
    ]
    factoring = case.method.create_factor_view(case.layout) if isinstance(case.method, ViewedAsFactors) else None
    sgd = SERVER_OPTIMIZERS.build("sgd")
    total = create_aggregator(strategy, sgd, case.layout, case.start, 1, 0, folder, factoring)
    changes = find_weight_changes(case)
    total = MeasuringAggregator(total, Changes(changes)) if changes else total
    for t, weight in zip(trained, (20.0, 30.0, 7.0), strict=True):
        total.add(Update(t.client, weight, case.layout.form, case.start, subtract_states(t.state, case.start)))
    return trained, total.finish({})


def find_weight_changes(case: Case) -> WeightChanges | None:
    """Return the function of a state that returns the changes of weights; None if the method changes no weights."""
    return case.method.weight_changes(case.model) if isinstance(case.method, ChangesWeights) else None


@pytest.mark.parametrize("spec", [spec for spec in SPECS if not spec.startswith("adalora")])
def test_aggregation_is_the_weighted_mean_of_what_it_should_be(spec, tiny, tmp_path):
    """Plain tensors and products against sums written out, in a layer's own weights; exact where it is declared."""
    case = Case(spec, tiny)
    trained, outcome = aggregate_round(case, tmp_path)
    after = outcome.state
    if spec.startswith("lora_gram"):  # the Gram matrices have this mean, of which the read-back keeps a part
        assert 0 < outcome.error < 0.9
        after = {name: tensor for name, tensor in after.items() if name.startswith("head.")}
    for name, tensor in after.items():
        expected = torch.zeros_like(tensor)
        for p, t in zip(SHARES, trained, strict=True):
            expected += p * t.state.get(name, case.start[name])
        assert torch.allclose(tensor, expected, rtol=1e-10, atol=1e-12), name
    if find_weight_changes(case):
        measured = outcome.error
        assert measured < 1e-9 if spec.startswith("vera") else 0 < measured < 0.5


@pytest.mark.skipif("adalora" not in NAMES, reason="the rank budget is adalora's")
def test_adalora_keeps_the_largest_singular_values_of_the_weighted_mean(tiny, tmp_path):
    case = Case(SMALL["adalora"], tiny)
    trained, outcome = aggregate_round(case, tmp_path)
    changes = case.method.weight_changes(case.model)
    after = changes(outcome.state, None)
    means = [sum(p * changes(t.state, None)[m] for p, t in zip(SHARES, trained, strict=True)) for m in after]
    singular, ours = (
        torch.cat([torch.linalg.svdvals(M)[:4] for M in of]).sort(descending=True).values
        for of in (means, after.values())
    )
    kept = int((2 + 2 * 0.125) * len(means))  # a cubic from 4 to 2, half way
    assert torch.allclose(ours[:kept], singular[:kept], rtol=1e-6)
    assert int((ours > 1e-9).sum()) == kept


@pytest.mark.parametrize(
    ("method", "strategy", "words"),
    [
        ("vera", "fedit", "use --strategy ffa_lora or flexlora or rolora"),
        ("adalora", "fedit", "use --strategy flexlora"),
        ("dora", "flora", "does not allow"),
    ],
)
def test_wrong_rules_are_refused_by_name(method, strategy, words):
    made = PEFT_METHODS.build(method)
    with pytest.raises(ConfigError, match=words):
        check_method(made, strategies.build(strategy), [made.form])
