"""Sums that rules of tasks ask for: batches of padded rows against one row after another, and answers that are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fedpeft.clients.task_sums import compute_class_sums, compute_input_moments

from fedpeft.conformance.peft_cases import Case
from fedpeft.parts.families import HEADS
from fedpeft.trust.question import ROWS, parse_question
from fedpeft.trust.questions.class_sums import ClassSums
from fedpeft.trust.questions.layer_inputs import LayerInputs
from tests.refusals import refuses

LOTS = (np.arange(0, 9), np.arange(9, 14))


@pytest.fixture(scope="module")
def case(tiny):
    return Case("lora(rank=2, layers=1)", tiny)


def batches(case, lots):
    return [case.rows.batch(lot) for lot in lots]


def test_inputs_of_layers_are_summed_over_real_tokens(case):
    model = case.sequential.model
    found = compute_input_moments(model, batches(case, LOTS), LayerInputs())
    squares = compute_input_moments(model, batches(case, LOTS), LayerInputs(diagonal=True))
    names = [name for name in case.layout.names if name.endswith("lora_A.weight")]
    assert list(found) == names
    seen: dict[str, torch.Tensor] = {}
    layers = dict(model.named_modules())
    for row in range(14):
        hooks = []
        for name in names:
            module = name.removesuffix(".lora_A.weight")
            layer = next(m for path, m in layers.items() if path.endswith(module))

            def note(_, inputs, name=name, row=row):
                x = inputs[0][0, : int(case.rows.lengths[row])].double()  # without padding
                seen[name] = seen.get(name, 0) + x.T @ x

            hooks.append(layer.register_forward_pre_hook(note))
        with torch.no_grad():
            model(case.rows.batch([row]))
        for hook in hooks:
            hook.remove()
    for name in names:
        slow = seen[name]
        assert torch.allclose(found[name], slow[tuple(torch.triu_indices(*slow.shape))], atol=1e-10)
        assert torch.allclose(squares[name], slow.diagonal(), atol=1e-10)
    shapes = {t.name: t.shape for t in case.layout.tensors if t.role in ("lora_A", "lora_B")}
    assert {n: tuple(t.shape) for n, t in found.items()} == LayerInputs().shapes(4, shapes)
    answer = found | {ROWS: torch.tensor([14.0])}
    LayerInputs().check(answer, 14)
    with refuses("FP6174"):
        LayerInputs().check({n: -t for n, t in found.items()} | {ROWS: torch.tensor([14.0])}, 14)
    with refuses("FP6165", "15"):
        LayerInputs().check(answer, 15)


@pytest.mark.parametrize("head", ["centroids", "ridge"])
def test_class_sums_are_those_of_all_rows_together(case, head):
    model = case.sequential.model
    question = ClassSums(width=case.layout.shapes["head.weight"][1], head=head)
    found = compute_class_sums(model, batches(case, LOTS), question, case.classes)
    with torch.no_grad():
        features = torch.cat([model.features(case.rows.batch([row])) for row in range(14)])
    labels = torch.from_numpy(np.asarray(case.rows.labels[:14]))
    slow = HEADS.build(head).statistics(features.double(), labels, case.classes)
    for name, tensor in found.items():
        assert torch.allclose(tensor, slow[name], atol=1e-9), name
    answer = found | {ROWS: torch.tensor([14.0])}
    question.check(answer, 14)
    with refuses("FP6171"):
        question.check({**answer, ROWS: torch.tensor([13.0])}, 13)
    with refuses("FP6170", "3"):
        compute_class_sums(model, batches(case, LOTS), ClassSums(width=3), case.classes)


def test_what_is_asked_is_read_and_written_and_never_answered_from_logits():
    for text in ("layer_inputs", "layer_inputs(diagonal=True)", "class_sums(width=8)"):
        question = parse_question(text)
        assert question.text == text
        assert question.of_model, "which real clients refuse"
        with refuses("FP1440"):
            question.compute_sums(torch.zeros(1, 2), torch.zeros(1))
