"""Bases that count positions, or cut images, in other ways than those that come with fedpeft."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import (
    MambaConfig,
    MambaModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from fedpeft.parts.families import PEFT_METHODS, TASKS
from tests.refusals import refuses


def test_of_mamba_the_layers_that_can_be_named_are_named(tmp_path):
    torch.manual_seed(0)
    MambaModel(MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4)).save_pretrained(tmp_path)
    task = TASKS.build("classification")
    model = task.model(task.base(tmp_path, torch.float32), 2)
    with refuses("FP4084", "lora", "out_proj", "MambaModel") as refused:
        PEFT_METHODS.build("lora").attach(model, "fp32")
    assert "PeftType" not in str(refused.value)
    assert "('dt_proj', 'in_proj', 'x_proj')" in str(refused.value)
    named = re.search(r'--peft "(.*)"', str(refused.value))[1]
    model = task.model(task.base(tmp_path, torch.float32), 2)
    PEFT_METHODS.build(named).attach(model, "fp32")
    assert any("lora_A" in name for name, _ in model.base.named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_model_of_sounds_is_refused_by_what_it_reads(tmp_path, dtype):
    """No precision helps it, so none is proposed."""
    size = dict.fromkeys(("encoder_layers", "decoder_layers"), 1) | dict.fromkeys(
        ("encoder_attention_heads", "decoder_attention_heads"), 2
    )
    config = WhisperConfig(vocab_size=50, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, pad_token_id=0,
                           bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, **size)  # fmt: skip
    WhisperForConditionalGeneration(config).save_pretrained(tmp_path)
    with refuses("FP4083", "input_features") as refused:
        TASKS.build("classification").base(tmp_path, dtype)
    assert "--dtype" not in str(refused.value)
