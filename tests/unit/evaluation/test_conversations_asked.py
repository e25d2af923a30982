"""Conversations in a file of questions: they are put in the form that the model was tuned with, or refused by name."""

from __future__ import annotations

import json

import pytest

from fedpeft.data.conversations import pack_messages
from fedpeft.data.prompt_templates import compute_fingerprint
from fedpeft.models.answers.questions import QuestionForm, read_questions
from tests.refusals import refuses

SINGLE = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]
LONGER = [*SINGLE, {"role": "user", "content": "de"}, {"role": "assistant", "content": "f"}]
GUIDED = [{"role": "system", "content": "be brief"}, *SINGLE]
OF_MESSAGES = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def asked(folder, messages, form):
    path = folder / "q.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n", encoding="utf-8")
    [question] = read_questions(str(path), form)
    return question


def template(folder, text):
    path = folder / "own.jinja"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("more", [[], [{"role": "user", "content": "never answered"}]])
@pytest.mark.parametrize(
    "form",
    [
        QuestionForm(True),
        QuestionForm(True, "chat"),
        QuestionForm(True, "alpaca"),
        QuestionForm(True, "own"),
        QuestionForm(True, None, True),
        QuestionForm(False),
    ],
    ids=str,
)
def test_one_question_and_its_answer_are_put_like_question_and_answer(tmp_path, form, more):
    if form.template == "own":
        form = QuestionForm(True, template(tmp_path, "Q {{ instruction }} A"))
    question = asked(tmp_path, [*SINGLE, *more], form)
    assert question.row == form.pack_row("ab", "c", "here")
    assert (question.asked, question.right, question.is_paired) == ("ab", ("c",), form.is_paired)


def test_a_conversation_is_written_by_the_templates_file_as_in_training(tmp_path):
    own = template(tmp_path, OF_MESSAGES)
    for messages in (SINGLE, LONGER, GUIDED):
        question = asked(tmp_path, messages, QuestionForm(True, own))
        [(_, trained)] = pack_messages([("line 1", {"messages": messages})], "messages", "row", "rows", own)
        assert json.loads(question.row) == json.loads(trained["row"])
        assert json.loads(question.row)["sha256"] == compute_fingerprint(own)
        assert question.right == (messages[-1]["content"],)


@pytest.mark.parametrize("messages", [LONGER, GUIDED])
def test_the_models_own_chat_template_takes_conversations_of_any_length(tmp_path, messages):
    assert json.loads(asked(tmp_path, messages, QuestionForm(True)).row) == messages


@pytest.mark.parametrize("messages", [LONGER, GUIDED])
@pytest.mark.parametrize(
    ("form", "why"),
    [
        (QuestionForm(True, "alpaca"), "the template alpaca"),
        (QuestionForm(True, None, True), "its encoder reads a single text"),
        (QuestionForm(False), "it was tuned on texts without roles"),
    ],
)
def test_longer_conversations_are_refused_where_there_is_no_form_for_them(tmp_path, messages, form, why):
    with refuses("FP3003", "line 1 of", "q.jsonl", why):
        asked(tmp_path, messages, form)
