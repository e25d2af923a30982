"""Memories of what a codec has left out: they telescope, find constant signals, and agree at both ends."""

from __future__ import annotations

import torch

from fedpeft.communication.codec import parse_codec
from fedpeft.communication.decoding import decode
from fedpeft.communication.error_feedback import ErrorFeedback
from tests.communication.vectors import LARGER, LORA, flat, lora_state, relative_error, rows
from tests.refusals import refuses


@rows("text", ["topk(fraction=0.05) | sign | rans", "small", "tiny", "unbiased", "quantize(bits=1)", "fp32"])
def test_ef14_telescopes(text):
    """The sum of received updates equals the sum of inputs - last memory + first memory."""
    feedback = ErrorFeedback(parse_codec(text).remove_gain())
    memory, sent, received = None, torch.zeros(1), torch.zeros(1)
    for round_number in range(6):
        delta = lora_state(seed=round_number)
        payload, memory = feedback.encode(delta, memory, seed=round_number)
        update, held = feedback.receive(payload, LORA)
        assert held == {}
        sent, received = sent + flat(delta), received + flat(update)
    assert float((sent - flat(memory) - received).norm()) <= 1e-5 * float(sent.norm())


@rows(
    ("text", "kind"),
    [("small", "ef14"), ("tiny", "ef14"), ("topk(fraction=0.1) | sign | rans", "ef14"), ("tiny", "ef21")],
)
def test_feedback_finds_a_constant_signal_that_the_codec_alone_misses(text, kind):
    feedback = ErrorFeedback(parse_codec(text).remove_gain(), kind)
    delta = lora_state(shapes=LARGER)
    memory, held, mean = None, None, torch.zeros(1)
    rounds = 30
    for round_number in range(rounds):
        payload, memory = feedback.encode(delta, memory, seed=round_number)
        update, held = feedback.receive(payload, LARGER, held)
        mean = mean + flat(update) / rounds
    final = flat(update) if kind == "ef21" else mean
    alone = relative_error(delta, decode(feedback.codec.encode(delta), LARGER))
    assert float((final - flat(delta)).norm() / flat(delta).norm()) < 0.5 * alone


def test_ef21_ends_agree_on_the_memory():
    feedback = ErrorFeedback(parse_codec("tiny").remove_gain(), "ef21")
    memory, held = {}, {}
    for round_number in range(3):
        payload, memory = feedback.encode(lora_state(seed=round_number), memory)
        update, held = feedback.receive(payload, LORA, held)
        assert all(torch.equal(memory[n], held[n]) and torch.equal(update[n], held[n]) for n in LORA)


def test_feedback_leaves_the_memory_of_untrained_tensors_alone():
    feedback = ErrorFeedback(parse_codec("tiny").remove_gain())
    _, memory = feedback.encode(lora_state(), None)
    only = {n: t for n, t in lora_state(1).items() if n.endswith("A")}
    payload, after = feedback.encode(only, memory, shapes=LORA)
    assert list(feedback.receive(payload, LORA)[0]) == list(only)
    for name in LORA:
        assert torch.equal(memory[name], after[name]) == name.endswith("B")


def test_lossless_codecs_need_no_memory():
    _, memory = ErrorFeedback(parse_codec("fp32")).encode(lora_state(), None)
    assert not any(t.any() for t in memory.values())


def test_wrong_feedback_is_one_clear_error():
    with refuses("FP1061", "ef14, ef21"):
        ErrorFeedback(parse_codec("small"), "ef15")
    with refuses("FP1062"):
        ErrorFeedback(parse_codec("small").remove_gain(), keep=2.0)
    with refuses("FP1063"):
        ErrorFeedback(parse_codec("small"))
