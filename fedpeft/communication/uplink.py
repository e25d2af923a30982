"""The uplink that `--codec` describes: how clients encode their updates.

    ef14 | over_time(high=2.0) | adaptive(bits=0.99) | rans
    ^ memory ^ precision rules   ^ the codec, or the name of a preset

The words in front of the codec never travel. A *memory* (`ef14`, `ef21`, see `fedpeft.communication.error_feedback`)
sends later what the codec drops now. *Precision rules* (`fedpeft.communication.precision_rule`) decide how many bits
each client spends. Either a memory or a `gain` corrects what a coarse codec drops, not both: behind a memory a preset
loses its gain. Presets have no memory, because a memory suits clients that are asked in nearly every round. Errors from
ten rounds ago belong to another state (`docs/decisions.md`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import takewhile

from fedpeft.communication.bit_allocation import compute_sensitivity
from fedpeft.communication.codec import Codec, parse_codec
from fedpeft.communication.error_feedback import ErrorFeedback, create_no_feedback
from fedpeft.communication.payload import Shape
from fedpeft.communication.precision_rule import PrecisionRule, Situation
from fedpeft.errors import ConfigError
from fedpeft.parts import format_part
from fedpeft.parts.families import MEMORIES, PRECISION_RULES, PRESETS, split_steps
from fedpeft.parts.spec import parse_spec, split_outside_parentheses
from fedpeft.peft.adapter import Layout, State


@dataclass(frozen=True)
class Uplink:
    """A codec with the words in front of it. Its text form round-trips through `parse_uplink`.

    Attributes:
        feedback: codec and memory; `kind` is "none" without a memory.
        rules: precision rules, in the order in which they apply.
    """

    feedback: ErrorFeedback
    rules: tuple[PrecisionRule, ...] = ()

    @property
    def codec(self) -> Codec:
        """The codec, at its own precision."""
        return self.feedback.codec

    @property
    def has_memory(self) -> bool:
        """Whether clients keep a memory between rounds."""
        return self.feedback.kind != "none"

    @property
    def has_server_memory(self) -> bool:
        """Whether the server must keep a copy of each client's memory."""
        return self.feedback.kind == "ef21"

    def remove_memory(self) -> Uplink:
        """Return the codec and the rules without the memory."""
        return replace(self, feedback=create_no_feedback(self.codec))

    def compute_bits(self, situation: Situation) -> dict[int, float]:
        """Return the bits per parameter of each client in `situation`; empty if no rule changes the codec's own."""
        if not self.rules:
            return {}
        own = self.codec.bits
        bits = dict.fromkeys(situation.weights, own)
        for rule in self.rules:
            bits = rule.bits(bits, situation)
        return bits

    def encode(
        self,
        delta: State,
        memory: State,
        *,
        bits: float,
        seed: int,
        trained: State,
        layout: Layout,
        turn: int = 0,
    ) -> tuple[bytes, State]:
        """Return the payload of a client's update, and the memory to keep once the server has recorded it.

        Args:
            delta: the update; some or all tensors of `layout`.
            memory: memory of this client, from its last recorded round; empty at first.
            bits: bits per parameter; 0: the codec's own.
            seed: see `Codec.encode`.
            trained: the adapter after training, which decides how much each entry's error matters.
            layout: the client's own layout, at its rank.
            turn: see `Codec.encode`.

        Raises:
            PayloadError: the update is not finite.
        """
        weights = None if self.codec.lossless else compute_sensitivity(trained, layout)
        feedback = replace(self.feedback, codec=_set_bits(self.codec, bits)) if bits else self.feedback
        return feedback.encode(delta, memory, seed=seed, weights=weights, shapes=layout.shapes, turn=turn)

    def receive(self, payload: bytes, shapes: Mapping[str, Shape], memory: State) -> tuple[State, State]:
        """Return the update in a payload, and the server's copy of that client's memory (empty without one).

        Raises:
            PayloadError: see `fedpeft.communication.decoding.decode`.
        """
        return self.feedback.receive(payload, shapes, memory)

    def __str__(self) -> str:
        """Return the text form."""
        words = [str(self.feedback)] if self.has_memory else []
        return " | ".join((*words, *map(format_part, self.rules), str(self.codec)))


@lru_cache(maxsize=256)
def _set_bits(codec: Codec, bits: float) -> Codec:
    return codec.set_bits(bits)


def find_preset(text: str) -> str:
    """Return the preset at the end of `text`, whatever stands in front of it; empty: the text spells out its codec."""
    name = split_outside_parentheses(text, "|")[-1].strip()
    return name if name in PRESETS else ""


def parse_uplink(text: str) -> Uplink:
    """Build the uplink that `text` describes.

    Raises:
        ConfigError: a word or setting is unknown, a value is out of range, or the order is wrong. Also a memory around
            a codec that is lossless or has a gain, or a precision rule in front of a codec whose precision can't be
            set.
    """
    words = split_steps(text)
    front = (*MEMORIES, *PRECISION_RULES.names)
    specs = list(takewhile(lambda spec: spec.name in front, map(parse_spec, words)))
    codec_words = words[len(specs) :]
    if not codec_words:
        raise ConfigError(f"FP1069 {text!r} names no codec; write, for example, {text} | small")
    codec = parse_codec(" | ".join(codec_words))
    memories = [spec for spec in specs if spec.name in MEMORIES]
    if len(memories) > 1:
        raise ConfigError(f"FP1070 {text!r} names {len(memories)} memories; one of {', '.join(MEMORIES)} is enough")
    if memories and codec.lossless:
        raise ConfigError(
            f"FP1071 {memories[0]} sends later what a codec drops, but {codec} drops nothing; leave it out"
        )
    if memories and codec_words[0] in PRESETS:
        codec = codec.remove_gain()
    feedback = ErrorFeedback.from_spec(memories[0], codec) if memories else create_no_feedback(codec)
    rules = tuple(PRECISION_RULES.build(spec) for spec in specs if spec.name not in MEMORIES)
    if rules:
        codec.set_bits(codec.bits)  # raises an error if the codec's precision can't be set
    return Uplink(feedback, rules)
