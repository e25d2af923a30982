"""Mutated payloads by number: 50,000 drawn from a seed, of all codecs, each decoded or refused within its memory."""

from __future__ import annotations

import random

import pytest

from tests.attacks.scale import SEED, scaled
from tests.unit.communication.test_codec_fuzz import SEEDS, bounded, edited, judge


@pytest.mark.long
def test_mutated_payloads():
    count, valid = scaled(50_000), 0
    for number in range(count):
        draw = random.Random(f"{SEED} {number}")
        try:
            valid += (bounded if number % 20 == 0 else judge)(edited(draw.choice(SEEDS), draw)) is None
        except BaseException:
            print(f"failing draw: FEDPEFT_ATTACK_SEED={SEED}, number {number}")
            raise
    print(f"{count} payloads, {valid} of them valid states")
