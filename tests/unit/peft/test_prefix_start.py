"""What prefixes start as: in a language model keys and values of its own, elsewhere nearly nothing."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM

from fedpeft.data.examples import make_up_batch
from fedpeft.machine import seeds
from fedpeft.parts.families import PEFT_METHODS, TASKS

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
LENGTH = 20
"""More than one made-up row has."""


@pytest.mark.parametrize("peft", ["prefix", "lora + prefix", "bottleneck + prefix"])
def test_in_a_language_model_a_prefix_starts_as_its_own_keys_and_values(peft, tmp_path):
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=2, **SMALL)).save_pretrained(tmp_path)
    task = TASKS.build("causal_lm")
    method = PEFT_METHODS.build(peft.replace("prefix", f"prefix(length={LENGTH}, layers=2)"))
    starts = []
    for noise in (1, 2):  # of other methods' parameters, which nothing may depend on
        torch.manual_seed(noise)
        model = task.model(task.base(tmp_path, torch.float32), None)
        method.attach(model, "fp32")
        starts.append(method.start(model, 7))
    plain = task.base(tmp_path, torch.float32)
    rows = make_up_batch(plain.config, 2, seeds.create_torch_generator(7, "prefix", 0))
    with torch.no_grad():
        kept = plain(**rows, use_cache=True).past_key_values.layers
    for name in [name for name in starts[0] if ".prefix." in name]:
        layer = kept[int(name.split("layers.")[1][0])]
        own = layer.keys if name.endswith("key") else layer.values
        positions = torch.stack([row[:, t].flatten() for row in own for t in range(row.shape[1])])
        assert torch.allclose(starts[0][name], positions[:LENGTH], atol=1e-6)
        assert torch.equal(starts[0][name], starts[1][name])
        assert not torch.allclose(starts[0][name], method.start(model, 8)[name], atol=1e-2)
    prefixes = [module for name, module in model.named_modules() if name.endswith("prefix")]
    assert len(prefixes) == 2
    for prefix in prefixes:
        assert int(prefix.lengths) == LENGTH
        assert not prefix._forward_pre_hooks


@pytest.mark.parametrize("kind", ["bert", "dinov2"])
def test_elsewhere_a_prefix_starts_with_small_keys_and_no_values(kind, tmp_path):
    if kind == "bert":
        BertModel(BertConfig(vocab_size=50, **SMALL)).save_pretrained(tmp_path)
    else:
        Dinov2Model(Dinov2Config(image_size=32, patch_size=8, mlp_ratio=1, **SMALL)).save_pretrained(tmp_path)
    task, method = TASKS.build("classification"), PEFT_METHODS.build("prefix")
    model = task.model(task.base(tmp_path, torch.float32), 2)
    method.attach(model, "fp32")
    start = method.start(model, 7)
    for name, tensor in start.items():
        if name.endswith("prefix.key"):
            assert 0.05 < float(tensor.abs().max()) <= 0.1
            assert not torch.equal(tensor, method.start(model, 8)[name])
        elif name.endswith("prefix.value"):
            assert not tensor.any()
