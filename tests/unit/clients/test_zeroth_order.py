"""Zeroth-order steps: slopes by two losses, clients in one pass, and what travels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fedpeft.clients.probing import directions, probe
from torch import nn

from fedpeft.communication.codec import parse_codec
from fedpeft.communication.codecs.scalars import BLOCK, compute_gram, direction
from fedpeft.communication.decoding import decode
from fedpeft.communication.downlink import decode_arrival
from fedpeft.communication.uplink import parse_uplink
from fedpeft.conformance.peft_cases import Case, find_largest_difference
from fedpeft.machine import seeds
from fedpeft.parts.families import LOCAL_OPTIMIZERS
from fedpeft.peft.adapter import AdapterShape
from tests.refusals import refuses

ZEROTH = "zeroth_order(distance=1e-5)"
T = 3


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_slope_of_a_quadratic_is_exact():
    """L = |x|^2 / 2: the slope along z is x z, at any distance; x comes back as it was."""
    x, z = nn.Parameter(drawn(5)), drawn(5, seed=1)
    start = x.detach().clone()
    loss = probe({"x": x}, {"x": z}, 0.7, lambda: x.square().sum() / 2)
    assert torch.allclose(x.grad, (start @ z) * z)
    assert torch.equal(x, start)
    assert float(loss) == pytest.approx(float(start.square().sum() / 2 + 0.7**2 * z.square().sum() / 2))


def test_slopes_of_stacked_clients_are_their_own():
    x, z = nn.Parameter(drawn(3, 2, 4)), drawn(3, 2, 4, seed=1)
    probe({"x": x}, {"x": z}, 1e-3, lambda: x.square().sum((1, 2)) / 2)
    slopes = (x.detach() * z).sum((1, 2), keepdim=True)
    assert torch.allclose(x.grad, slopes * z)


def test_directions_are_signs_that_the_seed_round_and_client_decide(tiny):
    case = Case("lora(rank=4)", tiny)
    one, other = case.jobs(optimizer=ZEROTH)[:2]
    found = directions(one, case.layout, 0)
    assert {float(v) for t in found.values() for v in t.unique()} == {-1.0, 1.0}
    assert all(torch.equal(found[n], directions(one, case.layout, 0)[n]) for n in found)
    for changed in (directions(one, case.layout, 1), directions(other, case.layout, 0)):
        assert not all(torch.equal(found[n], changed[n]) for n in found)


def test_a_slope_is_that_of_the_gradient(tiny):
    """A step is the gradient's component along its direction, times that direction."""
    case = Case("ia3", tiny)
    [job] = case.jobs(optimizer="sgd(head_rate=1.0)", steps=1, rate=1.0)[:1]
    [plain] = case.sequential.train([job])
    [zeroth] = case.jobs(optimizer=ZEROTH, steps=1, rate=1.0)[:1]
    [found] = case.sequential.train([zeroth])
    gradient = {n: job.received[n] - plain.state[n] for n in plain.state}
    step = {n: job.received[n] - found.state[n] for n in found.state}
    z = directions(zeroth, case.layout, 0)
    slope = sum(float((gradient[n] * z[n]).sum()) for n in z)
    for n in step:
        assert torch.allclose(step[n], slope * z[n], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("mixed", [False, True], ids=["equal", "mixed"])
def test_all_clients_in_one_pass_train_as_each_alone(tiny, mixed):
    case = Case("lora(rank=4)", tiny)
    scale = case.layout.form.scale
    forms = [AdapterShape(r, r * scale) for r in (2, 4, 3)] if mixed else None
    jobs = case.jobs(forms=forms, optimizer=ZEROTH, rate=1e-3)
    one = list(case.sequential.train(jobs))
    assert find_largest_difference(one, list(case.create_batched_executor().train(jobs)), jobs) < 1e-6


def test_rows_in_several_passes_give_the_same_step(tiny):
    case = Case("lora(rank=4)", tiny)
    whole, parts = (case.jobs(optimizer=f"zeroth_order(distance=1e-5, rows_per_pass={n})")[:1] for n in (0, 3))
    assert find_largest_difference(list(case.sequential.train(whole)), list(case.sequential.train(parts)), whole) < 1e-6


def test_nothing_is_kept_for_a_backward_pass(tiny):
    case = Case("lora(rank=4)", tiny)
    kept = []
    [job] = case.jobs(optimizer=ZEROTH)[:1]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        list(case.sequential.train([job]))
        assert not kept
        list(case.sequential.train(case.jobs(optimizer="sgd")[:1]))
        assert kept


@pytest.mark.parametrize("private", ["", ".lora_B.", "head."], ids=["none", "B", "head"])
def test_a_round_s_update_travels_as_its_scalars(tiny, private):
    """Tensors that stay with the client do not change the directions of those that travel."""
    case = Case("lora(rank=4)", tiny)
    stay = frozenset(name for name in case.layout.names if private and private in name)
    for job in case.jobs(optimizer=ZEROTH, steps=T, rate=1e-2):
        [result] = case.sequential.train([replace(job, private=stay)])
        update = {n: (result.state[n] - job.received[n]).float() for n in case.layout.names if n not in stay}
        seed = seeds.derive_seed(job.seed, "codec", job.round, job.client)
        payload = parse_codec(f"scalars(steps={T}) | cast(dtype=fp32)").encode(update, seed=seed)
        found = decode(payload, {n: case.layout.shapes[n] for n in update})
        size = sum(float(t.square().sum()) for t in update.values()) ** 0.5
        error = sum(float((found[n] - update[n]).square().sum()) for n in update) ** 0.5
        assert error < 1e-4 * size
        empty = parse_codec("scalars(steps=1) | cast(dtype=fp32)").encode(update, seed=seed)
        assert len(payload) - len(empty) == 4 * (T - 1)


def test_of_other_updates_only_the_projection_arrives():
    x = {"x": drawn(50, 4).float()}
    payload = parse_codec("scalars(steps=4) | cast(dtype=fp64)").encode(x, seed=5)
    stacked = np.stack([direction(5, t, 200) for t in range(4)]).astype(np.float64)
    expected = (
        stacked.T @ np.linalg.lstsq(stacked @ stacked.T, stacked @ x["x"].double().numpy().ravel(), rcond=None)[0]
    )
    found = decode(payload, {"x": (50, 4)})["x"].double().numpy().ravel()
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("codec", ["scalars(steps=4) | cast(dtype=fp32)", "fp32"])
def test_a_client_cannot_choose_how_many_directions_the_server_draws(codec):
    """The run's codec bounds them: a payload of 256 directions is refused before any is drawn."""
    x = {"x": drawn(500, 4).float()}
    uplink, shapes = parse_uplink(codec), {"x": (500, 4)}
    honest = uplink.codec.encode(x, seed=5)
    assert uplink.receive(honest, shapes, {})[0].keys() == {"x"}
    hostile = parse_codec("scalars(steps=256) | cast(dtype=fp32)").encode(x, seed=5)
    with refuses("FP6064", "number of directions = 256"):
        uplink.receive(hostile, shapes, {})
    assert decode(hostile, shapes).keys() == {"x"}


def test_a_server_cannot_choose_how_many_directions_a_client_draws():
    x = {"x": drawn(500, 4).float()}
    hostile, shapes = parse_codec("scalars(steps=256) | cast(dtype=fp32)").encode(x, seed=5), {"x": (500, 4)}
    for codec in (parse_codec("fp32"), parse_codec("scalars(steps=4) | cast(dtype=fp32)")):
        with refuses("FP6064", "number of directions = 256"):
            decode_arrival(hostile, codec, shapes, x, {})


def test_it_starts_with_plain_steps():
    x = nn.Parameter(drawn(3))
    before = x.detach().clone()
    optimizer, _ = LOCAL_OPTIMIZERS.build("zeroth_order").create_optimizer({"x": x}, 0.5)
    x.grad = torch.ones_like(x)
    optimizer.step()
    assert torch.allclose(x, before - 0.5)


def test_products_of_directions_are_exact_across_blocks():
    stacked = np.stack([direction(3, t, 2 * BLOCK + 7) for t in range(5)])
    assert np.array_equal(compute_gram(stacked), stacked.astype(np.int64) @ stacked.astype(np.int64).T)
