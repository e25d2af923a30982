"""Prefix-Tuning+: its size, its start, and what it computes, against the formula written out."""

from __future__ import annotations

import torch
from transformers import BertConfig, BertModel

from fedpeft.conformance.peft_cases import Case
from fedpeft.parts.families import PEFT_METHODS, TASKS
from tests.refusals import refuses


def of_size(spec, hidden, blocks, heads):
    """Numbers that the method trains in a BERT of this size, the head aside."""
    sizes = {"hidden_size": hidden, "num_hidden_layers": blocks, "num_attention_heads": heads, "intermediate_size": 8}
    base = BertModel(BertConfig(vocab_size=8, **sizes))
    base.requires_grad_(False)
    model = TASKS.build("classification").model(base, 2)
    method = PEFT_METHODS.build(spec)
    method.attach(model, "fp32")
    return sum(t.numel for t in method.layout(model).tensors if t.role != "head")


def test_it_has_as_many_numbers_as_the_paper_s_formula():
    """Blocks * heads * d^2: in MiniLM what lora has at rank 8 on queries and values."""
    mini = (384, 6, 12)
    assert of_size("prefix_tuning_plus(layers=0)", *mini) == 6 * 12 * 32**2 == 73_728
    assert of_size("lora(rank=8, layers=0, targets=('query', 'value'))", *mini) == 73_728
    assert of_size("prefix_tuning_plus", *mini) == 4 * 12_288


def test_it_adds_features_of_the_query_times_m_to_each_head(tiny):
    case = Case("prefix_tuning_plus(layers=1)", tiny)
    name = "encoder.layer.2.attention.self"
    prefix_matrix = case.start[f"{name}.prefix_plus.M"].view(4, 12, 12)
    module = case.model.base.get_submodule(name)
    seen = {}
    module.query.register_forward_hook(lambda *call: seen.update(query=call[2]))
    module.register_forward_hook(lambda *call: seen.update(output=call[2][0]))
    batch = case.rows.batch(torch.arange(7).numpy())
    with torch.no_grad():
        case.sequential.load(case.first)
        case.model(batch)
        plain = seen["output"]
        case.sequential.load(case.start)
        case.model(batch)
    query = seen["query"].unflatten(-1, (4, 12))
    phi = torch.where(query > 0, query, query.exp() - 1)
    expected = torch.stack([phi[:, :, h] @ prefix_matrix[h] for h in range(4)], dim=2).flatten(2)
    assert torch.allclose(seen["output"] - plain, expected, atol=1e-12)
    assert float(expected.abs().max()) > 0.01


def test_at_first_it_is_the_plain_base(tiny):
    case = Case("prefix_tuning_plus", tiny)
    batch = case.rows.batch(torch.arange(5).numpy())
    plain = case.task.model(case.task.base(case.folder, torch.float64), case.classes)
    case.sequential.load(case.first)
    with torch.no_grad():
        assert torch.allclose(case.model.features(batch), plain.features(batch), atol=1e-13)


def test_prefix_alone_still_means_prefix_tuning():
    assert PEFT_METHODS.build("prefix(length=3)") == PEFT_METHODS.build("prefix_tuning(length=3)")
    assert PEFT_METHODS.build("prefix_tuning_p").name == "prefix_tuning_plus"
    with refuses("FP1231", "p"):
        PEFT_METHODS.build("p")


def test_more_blocks_than_there_are_is_said(tiny):
    with refuses("FP4026", "4", "prefix_tuning_plus", "3"):
        Case("prefix_tuning_plus(layers=4)", tiny)
