"""Evaluation of a finished run: models, test examples and questions, and the results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fedpeft.data.examples import Examples
from fedpeft.data.rows import Dataset, Rows, limit_rows
from fedpeft.data.tokens import load_tokenizer
from fedpeft.errors import ConfigError
from fedpeft.evaluate import flowertune
from fedpeft.evaluate.contestants import BASE, Contestant, Contestants
from fedpeft.evaluate.held_out import Measures, evaluate_held_out
from fedpeft.evaluate.lm_eval import Tasks
from fedpeft.machine import activation_cache_limit, files
from fedpeft.machine.json_values import convert_to_plain
from fedpeft.models.answers.exam import Exam, select_fitting
from fedpeft.models.answers.metric import check_run_code, parse_metrics
from fedpeft.models.answers.questions import Question, QuestionForm, parse_question, read_questions
from fedpeft.models.base_model import UNBOUNDED, count_readable_tokens
from fedpeft.models.task import FederatedModel
from fedpeft.reporting.finished_run import FinishedRun
from fedpeft.reporting.observer import RunObserver
from fedpeft.reporting.target_lines import describe_undefined

COPIED = "input, copied"
"""Name of the baseline whose answer is the text that it reads."""


@dataclass(frozen=True)
class EvaluationRequest:
    """Settings of an evaluation.

    Attributes:
        questions: a JSONL file; empty: the run's own test examples, if they are questions.
        metrics: metrics of free answers, joined by ",".
        new_tokens: most tokens of an answer.
        rows: most test examples, and most questions; 0: all.
        own: ids of clients, or "all"; see `Contestants.select_clients`.
        alone: ids of clients that train alone, or "all".
        track: the FlowerTune track of the file of questions; empty: none.
        lm_eval: tasks of lm-eval, by name or YAML file, joined by ","; empty: none.
        run_code: whether metrics may run code that models wrote, in isolation.
    """

    questions: str = ""
    metrics: str = "exact_match, f1"
    new_tokens: int = 40
    rows: int = 0
    own: str = ""
    alone: str = ""
    track: str = ""
    lm_eval: str = ""
    run_code: bool = False

    def __post_init__(self) -> None:
        """Check that the settings are in range and fit together."""
        for name, value, low in (("new-tokens", self.new_tokens, 1), ("rows", self.rows, 0)):
            if value < low:
                raise ConfigError(f"FP1161 --{name} must be at least {low}, got {value}")
        if self.track and not self.questions:
            raise ConfigError("FP1162 --flowertune needs the track's questions; give them with --questions FILE")
        if self.run_code and (self.track or self.lm_eval):
            raise ConfigError("FP1684 --run-code is for --metrics; leave --flowertune and --lm-eval out")
        if self.lm_eval and (self.questions or self.track):
            raise ConfigError(
                "FP1163 tasks of lm-eval contain their own questions; leave --questions and --flowertune out"
            )

    @property
    def language_flags(self) -> list[str]:
        """Given flags that apply to language models only."""
        given = {
            "questions": self.questions,
            "lm-eval": self.lm_eval,
            "metrics": self.metrics != EvaluationRequest.metrics,
            "new-tokens": self.new_tokens != EvaluationRequest.new_tokens,
        }
        given["run-code"] = self.run_code
        return [f"--{name}" for name, value in given.items() if value]

    def list_settings(self, language: bool) -> dict[str, Any]:
        """Return the settings for evaluation.json, by flag; without `language`, leave out those of language models."""
        given = asdict(self)
        given["flowertune"] = given.pop("track")
        unread = () if language else ("questions", "metrics", "new_tokens", "flowertune", "lm_eval", "run_code")
        return {name: value for name, value in given.items() if name not in unread}


@dataclass
class QuestionAnswers:
    """A question, and the answers of all models: texts by name."""

    question: str
    right: Sequence[str]
    said: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return a line of answers.jsonl."""
        return {"question": self.question, "right": list(self.right), "said": self.said}


@dataclass
class EvaluationResult:
    """Result of an evaluation.

    Attributes:
        table: measures by model, in order.
        answered: questions and answers, in order.
        notes: remarks about the examples.
        asked: the settings, by flag.
    """

    table: dict[str, Measures]
    answered: list[QuestionAnswers]
    notes: list[str]
    asked: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write evaluation.json, and answers.jsonl if there are answers; replace those of an earlier evaluation.

        Raises:
            RunError: the folder can't be written.
        """
        with files.raise_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "evaluation.json").unlink(
                missing_ok=True
            )  # written last, so it exists only if all files are complete
            if self.answered:
                lines = [json.dumps(one.to_dict(), ensure_ascii=False) + "\n" for one in self.answered]
                files.replace(folder / "answers.jsonl", "".join(lines).encode())
            else:
                (folder / "answers.jsonl").unlink(missing_ok=True)
            made = {"asked": self.asked, "measures": self.table, "notes": self.notes}
            files.replace(
                folder / "evaluation.json",
                (json.dumps(convert_to_plain(made), indent=1, allow_nan=False) + "\n").encode(),
            )


Measure = Callable[[Contestant, FederatedModel], Measures]
"""Function that measures a model in one pass over examples or questions."""


class Evaluation:
    """Evaluation of a finished run."""

    def __init__(self, run: FinishedRun, wanted: EvaluationRequest, observer: RunObserver) -> None:
        """Check the request before any model is loaded, and load its questions.

        Raises:
            FedpeftError: the request does not suit the run, or its files can't be read.
        """
        run.check_answers()
        run.check_reads_texts("evaluate")
        self.run = run
        self.wanted = wanted
        self.observer = observer
        self.notes = run.check_unchanged(rows=not wanted.track and not wanted.lm_eval)
        self.answered: list[QuestionAnswers] = []
        self.language = run.labels is None
        if not self.language and wanted.language_flags:
            options = " and ".join(wanted.language_flags)
            what = "predicts numbers and" if run.task.targets == "numbers" else "is a classifier and"
            raise ConfigError(f"FP1164 {run.folder} {what} can't answer questions; leave {options} out")
        if run.task.translates and (wanted.track or wanted.lm_eval):
            option = "--flowertune" if wanted.track else "--lm-eval"
            raise ConfigError(
                f"FP1165 {option} is for models that continue a text, but {run.folder} has an encoder with a "
                "decoder; give --questions FILE.jsonl"
            )
        if self.language and not wanted.track:
            check_run_code(parse_metrics(wanted.metrics), wanted.run_code)
        self.items = flowertune.read(wanted.track, wanted.questions) if wanted.track else []
        self.tasks = Tasks.read(wanted.lm_eval, wanted.rows, self.readable) if wanted.lm_eval else None
        self.questions = [] if wanted.track or self.tasks else self._load_questions()

    @cached_property
    def dataset(self) -> Dataset:
        """Dataset of the run."""
        return self.run.load_dataset()

    @cached_property
    def tokenizer(self) -> Any:
        """Tokenizer of the base model."""
        return load_tokenizer(self.run.model_directory)

    @cached_property
    def readable(self) -> int:
        """Most tokens that the model reads."""
        return count_readable_tokens(self.run.model_directory, self.run.method.extra_tokens, UNBOUNDED)

    @activation_cache_limit.keep_states()
    def evaluate(self) -> EvaluationResult:
        """Evaluate the models and return the result.

        Raises:
            FedpeftError: examples, clients or files can't be used.
        """
        contestants = Contestants(self.run, self.observer)
        try:
            called = contestants.select_clients(self.wanted.own, self.wanted.alone)
        finally:
            contestants.close()  # frees the memory of workers that trained
        measures = self._create_measures()
        table = self._measure_copies()
        for contestant in called:
            model = contestant.model()
            table[contestant.name] = {}
            for measure in measures:
                table[contestant.name] |= measure(contestant, model)
        asked = self.wanted.list_settings(self.language)
        return EvaluationResult(self._add_means(self._add_probe(table)), self.answered, self.notes, asked)

    def _create_measures(self) -> list[Measure]:
        if self.items:
            return [self._create_flowertune_measure()]
        if self.tasks is not None:
            return [self._create_lm_eval_measure(self.tasks)]
        found = [self._create_held_out_measure()]
        if self.questions:
            found.append(self._create_exam_measure())
        return found

    def _load_questions(self) -> list[Question]:
        """Return the questions; those that exceed the model's length are left out and counted."""
        wanted = self.wanted
        if wanted.questions:
            form = QuestionForm(self.run.task.asks, self.run.template, self.run.task.translates)
            found = read_questions(wanted.questions, form)
        elif self.run.task.asks:
            found = [parse_question(str(row)) for row in limit_rows(self.dataset.test, wanted.rows).inputs]
        else:
            return []
        kept, notes = select_fitting(found[: wanted.rows or None], self.tokenizer, wanted.new_tokens, self.readable)
        self.notes += notes
        return kept

    def _create_held_out_measure(self) -> Measure:
        rows = limit_rows(self.dataset.test, self.wanted.rows)
        examples = self._test_rows(rows)

        def measure(contestant: Contestant, model: FederatedModel) -> Measures:
            self.observer.phase(f"{contestant.name}: test examples", len(examples))
            found = evaluate_held_out(model, self.run.task, examples, self.observer.advance, rows.labels)
            if note := describe_undefined(found):
                self.notes.append(f"{contestant.name}: {note}")
            return found

        return measure

    def _test_rows(self, rows: Rows) -> Examples:
        run = self.run
        examples = run.task.tokenise(rows, run.model_directory, run.tokens)
        cut = getattr(examples, "cut", 0)
        if cut:
            self.notes.append(
                f"{cut} of {len(examples)} test examples are longer than {run.tokens} tokens and truncated"
            )
        return examples

    @cached_property
    def exam(self) -> Exam:
        """Questions to each model, at least one."""
        delimiter = "" if self.run.task.asks else " "
        wanted = self.wanted
        return Exam(tuple(self.questions), wanted.metrics, wanted.new_tokens, delimiter, wanted.run_code)

    def _measure_copies(self) -> dict[str, Measures]:
        """Return the measures of the baseline that repeats the text which an encoder reads; empty for other tasks."""
        if not self.run.task.translates or not self.questions or self.exam.has_choices:
            return {}
        return {COPIED: self.exam.compute_measures([(question.asked,) for question in self.questions])}

    def _create_exam_measure(self) -> Measure:
        exam = self.exam
        exam.check_tests()
        self.answered = [QuestionAnswers(question.asked, question.right) for question in self.questions]
        name = "choices" if exam.has_choices else "answers"

        def measure(contestant: Contestant, model: FederatedModel) -> Measures:
            self.observer.phase(f"{contestant.name}: {name}", exam.sequences)
            said = exam.answer(model, self.tokenizer, self.observer.advance)
            self._note(contestant, [texts[0] for texts in said])
            return exam.compute_measures(said)

        return measure

    def _create_flowertune_measure(self) -> Measure:
        track, items = flowertune.TRACKS[self.wanted.track], self.items[: self.wanted.rows or None]
        self.answered = [QuestionAnswers(item.prompt, [item.right]) for item in items]

        def measure(contestant: Contestant, model: FederatedModel) -> Measures:
            self.observer.phase(f"{contestant.name}: {self.wanted.track}", len(items))
            said = track.said(model, self.tokenizer, items)
            self._note(contestant, said)
            right = [track.is_right(text, item.right) for text, item in zip(said, items, strict=True)]
            return {f"accuracy ({self.wanted.track})": statistics.fmean(right)}

        return measure

    def _create_lm_eval_measure(self, tasks: Tasks) -> Measure:
        def measure(contestant: Contestant, model: FederatedModel) -> Measures:
            measures, asked = tasks.measure(model, self.tokenizer, contestant.name, self.observer)
            self.answered = self.answered or [QuestionAnswers(one.question, [one.right]) for one in asked]
            self._note(contestant, [one.said for one in asked])
            return measures

        return measure

    def _note(self, contestant: Contestant, said: Sequence[str]) -> None:
        for one, text in zip(self.answered, said, strict=True):
            one.said[contestant.name] = text

    def _add_probe(self, table: dict[str, Measures]) -> dict[str, Measures]:
        """Add, for a classifier, the linear probe that the run evaluated on the same test examples."""
        probe = self.run.summary.get("baseline_accuracy")
        if self.language or probe is None or self.wanted.rows:
            return table
        told = (self.run.summary.get("targets") or {}).get("probe") or {}
        more = {name: value for name, value in told.items() if isinstance(value, float)}
        return {f"{BASE}, linear probe": {self.run.task.metric: float(probe), **more}, **table}

    def _add_means(self, table: dict[str, Measures]) -> dict[str, Measures]:
        """Add the means over several clients, for measures that all of them have."""
        made = dict(table)
        for name, ending in (("clients, mean", ""), ("clients alone, mean", " alone")):
            rows = [
                row
                for key, row in table.items()
                if key.startswith("client ") and key.endswith(" alone") == bool(ending)
            ]
            if len(rows) > 1:
                shared = [column for column in rows[0] if all(column in row for row in rows)]
                made[name] = {column: statistics.fmean(row[column] for row in rows) for column in shared}
        return made
