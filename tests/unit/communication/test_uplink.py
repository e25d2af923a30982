"""What stands in front of a codec: memories that clients keep between rounds, and precision that changes."""

from __future__ import annotations

import pytest

from fedpeft.communication.precision_rule import Situation
from fedpeft.communication.uplink import parse_uplink
from fedpeft.parts.families import PRECISION_RULES, PRESETS
from tests.refusals import refuses

# ------------------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize(
    "text", ["small", "ef21 | tiny", "ef14(keep=0.5) | over_time(high=2.0) | by_rows | by_link | medium", *PRESETS]
)
def test_texts_round_trip(text):
    uplink = parse_uplink(text)
    assert parse_uplink(str(uplink)) == uplink


def test_a_preset_makes_up_for_what_it_drops_by_gain_or_behind_a_memory_by_that():
    for text, kind, gain in (
        ("tiny", "none", "length"),
        ("small", "none", "length"),
        ("over_time(high=2.0) | by_rows | small", "none", "length"),
        ("ef21 | by_rows | small", "ef21", "none"),
        ("ef14(keep=0.1) | tiny", "ef14", "none"),
    ):
        uplink = parse_uplink(text)
        assert (uplink.feedback.kind, uplink.codec.gain) == (kind, gain)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ef14", ("FP1069",)),
        ("ef14 | ef21 | small", ("FP1070", "2")),
        ("ef14 | fp32", ("FP1071",)),
        ("ef21(keep=0.5) | small", ("FP1064",)),
        ("ef14(kep=0.5) | small", ("FP1225", "kep")),
        ("ef14 | adaptive(bits=1.0, gain=length) | rans", ("FP1063",)),
        ("by_rows | sign", ("FP1046",)),
        ("over_time(high=40) | small", ("FP1227", "at most 10")),
        ("small | ef14", ("FP1231",)),
        ("topk + quantize(bits=4)", ("FP1048",)),
    ],
)
def test_wrong_texts_are_one_clear_error(text, words):
    with refuses(*words):
        parse_uplink(text)


# ------------------------------------------------------------------------------------------------------------- rules


def situation(losses=(), weights=None, speeds=None) -> Situation:
    weights = weights or {0: 1.0, 1: 1.0}
    return Situation(losses, weights, speeds or dict.fromkeys(weights, 1.0))


def test_precision_rises_when_the_loss_stalls_and_only_then():
    rule = PRECISION_RULES.build("over_time(high=2.0, step=0.5, smoothing=0.0, patience=2)")
    for losses, bits in (([], 1.0), ([3, 2, 1], 1.0), ([3, 2, 2, 2], 1.5), ([3, *[2] * 20], 2.0)):
        assert rule.bits({0: 1.0}, situation(losses)) == {0: bits}
    assert rule.bits({0: 3.0}, situation([3, *[2] * 20])) == {0: 3.0}  # never lowered


def test_precision_by_rows_keeps_the_aggregates_variance_with_fewer_levels():
    weights = {0: 1.0, 1: 4.0, 2: 9.0}
    rule = PRECISION_RULES.build("by_rows")
    bits = rule.bits(dict.fromkeys(weights, 4.0), situation(weights=weights))
    variance = sum(w**2 / 4.0 ** bits[k] for k, w in weights.items())
    assert variance == pytest.approx(sum(w**2 / 4.0**4 for w in weights.values()))
    assert sum(2.0**b for b in bits.values()) < 3 * 2.0**4
    assert rule.bits({0: 3.0, 1: 3.0}, situation()) == pytest.approx({0: 3.0, 1: 3.0})


def test_precision_by_link_equalises_upload_times_at_the_same_mean():
    bits = PRECISION_RULES.build("by_link").bits({0: 2.0, 1: 2.0}, situation(speeds={0: 1.0, 1: 3.0}))
    assert bits == pytest.approx({0: 1.0, 1: 3.0})


def test_rules_work_together_and_none_leaves_the_codec_alone():
    assert parse_uplink("small").compute_bits(situation()) == {}
    uplink = parse_uplink("over_time(step=1.0, smoothing=0.0, patience=1) | by_link | adaptive(bits=1.0)")
    bits = uplink.compute_bits(situation([2.0, 2.0], speeds={0: 1.0, 1: 3.0}))
    assert bits == pytest.approx({0: 1.0, 1: 3.0})


@pytest.mark.parametrize(
    ("memory", "clients", "server"), [("", False, False), ("ef14 | ", True, False), ("ef21 | ", True, True)]
)
def test_who_keeps_a_memory_follows_from_its_type(memory, clients, server):
    uplink = parse_uplink(f"{memory}topk | rans")
    assert (uplink.has_memory, uplink.has_server_memory) == (clients, server)
    assert not uplink.remove_memory().has_memory
