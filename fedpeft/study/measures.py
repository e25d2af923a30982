"""The measures of a run: numbers of tables and figures with their units, and curves over the rounds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedpeft.study.results import Result
from fedpeft.study.statistics import POINTS

MEGABYTE = 1e6


@dataclass(frozen=True)
class Measure:
    """A number of a run, which tables show multiplied by `scale` and with `digits` decimals.

    `sign` is -1 if a lower number is better.
    """

    key: str
    heading: str
    value: Callable[[Result], float | None]
    scale: float = 1.0
    digits: int = 1
    sign: int = 1

    @property
    def most(self) -> float:
        """The largest legal value in the unit of the heading: 100 for percentages, otherwise infinity."""
        return POINTS if self.scale == POINTS else math.inf


def read_summary(key: str) -> Callable[[Result], float | None]:
    """Return a function that reads `key` of a run's summary.json."""
    return lambda result: (result.summary or {}).get(key)


def get_shared_accuracy(result: Result) -> float | None:
    """Return the global model's accuracy, if the main accuracy is that of the clients' own models."""
    return read_summary("shared_accuracy")(result) if result.own_rows else None


def get_total_bytes(result: Result) -> float | None:
    """Return the bytes of a run, uplink and downlink, with the preparation; None if either is unknown."""
    summary = result.summary or {}
    up, down = summary.get("uplink_bytes"), summary.get("downlink_bytes")
    return None if up is None or down is None else float(up + down)


def get_round_seconds(result: Result) -> float | None:
    """Return the time of all rounds with their evaluation, over all resumes, in seconds.

    Returns None for a private run, which publishes the time of round 0 alone.
    """
    seconds = [r.get("seconds") for r in result.rounds]
    known = [s for s in seconds if s is not None]
    return sum(known) if known and len(known) == len(seconds) else None  # a private run publishes round 0 alone


def get_worst_tenth(result: Result) -> float | None:
    """Return the mean accuracy of the tenth of the clients with the lowest accuracy."""
    return result.client_accuracy["worst_tenth"] if result.client_accuracy else None


def get_calibration_error(result: Result) -> float | None:
    """Return the expected calibration error."""
    return result.calibration["error"] if result.calibration else None


def read_forgetting(measure: str) -> Callable[[Result], float | None]:
    """Return a function that reads the loss of a run on its second task, if that was scored by `measure`."""

    def read(result: Result) -> float | None:
        scored = (result.summary or {}).get("forgetting")
        return float(scored["lost"]) if scored and scored["measure"] == measure else None

    return read


CALIBRATED = ("calibration", "test", "after")
"""Path inside the `trust` section of summary.json to the calibrated model's scores on test examples."""


def read_nested(key: str, *path: str) -> Callable[[Result], float | None]:
    """Return a function that reads the number at `path` inside section `key` of summary.json."""

    def read(result: Result) -> float | None:
        value: Any = (result.summary or {}).get(key) or {}
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return None if value is None else float(value)

    return read


def read_trust(*path: str) -> Callable[[Result], float | None]:
    """Return a function that reads a number of the `trust` section of summary.json."""
    return read_nested("trust", *path)


def read_retrieval(*path: str) -> Callable[[Result], float | None]:
    """Return a function that reads a number of the `retrieval` section of summary.json."""
    return read_nested("retrieval", *path)


def read_targets(*path: str) -> Callable[[Result], float | None]:
    """Return a function that reads a number of the `targets` section of summary.json.

    Runs of regression and of several labels per example have this section.
    """
    return read_nested("targets", *path)


def read_per_point(kind: str) -> Callable[[Result], float | None]:
    """Return a function that divides joules or grams by the accuracy in percentage points.

    The function returns None if the accuracy is not above 0, as a skill may be.
    """

    def read(result: Result) -> float | None:
        spent, accuracy = read_trust("energy", kind)(result), (result.summary or {}).get("accuracy")
        return spent / (POINTS * accuracy) if spent is not None and accuracy and accuracy > 0 else None

    return read


def get_aggregation_error(result: Result) -> float | None:
    """Return the mean over the rounds of norm(dW* - dW) / norm(dW*)."""
    errors = [r["aggregation_error"] for r in result.rounds if r.get("aggregation_error") is not None]
    return sum(errors) / len(errors) if errors else None


def get_server_seconds(result: Result) -> float | None:
    """Return the server's mean time per round for decoding, aggregation and its step, in seconds."""
    seconds = [r["aggregation_seconds"] for r in result.rounds if r.get("aggregation_seconds")]
    return sum(seconds) / len(seconds) if seconds else None


def read_tasks(kind: str, name: str) -> Callable[[Result], float | None]:
    """Return a function that reads a measure of continual learning (`fedpeft.reporting.task_measures`)."""

    def read(result: Result) -> float | None:
        measured = ((result.summary or {}).get("tasks") or {}).get(kind) or {}
        return measured.get(name)

    return read


def read_captions(name: str) -> Callable[[Result], float | None]:
    """Return a function that reads a share of correct captions."""

    def read(result: Result) -> float | None:
        return ((result.summary or {}).get("captions") or {}).get(name)

    return read


def get_span_f1(result: Result) -> float | None:
    """Return the F1 score of the spans of token labels."""
    return ((result.summary or {}).get("spans") or {}).get("f1")


MEASURES = (
    Measure("accuracy", "test accuracy (%)", read_summary("accuracy"), POINTS, 2),
    Measure("shared_accuracy", "global model, test rows (%)", get_shared_accuracy, POINTS, 2),
    Measure("perplexity", "test perplexity", read_summary("perplexity"), 1.0, 2, -1),
    Measure("loss", "test loss (nats)", read_summary("loss"), 1.0, 3),
    Measure("baseline_accuracy", "frozen linear probe (%)", read_summary("baseline_accuracy"), POINTS, 2),
    Measure("private_probe_accuracy", "private probe (%)", read_summary("private_probe_accuracy"), POINTS, 2),
    Measure("alone_accuracy", "clients alone (%)", read_summary("alone_accuracy"), POINTS, 2),
    Measure("centralised_accuracy", "pooled data (%)", read_summary("centralised_accuracy"), POINTS, 2),
    Measure("worst_accuracy", "worst client, own rows (%)", read_summary("worst_accuracy"), POINTS, 2),
    Measure("worst_tenth", "worst tenth of clients (%)", get_worst_tenth, POINTS, 2),
    Measure("calibration_error", "calibration error (%)", get_calibration_error, POINTS, 2),
    Measure("calibration_error_scaled", "after scaling (%)", read_summary("calibration_error_scaled"), POINTS, 2),
    Measure("classwise", "class-wise calibration error (%)", read_trust(*CALIBRATED, "classwise"), POINTS, 2),
    Measure("brier", "Brier score, calibrated", read_trust(*CALIBRATED, "brier"), 1.0, 4),
    Measure("risk_area", "risk-coverage area (%)", read_trust(*CALIBRATED, "area"), POINTS, 2),
    Measure("trigger_success", "trigger works (%)", read_trust("backdoor", "success"), POINTS, 2),
    Measure("mrr", "mean reciprocal rank (%)", read_retrieval("mrr"), POINTS, 2),
    Measure("recall_at_10", "recall at 10 (%)", read_retrieval("recall_at_10"), POINTS, 2),
    Measure("mrr_reverse", "the other way (%)", read_retrieval("reverse", "mrr"), POINTS, 2),
    Measure("mrr_frozen", "frozen encoder (%)", read_retrieval("frozen", "mrr"), POINTS, 2),
    Measure("mrr_words", "words (%)", read_retrieval("words", "mrr"), POINTS, 2),
    Measure("clones", "clones first (%)", read_trust("clones", "result", "first"), POINTS, 2),
    Measure("clones_frozen", "clones first, frozen (%)", read_trust("clones", "frozen", "first"), POINTS, 2),
    Measure("clones_words", "clones first, words (%)", read_trust("clones", "words", "first"), POINTS, 2),
    Measure("forgotten", "forgotten, probe (%)", read_forgetting("probe accuracy"), POINTS, 2),
    Measure("forgotten_nats", "forgotten (nats a token)", read_forgetting("nats per token"), 1.0, 3),
    Measure("task_average", "mean over tasks (%)", read_tasks("accuracy", "average"), POINTS, 2),
    Measure("task_forgetting", "forgetting (points)", read_tasks("accuracy", "forgetting"), POINTS, 2),
    Measure("task_known", "mean, task known (%)", read_tasks("accuracy_known_task", "average"), POINTS, 2),
    Measure("task_lost", "forgetting, task known", read_tasks("accuracy_known_task", "forgetting"), POINTS, 2),
    Measure("backward", "backward transfer", read_tasks("accuracy_known_task", "backward_transfer"), POINTS, 2),
    Measure("forward", "forward transfer", read_tasks("accuracy_known_task", "forward_transfer"), POINTS, 2),
    Measure("rmse", "root mean squared error", read_targets("rmse"), 1.0, 4),
    Measure("mae", "mean absolute error", read_targets("mae"), 1.0, 4),
    Measure("r2", "R^2 (%)", read_targets("r2"), POINTS, 2),
    Measure("spearman", "Spearman correlation (%)", read_targets("spearman"), POINTS, 2),
    Measure("rmse_probe", "root mean squared error, probe", read_targets("probe", "rmse"), 1.0, 4),
    Measure("micro_f1", "micro F1 (%)", read_targets("micro_f1"), POINTS, 2),
    Measure("macro_f1", "macro F1 (%)", read_targets("macro_f1"), POINTS, 2),
    Measure("average_precision", "mean average precision (%)", read_targets("average_precision"), POINTS, 2),
    Measure("macro_f1_probe", "macro F1, probe (%)", read_targets("probe", "macro_f1"), POINTS, 2),
    Measure("spans", "F1 of spans (%)", get_span_f1, POINTS, 2),
    Measure("exact_match", "exact captions (%)", read_captions("exact_match"), POINTS, 2),
    Measure("rouge_l", "ROUGE-L (%)", read_captions("rouge_l"), POINTS, 2),
    Measure("form", "of the form (%)", read_captions("form"), POINTS, 2),
    Measure("colour", "colours (%)", read_captions("colour"), POINTS, 2),
    Measure("shape", "shapes (%)", read_captions("shape"), POINTS, 2),
    Measure("relation", "relations (%)", read_captions("relation"), POINTS, 2),
    Measure("epsilon", "epsilon", read_summary("epsilon"), 1.0, 2),
    Measure("audit_epsilon", "audit: epsilon at least", read_summary("audit_epsilon"), 1.0, 2),
    Measure("membership_auc", "membership attack (AUC)", read_summary("membership_auc"), 1.0, 3),
    Measure("cancelled", "cancelled share, last round (%)", read_trust("disagreement", "cancelled"), POINTS, 1),
    Measure("joules", "energy of clients (kJ)", read_trust("energy", "joules"), 1e-3, 2),
    Measure("grams", "CO2 of clients (g)", read_trust("energy", "grams"), 1.0, 2),
    Measure("joules_per_point", "energy per point of accuracy (J)", read_per_point("joules"), 1.0, 1),
    Measure("grams_per_point", "CO2 per point of accuracy (g)", read_per_point("grams"), 1.0, 3),
    Measure("dropped", "turns lost to empty batteries", read_trust("energy", "dropped"), 1.0, 1),
    Measure("uplink_bytes", "uplink (MB)", read_summary("uplink_bytes"), 1 / MEGABYTE, 2),
    Measure("downlink_bytes", "downlink (MB)", read_summary("downlink_bytes"), 1 / MEGABYTE, 2),
    Measure("total_bytes", "up + down (MB)", get_total_bytes, 1 / MEGABYTE, 2),
    Measure("bytes_per_parameter", "bytes per parameter, up", read_summary("uplink_bytes_per_parameter"), 1.0, 2),
    Measure("local_steps", "local steps", lambda r: r.local_steps, 1.0, 0),
    Measure("aggregation_error", "aggregation error (%)", get_aggregation_error, POINTS, 2),
    Measure("server_seconds", "server time per round (ms)", get_server_seconds, 1e3, 0),
    Measure("round_seconds", "time of the rounds (s)", get_round_seconds, 1.0, 1),
    Measure("peak_memory_bytes", "peak memory (MB)", read_summary("peak_memory_bytes"), 1 / MEGABYTE, 0),
)
BY_KEY = {measure.key: measure for measure in MEASURES}

TABLES = {
    "perplexity": ("Test perplexity", ("perplexity",)),
    "accuracy": (
        "Test accuracy",
        (
            "accuracy",
            "shared_accuracy",
            "baseline_accuracy",
            "private_probe_accuracy",
            "alone_accuracy",
            "centralised_accuracy",
        ),
    ),
    "worst": ("Accuracy of the worst clients", ("worst_accuracy", "worst_tenth")),
    "loss": ("Test loss", ("loss",)),
    "calibration_error": ("Calibration error", ("calibration_error", "calibration_error_scaled", "classwise")),
    "brier": ("Brier score", ("brier",)),
    "risk_area": ("Risk and coverage", ("risk_area",)),
    "rank": ("Mean reciprocal rank", ("mrr", "mrr_reverse", "mrr_frozen", "mrr_words")),
    "recall": ("Recall at 10", ("recall_at_10",)),
    "clones": ("Clones first", ("clones", "clones_frozen", "clones_words")),
    "forgotten": ("Forgetting of a second task", ("forgotten", "forgotten_nats")),
    "task_accuracy": ("Mean accuracy over tasks", ("task_average", "task_known")),
    "task_forgetting": (
        "Forgetting and transfer between tasks",
        ("task_forgetting", "task_lost", "backward", "forward"),
    ),
    "rmse": ("Root mean squared error", ("rmse", "rmse_probe")),
    "mae": ("Mean absolute error", ("mae",)),
    "r2": ("Explained variance", ("r2",)),
    "spearman": ("Rank correlation", ("spearman",)),
    "f1": ("F1 over labels", ("micro_f1", "macro_f1", "macro_f1_probe")),
    "average_precision": ("Mean average precision", ("average_precision",)),
    "spans": ("F1 of spans", ("spans",)),
    "captions": ("Captions", ("exact_match", "rouge_l", "form", "colour", "shape", "relation")),
    "epsilon": ("Privacy budget", ("epsilon", "audit_epsilon")),
    "membership": ("Membership inference", ("membership_auc",)),
    "backdoor": ("Success of a backdoor", ("trigger_success",)),
    "cancelled": ("Disagreement of clients", ("cancelled",)),
    "energy": ("Energy", ("joules", "grams", "joules_per_point", "grams_per_point", "dropped")),
    "resources": (
        "Bytes, work, time, memory",
        (
            "uplink_bytes",
            "downlink_bytes",
            "total_bytes",
            "bytes_per_parameter",
            "local_steps",
            "aggregation_error",
            "server_seconds",
            "round_seconds",
            "peak_memory_bytes",
        ),
    ),
}
"""Title and measures of each table, by its name; the CSV file has the same name."""


CALLED = {
    "skill": {"an accuracy": "a skill", "accuracy": "skill", "Accuracy": "Skill", "(nats)": "(squared deviations)"},
    "label_accuracy": {"an accuracy": "a label accuracy", "accuracy": "label accuracy", "Accuracy": "Label accuracy"},
    "perplexity": {
        "an accuracy": "a next-token accuracy",
        "accuracy": "next-token accuracy",
        "Accuracy": "Next-token accuracy",
    },
}
"""Words that replace "accuracy" in headings, by the metric of the runs."""


def format_heading(heading: str, results: Iterable[Result]) -> str:
    """Replace "accuracy" in a heading by the name of the metric, if all runs share one other metric."""
    metrics = {result.summary.get("metric") for result in results if result.summary}
    words = CALLED.get(str(*metrics), {}) if len(metrics) == 1 else {}
    anywhere = "|".join(rf"(?<!\w){re.escape(accuracy)}" for accuracy in words)
    return re.sub(anywhere, lambda found: words[found[0]], heading) if words else heading


@dataclass(frozen=True)
class CurvePoint:
    """A run after a round: its validation accuracy (%), loss, and the megabytes and seconds spent so far."""

    round: int
    accuracy: float
    loss: float
    megabytes: float
    seconds: float


def build_curve(run: Result) -> list[CurvePoint]:
    """Return one point for each evaluated round of a run."""
    points: list[CurvePoint] = []
    spent = seconds = 0.0
    for line in run.rounds:
        spent += (line["uplink_bytes"] + line["downlink_bytes"]) / MEGABYTE
        seconds += math.nan if line["seconds"] is None else line["seconds"]  # None: a private run does not publish it
        if line.get("accuracy") is not None:
            points.append(CurvePoint(line["round"], POINTS * line["accuracy"], line["loss"], spent, seconds))
    return points


def find_first_at(curve: Iterable[CurvePoint], accuracy: float) -> CurvePoint | None:
    """Return the first point of a curve with at least this accuracy in percent; None if it never gets there."""
    return next((point for point in curve if point.accuracy >= accuracy), None)
