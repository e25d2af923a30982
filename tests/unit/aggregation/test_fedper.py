"""FedPer: what stays with clients, by name."""

from __future__ import annotations

import torch

from fedpeft.parts.families import strategies
from fedpeft.peft.adapter import Layout, TensorSpec
from tests.aggregation.one_round import EQUAL, a_round, layout, pair, shares
from tests.refusals import refuses


def test_the_head_stays_and_the_rest_is_the_mean():
    result, updates, state = a_round("fedper", EQUAL)
    for name in state:
        mean = sum(p * u.get_trained(name) for p, u in zip(shares(updates), updates, strict=True))
        assert torch.allclose(result.state[name], state[name] if name.startswith("head.") else mean, atol=1e-12)


def test_names_are_whole_words_of_modules():
    private = strategies.build("fedper(private_layers=('lora_B', 'head'))").list_private(layout)
    assert private == {pair.B, "head.weight", "head.bias"}
    other = Layout((TensorSpec("block.0.overhead.weight", (2, 2), "plain", "block.0.overhead"), *layout.tensors))
    assert "block.0.overhead.weight" not in strategies.build("fedper").list_private(other)


def test_a_name_that_nothing_has_is_said_and_so_is_keeping_everything():
    with refuses("FP1490", "query", "head, lora_A, lora_B"):
        strategies.build("fedper(private_layers='query')").check(layout, [])
    with refuses("FP1491"):
        strategies.build("fedper(private_layers=('lora_A', 'lora_B', 'head'))").check(layout, [])
