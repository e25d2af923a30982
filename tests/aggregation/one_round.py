"""One round of a rule on made-up clients, for the tests of what rules promise."""

import torch

from fedpeft.conformance.cohorts import (
    Client,
    create_lora_layout,
    create_random_state,
    create_random_updates,
    run_round,
)
from fedpeft.parts.families import strategies
from fedpeft.peft.adapter import AdapterShape

FORM = AdapterShape(4, 8.0)
EQUAL = [Client(FORM, 3.0), Client(FORM, 1.0), Client(FORM, 4.0)]
MIXED = [Client(AdapterShape(2, 8.0), 3.0), Client(AdapterShape(4, 6.0), 1.0), Client(AdapterShape(3, 6.0), 4.0)]
layout = create_lora_layout([(12, 9)], FORM, head=(3, 5))
(pair,) = layout.pairs


def a_round(spec, clients, round_number=1, seed=0, size=0.5, state=None):
    strategy = strategies.build(spec)
    state = state or create_random_state(layout, 1, torch.float64)
    updates = create_random_updates(strategy, state, layout, clients, 2, round_number, size)
    return run_round(strategy, state, layout, updates, round_number, seed), updates, state


def shares(updates):
    total = sum(u.weight for u in updates)
    return [u.weight / total for u in updates]
