"""Bases that count positions, or cut images, in other ways than those that come with fedpeft."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fedpeft.clients.drift import parse_drift
from fedpeft.clients.executor import Job
from fedpeft.clients.local_training import LocalTraining
from fedpeft.clients.sequential import SequentialExecutor
from transformers import (
    Dinov2Config,
    Dinov2Model,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTModel,
)

from fedpeft.data.rows import Rows
from fedpeft.models.task import find_trainable
from fedpeft.parts.families import LOCAL_OPTIMIZERS, PEFT_METHODS, TASKS
from fedpeft.peft.adapter import AdapterShape
from fedpeft.peft.methods.prompt_tuning import PROMPT, StackedPrompt
from fedpeft.peft.prompts import find_first_position
from tests.refusals import refuses

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.mark.parametrize(
    ("config", "kind", "first"),
    [(RobertaConfig, RobertaModel, 2), (MPNetConfig, MPNetModel, 2)],
)
@pytest.mark.parametrize("lengths", [(6, 6), (3, 6)])
def test_a_stacked_prompt_leaves_positions_to_the_model(config, kind, first, lengths, tmp_path):
    torch.manual_seed(0)
    kind(config(vocab_size=50, max_position_embeddings=64, **SMALL)).save_pretrained(tmp_path)
    task, method = TASKS.build("classification"), PEFT_METHODS.build("prompt_tuning(length=6)")
    ids = torch.randint(5, 50, (2, 8))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    prompts = torch.randn(2, 6, 16)
    alone = []
    for client, length in enumerate(lengths):
        model = task.model(task.base(tmp_path, torch.float32), 3)
        method.attach(model, "fp32")
        model.base.prompt_length.set_form(AdapterShape(length, length))
        with torch.no_grad():
            find_trainable(model)[PROMPT].copy_(prompts[client])
            alone.append(model.features(batch))
    base = task.base(tmp_path, torch.float32)
    assert find_first_position(base) == first
    stacked = StackedPrompt(base, (6, 16), 2, torch.float32)
    stacked.active = 2
    stacked.set_forms([AdapterShape(length, length) for length in lengths])
    model = task.model(base, 3)
    model.base = stacked
    with torch.no_grad():
        stacked.prompt_encoder.embedding.weight.copy_(prompts.view_as(stacked.prompt_encoder.embedding.weight))
        together = model.features({name: tensor.repeat(2, 1) for name, tensor in batch.items()})
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_a_vision_transformer_of_larger_images_takes_small_ones(tmp_path):
    torch.manual_seed(0)
    ViTModel(ViTConfig(image_size=64, patch_size=8, **SMALL)).save_pretrained(tmp_path)
    task = TASKS.build("classification")
    rows = Rows(np.random.default_rng(0).integers(0, 255, (5, 8, 8)).astype(np.uint8), np.arange(5) % 2)
    examples = task.tokenise(rows, tmp_path, 128)
    model = task.model(task.base(tmp_path, torch.float32), 2)
    assert model.features(examples.batch(np.arange(5))).shape == (5, 16)


def test_a_base_that_peft_can_not_put_prompts_into_is_one_sentence(tmp_path):
    config = DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=64)
    DistilBertModel(config).save_pretrained(tmp_path)
    task = TASKS.build("classification")
    model = task.model(task.base(tmp_path, torch.float32), 2)
    with refuses("FP4052", "prompt_tuning", "DistilBertModel"):
        PEFT_METHODS.build("prompt_tuning").attach(model, "fp32")


@pytest.mark.parametrize("pull", ["fedprox(mu=0.5)", "scaffold"])
def test_a_parameter_that_the_loss_does_not_reach_is_pulled_all_the_same(pull, tmp_path):
    """DINOv2 has a mask token, which no image uses: full fine-tuning trains it, and no gradient comes to it."""
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(image_size=32, patch_size=8, mlp_ratio=1, **SMALL)).save_pretrained(tmp_path)
    task, method = TASKS.build("classification"), PEFT_METHODS.build("full")
    rows = Rows(np.random.default_rng(0).integers(0, 255, (6, 8, 8)).astype(np.uint8), np.arange(6) % 2)
    model = task.model(task.base(tmp_path, torch.float32), 2)
    method.attach(model, "fp32")
    start = method.start(model, 0)
    executor = SequentialExecutor(model, task, task.tokenise(rows, tmp_path, 128), method.layout(model))
    push = torch.ones_like(start["embeddings.mask_token"])
    training = LocalTraining(6, optimizer=LOCAL_OPTIMIZERS.build("sgd(head_rate=1.0)"))
    corrections = parse_drift(pull).select_corrections({"scaffold": {"embeddings.mask_token": push}}, {})
    job = Job(client=0, round=1, seed=0, rows=np.arange(6), received=start, trained=frozenset(start), learning_rate=0.1,
              training=training, corrections=corrections)  # fmt: skip
    [trained] = executor.train([job])
    moved = trained.state["embeddings.mask_token"] - start["embeddings.mask_token"]
    expected = -0.1 * push if pull == "scaffold" else torch.zeros_like(push)
    assert torch.allclose(moved, expected)
    assert any(not torch.equal(trained.state[name], start[name]) for name in start)
