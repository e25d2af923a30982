"""Accumulated gradients and blocks that are computed again: less memory, the same training."""

from __future__ import annotations

import pytest
import torch

from fedpeft.models.base_model import resolve_model
from fedpeft.models.checkpointing import checkpoint_blocks
from fedpeft.models.layers import find_blocks
from fedpeft.simulate import main
from tests.refusals import has_error
from tests.unit.clients.test_packing import TASK, apart, executors, jobs


@pytest.mark.parametrize("size", [1, 2, 3])
def test_gradients_of_several_passes_add_up_to_that_of_one(size):
    """Also where rows predict unequally many tokens: the mean is that over all of a step's."""
    (sequential, _), layout, start = executors("lora(rank=2, layers=0)")
    one = list(sequential.train(jobs(layout, start, optimizer="sgd(max_norm=0.5)")))
    other = list(sequential.train(jobs(layout, start, optimizer=f"sgd(max_norm=0.5, rows_per_pass={size})")))
    assert apart(one, other, jobs(layout, start)) < 1e-4  # Llama normalises in fp32, whatever the rest is
    assert [t.loss for t in one] == pytest.approx([t.loss for t in other], rel=1e-7)
    assert [t.steps for t in one] == [t.steps for t in other]


@pytest.mark.parametrize(
    "spec",
    [
        "lora(rank=2, layers=0)",
        "lora(rank=2, layers=0, dropout=0.3)",
        "lora(rank=2, dropout=0.3) + bottleneck(dim=4)",
        "adamix(dim=4, layers=0)",
        "ia3(layers=1)",
        "prefix_tuning(length=3)",
        "full",
    ],
)
def test_blocks_that_are_computed_again_give_the_same_gradients(spec):
    plain, layout, start = executors(spec)
    again, *_ = executors(spec)
    work = jobs(layout, start)
    for one, other in zip(plain, again, strict=True):
        checkpoint_blocks(other.model.base)
        assert apart(list(one.train(work)), list(other.train(work)), work) < 1e-12


def test_only_a_blocks_input_is_kept():
    kept = {}
    for name in ("plain", "again"):
        model = TASK.model(TASK.base(resolve_model("tiny_lm"), torch.float32), None).requires_grad_(True)
        if name == "again":
            checkpoint_blocks(model.base)
        batch = {"input_ids": torch.randint(4, 90, (4, 64)), "attention_mask": torch.ones(4, 64, dtype=torch.long)}
        found = kept[name] = []

        def keep(tensor, found=found):
            found.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(batch | {"labels": batch["input_ids"]}).sum()
    assert sum(kept["again"]) < sum(kept["plain"]) / 2
    assert len(find_blocks(model.base)[1]) == 2


RUN = ["--dataset=tiny_lm", "--clients=3", "--cohort=2", "--rounds=1", "--workers=1", "--partition=iid", "--dtype=fp64"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--privacy=dp_sgd(epsilon=8)", "--optimizer=sgd(rows_per_pass=1)"], ("FP1353",)),
        (["--privacy=dp_sgd(epsilon=8)", "--optimizer=sgd(checkpointing=True)"], ("FP1353",)),
    ],
)
def test_what_can_not_be_done_twice_is_one_sentence(more, words, tmp_path, capsys):
    assert main([*RUN, *more, "--output", str(tmp_path / "run")]) == 2
    assert has_error(capsys.readouterr().err, *words)
    assert not (tmp_path / "run").exists()
