"""LoRA-FA: only B is trained, and dropout acts on the input of the frozen A."""

from __future__ import annotations

import torch
from torch import nn

from fedpeft.peft.methods.lora_fa import StackedLoraFA


def make_layer(dropout):
    torch.manual_seed(0)
    layer = StackedLoraFA(nn.Linear(6, 5), torch.randn(2, 6), (5, 2), 1, dropout)
    nn.init.normal_(layer.lora_B.weight)
    return layer


def test_dropout_acts_in_training_alone():
    x = torch.randn(3, 4, 6)
    plain, dropping = make_layer(0.0), make_layer(0.5)
    assert torch.equal(plain.train()(x), plain.eval()(x))
    assert torch.equal(dropping.eval()(x), plain(x))
    assert not torch.allclose(dropping.train()(x), plain(x))
