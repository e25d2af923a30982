"""P-tuning at its places against sequences that are put together by hand, and its network against its formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedpeft.conformance.peft_cases import Case
from fedpeft.data.rows import load_dataset
from fedpeft.data.tokens import load_tokenizer
from fedpeft.models.answers.generation import generate_tokens
from fedpeft.models.base_model import resolve_model
from fedpeft.models.layers import unwrap
from fedpeft.parts.families import PEFT_METHODS, TASKS
from tests.refusals import refuses

PLACED = "p_tuning(length=5, hidden=12, encoder=lstm, after=(0, 3))"
BEFORE = [0, 0, 0, 3, 3]
"""Number of tokens before each position of the prompt."""


@pytest.fixture(scope="module")
def tiny_language():
    task, folder = TASKS.build("causal_lm"), resolve_model("tiny_lm")
    return task, task.tokenise(load_dataset("tiny_lm").train.take(np.arange(20)), folder, 24), folder, 0


def load_case(spec, tiny):
    case = Case(spec, tiny)
    case.sequential.load({n: 5 * t if "mlp_head" in n else t for n, t in case.start.items()})  # so that prompts matter
    return case


def run_by_hand(case, ids):
    """Return the plain base's outputs for one example, and where its tokens and its prompt's positions stand."""
    base, prompt = unwrap(case.model.base), case.model.base.get_prompt(1)[0]
    embedded, order = base.get_input_embeddings()(ids), []
    for token in range(len(ids) + 1):
        order += [("prompt", k) for k, before in enumerate(BEFORE) if min(before, len(ids)) == token]
        order += [("token", token)] if token < len(ids) else []
    sequence = torch.stack([prompt[k] if kind == "prompt" else embedded[k] for kind, k in order])
    hooks = [(m, dict(m._forward_pre_hooks), dict(m._forward_hooks)) for m in base.modules()]
    for module, _, _ in hooks:
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    try:
        output = (
            base(inputs_embeds=sequence[None], use_cache=False)
            if case.classes == 0
            else base(inputs_embeds=sequence[None])
        )
    finally:
        for module, before, after in hooks:
            module._forward_pre_hooks.update(before)
            module._forward_hooks.update(after)
    return output, order


def test_an_encoder_pools_the_tokens_around_the_prompt(tiny):
    case = load_case(PLACED, tiny)
    batch = case.rows.batch(np.arange(9))
    assert len({int(n) for n in batch["attention_mask"].sum(1)}) > 1, "examples of one batch differ in length"
    with torch.no_grad():
        features = case.model.features(batch)
        for row, ids in enumerate(batch["input_ids"]):
            output, order = run_by_hand(case, ids[batch["attention_mask"][row].bool()])
            tokens = [place for place, (kind, _) in enumerate(order) if kind == "token"]
            torch.testing.assert_close(features[row], output.last_hidden_state[0, tokens].mean(0))


def test_a_language_model_predicts_each_token_from_what_stands_before_it(tiny_language):
    case = load_case(PLACED, tiny_language)
    batch = case.rows.batch(np.arange(4))
    with torch.no_grad():
        logits = case.model(batch)
        for row, ids in enumerate(batch["input_ids"]):
            ids = ids[batch["attention_mask"][row].bool()]
            output, order = run_by_hand(case, ids)
            before = [place - 1 for place, (kind, k) in enumerate(order) if kind == "token" and k > 0]
            torch.testing.assert_close(logits[row, : len(ids) - 1], output.logits[0, before])
        losses = case.task.row_losses(case.model, batch)
        whole = case.task.losses(logits, batch)
    torch.testing.assert_close(losses.sums, whole.sums)
    assert not case.method.in_peft, "peft would load it as a prefix"


def test_answers_are_those_of_one_token_after_the_other(tiny_language):
    case = load_case(PLACED, tiny_language)
    tokenizer, texts = load_tokenizer(case.folder), [[5, 6], [7, 8, 9, 10, 11], [12]]
    answers = generate_tokens(case.model, tokenizer, texts, 4)
    assert sum(map(len, answers)) > 4
    for prompt, answer in zip(texts, answers, strict=True):
        ids = list(prompt)
        for token in answer:
            with torch.no_grad():
                # a text that has not reached the place yet is continued as without the second half of the prompt
                output, order = run_by_hand(case, torch.tensor(ids))
                last = max(p for p, (kind, k) in enumerate(order) if kind == "token" or BEFORE[k] <= len(ids))
            assert int(output.logits[0, last].argmax()) == token
            ids.append(token)


def test_the_network_is_the_one_that_is_described(tiny):
    case = load_case("p_tuning(length=5, hidden=12, encoder=lstm)", tiny)
    state = {n: p.double() for n, p in case.sequential.parameters.items()}
    embedding = state["prompt_encoder.embedding.weight"]
    lstm = nn.LSTM(embedding.shape[1], 12, num_layers=2, bidirectional=True, batch_first=True).double()
    lstm.load_state_dict({n.rpartition(".")[2]: t for n, t in state.items() if ".lstm_head." in n})
    with torch.no_grad():
        seen = lstm(embedding[None])[0][0]
        for index, act in ((0, torch.relu), (2, lambda x: x)):
            layer = f"prompt_encoder.mlp_head.{index}"
            seen = act(seen @ state[f"{layer}.weight"].T + state[f"{layer}.bias"])
        torch.testing.assert_close(case.model.base.get_prompt(1)[0].double(), seen)


@pytest.mark.parametrize("after", ["(3, 0)", "(0, 0)", "(-1, 2)", "(0, 1, 2)", "()"])
def test_places_are_ascending_and_not_more_than_positions(after):
    with refuses("FP1631", f"after={after}"):
        PEFT_METHODS.build(f"p_tuning(length=2, after={after})")
