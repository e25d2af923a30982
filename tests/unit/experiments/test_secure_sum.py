"""What the command measures of very many clients."""

from __future__ import annotations

import pytest

from experiments.secure_sum.__main__ import widen_bits
from fedpeft.parts.families import SUMS


@pytest.mark.parametrize(("clients", "bits"), [(100, 16), (4095, 16), (4096, 17), (10_000, 18)])
def test_integers_have_the_fewest_bits_that_hold_the_sum(clients, bits):
    assert widen_bits(SUMS.build("secure_sum"), clients).bits == bits
