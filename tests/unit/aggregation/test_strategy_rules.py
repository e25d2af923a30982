"""What each rule promises beyond exactness, against its equation written out on dense matrices."""

import dataclasses

import pytest
import scipy.linalg
import torch
from fedpeft.strategies.florg import find_grams

from fedpeft.aggregation.factors import compute_effective_weight
from fedpeft.aggregation.shared_sums import is_sum_of_clients
from fedpeft.conformance.cohorts import Client, create_random_state, create_random_updates, run_round
from fedpeft.parts.families import strategies
from fedpeft.peft.adapter import AdapterShape, Layout, TensorSpec
from tests.aggregation.one_round import EQUAL, FORM, MIXED, a_round, layout, pair, shares
from tests.refusals import refuses


def mean_of_products(updates):
    return sum(
        p * u.form.scale * u.get_trained(pair.B) @ u.get_trained(pair.A)
        for p, u in zip(shares(updates), updates, strict=True)
    )


def weight(state):
    return compute_effective_weight(pair, state, FORM).to_dense()


def pad(tensor, rows, columns):
    return torch.nn.functional.pad(tensor, (0, columns - tensor.shape[1], 0, rows - tensor.shape[0]))


def test_fedit_errs_by_the_covariance_of_the_factors():
    result, updates, _ = a_round("fedit", EQUAL)
    lora_a, lora_b = result.state[pair.A], result.state[pair.B]
    covariance = sum(
        p * (u.get_trained(pair.B) - lora_b) @ (u.get_trained(pair.A) - lora_a)
        for p, u in zip(shares(updates), updates, strict=True)
    )
    assert torch.allclose(mean_of_products(updates) - weight(result.state), FORM.scale * covariance)


def test_the_head_gets_the_weighted_mean():
    for spec in ("fedit", "flexlora", "hetlora", "ffa_lora"):
        result, updates, _ = a_round(spec, EQUAL)
        mean = sum(p * u.get_trained("head.weight") for p, u in zip(shares(updates), updates, strict=True))
        assert torch.allclose(result.state["head.weight"], mean)


def test_ffa_trains_and_ships_only_b_and_the_head():
    result, updates, state = a_round("ffa_lora", MIXED)
    assert set(updates[0].delta) == {pair.B, "head.weight", "head.bias"}
    assert torch.equal(result.state[pair.A], state[pair.A])
    assert torch.equal(updates[0].received[pair.A], state[pair.A][:2])


def test_ffa_can_keep_ranks_that_a_client_lacks():
    still = [dataclasses.replace(c, weight=1.0) for c in MIXED]
    kept, _, state = a_round("ffa_lora(missing_ranks=keep)", still, size=0.0)
    assert torch.allclose(kept.state[pair.B], state[pair.B])
    diluted, _, state = a_round("ffa_lora", still, size=0.0)
    owners = torch.tensor([1, 1, 2 / 3, 1 / 3], dtype=torch.float64)
    assert torch.allclose(diluted.state[pair.B], state[pair.B] * owners)


def test_rolora_alternates():
    for round_number, changed, frozen in ((1, pair.B, pair.A), (2, pair.A, pair.B)):
        result, updates, state = a_round("rolora", MIXED, round_number)
        assert torch.equal(result.state[frozen], state[frozen])
        assert not torch.equal(result.state[changed], state[changed])
        assert all(frozen not in u.delta for u in updates)


def test_clients_of_any_form_start_from_the_same_effective_ranks():
    for spec in ("ffa_lora", "rolora", "flexlora", "hetlora"):
        strategy = strategies.build(spec)
        state = create_random_state(layout, 1, torch.float64)
        for round_number in (1, 2):
            sent = strategy.dispatch(state, layout, AdapterShape(3, 5.0), round_number)
            expected = FORM.scale * state[pair.B][:, :3] @ state[pair.A][:3]
            assert torch.allclose(5 / 3 * sent[pair.B] @ sent[pair.A], expected)


def test_fedsa_averages_a_and_keeps_the_rest_private():
    fedsa = strategies.build("fedsa_lora")
    assert fedsa.list_private(layout) == {pair.B, "head.weight", "head.bias"}
    assert strategies.build("fedsa_lora(share_head=True)").list_private(layout) == {pair.B}
    result, updates, _ = a_round("fedsa_lora", EQUAL)
    mean = sum(p * u.get_trained(pair.A) for p, u in zip(shares(updates), updates, strict=True))
    assert torch.allclose(result.state[pair.A], mean)


def test_fedsvd_keeps_the_product_and_makes_a_orthonormal():
    state = create_random_state(layout, 1, torch.float64)
    plain, _, _ = a_round("ffa_lora", MIXED, state=state)
    result, _, _ = a_round("fedsvd", MIXED, state=state)
    assert torch.allclose(weight(result.state), weight(plain.state))
    lora_a, lora_b = result.state[pair.A], result.state[pair.B]
    assert torch.allclose(lora_a @ lora_a.T, torch.eye(4).double())
    assert (lora_b.norm(dim=0).diff() <= 0).all()
    skipped, _, _ = a_round("fedsvd(every=2)", MIXED, state=state)
    assert torch.equal(skipped.state[pair.A], state[pair.A])


def test_flora_starts_anew_from_the_seed_round_and_layer():
    one, updates, state = a_round("flora", MIXED, round_number=1, seed=5)
    again, _, _ = a_round("flora", MIXED, round_number=1, seed=5)
    later, _, _ = a_round("flora", MIXED, round_number=2, seed=5)
    other, _, _ = a_round("flora", MIXED, round_number=1, seed=6)
    assert one.state[pair.B].count_nonzero() == 0
    assert one.state[pair.A].abs().max() <= 1 / 3
    assert torch.equal(one.state[pair.A], again.state[pair.A])
    for result in (later, other):
        assert not torch.equal(one.state[pair.A], result.state[pair.A])
    assert not any(torch.equal(one.state[pair.A], t) for t in (state[pair.A], updates[1].get_trained(pair.A)))
    assert one.residuals[pair.module].width == 2 + 4 + 3


def test_fedex_residual_has_the_rank_it_promises():
    result, _, _ = a_round("fedex_lora", [Client(FORM)] * 2)
    assert torch.linalg.matrix_rank(result.residuals[pair.module].to_dense()) == 4  # (K - 1) r


def test_flexlora_revives_dead_ranks():
    state = create_random_state(layout, 1, torch.float64)
    result, _, _ = a_round("flexlora", [Client(AdapterShape(2, 8.0))], state=state)
    assert result.state[pair.B][:, 2:].count_nonzero() == 0
    assert torch.equal(result.state[pair.A][2:], state[pair.A][2:])


@pytest.mark.parametrize("energy", [0.2, 0.6, 0.9, 0.99, 1.0])
def test_flexlora_keeps_the_fewest_ranks_that_hold_the_energy(energy):
    result, updates, state = a_round(f"flexlora(energy={energy})", MIXED)
    left, selection, right = torch.linalg.svd(mean_of_products(updates), full_matrices=False)
    total, ranks = float(selection.square().sum()), 1
    while ranks < 4 and float(selection[:ranks].square().sum()) < energy * total:
        ranks += 1
    assert torch.allclose(weight(result.state), (left[:, :ranks] * selection[:ranks]) @ right[:ranks], atol=1e-10)
    assert result.state[pair.B][:, ranks:].count_nonzero() == 0
    assert torch.equal(result.state[pair.A][ranks:], state[pair.A][ranks:])


def test_fewer_ranks_are_kept_where_less_energy_is_asked_for():
    kept = [a_round(f"flexlora(energy={e})", MIXED)[0].state[pair.B].any(dim=0).sum() for e in (0.2, 0.6, 0.9, 1.0)]
    assert kept == sorted(kept)
    assert kept[0] < kept[-1]


def test_what_the_energy_leaves_out_can_be_kept_in_the_base():
    result, updates, _ = a_round("flexlora(energy=0.5, remainder=keep)", MIXED)
    after = weight(result.state) + result.residuals[pair.module].to_dense()
    assert torch.allclose(after, mean_of_products(updates), atol=1e-10)


def test_hetlora_weighs_by_the_norms_of_the_products():
    result, updates, _ = a_round("hetlora", MIXED)
    norms = [float((u.form.scale * u.get_trained(pair.B) @ u.get_trained(pair.A)).norm()) for u in updates]
    lora_a = sum(n / sum(norms) * pad(u.get_trained(pair.A), 4, 9) for n, u in zip(norms, updates, strict=True))
    lora_b = sum(
        n / sum(norms) * u.form.scale / FORM.scale * pad(u.get_trained(pair.B), 12, 4)
        for n, u in zip(norms, updates, strict=True)
    )
    assert torch.allclose(result.state[pair.A], lora_a)
    assert torch.allclose(result.state[pair.B], lora_b)


def test_hetlora_gives_up_ranks_that_shrink():
    hetlora = strategies.build("hetlora(decay=0.5)")
    state = create_random_state(layout, 1, torch.float64)
    (update,) = create_random_updates(hetlora, state, layout, [Client(FORM)], 2, size=0.0)
    update.delta[pair.B][:, 2:] -= 0.5 * state[pair.B][:, 2:]
    assert hetlora.choose_next_form(update, layout) == AdapterShape(2, 4.0)  # the scale stays 2
    update.delta[pair.B][:, 2:] += state[pair.B][:, 2:]
    assert hetlora.choose_next_form(update, layout) == FORM


def test_raflora_averages_each_rank_over_its_owners():
    result, updates, _ = a_round("raflora", MIXED)
    expected = torch.zeros(12, 9, dtype=torch.float64)
    for j in range(4):
        owners = [(p, u) for p, u in zip(shares(updates), updates, strict=True) if u.form.rank > j]
        total = sum(p for p, _ in owners)
        for p, u in owners:
            expected += p / total * u.form.scale * torch.outer(u.get_trained(pair.B)[:, j], u.get_trained(pair.A)[j])
    left, selection, right = torch.linalg.svd(expected)
    assert torch.allclose(weight(result.state), (left[:, :4] * selection[:4]) @ right[:4])


def test_raflora_is_flexlora_when_ranks_are_equal():
    one, updates, _ = a_round("raflora", EQUAL)
    other, _, _ = a_round("flexlora", EQUAL)
    assert torch.allclose(weight(one.state), weight(other.state))
    assert len(updates) == 3


def test_lora_fair_is_nearer_than_the_means_and_knows_no_unit():
    fair, updates, state = a_round("lora_fair", MIXED)
    means, _, _ = a_round("fedex_lora", MIXED, state=state)
    exact = mean_of_products(updates)
    assert (weight(fair.state) - exact).norm() < 0.9 * (weight(means.state) - exact).norm()
    rescaled = [
        dataclasses.replace(
            u,
            delta=u.delta | {pair.A: 10 * u.get_trained(pair.A) - u.received[pair.A]},
        )
        for u in updates
    ]
    tenfold = run_round(strategies.build("lora_fair"), state, layout, rescaled)
    assert torch.allclose(weight(tenfold.state), 10 * weight(fair.state))


@pytest.mark.parametrize("round_number", [1, 2])
def test_fedrot_undoes_rotations_of_the_factors(round_number):
    """Clients hold the global product in turned factors: their means spoil it, the means of the rotated ones do not."""
    generator = torch.Generator().manual_seed(0)
    state = create_random_state(layout, 1, torch.float64)
    updates = create_random_updates(strategies.build("fedit"), state, layout, EQUAL, 2, size=0.0)
    for u in updates:
        rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))
        rotation[:, 0] *= torch.linalg.det(rotation).sign()
        u.delta[pair.A] = rotation.T @ state[pair.A] - state[pair.A]
        u.delta[pair.B] = state[pair.B] @ rotation - state[pair.B]
    turned = run_round(strategies.build("fedit"), state, layout, updates, round_number)
    full = run_round(strategies.build("fedrot_lora(strength=1.0)"), state, layout, updates, round_number)
    none = run_round(strategies.build("fedrot_lora(strength=0)"), state, layout, updates, round_number)
    assert (weight(turned.state) - weight(state)).norm() > 0.1 * weight(state).norm()
    assert torch.allclose(weight(full.state), weight(state))
    assert torch.allclose(weight(none.state), weight(turned.state))


def test_fed_sb_is_exact_with_mixed_alphas():
    core = TensorSpec("layer.0.lora_R.weight", (4, 4), "plain", "layer.0")
    square = Layout((core,), FORM)
    fed_sb = strategies.build("fed_sb")
    state = create_random_state(square, 1, torch.float64)
    clients = [Client(AdapterShape(4, 8.0), 3.0), Client(AdapterShape(4, 2.0), 1.0)]
    updates = create_random_updates(fed_sb, state, square, clients, 2)
    result = run_round(fed_sb, state, square, updates)
    exact = sum(p * u.form.scale * u.get_trained(core.name) for p, u in zip(shares(updates), updates, strict=True))
    assert torch.allclose(FORM.scale * result.state[core.name], exact)


def sketch(ranks):
    """S_k as a dense matrix."""
    selection = torch.zeros(4, 4, dtype=torch.float64)
    for j in ranks or range(4):
        selection[j, j] = 4 / len(ranks or range(4))
    return selection


def test_fslora_clients_hold_the_sketched_product():
    _, updates, state = a_round("fslora", MIXED)
    for u in updates:
        held = u.form.scale * u.received[pair.B] @ u.received[pair.A]
        assert torch.allclose(held, FORM.scale * state[pair.B] @ sketch(u.ranks) @ state[pair.A], atol=1e-10)
    assert [len(u.ranks) for u in updates] == [2, 0, 3]  # who holds all of them has them in their order


def test_fslora_adds_the_changes_of_the_ranks_that_were_trained():
    result, updates, state = a_round("fslora", MIXED)
    lora_a, lora_b = state[pair.A].clone(), state[pair.B].clone()
    for p, u in zip(shares(updates), updates, strict=True):
        ranks = u.ranks or range(4)
        for slot, j in enumerate(ranks):
            lora_a[j] += p * u.delta[pair.A][slot]
            # B is held times r s / (r_k s_k)
            lora_b[:, j] += p * u.delta[pair.B][:, slot] * len(ranks) * u.form.scale / (4 * FORM.scale)
    assert torch.allclose(result.state[pair.A], lora_a, atol=1e-10)
    assert torch.allclose(result.state[pair.B], lora_b, atol=1e-10)


def test_fslora_draws_ranks_by_seed_round_and_client_and_all_alike():
    fslora, form = strategies.build("fslora"), AdapterShape(2, 8.0)
    draws = [
        fslora.choose_ranks(layout, form, 5, round_number, client)
        for round_number in range(1, 101)
        for client in range(6)
    ]
    again = [
        fslora.choose_ranks(layout, form, 5, round_number, client)
        for round_number in range(1, 101)
        for client in range(6)
    ]
    assert draws == again
    assert len(set(draws)) == 6  # pairs of 4
    assert len(set(draws[:6])) > 1
    mean = sum(sketch(ranks) for ranks in draws) / len(draws)
    assert torch.allclose(mean, torch.eye(4).double(), atol=0.15)  # three standard errors
    assert draws != [
        fslora.choose_ranks(layout, form, 6, round_number, client)
        for round_number in range(1, 101)
        for client in range(6)
    ]


def test_fslora_is_fedit_when_ranks_are_equal():
    one, _, state = a_round("fslora", EQUAL)
    other, _, _ = a_round("fedit", EQUAL, state=state)
    assert all(torch.allclose(one.state[n], other.state[n], atol=1e-10) for n in state)


GRAM = Layout((TensorSpec("layer.0.lora_G.weight", (4, 9), "plain", "layer.0"),), FORM)


def a_gram_round(spec, clients, size=0.5):
    """G before, the clients' G with their shares, and G after."""
    (name,) = GRAM.names
    florg = strategies.build(spec)
    state = create_random_state(GRAM, 1, torch.float64)
    updates = create_random_updates(florg, state, GRAM, clients, 2, size=size)
    after = run_round(florg, state, GRAM, updates).state[name]
    return state[name], [(p, u.get_trained(name)) for p, u in zip(shares(updates), updates, strict=True)], after


def test_florg_reads_the_mean_gram_matrix_back_in_the_last_frame():
    """Against the paper's steps on the dense mean, by LAPACK's symmetric eigenvectors and scipy's polar factor."""
    before, trained, after = a_gram_round("florg", EQUAL)
    mean = sum(p * G.T @ G for p, G in trained)
    values, vectors = torch.linalg.eigh(mean)
    whole = (vectors * values.clamp_min(0).sqrt()).T
    turn, _ = scipy.linalg.polar((before @ whole.T).numpy(), side="left")
    assert torch.allclose(after, torch.from_numpy(turn) @ whole, atol=1e-10)


def test_florg_can_read_back_the_best_approximation_instead():
    before, trained, after = a_gram_round("florg(read_back=best)", EQUAL)
    mean = sum(p * G.T @ G for p, G in trained)
    values, vectors = torch.linalg.eigh(mean)
    best = (vectors[:, -4:] * values[-4:]) @ vectors[:, -4:].T
    assert torch.allclose(after.T @ after, best, atol=1e-10)
    turned, _ = scipy.linalg.polar((after @ before.T).numpy())
    assert torch.allclose(torch.from_numpy(turned), torch.eye(4).double(), atol=1e-10)  # no turn brings it nearer
    _, _, nearest = a_gram_round("florg", EQUAL)
    assert (nearest.T @ nearest - mean).norm() > (after.T @ after - mean).norm()
    assert (nearest - before).norm() < (after - before).norm()


@pytest.mark.parametrize("spec", ["florg", "florg(read_back=best)"])
def test_florg_is_exact_where_the_mean_fits(spec):
    _, ((_, florg_root),), after = a_gram_round(spec, [Client(FORM)])
    assert torch.allclose(after.T @ after, florg_root.T @ florg_root, atol=1e-10)
    before, _, still = a_gram_round(spec, EQUAL, size=0.0)
    assert torch.allclose(still, before, atol=1e-10)


def test_florg_needs_g_of_one_size():
    with refuses("FP1492"):
        strategies.build("florg").check(layout, [FORM])
    with refuses("FP1024"):
        strategies.build("florg").check(GRAM, [FORM, AdapterShape(2, 8.0)])


def test_flasc_sends_and_takes_the_largest_entries_of_the_whole_adapter():
    flasc = strategies.build("flasc(down=0.25, up=0.1)")
    state = create_random_state(layout, 1)
    sent = flasc.dispatch(state, layout, FORM, 1)
    factors = torch.cat([state[n].abs().flatten() for n in (pair.A, pair.B)])
    kept = torch.cat([sent[n].abs().flatten() for n in (pair.A, pair.B)])
    assert kept.count_nonzero() == round(0.25 * len(factors))
    assert kept[kept > 0].min() >= factors[kept == 0].max()
    assert torch.equal(sent["head.weight"], state["head.weight"])
    (update,) = create_random_updates(flasc, state, layout, [Client(FORM)], 2)
    assert sum(int(update.delta[n].count_nonzero()) for n in (pair.A, pair.B)) == round(0.1 * len(factors))


@pytest.mark.parametrize("spoilt", [1, 1000])
def test_flasc_hands_in_what_is_no_number_so_that_it_is_refused(spoilt):
    flasc, delta = strategies.build("flasc(up=0.1)"), create_random_state(layout, 1)
    delta[pair.A].view(-1)[:spoilt] = torch.nan
    sent = flasc.select_update(delta, {}, {}, layout)[pair.A]
    assert int(sent.isnan().sum()) == min(spoilt, sent.numel())


def test_raflora_has_no_missing_ranks():
    with refuses("FP1495"):
        strategies.build("raflora(missing_ranks=keep)")


@pytest.mark.parametrize("name", sorted(set(strategies.names) - {"florg"}))  # it turns only factors that were trained
def test_a_strategy_makes_new_factors_if_its_class_says_so(name):
    """Without training, others leave the factors as they were; an error-feedback memory relies on it."""
    result, _, state = a_round(name, EQUAL, size=0.0)
    moved = [n for n in (pair.A, pair.B) if n in result.state and not torch.allclose(result.state[n], state[n])]
    assert bool(moved) == strategies.build(name).new_factors


def test_an_update_without_lora_has_scale_one():
    _, (update, *_), _ = a_round("fedit", EQUAL)
    assert update.scale == FORM.scale
    assert dataclasses.replace(update, form=None).scale == 1


def test_secure_sums_take_the_strategies_whose_updates_are_summed_as_they_are():
    summed = {name for name in strategies.names if is_sum_of_clients(strategies.part(name))}
    assert summed == {"fed_sb", "fedit", "fedsvd", "ffa_lora", "flasc", "rolora"}


def test_florg_averages_gram_matrices_alone():
    plain = [TensorSpec(name, (4, 9), "plain", "layer.0") for name in ("layer.0.lora_G.weight", "layer.0.bias")]
    assert find_grams(Layout((*plain, *layout.tensors), FORM)) == {"layer.0.lora_G.weight"}
