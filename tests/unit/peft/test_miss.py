"""MiSS against the change of the weight, written out."""

import numpy as np
import pytest
import torch
from torch import nn

from fedpeft.conformance.peft_cases import Case
from fedpeft.peft.methods.miss import StackedMiSS, sum_blocks


@pytest.mark.parametrize("width", [12, 11, 3])
def test_blocks_are_summed_entry_by_entry(width):
    x = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([x[..., j::4].sum(-1) for j in range(4)], dim=-1)
    assert torch.allclose(sum_blocks(x, 4), expected)


@pytest.mark.parametrize("width", [12, 11])
def test_the_weight_changes_by_a_row_of_d_for_each_column(width):
    """dW[:, j] = D[j mod r, :], for each of two clients."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(width, 7).double()
    stacked = StackedMiSS(layer, (4, 7), 2)
    D = torch.randn(2, 4, 7, generator=generator, dtype=torch.float64)
    stacked.miss_block.data = D
    x = torch.eye(width, dtype=torch.float64).repeat(2, 1)
    found = (stacked(x) - layer(x)).view(2, width, 7)
    for k in range(2):
        for j in range(width):
            assert torch.allclose(found[k, j], D[k, j % 4])


def test_the_mean_of_d_is_the_mean_of_what_clients_compute_in_a_layer(tiny):
    """One adapted layer, read before any nonlinearity: the output is linear in D."""
    case = Case("miss(rank=8, targets='query', layers=1)", tiny)
    name = next(n for n in case.layout.names if n.endswith("miss_block"))
    layer = case.model.base.get_base_model().get_submodule(name.removesuffix(".miss_block"))
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    outputs, states = [], []
    for seed in range(3):
        states.append(torch.randn(case.layout.shapes[name], generator=torch.Generator().manual_seed(seed)).double())
        case.sequential.load(case.first | {name: states[-1]})
        outputs.append(layer(x))
    case.sequential.load(case.first | {name: sum(states) / 3})
    assert torch.allclose(layer(x), sum(outputs) / 3)


def test_it_has_half_the_numbers_of_lora_on_a_square_layer(tiny):
    def adapter(spec):
        return sum(t.numel for t in Case(spec, tiny).layout.tensors if t.role != "head")

    assert 2 * adapter("miss(rank=4, targets='query')") == adapter("lora(rank=4, targets='query')")


def test_merging_keeps_the_answers(tiny):
    case = Case("miss(rank=5)", tiny)
    rows = np.arange(10)
    expected = case.sequential.compute_logits(case.start, rows)
    case.sequential.load(case.start)
    case.model.requires_grad_(False)
    case.model.base = case.method.merge_adapter(case.model)
    batch = case.rows.batch(rows)
    with torch.no_grad():
        assert torch.allclose(case.model(batch).double(), expected, atol=1e-9)
