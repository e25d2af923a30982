"""The results of a search: a page with figures and trials, and the best settings as a file and a command."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import le
from pathlib import Path
from typing import Any

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from fedpeft.machine import files
from fedpeft.reporting.command import format_command
from fedpeft.reporting.console import format_bytes, format_duration
from fedpeft.study.page import render_page, use_page_colors
from fedpeft.study.tables import ABSENT, Table
from fedpeft.tune.figures import draw_figures
from fedpeft.tune.runner import MEASURES, format_draws, format_joules
from fedpeft.tune.sampling import NEVER_TRAINED
from fedpeft.tune.search_file import OF_ENERGY, Search
from fedpeft.tune.store import GIVEN_UP, REASON, SAME_AS, get_cost, list_finished, list_trained, read_settings
from fedpeft.wiring import catalogue
from fedpeft.wiring.config import RunConfig, build_config

ADDED = (*MEASURES, *OF_ENERGY, *(f"predicted_{unit}" for unit in OF_ENERGY))
"""Columns of the CSV about finished trials, and what was predicted of a trial before it trained."""

PAGE, TABLE, BEST = "report.html", "trials.csv", "best.toml"


@dataclass(frozen=True)
class Report:
    """The report of a search, finished or not."""

    search: Search
    study: Study

    @property
    def best(self) -> RunConfig | None:
        """The settings of the best run; None if no trial has finished."""
        finished = list_finished(self.study)
        return build_config(read_settings(finished[0]), str(self.search.path)) if finished else None

    @property
    def best_trial(self) -> str:
        """A text with the number and value of the best trial."""
        trial = list_finished(self.study)[0]
        return f"trial {trial.number}, validation {self.search.objective} {trial.value:.4f}{_format_used(trial)}"

    @property
    def unpriced(self) -> str:
        """A sentence on the trial that is best without regard to its price; empty if the search has none.

        It is the baseline of a priced search.
        """
        finished, name = list_finished(self.study), self.search.keys.objective
        if self.search.price is None or not finished:
            return ""
        best = min(finished, key=lambda t: (float(t.value or 0.0) - get_cost(t)) * _get_sign(self.study))

        def describe(trial: FrozenTrial) -> str:
            return f"trial {trial.number}, {name} {trial.user_attrs[f'validation_{name}']:.4f}{_format_used(trial)}"

        return f"Without the price {self.search.price}: {describe(best)}. With it: {describe(finished[0])}."

    @property
    def front(self) -> set[int]:
        """Numbers of the finished trials that no other trial beats in value, parameters and joules together."""
        finished = [t for t in list_finished(self.study) if "parameters" in t.user_attrs]

        def list_costs(trial: FrozenTrial) -> tuple[float, float, float]:
            plain = (float(trial.value or 0.0) - get_cost(trial)) * _get_sign(self.study)
            return plain, trial.user_attrs["parameters"] or 0, trial.user_attrs.get("joules") or 0.0

        costs = {t.number: list_costs(t) for t in finished}
        return {
            number
            for number, own in costs.items()
            if not any(other != own and all(map(le, other, own)) for other in costs.values())
        }

    @property
    def tie_note(self) -> str:
        """A warning if other trials have exactly the best value; empty otherwise."""
        values = [t.value for t in list_finished(self.study) if SAME_AS not in t.user_attrs]
        alike = values.count(values[0])
        if alike == 1:
            return ""
        return (
            f"{alike} of {len(values)} finished trials have exactly this value, for example because they keep their "
            "start. It does not distinguish them; set more rounds or more validation examples"
        )

    @property
    def command(self) -> str:
        """The command line of the best run; empty if no trial has finished."""
        best = self.best
        return (
            format_command(best, [plugin.source for plugin in catalogue.find_used_plugins(best)])
            if best is not None
            else ""
        )

    @property
    def extent(self) -> str:
        """A sentence on how much was tried."""
        some, drawn_trials = list_trained(self.study), self.study.get_trials(deepcopy=False)
        given_up = sum(t.state == TrialState.PRUNED for t in some)
        failed = sum(t.state == TrialState.FAIL for t in some)
        seconds = sum(
            t.user_attrs.get("seconds") or 0.0 for t in list_finished(self.study) if SAME_AS not in t.user_attrs
        )
        words = [
            f"{len(list_finished(self.study))} finished trials in {format_duration(seconds)}",
            f"{given_up} given up at a rung",
        ]
        words += [f"{failed} failed"] if failed else []
        never = len(drawn_trials) - len(some)
        return ", ".join([*words, *([f"{never} drawn and never trained"] if never else [])]) + "."

    def build_page_fields(self, number: int) -> dict[str, object]:
        """Return the values that the page's template needs."""
        shown = draw_figures(self.study, self.search.objective)
        failed = [
            f"trial {t.number}: {t.user_attrs[REASON]}" for t in list_trained(self.study) if REASON in t.user_attrs
        ]
        return {
            "id": f"section{number}",
            "title": self.search.name,
            "question": self.search.keys.question,
            "outcome": f"Best: {self.best_trial}. {self.unpriced}".strip() if list_finished(self.study) else "",
            "extent": self.extent,
            "failed": failed,
            "hardware": [self.command] if self.command else [],
            "settings": "settings that all trials share",
            "common": {name: str(value) for name, value in self.search.base.items()},
            "tables": [self.build_table()],
            "figures": [replace(f, svg=use_page_colors(f.svg)) for f in shown],
        }

    def build_table(self) -> Table:
        """Build the table of all trained trials: the finished ones first, the best on top."""
        order = {t.number: i for i, t in enumerate(list_finished(self.study))}
        some = sorted(list_trained(self.study), key=lambda t: (order.get(t.number, len(order)), t.number))
        front, measures = self.front, [name for name in MEASURES if name != f"validation_{self.search.objective}"]
        rows = [_format_row(t, measures, t.number in front) for t in some]
        compared = "loss" if self.search.keys.objective == "loss" else "error"
        table = Table(
            name="trials",
            title="Trials",
            note="The values are measured on validation examples, at the round that a run keeps. For a trial that was "
            "given up, the value is the last one. No trial uses test examples; the command of the best settings does. "
            f"A trial is on the front if no other finished trial has at most its {compared}, parameters and joules, "
            "and less of one of them.",
            headings=(
                "trial",
                "state",
                self.search.objective,
                *(name.removeprefix("validation_") for name in measures),
                "parameters",
                "sent by clients",
                "joules",
                "front",
                "drawn",
            ),
            shown=tuple(tuple(row) for row in rows),
            data=(),
        )
        optional = [*(name.removeprefix("validation_") for name in measures), "joules"]
        places = {name: table.headings.index(name) for name in optional}
        return table.drop_columns(*(n for n, i in places.items() if all(row[i] == ABSENT for row in table.shown)))

    def write(self, folder: Path) -> None:
        """Write the page, each figure as SVG, all trials as CSV, and the best settings.

        Raises:
            RunError: a file can't be written.
        """
        title = f"Search: {self.search.name}"
        with files.raise_write_errors(folder / PAGE):
            for figure in draw_figures(self.study, self.search.objective):
                files.replace(folder / f"{figure.name}.svg", f"{figure.svg.rstrip()}\n".encode())
            files.replace(folder / TABLE, self.to_csv().encode())
            files.replace(folder / PAGE, render_page(title, [self], [], "", "fedpeft tune").encode())
            if self.best is not None:
                files.replace(folder / BEST, catalogue.format_toml(self.best).encode())

    def to_csv(self) -> str:
        """Return all trials as CSV, including those that were never trained."""
        trials = self.study.get_trials(deepcopy=False)
        names = list(dict.fromkeys(name for t in trials for name in t.params))
        out = io.StringIO()
        columns = ["trial", "state", "value", "last_round", "parameters", "bytes", "why", *ADDED, *names]
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_build_line(trial) for trial in trials)
        return out.getvalue()


def describe_state(trial: FrozenTrial) -> str:
    """Return how a trial ended as readable text."""
    if NEVER_TRAINED in trial.user_attrs:
        return "never trained"
    if trial.state == TrialState.PRUNED:
        return f"given up after round {trial.user_attrs.get(GIVEN_UP, trial.last_step)}"
    return {TrialState.COMPLETE: "finished", TrialState.FAIL: "failed"}.get(trial.state, "not finished")


def _format_used(trial: FrozenTrial) -> str:
    joules = trial.user_attrs.get("joules")
    return "" if joules is None else f", {format_joules(joules)}"


def _get_sign(study: Study) -> int:
    """Return 1 if smaller values are better, else -1."""
    return -1 if study.direction == StudyDirection.MAXIMIZE else 1


def _format_row(trial: FrozenTrial, measures: Sequence[str], is_on_front: bool) -> list[str]:
    known = trial.user_attrs
    sent, parameters = known.get("uplink_bytes"), known.get("parameters") or known.get("size", {}).get("parameters")
    return [
        str(trial.number),
        describe_state(trial),
        ABSENT if trial.value is None else f"{trial.value:.4f}",
        *(ABSENT if known.get(name) is None else f"{known[name]:.4f}" for name in measures),
        ABSENT if parameters is None else f"{parameters:,}",
        ABSENT if sent is None else format_bytes(sent),
        ABSENT if known.get("joules") is None else format_joules(known["joules"]),
        "yes" if is_on_front else "",
        format_draws(trial),
    ]


def _build_line(trial: FrozenTrial) -> Mapping[str, Any]:
    known = trial.user_attrs
    sizes = known.get("size", {})
    return {
        "trial": trial.number,
        "state": describe_state(trial),
        "value": trial.value,
        "last_round": trial.last_step,
        "parameters": known.get("parameters") or sizes.get("parameters"),
        "bytes": sizes.get("bytes"),
        "why": known.get(NEVER_TRAINED) or known.get(REASON),
        **{name: known.get(name) for name in (*MEASURES, *OF_ENERGY)},
        **{f"predicted_{unit}": sizes.get(unit) or None for unit in OF_ENERGY},
        **trial.params,
    }
