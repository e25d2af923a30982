"""What `--measure evaluate` asks the global model of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedpeft.data.rows import Rows, limit_rows
from fedpeft.data.tokens import load_tokenizer
from fedpeft.errors import ConfigError
from fedpeft.models.abilities import DescribesImages
from fedpeft.models.answers.exam import Exam, select_fitting
from fedpeft.models.answers.metric import check_run_code, parse_metrics
from fedpeft.models.answers.questions import QuestionForm, parse_question, read_questions
from fedpeft.models.base_model import UNBOUNDED, count_readable_tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedpeft.measurements.evaluate import Evaluate
    from fedpeft.wiring.setup import Setup


def check_evaluate(setup: Setup, asked: Evaluate) -> None:
    """Refuse who can't be asked.

    Raises:
        ConfigError: says what, and what to do.
        AssetError: a metric's library is missing.
    """
    if isinstance(setup.task, DescribesImages):
        raise ConfigError(
            "FP1302 evaluate asks questions in text alone, and captions need images; leave it out of --measure"
        )
    if setup.task.targets:
        what = "predicts numbers" if setup.task.targets == "numbers" else "is a classifier"
        raise ConfigError(f"FP1355 evaluate needs a language model, but this run {what}; leave it out of --measure")
    if setup.personal:
        raise ConfigError(
            f"FP1356 evaluate asks the global model, and with {setup.config.strategy} each client has its own model; "
            "leave it out of --measure, and compare them with fedpeft evaluate RUN --own all"
        )
    check_run_code(parse_metrics(asked.metrics), run_code=False)
    if not asked.questions and not setup.task.asks:
        raise ConfigError(
            f"FP1357 evaluate needs questions, and examples of {setup.facts.task} contain none; give "
            "evaluate(questions='FILE.jsonl'), or leave it out of --measure"
        )


def make_exam(asked: Evaluate, setup: Setup, validation: Rows, say: Callable[[str], None]) -> Exam:
    """Return the questions to the run's global model; `validation` are the server's examples.

    Raises:
        ConfigError, DataError: there are no questions, or none that the model can read.
    """
    if asked.questions:
        template = getattr(setup.dataset, "template", None) or setup.facts.template
        form = QuestionForm(setup.task.asks, template, setup.task.translates)
        found = read_questions(asked.questions, form)[: asked.rows or None]
    elif len(validation):
        rows = limit_rows(validation, asked.rows)
        found = [parse_question(str(row)) for row in rows.inputs]
    else:
        raise ConfigError("FP1358 evaluate has no validation examples to ask; give evaluate(questions='FILE.jsonl')")
    readable = count_readable_tokens(setup.model_directory, setup.method.extra_tokens, UNBOUNDED)
    kept, notes = select_fitting(found, load_tokenizer(setup.model_directory), asked.new_tokens, readable)
    for note in notes:
        say(note)
    return Exam(tuple(kept), asked.metrics, asked.new_tokens, "" if setup.task.asks else " ")
