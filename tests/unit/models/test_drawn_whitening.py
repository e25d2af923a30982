"""Whitening by drawn pictures: what it does to states, that a head on them is one on plain states, and whole runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedpeft.data.dead_leaves import draw_dead_leaves
from fedpeft.data.rows import load_dataset
from fedpeft.models.base_model import resolve_model
from fedpeft.models.drawn_whitening import LENGTH, DrawnStatistics, compute_whitening, whiten
from fedpeft.parts.families import PEFT_METHODS, TASKS
from tests.refusals import refuses


def states(rows: int = 4000, width: int = 6) -> torch.Tensor:
    """Correlated, and far from 0."""
    random = torch.Generator().manual_seed(0)
    mix = torch.randn(width, width, generator=random, dtype=torch.float64)
    return torch.randn(rows, width, generator=random, dtype=torch.float64) @ mix + 20


def test_what_tells_is_white_afterwards():
    h = states()
    found = DrawnStatistics.from_states(h)
    z = found.whiten(h)
    assert z.mean(0).abs().max() < 1e-9
    assert float(z.norm(dim=1).mean()) == pytest.approx(LENGTH)
    torch.testing.assert_close(found.turn, found.turn.T, atol=1e-12, rtol=0)
    before, after = (torch.linalg.eigvalsh(torch.cov(x.T)) for x in (h, z))
    ridge = before / (before + 0.1 * before.mean())  # of each direction's variance, against all alike
    torch.testing.assert_close(after / after.max(), ridge / ridge.max())


def test_machines_whose_numbers_differ_a_little_agree():
    """Eigenvectors would not: two directions that vary alike are any two of their plane."""
    h = torch.randn(300, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one, other = (DrawnStatistics.from_states(x) for x in (h, h + 1e-6 * torch.randn(h.shape, dtype=torch.float64)))
    assert (one.turn - other.turn).abs().max() < 1e-4


def test_a_head_on_white_states_is_folded_into_one_on_plain_states():
    h, random = states(50), torch.Generator().manual_seed(2)
    found = DrawnStatistics.from_states(states())
    weight, bias = torch.randn(3, 6, generator=random).double(), torch.randn(3, generator=random).double()
    plain, offset = found.convert_head(weight, bias)
    torch.testing.assert_close(h @ plain.T + offset, found.whiten(h) @ weight.T + bias)


def test_pictures_are_drawn_alike_everywhere():
    made = draw_dead_leaves(4, 12)
    assert made.shape == (4, 12, 12, 3)
    assert made.dtype == np.uint8
    assert np.array_equal(made, draw_dead_leaves(4, 12))
    assert not np.array_equal(made, draw_dead_leaves(4, 12, seed=1))
    assert np.array_equal(made[:2], draw_dead_leaves(2, 12))
    grey = [bool((picture == picture[:, :, :1]).all()) for picture in made]
    assert grey == [False, True, False, True]


def test_an_encoder_is_looked_at_once_and_its_weights_stay():
    task, folder = TASKS.build("classification"), resolve_model("tiny_vision")
    plain, base = (task.base(folder, torch.float32) for _ in range(2))
    whiten(base)
    kind = type(base)
    whiten(base)
    assert type(base) is kind
    assert base.found is None, "not before it is asked for"
    rows = task.tokenise(load_dataset("digits").train.take(np.arange(5)), folder, 0).batch(np.arange(5))
    given = {name: tensor for name, tensor in rows.items() if name != "labels"}
    with torch.no_grad():
        white, states = base(**given).last_hidden_state, plain(**given).last_hidden_state
    torch.testing.assert_close(white, compute_whitening(base).whiten(states))
    assert compute_whitening(base) is base.found
    assert base.state_dict().keys() == plain.state_dict().keys()


def test_a_base_of_texts_is_refused():
    task, folder = TASKS.build("classification"), resolve_model("tiny")
    with refuses("FP4021", "BertModel"):
        PEFT_METHODS.build("whitened_probe").attach(task.model(task.base(folder, torch.float32), 2), "fp32")
