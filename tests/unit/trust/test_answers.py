"""Trust in answers of language models: scores of choices, free answers, changed prompts, and exposure of secrets."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fedpeft.clients.curvature import compute_kronecker_sums, compute_logit_gradients
from fedpeft.clients.lora_layers import find_lora_layers

from fedpeft.data.made_words import WORDS
from fedpeft.data.rows import load_dataset
from fedpeft.data.secrets import Secrets
from fedpeft.data.tokens import load_tokenizer
from fedpeft.models.answers.exam import Exam
from fedpeft.models.answers.questions import Question, QuestionForm, read_questions
from fedpeft.models.base_model import resolve_model
from fedpeft.parts.families import DATASETS, MEASUREMENTS, PEFT_METHODS, TASKS
from fedpeft.simulation.language import build_choice_batches, center, measure_prompts, score_choices
from fedpeft.trust.answers import calibrate_choices, calibrate_free_answers, pad_scores
from fedpeft.trust.exposure import bound_mean_exposure, compute_exposures, compute_group_terms
from fedpeft.trust.kronecker import apply_probit
from fedpeft.trust.prompt_changes import FRAMES, check_letters, frame_questions, list_choices
from fedpeft.wiring.setup import load_adapted_model
from tests.refusals import refuses

FORM = QuestionForm(asks=False)


def create_question(number, choices=3):
    words = [WORDS[(7 * number + i) % len(WORDS)] for i in range(4 + choices)]
    asked, said = " ".join(words[:4]), tuple(words[4:])
    return Question(FORM.pack_row(asked, said[0], "here"), asked, (said[number % choices],), said)


@pytest.fixture(scope="module")
def tiny():
    folder = resolve_model("tiny_lm")
    method = PEFT_METHODS.build("lora(rank=2, layers=1)")
    model = load_adapted_model(TASKS.build("causal_lm"), folder, method, "fp32", 0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for linear in find_lora_layers(model).values():
            linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator) / 4)
    return model, load_tokenizer(folder)


def create_exam(count=6, choices=3):
    return Exam(tuple(create_question(n, choices) for n in range(count)), "exact_match", 3, " ")


# ------------------------------------------------------------------------------------------------------------ questions


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "say: what? now", "answer": "x"}, {"prompt": "say: why? now", "answer": "x"}),
        ({"source": "what?", "target": "x"}, {"source": "why?", "target": "x"}),
        (
            [{"role": "system", "content": "what?"}, {"role": "user", "content": "what?"},
             {"role": "assistant", "content": "x"}],
            [{"role": "system", "content": "what?"}, {"role": "user", "content": "why?"},
             {"role": "assistant", "content": "x"}],
        ),
    ],
)  # fmt: skip
def test_only_the_question_gets_other_words(row, expected):
    made = Question(json.dumps(row), "what?", ("x",)).reword("why?")
    assert json.loads(made.row) == expected
    assert (made.asked, made.right) == ("why?", ("x",))


def test_a_prompt_without_the_question_is_not_left_as_it_is(tmp_path):
    (tmp_path / "loud.jinja").write_text("{{ instruction | upper }}")
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "what?", "answer": "x"}))
    form = QuestionForm(asks=True, template=str(tmp_path / "loud.jinja"))
    (question,) = read_questions(str(tmp_path / "q.jsonl"), form)
    with refuses("FP3582", "what?"):
        question.reword("why?")


def test_a_conversation_may_have_choices(tmp_path):
    said = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"messages": said, "choices": ["3", "4"]}))
    (question,) = read_questions(str(file), QuestionForm(asks=True))
    assert (question.choices, question.right) == (("3", "4"), ("4",))
    file.write_text(json.dumps({"messages": said, "choices": ["3", "5"]}))
    with refuses("FP3011"):
        read_questions(str(file), QuestionForm(asks=True))


def test_listed_choices_keep_their_meaning_in_every_rotation():
    question = replace(create_question(1), choices=("a", "b", "c"), right=("b",))
    for shift in range(3):
        listed = list_choices(question, shift)
        lines = dict(line.split(". ") for line in listed.asked.splitlines()[1:-1])
        assert [lines[letter] for letter in listed.choices] == ["a", "b", "c"]
        assert lines[listed.right[0]] == "b"
    assert len({list_choices(question, shift).right for shift in range(3)}) == 3
    framed = frame_questions([question], FRAMES[0])[0]
    assert framed.asked == f"Question: {question.asked}"
    assert framed.choices == question.choices


# ---------------------------------------------------------------------------------------------------------- calibration


def test_scores_become_logits_by_sum_or_by_length():
    questions = [
        Question("", "", ("a",), ("a", "bbb")),
        Question("", "", ("a",), ("a", "b", "c")),
    ]
    scores = [np.array([-1.0, -3.0]), np.array([-1.0, -2.0, -3.0])]
    assert pad_scores(questions, scores, by_length=False).tolist() == [[-1, -3, -math.inf], [-1, -2, -3]]
    assert pad_scores(questions, scores, by_length=True)[0].tolist() == [-2, -2, -math.inf]  # the mean length is 2


def test_the_calibration_of_choices_is_that_of_a_classifier(tiny):
    from fedpeft.models.calibration import fit_temperature

    exam = create_exam(8)
    found = calibrate_choices(exam, *tiny, bins=5, by_length=False)
    logits = np.stack(exam.score_choices(*tiny))
    labels = np.array([n % 3 for n in range(8)])
    assert found["temperature"] == pytest.approx(fit_temperature(logits[::2], labels[::2]))
    chances = torch.from_numpy(logits[1::2]).softmax(-1).numpy()
    assert found["before"]["rows"] == found["fitted_on"] == 4
    assert found["before"]["accuracy"] == (chances.argmax(1) == labels[1::2]).mean()
    brier = np.square(chances - np.eye(3)[labels[1::2]]).sum(1).mean()
    assert found["before"]["brier"] == pytest.approx(brier)


def test_the_confidence_of_a_free_answer_is_its_probability_with_its_end(tiny):
    model, tokenizer = tiny
    exam = Exam(tuple(replace(q, choices=()) for q in create_exam(3).questions), "exact_match", 2, " ")
    said = [texts[0] for texts in exam.answer(*tiny)]
    scores = exam.score_answers(model, tokenizer, said)
    prompt = exam.questions[0].tokenize_prompt(tokenizer)
    answer = [*tokenizer(f" {said[0]}", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logs = model.base(input_ids=torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    expected = sum(float(logs[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))
    assert scores[0] == pytest.approx(expected, rel=1e-4)

    right = replace(exam, questions=(replace(exam.questions[0], right=(said[0],)), *exam.questions[1:]))
    found = calibrate_free_answers(right, *tiny, bins=15, by_length=False)
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["confidence"] == pytest.approx(np.exp(scores).mean())
    assert found["brier"] == pytest.approx(np.square(np.exp(scores) - [1, 0, 0]).mean())
    one_bin = calibrate_free_answers(right, *tiny, bins=1, by_length=False)
    assert one_bin["error"] == pytest.approx(abs(1 / 3 - np.exp(scores).mean()))
    longer = calibrate_free_answers(right, *tiny, bins=15, by_length=True)
    assert longer["confidence"] == pytest.approx(np.exp(scores / 3).mean())  # two tokens and the end


# ----------------------------------------------------------------------------------------------------------- robustness


def test_changes_are_counted_against_the_unchanged_answers(tiny):
    found = measure_prompts(2, create_exam(4), *tiny, seed=0)
    assert [point["strength"] for point in found["typos"]] == [0.05, 0.1, 0.2]
    for point in (found["clean"], *found["typos"], found["frames"], found["order"]):
        assert 0 <= point["worst"] <= point["accuracy"] <= 1
    assert found["clean"]["unchanged"] == 1
    assert found["order"]["worst"] <= found["order"]["listed"]
    assert found == measure_prompts(2, create_exam(4), *tiny, seed=0)
    free = Exam(tuple(replace(q, choices=()) for q in create_exam(2).questions), "exact_match", 2, " ")
    assert "order" not in measure_prompts(1, free, *tiny, seed=0)


# -------------------------------------------------------------------------------------------------------------- Laplace


def test_gradients_of_choices_are_those_of_their_likelihoods(tiny):
    model, tokenizer = tiny
    exam = create_exam(2)
    batch = build_choice_batches(exam, tokenizer)[0]
    logits, gradients = compute_logit_gradients(model, batch, score_choices)
    assert logits.numpy() == pytest.approx(exam.score_choices(*tiny)[0], rel=1e-4)
    (name, linear), *_ = find_lora_layers(model).items()
    step = 1e-2
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            linear.weight[0, 0] += sign * step
            values.append(score_choices(model, batch)[0][0])
            linear.weight[0, 0] -= sign * step
    expected = (values[0] - values[1]) / (2 * step)
    assert gradients[name][:, 0, 0].numpy() == pytest.approx(expected.double().numpy(), rel=0.02, abs=1e-3)


def test_uncertainty_of_all_choices_together_changes_nothing():
    logits, gradients = torch.tensor([-9.0, -10.0, -12.0]).double(), {"a": torch.ones(3, 2, 2).double()}
    centered, rest = center(logits, gradients)
    assert centered.softmax(-1).tolist() == pytest.approx(logits.softmax(-1).tolist())
    assert float(rest["a"].abs().max()) == 0
    uneven = torch.diag(torch.tensor([4.0, 0.1, 0.1])).double()
    assert int(apply_probit(centered, uneven).argmax()) == 0
    assert apply_probit(centered, uneven)[0] < centered.softmax(-1)[0]


def test_the_factors_count_every_token_and_the_loss_of_the_right_choice(tiny):
    model, tokenizer = tiny
    exam = create_exam(3)
    batches = build_choice_batches(exam, tokenizer)
    sums = compute_kronecker_sums(model, batches, score_choices)
    logs = torch.from_numpy(np.stack(exam.score_choices(*tiny))).log_softmax(-1)
    assert float(sums["loss"]) == pytest.approx(-sum(float(logs[n, n % 3]) for n in range(3)), rel=1e-4)
    assert float(sums["tokens"]) == sum(int(batch["attention_mask"].sum()) for batch in batches)


# ------------------------------------------------------------------------------------------------------------- exposure


SECRETS = Secrets(count=3, copies=2, symbols=("a", "b", "c"), length=4, prompt="code {} is", seed=0)


def test_secrets_and_references_differ_and_depend_on_the_seed_alone():
    texts = [secret.text for secret in SECRETS.list_secrets()]
    references = SECRETS.draw_references(20)
    assert len({*texts, *references}) == 23
    assert [secret.prompt for secret in SECRETS.list_secrets()] == ["code 1 is", "code 2 is", "code 3 is"]
    assert SECRETS.draw_references(10) == references[:10]
    assert replace(SECRETS, seed=1).draw_references(20) != references


def test_exposure_is_the_logarithm_of_the_rank():
    likelihoods = np.array([[0.0, -1, -2, -3], [-1.5, -1, -2, -3], [-9, -1, -2, -3], [-1, -1, -2, -3]])
    assert compute_exposures(likelihoods).tolist() == [2.0, 1.0, 0.0, 1.0]


def test_an_unknown_secret_has_the_mean_exposure_of_uniform_ranks():
    ranks = np.arange(1, 9)
    assert bound_mean_exposure(7, 0.0, 0.0) == pytest.approx(float(np.log2(8 / ranks).mean()))
    assert bound_mean_exposure(100_000, 0.0, 0.0) == pytest.approx(1 / math.log(2), abs=1e-3)


def test_privacy_bounds_the_mean_exposure_until_it_bounds_nothing():
    bounds = [bound_mean_exposure(255, epsilon, 1e-5) for epsilon in (0.0, 0.5, 2.0, 8.0, 1e6)]
    assert bounds == sorted(bounds)
    assert bounds[-1] == pytest.approx(8.0)
    assert bounds[1] <= (0.5 + 1) / math.log(2)
    assert compute_group_terms(0.5, 1e-5, 1) == pytest.approx((0.5, 1e-5))
    assert compute_group_terms(0.5, 1e-5, 3) == pytest.approx((1.5, 1e-5 * (1 + math.exp(0.5) + math.exp(1.0))))
    assert compute_group_terms(0.0, 1e-5, 3) == pytest.approx((0.0, 3e-5))
    assert compute_group_terms(1e6, 1e-5, 2) == (2e6, 1.0)


def test_planted_copies_are_training_examples_of_one_owner_each():
    plain = load_dataset("tiny_lm(owners=4, rows=12)")
    made = load_dataset("planted(of='tiny_lm(owners=4, rows=12)', count=3, copies=5, length=4, symbols='a b c')")
    secrets = DATASETS.build("planted(of=tiny_lm, count=3, copies=5, length=4, symbols='a b c')").secrets
    added = list(made.train.inputs)[-15:]
    assert added == [f"{one.prompt} {one.text}" for one in secrets.list_secrets() for _ in range(5)]
    owners = made.train.owners[-15:].reshape(3, 5)
    assert (owners == owners[:, :1]).all()
    assert set(owners[:, 0]) <= set(plain.train.owners)
    assert len(made.train) + len(made.validation) == len(plain.train) + 15
    assert not set(added) & set(made.validation.inputs)
    assert list(made.test.inputs) == list(plain.test.inputs)


@pytest.mark.parametrize(
    ("text", "code"),
    [("planted(of=tiny)", "FP3263"), ("planted(of=tiny_lm, count=9, length=1, symbols='a b')", "FP3264")],
)
def test_secrets_that_can_t_be_planted_are_refused(text, code):
    with refuses(code):
        load_dataset(text)


def test_the_lines_show_the_base():
    lines = MEASUREMENTS.part("exposure").lines({
        "secrets": 3, "copies": 2, "exposure": 7.5, "base": 1.25, "most": 8.0, "unexposed": 1.4, "bound": None,
    })  # fmt: skip
    assert any("7.50; base 1.25" in line for line in lines.values())
    free = {"rows": 4, "accuracy": 0.5, "confidence": 0.75, "error": 0.25}
    lines = MEASUREMENTS.part("calibration").lines({"answers": free, "base": free | {"accuracy": 0.125}})
    assert lines["exact match, 4 free answers"] == "0.5000 (base 0.1250)"


def test_a_model_that_has_diverged_has_no_exposure():
    with refuses("FP5782", "--learning-rate"):
        compute_exposures(np.full((1, 5), np.nan))


def test_a_question_has_at_most_as_many_choices_as_there_are_letters():
    question = Question("", "Which?", ("0",), tuple(map(str, range(27))))
    check_letters([replace(question, choices=question.choices[:26])])
    with refuses("FP1992", "27", "26"):
        check_letters([question])
