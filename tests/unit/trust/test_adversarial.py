"""Adversarial local steps: how far tokens are moved, what the loss becomes, and where there are none."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from fedpeft.clients.corrections.adversarial import Adversarial
from rich.console import Console

from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.models.base_model import resolve_model
from fedpeft.parts.families import TASKS
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.activation_cache import count_cached_blocks
from fedpeft.wiring.config import RunConfig
from tests.refusals import pattern_of


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    task = TASKS.build("classification")
    made = task.model(task.base(Path(resolve_model("tiny")), torch.float32), 4)
    with torch.no_grad():
        made.head.weight.normal_(0, 1)
    return task, made.eval()


def batch(rows=6, tokens=5):
    ids = torch.from_numpy(np.random.default_rng(0).integers(5, 50, size=(rows, tokens)))
    mask = torch.ones_like(ids)
    mask[1, 2:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(rows) % 4}


def test_the_loss_is_the_mean_with_one_step_towards_larger_losses(model):
    task, made = model
    rows = batch()
    words = made.base.get_input_embeddings()
    seen = []

    def losses(one):
        with saw(words, seen):
            return task.row_losses(made, one)

    found = Adversarial(strength=0.1).around(made, losses, rows)
    plain = task.row_losses(made, rows)
    assert len(seen) == 2
    assert float(found.sums.detach().sum()) > float(plain.sums.detach().sum())
    torch.testing.assert_close(found.correct, plain.correct)
    before, after = seen
    lengths, mask = (after - before).norm(dim=-1), rows["attention_mask"]
    means = (before.norm(dim=-1) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(lengths, 0.1 * means * mask, rtol=1e-4, atol=1e-7)
    found.sums.sum().backward()
    assert made.head.weight.grad is None or torch.isfinite(made.head.weight.grad).all()


@contextmanager
def saw(layer, seen):
    """While this is open, what comes out of the layer behind all its hooks is kept."""
    hook = layer.register_forward_hook(lambda _, __, out: seen.append(out.detach()))
    try:
        yield
    finally:
        hook.remove()


def test_no_block_is_left_out_below_the_lowest_adapter(tmp_path):
    """Words are moved below it: from there on rows would be attacked at another place than where they are evaluated."""
    given = {"dataset": "tiny", "clients": 4, "workers": 1, "tokens": 16, "peft": "lora(rank=2, layers=1)"}
    for drift, kept in (("", True), ("adversarial", False)):
        config = RunConfig(**given, drift=drift)
        simulation = Simulation(config, tmp_path / (drift or "plain"), ConsoleObserver(Console(quiet=True)))
        assert bool(count_cached_blocks(simulation.setup, np.full(40, 12), 4)) == kept


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"dataset": "tiny_lm", "partition": "iid"}, ConfigError, ("FP1309",)),
        ({"peft": "adamix(dim=4)", "strategy": "owned_mean"}, ConfigError, ("FP1310",)),
        ({"privacy": "dp_sgd(epsilon=8)"}, PrivacyError, ("FP7091",)),
    ],
)
def test_where_it_has_no_meaning_it_is_refused(tmp_path, given, error, said):
    config = RunConfig(**{"dataset": "tiny", "clients": 4, "workers": 1, "tokens": 16, "drift": "adversarial", **given})
    with pytest.raises(error, match=pattern_of(*said)):
        Simulation(config, tmp_path, ConsoleObserver(Console(quiet=True)))
