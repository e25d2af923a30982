"""UniPELT at gates whose outcome is known: the base, the methods joined by +, and half of each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedpeft.conformance.peft_cases import Case
from fedpeft.data.rows import load_dataset
from fedpeft.data.tokens import load_tokenizer
from fedpeft.models.answers.generation import generate_tokens
from fedpeft.models.base_model import resolve_model
from fedpeft.parts.families import PEFT_METHODS, TASKS
from tests.refusals import refuses

METHODS = "lora(rank=4) + prefix(length=5) + bottleneck(dim=6)"
ROWS = np.arange(9)


@pytest.fixture(scope="module")
def tiny_language():
    task, folder = TASKS.build("causal_lm"), resolve_model("tiny_lm")
    return task, task.tokenise(load_dataset("tiny_lm").train.take(ROWS), folder, 16), folder, 0


@pytest.fixture(params=["encoder", "language model"])
def kind(request, tiny, tiny_language):
    return tiny if request.param == "encoder" else tiny_language


def compute_logits(case, state):
    case.sequential.load(state)
    with torch.no_grad():
        return case.model.eval()(case.rows.batch(ROWS))


def set_gates(state, bias):
    """Return the state with all gates at sigmoid(bias)."""
    changed = {n: torch.zeros_like(t) if n.endswith("_gate.linear.weight") else t for n, t in state.items()}
    return {n: torch.full_like(t, bias) if n.endswith("_gate.linear.bias") else t for n, t in changed.items()}


def test_open_gates_are_the_joined_methods_and_closed_ones_the_base(kind):
    gated, joined = Case(f"unipelt(methods='{METHODS}')", kind), Case(METHODS, kind)
    state = {n: 3 * t for n, t in gated.start.items()}
    own = {n: t for n, t in state.items() if "_gate." not in n}
    assert own.keys() == joined.start.keys()
    together = compute_logits(joined, own)
    torch.testing.assert_close(compute_logits(gated, set_gates(state, 50.0)), together, rtol=0, atol=1e-10)
    without = {n: t if n.startswith("head.") else torch.zeros_like(t) for n, t in own.items()}
    plain = Case("lora(rank=4)", kind)
    base = compute_logits(plain, {n: t for n, t in without.items() if n in plain.start})
    torch.testing.assert_close(compute_logits(gated, set_gates(state, -800.0)), base, rtol=0, atol=1e-10)
    assert float((together - base).abs().max()) > 0.01


def test_half_a_gate_is_half_the_scale(tiny):
    gated, half = Case("unipelt(methods='lora(rank=4, alpha=32)')", tiny), Case("lora(rank=4, alpha=16)", tiny)
    own = {n: t for n, t in gated.start.items() if "_gate." not in n}
    torch.testing.assert_close(
        compute_logits(gated, set_gates(gated.start, 0.0)), compute_logits(half, own), rtol=0, atol=1e-10
    )
    assert all(not bool(t.any()) for n, t in gated.first.items() if "_gate." in n), "gates start at a half"


def test_a_gate_depends_on_its_token_alone(tiny):
    """Examples of a padded batch have the outputs that each has alone."""
    case = Case(f"unipelt(methods='{METHODS}')", tiny)
    state = {n: 10 * t if "_gate." in n else t for n, t in case.start.items()}
    together = compute_logits(case, state)
    with torch.no_grad():
        alone = torch.cat([case.model(case.rows.batch(np.array([row]))) for row in ROWS])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)


def test_cached_answers_are_those_of_whole_passes(tiny_language):
    case = Case(f"unipelt(methods='{METHODS}')", tiny_language)
    case.sequential.load({n: 5 * t for n, t in case.start.items()})
    prompts = [[5, 6], [12, 8, 9]]
    answers = generate_tokens(case.model.eval(), load_tokenizer(case.folder), prompts, 4)
    assert sum(map(len, answers)) > 3
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        for token in answer:
            batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
            with torch.no_grad():
                assert int(case.model.predict(batch)[0, -1].argmax()) == token
            ids.append(token)


def test_other_methods_have_no_gate():
    with refuses("FP1633", "ia3"):
        PEFT_METHODS.build("unipelt(methods='lora + ia3')")
