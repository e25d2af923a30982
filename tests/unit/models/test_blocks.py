"""Which transformer blocks a method adapts: so many uppermost, or those that are named."""

from __future__ import annotations

import pytest
from torch import nn
from transformers import AutoConfig, AutoModel

from fedpeft.models.layers import choose_blocks
from fedpeft.parts.families import PEFT_METHODS
from fedpeft.peft.hybrid import Hybrid
from tests.refusals import refuses


def base():
    return nn.Sequential(nn.ModuleList(nn.Linear(2, 3) for _ in range(4)))


@pytest.mark.parametrize(
    ("layers", "found"),
    [(0, [0, 1, 2, 3]), (1, [3]), (4, [0, 1, 2, 3]), ((0,), [0]), ((3, 1), [1, 3])],
)
def test_blocks_by_number_or_by_index(layers, found):
    assert list(choose_blocks(base(), layers)) == [f"0.{i}" for i in found]


@pytest.mark.parametrize("layers", [5, (), (4,), (-1,), (1, 1)])
def test_blocks_that_are_not_there_are_refused(layers):
    with refuses("FP4026" if layers == 5 else "FP4025", f"layers={layers}", "lora"):
        choose_blocks(base(), layers, "lora")


@pytest.mark.parametrize(("depth", "found"), [(2, [0, 1]), (4, [0, 1, 2, 3]), (6, [2, 3, 4, 5])])
def test_where_nothing_is_said_it_is_the_uppermost_or_all(depth, found):
    model = nn.Sequential(nn.ModuleList(nn.Linear(2, 3) for _ in range(depth)))
    assert PEFT_METHODS.build("lora").layers is None
    assert list(choose_blocks(model, None)) == [f"0.{i}" for i in found]


def test_where_nothing_is_said_a_model_of_images_is_adapted_in_all():
    size = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 6, "intermediate_size": 8}
    images = AutoModel.from_config(AutoConfig.for_model("vit", image_size=28, patch_size=14, **size))
    texts = AutoModel.from_config(AutoConfig.for_model("bert", vocab_size=9, **size))
    for model, first in ((images, 0), (texts, 2)):
        assert [int(path.rpartition(".")[2]) for path in choose_blocks(model, None)] == list(range(first, 6))
        assert len(choose_blocks(model, 2)) == 2


def test_methods_of_a_hybrid_name_blocks_of_their_own():
    hybrid = PEFT_METHODS.build("lora(rank=4, layers=(0, 3)) + bottleneck(dim=2, layers=(1,))")
    assert isinstance(hybrid, Hybrid)
    assert [part.layers for part in hybrid.parts] == [(0, 3), (1,)]
