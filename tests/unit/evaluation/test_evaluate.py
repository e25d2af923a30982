"""Evaluation of finished runs: answers in batches, choices by likelihood, metrics, clients side by side, mistakes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from fedpeft.data.conversations import tokenize_row
from fedpeft.evaluate.__main__ import select_evenly
from fedpeft.evaluate.evaluation import QuestionAnswers
from fedpeft.models.answers.generation import answer_prompts, generate_tokens
from fedpeft.models.answers.likelihood import choose_answers
from fedpeft.models.answers.metric import NeedsLibrary, RunsTests, ScoresTogether
from fedpeft.models.answers.questions import QuestionForm, parse_question, read_questions
from fedpeft.parts.families import METRICS, PEFT_METHODS, TASKS
from tests.refusals import refuses
from tests.runs.evaluation.test_evaluate import conversation


@pytest.mark.parametrize(
    ("spec", "noise"),
    [
        ("lora", 0.1),
        ("prompt_tuning(length=3)", 0.1),
        ("prefix_tuning(length=3)", 0.1),
        ("bottleneck", 0.01),
        ("ia3", 0.1),
    ],
)
def test_batched_answers_are_those_of_one_prompt_at_a_time(chat_model, spec, noise):
    task = TASKS.build("instruction")
    model = task.model(task.base(chat_model, torch.float32), 0)
    PEFT_METHODS.build(spec).attach(model, "fp32")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    prompts = [[2, *range(4 + i, 6 + 2 * i)] for i in (5, 1, 9, 3, 1, 7, 2)]
    plain = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        for _ in range(12):  # no cache, no padding, no library's loop
            with torch.no_grad():
                logits = model.base(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
            if ids[0, -1] == 3:
                break
        plain.append(tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True).strip())
    assert len(set(plain)) > 1
    for batch in (1, 3, 16):
        assert answer_prompts(model, tokenizer, prompts, 12, batch) == plain


def test_an_answer_ends_where_the_model_ends_it(chat_model):
    task = TASKS.build("causal_lm")
    model = task.model(task.base(chat_model, torch.float32), 0).eval()
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    free = generate_tokens(model, tokenizer, [[2, 9], [2, 30, 31]], 8)
    model.base.generation_config.eos_token_id = free[0][3]
    stopped = generate_tokens(model, tokenizer, [[2, 9], [2, 30, 31]], 8)
    assert stopped[0] == free[0][: free[0].index(free[0][3])]


def test_short_choices_are_not_favoured_by_length(tmp_path):
    path = tmp_path / "exam.jsonl"
    path.write_text(json.dumps({"question": "x", "choices": ["ab", "abcdefgh"], "answer": 0}) + "\n")
    [question] = read_questions(str(path), QuestionForm(True))
    assert choose_answers(question, np.array([-2.0, -4.0])) == (0, 1)


LIBRARIES = {"rouge_l": "rouge_score", "bleu": "sacrebleu", "chrf": "sacrebleu"}


def skip_without_library(name):
    if name in LIBRARIES:
        pytest.importorskip(LIBRARIES[name])


@pytest.mark.parametrize(
    "name", [name for name in METRICS.names if not isinstance(METRICS.build(name), RunsTests)]
)  # those of code: tests/unit/evaluation/test_code.py
def test_every_metric_is_between_nothing_and_the_same(name):
    skip_without_library(name)
    metric = METRICS.build(name)
    if isinstance(metric, NeedsLibrary):
        metric.check()
    assert metric.score("the green door", ["a red house", "the green door"]) == 1.0
    assert metric.score("mint", ["a red house"]) == 0.0  # no letter in common
    assert metric.score("", ["a red house"]) == 0.0
    assert METRICS.part(name).__doc__


@pytest.mark.parametrize(
    ("name", "said", "right", "expected"),
    [
        ("exact_match", " Oslo\n", ["Oslo"], 1.0),
        ("exact_match", "oslo", ["Oslo"], 0.0),
        ("f1", "The answer is Oslo.", ["Oslo"], 0.5),  # 1 of 3 words (without the article), all of 1
        ("f1", "red green blue", ["blue green"], 0.8),
        ("rouge_l", "police kill the gunman", ["police killed the gunman"], 0.75),  # Lin (2004), section 3
        ("rouge_l", "the gunman kill police", ["police killed the gunman"], 0.5),
    ],
)
def test_metrics_by_hand(name, said, right, expected):
    skip_without_library(name)
    assert METRICS.build(name).score(said, right) == pytest.approx(expected)


def test_bleu_and_chrf_count_over_all_answers_by_hand():
    pytest.importorskip("sacrebleu")
    said, right = ["the cat sat on the mat", "a b"], [["the cat sat on the mat"], ["a c", "x"]]
    # 7 of 8 words, 5 of 6 pairs, all 4 triples and all 3 quadruples; the lengths are equal
    precisions = (7 / 8) * (5 / 6) * 1 * 1
    assert METRICS.build("bleu").score_all(said, right) == pytest.approx(precisions**0.25)
    mean = sum(METRICS.build("bleu").score(one, answers) for one, answers in zip(said, right, strict=True)) / 2
    assert METRICS.build("bleu").score_all(said, right) > mean + 0.1
    # half of the letters are right, and no pair: (1/2 + 0) / 2 for precision and for recall
    assert METRICS.build("chrf").score_all(["ab"], [["ac"]]) == pytest.approx(0.25)
    assert METRICS.build("chrf").score_all(["AB"], [["ab"]]) == 0
    assert METRICS.build("chrf(lowercase=True)").score_all(["AB"], [["ab"]]) == 1
    assert not isinstance(METRICS.build("exact_match"), ScoresTogether)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "x", "anser": "y"}, ("FP3006", "line 2 of", "q.jsonl", "answer", "did you mean 'anser")),
        ({"answer": "y"}, ("FP3006", "line 2 of", "q.jsonl", "no column 'question")),
        ({"question": " ", "answer": "y"}, ("FP3007", "line 2 of", "q.jsonl")),
        ({"question": "x", "answer": []}, ("FP3009", "line 2 of", "q.jsonl", "answer")),
        ({"question": "x", "choices": ["a"], "answer": 0}, ("FP3008", "line 2 of", "q.jsonl")),
        ({"question": "x", "choices": ["a", "a"], "answer": 0}, ("FP3008", "line 2 of", "q.jsonl")),
        ({"question": "x", "choices": ["a", "b"], "answer": "C"}, ("FP3011", "line 2 of", "q.jsonl", "C", "2")),
        ({"question": "x", "choices": ["a", "b"], "answer": 2}, ("FP3011", "line 2 of", "q.jsonl", "2", "2")),
        ({"question": "x", "choices": [2, 3, 4], "answer": 2}, ("FP3010", "line 2 of", "q.jsonl", "2")),
        ({"question": "x", "choices": list(range(27)), "answer": "none"}, ("FP3011", "line 2 of", "q.jsonl", "Z")),
        ({"messages": [{"role": "user", "content": "x"}]}, ("FP3016", "line 2 of", "q.jsonl")),
    ],
)
def test_a_broken_question_is_one_sentence(tmp_path, row, said):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": "fine", "answer": "yes"}) + "\n" + json.dumps(row) + "\n")
    with refuses(*said):
        read_questions(str(path), QuestionForm(True))


def test_a_prompt_is_what_stood_before_the_answer_in_training(chat_model):
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    messages = [*conversation(1), *conversation(2)]
    question = parse_question(json.dumps([*messages, {"role": "user", "content": "never answered"}]))
    ids, counted = tokenize_row(tokenizer, json.dumps(messages))
    prompt = question.tokenize_prompt(tokenizer)
    assert ids[: len(prompt)] == prompt
    assert all(counted[len(prompt) :])
    assert question.right == (messages[3]["content"],)


def test_shown_questions_are_spread_evenly():
    assert [one.question for one in select_evenly([QuestionAnswers(str(i), ["x"]) for i in range(9)])] == [
        "1",
        "4",
        "7",
    ]
    assert [one.question for one in select_evenly([QuestionAnswers("0", ["x"])])] == ["0"]
