"""Requirements of every strategy, ours and yours."""

import contextlib
import dataclasses
import inspect
import random

import pytest
import torch

from fedpeft.aggregation.abilities import AdjustsRanks
from fedpeft.aggregation.factors import compute_effective_weight
from fedpeft.aggregation.strategy import LinearStrategy, RoundStrategy, Strategy
from fedpeft.aggregation.update import Update
from fedpeft.conformance import list_tested_parts
from fedpeft.conformance.cohorts import (
    Client,
    create_lora_layout,
    create_random_state,
    create_random_updates,
    run_round,
)
from fedpeft.conformance.conftest import build_with_defaults
from fedpeft.errors import ConfigError
from fedpeft.parts import name_of
from fedpeft.parts.families import strategies
from fedpeft.peft.adapter import AdapterShape, Layout, TensorSpec

FORM = AdapterShape(4, 8.0)
MIXED = [Client(AdapterShape(2, 8.0), 3.0), Client(AdapterShape(4, 8.0), 1.0), Client(AdapterShape(3, 6.0), 2.5)]
CORES = [
    (TensorSpec("layer.0.lora_R.weight", (4, 4), "plain", "layer.0"),),
    (TensorSpec("layer.0.lora_G.weight", (4, 9), "plain", "layer.0"),),
    tuple(TensorSpec(f"layer.0.{name}.weight", (4, 4), "plain", "layer.0") for name in ("own_A", "rest_A")),
    (
        *(TensorSpec(f"layer.0.{name}.weight", (4, 4), "plain", "layer.0") for name in ("own_A", "own_B")),
        *(TensorSpec(f"layer.0.{name}.weight", (4, 4), "plain", "layer.0") for name in ("others_A", "others_B")),
        TensorSpec("layer.0.gate.weight", (3, 4), "plain", "layer.0"),
        TensorSpec("layer.0.bias.weight", (3,), "plain", "layer.0"),
    ),
]
"""Tensors for strategies that reject LoRA's factors."""
EQUAL = [Client(FORM, 3.0), Client(FORM, 1.0), Client(FORM, 2.5), Client(FORM, 7.0)]


def create_layout(strategy: Strategy) -> Layout:
    layout = create_lora_layout([(7, 11), (13, 5)], FORM, head=(3, 5))
    try:
        strategy.check(layout, [])
    except ConfigError:
        for core in CORES:
            layout = Layout((*core, *(t for t in layout.tensors if t.role == "head")), FORM)
            with contextlib.suppress(ConfigError):
                strategy.check(layout, [])
                return layout
        raise
    return layout


@pytest.fixture(params=list_tested_parts(strategies))
def strategy(request):
    return build_with_defaults(strategies, request.param)


@pytest.fixture
def name(request):
    return request.node.callspec.params["strategy"]


@pytest.fixture
def case(strategy):
    layout = create_layout(strategy)
    return strategy, layout, create_random_state(layout, 1)


def compute_added_weights(result, layout):
    """Return each layer's sum of adapter and residual, and the other tensors unchanged."""
    weights = {p.module: compute_effective_weight(p, result.state, layout.form).to_dense() for p in layout.pairs}
    for module, residual in result.residuals.items():
        weights[module] = weights[module] + residual.to_dense()
    plain = {t.name: result.state[t.name] for t in layout.tensors if t.role not in ("lora_A", "lora_B")}
    return weights | plain


def assert_close(one, other, tolerance=2e-6):
    assert one.keys() == other.keys()
    for key in one:
        size = other[key].norm().clamp_min(1e-3)
        assert float((one[key] - other[key]).norm() / size) < tolerance, key


def test_it_is_a_documented_part(strategy, name):
    module = inspect.getmodule(type(strategy))
    assert isinstance(strategy, LinearStrategy | RoundStrategy)
    assert type(strategy).__dataclass_params__.frozen
    assert module.__doc__, f"{module.__file__} needs a docstring: what is computed, and its source"
    assert type(strategy).__doc__
    if name in strategies.own_names:
        assert inspect.getsource(module).rstrip().endswith(f"\n\npart = {type(strategy).__name__}")
    assert all(field.metadata.get("help") for field in dataclasses.fields(strategy))
    assert strategies.build(name) == strategy


def test_a_client_is_sent_what_its_form_holds(case):
    strategy, layout, state = case
    forms = [c.form for c in (MIXED if strategy.mixed_ranks else EQUAL)]
    for form in [*forms, None]:
        if name_of(type(strategy)) == "fed_sb" and form is not None:
            form = AdapterShape(FORM.rank, form.alpha)
        sent = strategy.dispatch(state, layout, form, 1)
        assert {n: tuple(t.shape) for n, t in sent.items()} == layout.replace_form(form).shapes


def test_what_is_sent_is_a_copy(case):
    strategy, layout, state = case
    for form in (FORM, AdapterShape(2, 3.0) if strategy.mixed_ranks and layout.pairs else FORM):
        before = {n: t.clone() for n, t in state.items()}
        first = strategy.dispatch(state, layout, form, 1)
        second = strategy.dispatch(state, layout, form, 1)
        for tensor in first.values():
            tensor.fill_(7.0)
        assert all(torch.equal(state[n], before[n]) for n in state)
        assert not any(torch.equal(second[n], first[n]) for n in second)


def test_different_forms_are_taken_or_refused(case, name):
    strategy, layout, _ = case
    strategy.check(layout, [FORM, FORM])
    if strategy.mixed_ranks and (layout.pairs or name == "owned_mean"):  # its shapes are prompt lengths
        strategy.check(layout, [c.form for c in MIXED])
    else:
        with pytest.raises(ConfigError, match="rank"):
            strategy.check(layout, [FORM, AdapterShape(2, 8.0)])
    with pytest.raises(ConfigError, match="rank"):
        strategy.check(layout, [AdapterShape(9, 8.0)])


def test_only_trained_and_shared_tensors_change(case):
    strategy, layout, state = case
    for round_number in (1, 2):
        trained = strategy.list_trained(layout, round_number)
        assert trained <= set(layout.names)
        assert strategy.list_private(layout) <= set(layout.names)
        result = run_round(
            strategy,
            state,
            layout,
            create_random_updates(strategy, state, layout, EQUAL, 3, round_number),
            round_number,
        )
        assert list(result.state) == list(state)
        assert {n: tuple(t.shape) for n, t in result.state.items()} == layout.shapes
        for n in strategy.list_private(layout):
            assert torch.equal(result.state[n], state[n])
        shapes = {p.module: (p.out_features, p.in_features) for p in layout.pairs}
        assert all(residual.shape == shapes[module] for module, residual in result.residuals.items())


def test_zero_updates_change_nothing(case):
    strategy, layout, state = case
    updates = create_random_updates(strategy, state, layout, EQUAL, 3, size=0.0)
    for u in updates:
        # flasc sends a sparse state; only the deltas count
        u.received.update(state)
    result = run_round(strategy, state, layout, updates)
    assert_close(compute_added_weights(result, layout), compute_added_weights(type(result)(state, {}), layout))


def test_the_update_of_one_client_arrives_whole(case):
    strategy, layout, state = case
    if not strategy.arrives_whole:
        pytest.skip("thinned out, shrunk or kept back in part")
    updates = create_random_updates(strategy, state, layout, [Client(FORM, 5.0)], 3)
    trained = {n: updates[0].get_trained(n) for n in state}
    result = run_round(strategy, state, layout, updates)
    assert_close(compute_added_weights(result, layout), compute_added_weights(type(result)(trained, {}), layout))


def test_all_zero_factors_stay_finite(case):
    strategy, layout, state = case
    zero = {n: torch.zeros_like(t) for n, t in state.items()}
    result = run_round(strategy, zero, layout, create_random_updates(strategy, zero, layout, EQUAL, 3, size=0.0))
    assert all(t.isfinite().all() for t in result.state.values())


def get_clients(strategy, layout):
    return MIXED if strategy.mixed_ranks and layout.pairs else EQUAL


def test_order_of_arrival_does_not_matter_bit_for_bit(case):
    strategy, layout, state = case
    updates = create_random_updates(strategy, state, layout, get_clients(strategy, layout), 3)
    shuffled = random.Random(0).sample(updates, len(updates))
    one, other = (run_round(strategy, state, layout, u) for u in (updates, shuffled))
    assert all(torch.equal(one.state[n], other.state[n]) for n in state)
    for module, residual in one.residuals.items():
        assert torch.equal(residual.left, other.residuals[module].left)
        assert torch.equal(residual.right, other.residuals[module].right)


def test_the_unit_of_the_weights_does_not_matter(case):
    strategy, layout, state = case
    updates = create_random_updates(strategy, state, layout, get_clients(strategy, layout), 3)
    heavier = [dataclasses.replace(u, weight=u.weight * 1000) for u in updates]
    one, other = (run_round(strategy, state, layout, u) for u in (updates, heavier))
    assert_close(compute_added_weights(one, layout), compute_added_weights(other, layout), 1e-5)


def get_storages(tensors):
    return {t.untyped_storage().data_ptr() for t in tensors if t.numel()}


def test_inputs_are_not_altered_nor_shared_with_the_output(case):
    strategy, layout, state = case
    updates = create_random_updates(strategy, state, layout, get_clients(strategy, layout), 3)
    inputs = [*state.values(), *(t for u in updates for t in (*u.received.values(), *u.delta.values()))]
    before = [t.clone() for t in inputs]
    result = run_round(strategy, state, layout, updates)
    outputs = [*result.state.values(), *(t for r in result.residuals.values() for t in (r.left, r.right))]
    assert not get_storages(outputs) & get_storages(inputs)
    for tensor in outputs:
        tensor.fill_(7.0)
    assert all(torch.equal(t, b) for t, b in zip(inputs, before, strict=True))


def test_an_empty_round_is_refused_by_gather_rules(case):
    strategy, layout, state = case
    if isinstance(strategy, RoundStrategy):
        with pytest.raises(ConfigError, match="at least one"):
            run_round(strategy, state, layout, [])


def test_a_client_keeps_its_form_unless_asked_otherwise(case):
    strategy, layout, state = case
    (update,) = create_random_updates(strategy, state, layout, [Client(FORM)], 3)
    assert isinstance(update, Update)
    if isinstance(strategy, AdjustsRanks):
        assert strategy.choose_next_form(update, layout) == FORM
