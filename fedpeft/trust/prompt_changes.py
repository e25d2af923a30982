"""Changed prompts for robustness tests of language models: other words around a question, and lists of its choices.

A frame puts a question into other words that ask the same. A listed question shows its choices behind letters, and the
answer is a letter. Models answer such questions differently if the choices change places (Pezeshkpour and Hruschka,
arXiv 2308.11483, abstract only). All rotations of a list are tried, so each choice has each letter once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedpeft.errors import ConfigError, shorten_value
from fedpeft.models.answers.questions import LETTERS, Question

FRAMES = (
    "Question: {}",
    "Please answer this: {}",
    "{} Give only the answer.",
    "I would like to know the following. {}",
)
"""Other words around a question, which {} stands for."""


def frame_questions(questions: Sequence[Question], frame: str) -> list[Question]:
    """Return the questions in the words of a frame."""
    return [question.reword(frame.format(question.asked)) for question in questions]


def check_letters(questions: Sequence[Question]) -> None:
    """Check that there is a letter for each choice of a question.

    Raises:
        ConfigError: a question has more choices than there are letters.
    """
    for question in questions:
        if len(question.choices) > len(LETTERS):
            raise ConfigError(
                f"FP1992 robustness lists choices behind letters, but the question {shorten_value(question.asked)} has "
                f"{len(question.choices)} choices; give at most {len(LETTERS)}, or leave robustness out of --measure"
            )


def list_choices(question: Question, shift: int) -> Question:
    """Return the question with its choices listed in the prompt, rotated by `shift`; the choices are letters.

    The letters have the order of the original choices, so a position means the same choice in every rotation.
    """
    count = len(question.choices)
    order = [(place + shift) % count for place in range(count)]
    lines = [f"{LETTERS[place]}. {question.choices[of]}" for place, of in enumerate(order)]
    listed = question.reword("\n".join([question.asked, *lines, "Answer with the letter alone."]))
    letters = tuple(LETTERS[order.index(of)] for of in range(count))
    right = letters[question.choices.index(question.right[0])]
    return replace(listed, choices=letters, right=(right,))
