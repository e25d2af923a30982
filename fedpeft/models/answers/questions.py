"""Questions with right answers, from a run's own test examples or a JSONL file.

    {"question": "...", "answer": "..."}                                    or several right answers: ["...", "..."]
    {"question": "...", "answer": "...", "tests": "assert f(1) == 2"}       code, and a program of tests that calls it
    {..., "tests": "def check(candidate): ...", "entry_point": "f"}         the same in HumanEval's form
    {"question": "...", "choices": ["...", "..."], "answer": 1}             a position from 0, a letter, or the text
    {"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}       the last answer is the right one; it may
                                                                            have choices, too

Prompts have the form that the model was tuned with: the tokens before an answer are those of training. A conversation
of more than a question and an answer needs a model that was tuned on conversations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedpeft.data.conversations import pack_conversation, tokenize_row
from fedpeft.data.prompt_templates import CHAT, OF_COLUMNS, PromptTemplate, compute_fingerprint
from fedpeft.data.record_files import JSON_LINES, read_records
from fedpeft.data.text_to_text import pack_pair, parse_pair, tokenize_source
from fedpeft.errors import ConfigError, DataError
from fedpeft.models.answers.code_tests import has_uncalled_check
from fedpeft.parts import suggest_legal

PAIRED = pack_pair("", "")[: len('{"source')]
"""Start of each row of pairs."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """A question with its right answers.

    Attributes:
        row: the question with a right answer, packed as instruction data (`fedpeft.data.conversations`).
        asked: the question, for readers.
        right: the right answers, at least one.
        choices: the choices; empty: the answer is free.
        tests: a Python program that raises an error if code in an answer is wrong; empty: there are no tests.
    """

    row: str
    asked: str
    right: tuple[str, ...]
    choices: tuple[str, ...] = ()
    tests: str = ""

    @property
    def is_paired(self) -> bool:
        """Whether an encoder reads the question and a decoder answers."""
        return self.row.startswith(PAIRED)

    def tokenize_prompt(self, tokenizer: Any) -> list[int]:
        """Return the token ids before the answer, or of the source text for an encoder.

        Raises:
            ModelError: the model has no chat template.
            DataError: the template fails.
        """
        if self.is_paired:
            return tokenize_source(tokenizer, parse_pair(self.row)[0])
        ids, answers = tokenize_row(tokenizer, self.row)
        last = len(answers) - 1 - answers[::-1].index(True)
        while last > 0 and answers[last - 1]:
            last -= 1
        return ids[:last]

    def reword(self, asked: str) -> Question:
        """Return the question with `asked` as its text; everything else in the prompt stays.

        Raises:
            DataError: the prompt does not contain the question as it stands.
        """
        found = json.loads(self.row)
        if isinstance(found, dict) and "messages" not in found:
            column = "source" if self.is_paired else "prompt"
            if self.asked not in found[column]:
                raise DataError(
                    f"FP3582 the prompt of the question {self.asked!r:.80} does not contain it as it stands, so it "
                    "can't be put into other words; give a template that does not change the question"
                )
            found[column] = asked.join(found[column].rsplit(self.asked, 1))
            return replace(self, row=json.dumps(found), asked=asked)
        messages = found if isinstance(found, list) else found["messages"]
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        messages[last - 1]["content"] = asked
        return replace(self, row=json.dumps(found), asked=asked)


@dataclass(frozen=True)
class QuestionForm:
    """Form of the prompts.

    Attributes:
        asks: whether the model was tuned on questions and answers; otherwise it continues the question as a text.
        template: the template of the run's dataset; None: the model's own chat template.
        is_paired: whether an encoder reads the question.
    """

    asks: bool
    template: str | None = None
    is_paired: bool = False

    def pack_row(self, question: str, answer: str, where: str) -> str:
        """Return a packed row of question and answer.

        Raises:
            DataError: the template fails.
        """
        if self.is_paired:
            asked = PromptTemplate(self.template).format_question(question, where) if self.template else question
            return pack_pair(asked, answer)
        if not self.asks:
            return json.dumps({"prompt": question, "answer": answer})
        if not self._is_conversation():
            prompt = PromptTemplate(str(self.template)).format_question(question, where)
            return json.dumps({"prompt": prompt, "answer": answer})
        return self.pack_conversation(
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], where
        )

    def pack_conversation(self, messages: Sequence[Mapping[str, str]], where: str) -> str:
        """Return a packed row of a conversation of any length.

        Raises:
            DataError: it is not a conversation, or the model was not tuned on conversations.
        """
        row = pack_conversation(list(messages), where)
        if self.is_paired or not self.asks or not self._is_conversation():
            why = "its encoder reads a single text" if self.is_paired else "it was tuned on texts without roles"
            if self.asks and not self.is_paired:
                why = f"it was tuned with the template {self.template}, which writes one question"
            raise DataError(
                f"FP3003 {where} is a conversation of more than a question and an answer, which the model can't "
                f"continue: {why}; give one question and its answer"
            )
        if self.template in (None, CHAT):
            return row
        file = str(Path(str(self.template)).expanduser().absolute())
        return json.dumps({"template": file, "sha256": compute_fingerprint(file), "messages": json.loads(row)})

    def _is_conversation(self) -> bool:
        """Return whether prompts are conversations.

        They are with the model's own chat template, or a template file that reads `messages`.
        """
        if self.template in (None, CHAT):
            return True
        own = PromptTemplate(str(self.template))
        return own.name not in OF_COLUMNS and "messages" in own.text


def parse_question(row: str) -> Question:
    """Return the last question of a packed row."""
    found = json.loads(row)
    if isinstance(found, dict) and "source" in found:
        return Question(row, found["source"], (found["target"],), tests=str(found.get("tests", "")))
    found = found.get("chosen", found) if isinstance(found, dict) else found  # of preferences, the better answer
    if isinstance(found, dict) and "prompt" in found:
        choices = tuple(found.get("choices", ()))
        return Question(
            json.dumps(found), found["prompt"], (found["answer"],), choices, tests=str(found.get("tests", ""))
        )
    messages = found if isinstance(found, list) else found["messages"]
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    kept = messages[: last + 1]
    whole = kept if isinstance(found, list) else {**found, "messages": kept}
    return Question(json.dumps(whole), messages[last - 1]["content"], (messages[last]["content"],))


def read_questions(path: str, form: QuestionForm) -> list[Question]:
    """Return the questions of a JSONL file.

    Raises:
        ConfigError: its name does not end as a JSONL file's.
        DataError: it can't be read, has no questions, or a line is not one; the message names the line.
    """
    if Path(path).suffix.lower() not in JSON_LINES:
        raise ConfigError(f"FP1034 questions must be lines of JSON; {path} must end in {' or '.join(JSON_LINES)}")
    found = [_build_question(record, f"{place} of {path}", form) for place, record in read_records(path)]
    if not found:
        raise DataError(f"FP3004 {path} has no questions")
    if len({bool(question.choices) for question in found}) > 1:
        raise DataError(
            f"FP3005 {path} has questions with choices and others without; put each type into a file of its own"
        )
    return found


def _build_question(record: Mapping[str, Any], where: str, form: QuestionForm) -> Question:
    if "messages" in record and "question" not in record:
        found = _build_from_conversation(json.loads(pack_conversation(record["messages"], where)), where, form)
        if "choices" not in record:
            return found
        choices = _read_choices(record, where)
        return replace(found, choices=choices, right=(choices[_find_position(found.right[0], choices, where)],))
    for column in ("question", "answer"):
        if column not in record:
            raise DataError(f"FP3006 {where} has no column {column!r}; {suggest_legal(column, map(str, record))}")
    question = record["question"]
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"FP3007 {where}: the column 'question' must hold a text, got {question!r:.40}")
    if "choices" in record:
        choices = _read_choices(record, where)
        right: tuple[str, ...] = (choices[_find_position(record["answer"], choices, where)],)
        return Question(form.pack_row(question, right[0], where), question, right, choices)
    right = _convert_to_texts(record["answer"], "answer", where)
    tests = _read_tests(record, where) if "tests" in record else ""
    return Question(form.pack_row(question, right[0], where), question, right, tests=tests)


def _read_tests(record: Mapping[str, Any], where: str) -> str:
    """Return the tests of a question as one program; those of HumanEval's form call the column `entry_point`."""
    tests = "\n".join(_convert_to_texts(record["tests"], "tests", where))
    if not has_uncalled_check(tests):
        return tests
    name = record.get("entry_point")
    if not isinstance(name, str) or not name.isidentifier():
        raise DataError(
            f"FP3581 {where}: the tests define check(candidate) and never call it, and the column 'entry_point' is "
            f"{name!r:.40}; give the name of the tested function there, or end the tests with check(NAME)"
        )
    return f"{tests}\ncheck({name})\n"


def _read_choices(record: Mapping[str, Any], where: str) -> tuple[str, ...]:
    choices = _convert_to_texts(record["choices"], "choices", where)
    if len(set(choices)) < max(2, len(choices)):
        raise DataError(f"FP3008 {where}: the column 'choices' must hold at least two answers, each once")
    return choices


def _build_from_conversation(messages: Sequence[Mapping[str, str]], where: str, form: QuestionForm) -> Question:
    """Return the last question of a conversation; a single question is treated like any other."""
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    if [message["role"] for message in messages[: last + 1]] != ["user", "assistant"]:
        return parse_question(form.pack_conversation(messages, where))
    asked, right = messages[0]["content"], messages[1]["content"]
    return Question(form.pack_row(asked, right, where), asked, (right,))


def _convert_to_texts(value: object, column: str, where: str) -> tuple[str, ...]:
    """Return a text, a number, or a list of them as texts."""
    values = value if isinstance(value, list) else [value]
    fit = [isinstance(v, (str, int, float)) and not isinstance(v, bool) and bool(str(v).strip()) for v in values]
    if not values or not all(fit):
        raise DataError(
            f"FP3009 {where}: the column {column!r} must hold a text, or several in a list, got {value!r:.40}"
        )
    return tuple(map(str, values))


def _find_position(answer: object, choices: Sequence[str], where: str) -> int:
    """Return the position of the right choice, which is given as a text, a position, or a letter.

    A text takes precedence.
    """
    if str(answer) in choices and not isinstance(answer, int):
        return choices.index(str(answer))
    if str(answer) in choices and choices.index(str(answer)) != answer:
        raise DataError(
            f"FP3010 {where}: the right answer {answer} may be the text of one choice or the position of another; "
            f'write "{answer}" for the text'
        )
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    if isinstance(answer, str) and answer.strip().upper() in tuple(LETTERS[: len(choices)]):
        return LETTERS.index(answer.strip().upper())
    raise DataError(
        f"FP3011 {where}: the right answer {answer!r:.40} is not one of the {len(choices)} choices; give its position "
        f"from 0, its letter from A to {LETTERS[: len(choices)][-1]}, or its text"
    )
