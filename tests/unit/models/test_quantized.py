"""Quantized bases: layers compute with the values of `round_to_quantized`.

This holds forward and backward, before and after an evaluation.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModel

from fedpeft.models.base_model import resolve_model
from fedpeft.models.layers import find_linear_layers
from fedpeft.models.quantized_base import PRECISIONS, quantize, round_to_quantized
from tests.refusals import refuses


def bases():
    made = [AutoModel.from_pretrained(resolve_model("tiny"), dtype=torch.float32).requires_grad_(False) for _ in "ab"]
    return made[0].eval(), made[1].eval()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_quantized_base_computes_with_the_named_values(precision):
    plain, packed = bases()
    quantize(packed, precision)
    for path, layer in find_linear_layers(plain).items():
        expected = round_to_quantized(layer.weight, precision)
        error = float((expected - layer.weight).norm() / layer.weight.norm())
        assert 0 < error < {"nf4": 0.12, "int8": 0.02}[precision], path
        assert torch.equal(packed.get_submodule(path).values(), expected)
        layer.weight.data = expected
    ids = torch.arange(4, 24).view(2, 10)
    for _ in range(2):  # evaluation, then a training step, twice: nothing is repacked in between
        with torch.no_grad():
            assert torch.allclose(packed(ids).last_hidden_state, plain(ids).last_hidden_state, atol=1e-5)
        gradients = []
        for model in (packed, plain):
            x = model.get_input_embeddings()(ids).detach().requires_grad_(True)
            model(inputs_embeds=x).last_hidden_state.square().sum().backward()
            gradients.append(x.grad)
        assert torch.allclose(*gradients, atol=1e-4)


def test_bytes_shrink():
    packed, plain = bases()
    quantize(packed, "nf4")
    layers = list(find_linear_layers(plain).items())
    held = sum(packed.get_submodule(path).weight.nbytes for path, _ in layers)
    whole = sum(layer.weight.nbytes for _, layer in layers)
    assert 1 <= held * 8 / whole < 1.01  # blocks of 64 are filled up


def test_what_can_not_be_quantized_is_one_sentence(monkeypatch):
    layer = nn.ModuleList([nn.Sequential(nn.Linear(8, 4))]).requires_grad_(False)
    model = nn.Module()
    model.blocks = layer
    with refuses("FP1209", "int3", "nf4, int8"):
        quantize(model, "int3")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with refuses("FP1210"):
        quantize(model, "nf4")
