"""Adversarial local steps: how far tokens are moved, what the loss becomes, and where there are none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fedpeft.clients.corrections.adversarial import Adversarial
from rich.console import Console
from safetensors.torch import load_file

from fedpeft.config import RunConfig
from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.models.base_model import resolve_model
from fedpeft.models.task import TASKS
from fedpeft.run.console import ConsoleObserver
from fedpeft.simulate import main
from fedpeft.simulation.simulation import Simulation

SEQUENTIAL = {"grid": "cohort(executor=sequential)"}


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


@pytest.mark.parametrize("hidden", [False, True])
def test_the_loss_is_the_mean_with_one_step_towards_larger_losses(model, hidden):
    task, made = model
    rows = batch()
    words = made.base.get_input_embeddings()
    if hidden:
        ids = rows.pop("input_ids")
        rows["inputs_embeds"] = words(ids).detach()
    seen = []
    hook = words.register_forward_hook(lambda _, __, out: seen.append(out.detach()), always_call=True)
    given = []

    def losses(one):
        given.append(one)
        return task.row_losses(made, one)

    found = Adversarial(strength=0.1).around(made, losses, rows)
    hook.remove()
    plain = task.row_losses(made, rows)
    assert len(given) == 2
    assert float(found.sums.sum()) > float(plain.sums.sum())
    torch.testing.assert_close(found.correct, plain.correct)
    if hidden:
        before, after = given[0]["inputs_embeds"].detach(), given[1]["inputs_embeds"].detach()
        lengths, mask = (after - before).norm(dim=-1), rows["attention_mask"]
        means = (before.norm(dim=-1) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        torch.testing.assert_close(lengths, 0.1 * means * mask, rtol=1e-4, atol=1e-7)
    found.sums.sum().backward()
    assert made.head.weight.grad is None or torch.isfinite(made.head.weight.grad).all()


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"grid": "cohort(executor=batched)"}, ConfigError, "executor=sequential"),
        ({"dataset": "tiny_lm", "partition": "iid"}, ConfigError, "classified"),
        ({"privacy": "dp_sgd(epsilon=8)"}, PrivacyError, "per example"),
    ],
)
def test_where_it_has_no_meaning_it_is_refused(tmp_path, given, error, said):
    config = RunConfig(
        **{"dataset": "tiny", "clients": 4, "workers": 1, "tokens": 16, "drift": "adversarial", **SEQUENTIAL, **given}
    )
    with pytest.raises(error, match=said):
        Simulation(config, tmp_path, ConsoleObserver(Console(quiet=True)))


@pytest.mark.slow
def test_a_run_whose_clients_train_one_after_another(tmp_path):
    made = {}
    for drift in ("", "adversarial(strength=0.1)"):
        folder = tmp_path / (drift[:5] or "plain")
        assert main([
            "--dataset", "tiny", "--clients", "4", "--cohort", "2", "--rounds", "1", "--tokens", "16", "--workers", "1",
            "--dtype", "fp32", "--peft", "lora(rank=2, layers=1)", "--drift", drift, "--safeguard", "none",
            "--measure", "validation(keep=last)", "--grid", "cohort(executor=sequential)", "--output", str(folder),
        ]) == 0  # fmt: skip
        made[drift] = load_file(folder / "adapter" / "adapter_model.safetensors")
    one, other = made.values()
    assert any(not torch.equal(one[name], other[name]) for name in one)
