"""The faults found in released code of this field: each check that guards us rejects code that has the fault.

A rule under test is a function (pair, layout, updates) -> (out, in), the weight it adds to the base. The honest one is
the package's; the faulty ones are written out here.
"""

import pytest
import torch

from fedpeft.aggregation.factors import compute_effective_weight, compute_target
from fedpeft.aggregation.update import Cohort, normalize_weights, select_leading_ranks
from fedpeft.conformance.cohorts import (
    Client,
    create_lora_layout,
    create_random_state,
    create_random_updates,
    run_round,
)
from fedpeft.parts.families import strategies
from fedpeft.peft.adapter import AdapterShape
from fedpeft.peft.low_rank import compute_truncated_svd

FORM = AdapterShape(12, 24.0)
CLIENTS = [
    Client(AdapterShape(2, 16.0), 10.0),
    Client(AdapterShape(4, 4.0), 1.0),
    Client(AdapterShape(3, 9.0), 4.0),
]
ABSENT_WEIGHT = 20.0
"""The weight of clients of the population that did not take part in the round."""


def case():
    layout = create_lora_layout([(17, 29)], FORM)
    state = create_random_state(layout, 1, torch.float64)
    flexlora = strategies.build("flexlora")
    return layout, state, create_random_updates(flexlora, state, layout, CLIENTS, 2)


def is_exact(rule):
    """Whether `rule` gives dW*: non-square layer, mixed ranks, mixed alphas, unequal weights, some clients absent."""
    layout, _, updates = case()
    (pair,) = layout.pairs
    total = sum(u.weight for u in updates)
    expected = sum(
        u.weight / total * u.form.alpha / u.form.rank * u.get_trained(pair.B) @ u.get_trained(pair.A) for u in updates
    )
    try:
        actual = rule(pair, layout, updates)
    except RuntimeError:  # shapes that don't fit
        return False
    return bool(torch.allclose(actual, expected, rtol=0, atol=1e-10))


def by_strategy(spec):
    def rule(pair, layout, updates):
        state = create_random_state(layout, 1, torch.float64)
        result = run_round(strategies.build(spec), state, layout, updates)
        added = compute_effective_weight(pair, result.state, layout.form).to_dense()
        return added + result.residuals[pair.module].to_dense() if result.residuals else added

    return rule


@pytest.mark.parametrize("spec", ["flora", "fedex_lora", "flexlora", "flexlora(svd=dense)"])
def test_the_package_passes_the_check(spec):
    assert is_exact(by_strategy(spec))


def mean_is_client_0(pair, layout, updates):
    """Return client 0's product, as if the weighted sum went into a dict that is not returned."""
    u = updates[0]
    return u.scale * u.get_trained(pair.B) @ u.get_trained(pair.A)


def stack_without_scale(pair, layout, updates):
    p = normalize_weights([u.weight for u in updates])
    return sum(w * u.get_trained(pair.B) @ u.get_trained(pair.A) for w, u in zip(p, updates, strict=True))


def residual_without_scale(pair, layout, updates):
    honest = by_strategy("fedex_lora")(pair, layout, updates)
    p = normalize_weights([u.weight for u in updates])
    lora_a = sum(
        w * torch.nn.functional.pad(u.get_trained(pair.A), (0, 0, 0, 12 - u.form.rank))
        for w, u in zip(p, updates, strict=True)
    )
    lora_b = sum(
        w * u.scale / FORM.scale * torch.nn.functional.pad(u.get_trained(pair.B), (0, 12 - u.form.rank))
        for w, u in zip(p, updates, strict=True)
    )
    return honest + FORM.scale * lora_b @ lora_a - lora_b @ lora_a  # the mean is subtracted without s


def svd_of(pair, updates):
    cohort = Cohort(updates, normalize_weights([u.weight for u in updates]), 1, 0)
    return compute_truncated_svd(compute_target(pair, cohort), FORM.rank, "qr")


def svd_result_without_scale(pair, layout, updates):
    svd = svd_of(pair, updates)
    return FORM.scale * (svd.U * svd.S) @ svd.Vt  # B = U S, and the client multiplies by s


def a_missing_root(pair, layout, updates):
    svd = svd_of(pair, updates)
    return FORM.scale * (svd.U * svd.S.sqrt() / FORM.scale) @ svd.Vt  # B has sqrt(S), A does not


def residual_transposed(pair, layout, updates):
    return by_strategy("flora")(pair, layout, updates).T + torch.zeros(pair.out_features, pair.in_features)


def alpha_fixed_while_ranks_differ(pair, layout, updates):
    p = normalize_weights([u.weight for u in updates])
    return sum(w * FORM.scale * u.get_trained(pair.B) @ u.get_trained(pair.A) for w, u in zip(p, updates, strict=True))


def absent_clients_counted(pair, layout, updates):
    total = sum(u.weight for u in updates) + ABSENT_WEIGHT
    return sum(u.weight / total * u.scale * u.get_trained(pair.B) @ u.get_trained(pair.A) for u in updates)


@pytest.mark.parametrize(
    "fault",
    [
        mean_is_client_0,
        stack_without_scale,
        residual_without_scale,
        svd_result_without_scale,
        a_missing_root,
        residual_transposed,
        alpha_fixed_while_ranks_differ,
        absent_clients_counted,
    ],
)
def test_the_check_rejects_the_fault(fault):
    assert not is_exact(fault)


# One client's private factor leaks into the next one's start, because the tensors are shared.


def leaks(dispatch):
    """Whether training client 0 in place alters what client 1 starts from."""
    layout, state, _ = case()
    first = dispatch(state, layout)
    expected = {n: t.clone() for n, t in dispatch(state, layout).items()}
    for tensor in first.values():
        tensor.add_(1.0)
    second = dispatch(state, layout)
    return any(not torch.equal(second[n], expected[n]) for n in expected)


@pytest.mark.parametrize("form", [None, FORM, AdapterShape(3, 5.0)])
def test_no_private_factor_leaks(form):
    assert not leaks(lambda state, layout: select_leading_ranks(state, layout, form))


def test_the_check_rejects_shared_tensors():
    assert leaks(lambda state, layout: state)
    assert leaks(lambda state, layout: {n: t[:3] for n, t in state.items()})


def test_private_tensors_never_reach_the_global_state():
    fedsa = strategies.build("fedsa_lora")
    layout = create_lora_layout([(7, 11)], FORM, head=(3, 5))
    state = create_random_state(layout, 1)
    (update,) = create_random_updates(fedsa, state, layout, [Client(FORM)], 2)
    noise = create_random_state(layout, 9)
    update.delta.update({n: noise[n] for n in fedsa.list_private(layout)})  # a client that hands in too much
    result = run_round(fedsa, state, layout, [update])
    assert all(torch.equal(result.state[n], state[n]) for n in fedsa.list_private(layout))


# A compression filter keyed on layer names that never match.


def kept_share(sparsify):
    layout = create_lora_layout([(40, 50), (30, 20)], AdapterShape(4, 8.0), head=(3, 5))
    delta = create_random_state(layout, 1)
    sparse = sparsify(delta, layout)
    names = [t.name for t in layout.tensors if t.role in ("lora_A", "lora_B")]
    return sum(int(sparse[n].count_nonzero()) for n in names) / sum(sparse[n].numel() for n in names)


def test_flasc_hands_in_the_share_it_says():
    flasc = strategies.build("flasc(up=0.1)")
    assert kept_share(lambda delta, layout: flasc.select_update(delta, {}, {}, layout)) == pytest.approx(0.1, abs=0.01)


def test_the_check_rejects_a_filter_that_never_matches():
    def by_name(delta, layout):
        return {n: torch.zeros_like(t) if ".default.weight" in n else t for n, t in delta.items()}

    assert kept_share(by_name) != pytest.approx(0.1, abs=0.01)
