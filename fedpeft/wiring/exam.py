"""What `--measure evaluate` asks the global model of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fedpeft.data.rows import Rows, limit_rows
from fedpeft.data.tokens import load_tokenizer
from fedpeft.errors import ConfigError
from fedpeft.models.abilities import DescribesImages
from fedpeft.models.answers.exam import Exam, select_fitting
from fedpeft.models.answers.metric import check_run_code, parse_metrics
from fedpeft.models.answers.questions import QuestionForm, parse_question, read_questions
from fedpeft.models.base_model import UNBOUNDED, count_readable_tokens
from fedpeft.parts import setting

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedpeft.measurements.evaluate import Evaluate
    from fedpeft.wiring.measurement import NewRun
    from fedpeft.wiring.setup import Setup


@dataclass(frozen=True)
class ExamRequest:
    """What a measurement asks a language model.

    Attributes:
        name: the measurement.
        questions: a JSONL file; empty: the examples.
        metrics: metrics of free answers, joined by ",".
        new_tokens: most tokens of an answer.
        rows: most questions; 0: all.
    """

    name: str
    questions: str
    metrics: str
    new_tokens: int
    rows: int


def declare_questions(more: str = "free or with choices") -> Any:
    """Return the setting for a file of questions to a language model."""
    about = f"language models: JSONL file with questions and answers, {more}; empty: the test examples"
    return setting("", about, path=True)


def is_language_model(setup: Setup) -> bool:
    """Return whether the run tunes a model that continues or writes texts, without images."""
    return (setup.task.asks or setup.task.metric == "perplexity") and not isinstance(setup.task, DescribesImages)


def check_trust(setup: Setup, name: str, questions: str) -> bool:
    """Return whether a measurement of trust asks a language model; otherwise it measures a classifier.

    Raises:
        ConfigError: a classifier can't be asked questions, or a language model has none to answer.
    """
    if not is_language_model(setup):
        if questions:
            raise ConfigError(
                f"FP1581 {name} asks the questions of a file to language models only, and this run is of "
                f"{setup.facts.task.partition('(')[0]}; leave questions out"
            )
        return False
    if not questions and not setup.task.asks:
        raise ConfigError(
            f"FP1582 {name} of a language model needs questions, and examples of {setup.facts.task} contain none; give "
            f"{name}(questions='FILE.jsonl'), or leave it out of --measure"
        )
    return True


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


class AsksQuestions(Protocol):
    """A measurement with questions to a language model."""

    @property
    def name(self) -> str:
        """The name on the command line."""
        ...

    @property
    def questions(self) -> str:
        """The file of questions; empty: the test examples."""
        ...


def load_exam(asked: AsksQuestions, run: NewRun, most: int) -> Exam | None:
    """Return the questions of a measurement of trust; None: the run does not tune a language model.

    Without a file they are the test examples; a server's validation examples are its test examples.

    Raises:
        ConfigError, DataError: there are no questions, or none that the model can read.
    """
    if not is_language_model(run.setup):
        return None
    examples = run.validation() if run.dataset is None else run.dataset.test
    request = ExamRequest(asked.name, asked.questions, "exact_match", getattr(asked, "new_tokens", 1), most)
    return make_exam(request, run.setup, examples, run.say)


def get_form(setup: Setup) -> QuestionForm:
    """Return the form of the run's prompts."""
    template = getattr(setup.dataset, "template", None) or setup.facts.template
    return QuestionForm(setup.task.asks, template, setup.task.translates)


def make_exam(asked: ExamRequest, setup: Setup, examples: Rows, say: Callable[[str], None]) -> Exam:
    """Return the questions to the run's global model; without a file, they are `examples` of the server.

    Raises:
        ConfigError, DataError: there are no questions, or none that the model can read.
    """
    if asked.questions:
        found = read_questions(asked.questions, get_form(setup))[: asked.rows or None]
    elif len(examples):
        rows = limit_rows(examples, asked.rows)
        found = [parse_question(str(row)) for row in rows.inputs]
    else:
        raise ConfigError(
            f"FP1358 {asked.name} has no examples of the server to ask; give {asked.name}(questions='FILE.jsonl')"
        )
    readable = count_readable_tokens(setup.model_directory, setup.method.extra_tokens, UNBOUNDED)
    kept, notes = select_fitting(found, load_tokenizer(setup.model_directory), asked.new_tokens, readable)
    for note in notes:
        say(note)
    return Exam(tuple(kept), asked.metrics, asked.new_tokens, "" if setup.task.asks else " ")
