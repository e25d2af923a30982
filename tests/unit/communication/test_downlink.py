"""What is sent down: versions of the state, differences between them, and what it costs to come back after a while."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.communication.base_residual import Residual
from fedpeft.communication.codec import parse_codec
from fedpeft.communication.decoding import decode
from fedpeft.communication.downlink import (
    DOWNLINKS,
    LONGEST,
    Downlink,
    Versions,
    compute_balanced_weights,
    create_start,
    decode_arrival,
    fix_step_size,
    parse_downlink,
)
from fedpeft.conformance.cohorts import create_lora_layout, create_random_state
from fedpeft.parts.families import PEFT_METHODS, strategies
from fedpeft.peft.adapter import AdapterShape
from tests.refusals import refuses

SHAPES = {"q.lora_A": (4, 48), "q.lora_B": (32, 4), "head.weight": (5, 16)}


def walk(rounds: int, scale: float = 0.005, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Return the states of a random walk from zero, one step per round."""
    generator = torch.Generator().manual_seed(seed)
    states = [{name: torch.zeros(shape) for name, shape in SHAPES.items()}]
    for _ in range(rounds):
        states.append({n: t + scale * torch.randn(t.shape, generator=generator) for n, t in states[-1].items()})
    return states[1:]


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal with the signs of zeros."""
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


# ---------------------------------------------------------------------------------------------------------- the grid


@pytest.mark.medium
@given(
    st.integers(0, 1000),
    st.sampled_from(["bits=3.0", "bits=1.5, dead=0.2", "step=0.01"]),
    st.integers(0, 3),
    st.sampled_from([0.0, 1.0, 30.0]),
)
def test_every_version_leads_to_the_same_bits(seed, how, held, head):
    """Also where the head is as large as a closed form makes it, and has a coarser step of its own."""
    codec = parse_codec(f"grid({how}) | rans")
    versions = walk(5, seed=seed)
    for state in versions:
        state["head.weight"] *= head or 1.0
    before, after = (compute_balanced_weights(versions[v]) if head else None for v in (held, 4))
    before = decode(codec.encode(versions[held], weights=before), SHAPES)
    whole = codec.encode(versions[4], weights=after)
    there = decode(whole, SHAPES)
    exact = fix_step_size(codec, whole, SHAPES)
    difference = exact.encode(there, weights=after, reference=(held + 1, before), shapes=SHAPES)
    again = decode(difference, SHAPES, references={held + 1: before})
    assert all(same_bits(again[name], there[name]) for name in SHAPES)


def test_a_level_that_falls_to_zero_leaves_no_sign_behind():
    """Else the next difference would be refused as one to another state: -0 == 0, but their checksums differ."""
    shapes = {"head.bias": (3,)}
    moved = {"head.bias": torch.tensor([-0.01, 0.0, 0.01])}
    before = decode(parse_codec("grid(step=0.01) | rans").encode(moved), shapes)
    coarse = parse_codec("grid(step=0.1) | rans")
    there = decode(coarse.encode(moved), shapes)
    again = decode(coarse.encode(moved, reference=(1, before)), shapes, references={1: before})
    assert same_bits(again["head.bias"], there["head.bias"])
    payload = coarse.encode(moved, reference=(2, there))
    assert same_bits(decode(payload, shapes, references={2: again})["head.bias"], there["head.bias"])


def test_the_error_is_within_half_a_step_and_its_dead_zone():
    [state] = walk(1)
    back = decode(parse_codec("grid(step=0.004, dead=0.2) | rans").encode(state), SHAPES)
    assert max(float((state[n] - back[n]).abs().max()) for n in SHAPES) <= 0.7 * 0.004 * (1 + 1e-6)


def test_a_tensors_step_grows_with_the_root_of_its_magnitude():
    [state] = walk(1)
    state["head.weight"] *= 64
    codec = parse_codec("grid(step=0.004) | rans")
    weights = compute_balanced_weights(state)
    plain, weighted = (decode(codec.encode(state, weights=w), SHAPES) for w in (None, weights))
    errors = {n: float((state[n] - weighted[n]).abs().max()) for n in SHAPES}
    assert 7 < weights["q.lora_A"].mean() / weights["head.weight"].mean() < 9
    for name in SHAPES:
        assert errors[name] <= 0.58 * 0.004 / float(weights[name].min()) * 2 ** (1 / 8) * (1 + 1e-6)
    assert errors["head.weight"] > 4 * float((state["head.weight"] - plain["head.weight"]).abs().max())
    part = {"q.lora_B": state["q.lora_B"], "head.weight": state["head.weight"]}
    again = decode(codec.encode(part, weights=weights, shapes=SHAPES), SHAPES)
    assert all(torch.equal(again[name], weighted[name]) for name in part), "a part of the tensors has the same steps"
    unmoved = compute_balanced_weights({name: torch.zeros(shape) for name, shape in SHAPES.items()})
    assert all(bool((w == 1.0).all()) for w in unmoved.values())


def test_errors_do_not_add_up_and_recent_versions_are_cheaper():
    codec = parse_codec("grid(step=0.01) | rans")
    sizes, held = [], {}
    for round_number, state in enumerate(walk(30), start=1):
        whole = codec.encode(state)
        held[round_number] = decode(whole, SHAPES)
        assert max(float((state[n] - held[round_number][n]).abs().max()) for n in SHAPES) <= 0.58 * 0.01 * (1 + 1e-6)
        if round_number > 10:
            exact = fix_step_size(codec, whole, SHAPES)
            sizes.append(
                [
                    len(exact.encode(held[round_number], reference=(v, held[v])))
                    for v in (round_number - 1, round_number - 9)
                ]
            )
            sizes[-1].append(len(whole))
    near, far, start = (sum(column) for column in zip(*sizes, strict=True))
    assert near < far < start


def test_a_version_that_is_not_held_is_refused():
    codec = parse_codec("grid(step=0.01) | rans")
    one, two = walk(2)
    held = decode(codec.encode(one), SHAPES)
    payload = codec.encode(two, reference=(3, held))
    with refuses("FP6076"):
        decode(payload, SHAPES)
    with refuses("FP6077"):
        decode(payload, SHAPES, references={3: two})


def test_a_grid_has_no_transform_in_front_of_it():
    with refuses("FP1051"):
        parse_codec("rotate | grid | rans").encode(walk(1)[0])


def test_what_is_sent_down_has_the_balanced_steps(tiny):
    task, _, folder, classes = tiny
    model = task.model(task.base(folder, torch.float32), classes)
    method = PEFT_METHODS.build("lora(rank=4, layers=1)")
    method.attach(model, "fp32")
    layout, start = method.layout(model), method.start(model, 0)
    generator = torch.Generator().manual_seed(1)
    scale = {name: 1.0 if name.startswith("head.") else 0.02 for name in start}
    moved = {name: scale[name] * torch.randn(t.shape, generator=generator) for name, t in start.items()}
    state = {name: start[name] + moved[name] for name in start}
    rule, codec, versions = strategies.build("fedit"), parse_codec("grid(bits=3.0) | rans"), Versions()
    residual = Residual()
    down = Downlink(rule, layout, codec, parse_codec("fp32"), state, start, versions, residual, 1)
    arrived = decode(down.create_package(None, 0, newcomer=True).payload, layout.shapes)
    plain = decode(codec.encode(moved, shapes=layout.shapes), layout.shapes)

    def error(sent, head):
        chosen = [name for name in start if name.startswith("head.") == head]
        return sum(float((sent[n] - moved[n]).square().sum()) for n in chosen) ** 0.5

    assert error(arrived, head=False) < 0.95 * error(plain, head=False), "the factors gain"
    assert error(arrived, head=True) > 2 * error(plain, head=True), "the head pays"


# ------------------------------------------------------------------------------------------------------- the versions


def test_versions_are_kept_as_long_as_somebody_holds_them_and_survive_a_checkpoint():
    versions, small = Versions(), AdapterShape(2, 8.0)
    for round_number in range(1, 6):
        versions = versions.after(
            round_number, {None: b"%d" % round_number, small: b"s%d" % round_number}, held=[1, 3, round_number]
        )
    assert sorted(versions.payloads[None]) == [1, 3, 5]
    again = Versions.from_tensors(versions.to_tensors())
    assert again == versions
    assert again.get(small, 3) == b"s3"
    assert again.get(small, 2) is None
    for round_number in range(6, 6 + 2 * LONGEST):
        versions = versions.after(round_number, {None: b"x"}, held=range(round_number))
    assert len(versions.payloads[None]) == LONGEST


@pytest.mark.parametrize("strategy", ["fedit", "fedsa_lora", "rolora"])
def test_the_server_knows_what_each_client_starts_from(tiny, strategy):
    """A client that was there in round 1, another form, and a newcomer: each reads what the server thinks it does."""
    task, _, folder, classes = tiny
    model = task.model(task.base(folder, torch.float32), classes)
    method = PEFT_METHODS.build("lora(rank=4, layers=1)")
    method.attach(model, "fp32")
    layout, start = method.layout(model), method.start(model, 0)
    rule, codec, lossless = strategies.build(strategy), parse_codec("grid(bits=2.0) | rans"), parse_codec("fp32")
    residual, versions = Residual(), Versions()
    generator = torch.Generator().manual_seed(1)
    forms = [layout.form] if strategy == "fedsa_lora" else [layout.form, AdapterShape(2, 16.0)]
    held: dict = {form: {} for form in forms}
    state = dict(start)
    for round_number in (1, 2, 3):
        down = Downlink(rule, layout, codec, lossless, state, start, versions, residual, round_number)
        for form in forms:
            origin, shapes = create_start(rule, start, layout, form), layout.replace_form(form).shapes
            for version in ([0, *held[form]]) if round_number > 1 else [0]:
                package = down.create_package(form, version, newcomer=not version)
                got = decode_arrival(package.payload, codec, shapes, origin, {version: held[form].get(version, {})})
                assert got.state.keys() == package.state.keys()
                assert all(torch.equal(got.state[n], package.state[n]) for n in got.state)
                if version == 0:
                    fresh = got.moved
                else:
                    assert got.state.keys() == set(layout.names) - rule.list_private(layout)
                    assert len(package.payload) <= len(down.create_package(form, 0, newcomer=True).payload)
            held[form][round_number] = fresh
        versions = versions.after(round_number, down.made, held=[1, 2, 3])
        state = {n: t + 0.01 * torch.randn(t.shape, generator=generator) for n, t in state.items()}


# ------------------------------------------------------------------------------------------------------ in a whole run


def test_presets_choose_the_downlink_and_the_flag_overrides_it():
    assert parse_downlink("auto", "fp32", "fp32").lossless
    assert parse_downlink("auto", "ef14 | topk | rans", "fp32").lossless
    assert str(parse_downlink("auto", "tiny", "fp32")) == str(parse_codec(DOWNLINKS["tiny"]))
    assert str(parse_downlink("auto", "ef14 | by_rows | tiny", "fp32")) == str(parse_codec(DOWNLINKS["tiny"]))
    assert str(parse_downlink("small", "fp32", "fp32")) == str(parse_codec(DOWNLINKS["small"]))
    assert parse_downlink("fp32", "small", "fp64") == parse_codec("fp64")
    with refuses("FP1058"):
        parse_downlink("delta | quantize", "fp32", "fp32")
    with refuses("FP1060"):
        parse_downlink("adaptive(bits=4.0, gain=length) | rans", "fp32", "fp32")


def test_the_first_round_moves_no_client_of_another_scale_from_its_start():
    """If factors take turns, the factor of the round also takes the difference of the scales."""
    rule, form = strategies.build("rolora"), AdapterShape(2, 8.0)
    layout = create_lora_layout([(12, 9)], AdapterShape(4, 8.0))
    state = create_random_state(layout, 1, torch.float32)
    begun = create_start(rule, state, layout, form)
    moved = [
        any(not torch.equal(tensor, begun[name]) for name, tensor in rule.dispatch(state, layout, form, n).items())
        for n in (1, 2)
    ]
    assert moved == [False, True]
