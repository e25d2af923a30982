"""fedpeft evaluate RUN: what a finished run has learned, beside its base and, if asked, its clients.

    fedpeft evaluate runs/NAME                                  held-out loss; answers to the test questions
    fedpeft evaluate runs/NAME --questions exam.jsonl           questions of your own, free or with choices
    fedpeft evaluate runs/NAME --alone all                      each client trained on its own rows only
    fedpeft evaluate runs/NAME --own 0,3                        clients' own adapters, where they have some
    fedpeft evaluate runs/NAME --flowertune nlp --questions mmlu.jsonl
    fedpeft evaluate runs/NAME --lm-eval arc_easy,own_task.yaml             with lm-eval installed

Numbers go to RUN/evaluation/evaluation.json, answers, to be read, to answers.jsonl beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.markup import escape
from rich.table import Column, Table

from fedpeft.machine.terminal import Console
from fedpeft.reporting.command import (
    run_tool,
    start_command,
    tell_notes,
)
from fedpeft.reporting.console import format_amount
from fedpeft.reporting.run_folder import refuse_file

if TYPE_CHECKING:
    from fedpeft.evaluate.evaluation import EvaluationResult, QuestionAnswers

SHOWN = 3
"""Questions whose answers are printed side by side."""


@dataclass(frozen=True)
class Command:
    """Evaluate a finished run beside its base and, if asked, its clients."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="the run's folder")]
    questions: Annotated[
        str, tyro.conf.arg(help="JSONL with question, answer and maybe choices (default: the run's test examples)")
    ] = ""
    metrics: Annotated[
        str, tyro.conf.arg(help="metrics of free answers: exact_match, f1, rouge_l, bleu, chrf, pass_at_1, repair")
    ] = "exact_match, f1"
    new_tokens: Annotated[int, tyro.conf.arg(help="most tokens of an answer")] = 40
    rows: Annotated[int, tyro.conf.arg(help="most test examples and questions; 0: all")] = 0
    own: Annotated[str, tyro.conf.arg(help='clients whose own adapters are compared: "0,3" or all')] = ""
    alone: Annotated[str, tyro.conf.arg(help='clients to train alone, on their own examples: "0,3" or all')] = ""
    flowertune: Annotated[
        str, tyro.conf.arg(help="track of FlowerTune whose questions the file contains: nlp, medical, finance")
    ] = ""
    lm_eval: Annotated[str, tyro.conf.arg(help="tasks of lm-eval, if it is installed: names, or YAML files")] = ""
    run_code: Annotated[
        bool, tyro.conf.arg(help="let pass_at_1 and repair run code that models wrote, in isolation (default: no)")
    ] = False
    output: Annotated[Path | None, tyro.conf.arg(help="folder of the results (default: RUN/evaluation)")] = None
    plugin: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FILE", help="plugin of the run, at its present place"),
    ] = ()


def build_table(found: EvaluationResult) -> Table:
    """Return a table with one row per model and one column per measure."""
    columns = list(dict.fromkeys(column for row in found.table.values() for column in row))
    table = Table("", *(Column(escape(column), overflow="fold") for column in columns))
    for name, row in found.table.items():
        table.add_row(name, *(format_amount(row[column]) if column in row else "" for column in columns))
    return table


def select_evenly(answered: list[QuestionAnswers]) -> list[QuestionAnswers]:
    """Return `SHOWN` of the questions, spread evenly over all of them."""
    return [answered[(2 * i + 1) * len(answered) // (2 * SHOWN)] for i in range(min(SHOWN, len(answered)))]


def build_answer_table(answered: list[QuestionAnswers]) -> Table:
    """Return a table of some questions with the answer of each model."""
    names = list(answered[0].said)[:3]
    table = Table("question", "right", *names, show_lines=True)
    for one in select_evenly(answered):
        cells = (one.question[-200:], " | ".join(one.right), *(one.said[name][:200] for name in names))
        table.add_row(*map(escape, cells))
    return table


def evaluate(command: Command, console: Console) -> None:
    """Evaluate, print and write.

    Raises:
        FedpeftError: there is no finished run, or its rows, questions or clients can't be used.
    """
    from fedpeft.evaluate.evaluation import Evaluation, EvaluationRequest
    from fedpeft.reporting.console import ConsoleObserver
    from fedpeft.reporting.finished_run import FinishedRun
    from fedpeft.reporting.next_commands import list_next_commands, say_lines

    output = command.output or command.run / "evaluation"
    refuse_file(output)
    wanted = EvaluationRequest(
        questions=command.questions,
        metrics=command.metrics,
        new_tokens=command.new_tokens,
        rows=command.rows,
        own=command.own,
        alone=command.alone,
        track=command.flowertune,
        lm_eval=command.lm_eval,
        run_code=command.run_code,
    )
    with ConsoleObserver(console) as observer:
        run = FinishedRun.read(command.run)
        tell_notes()
        found = Evaluation(run, wanted, observer).evaluate()
    for note in found.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    console.print(build_table(found))
    if found.answered:
        console.print(build_answer_table(found.answered))
    found.write(output)
    console.print(f"written to {output}", highlight=False, markup=False, soft_wrap=True)
    say_lines("next:", list_next_commands(run, evaluated=True), console)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_tool(Command, evaluate, arguments)


if __name__ == "__main__":
    start_command("evaluate.__main__")
