"""A result: all that is kept of one run, as one JSON line that tables and figures can be made from again.

    {"study", "preset", "point", "seed", "status": "finished", "config", "summary", "rounds", "local_steps",
     "trained_rows", "correct", "count", "calibration", "client_accuracy"}
    {"study", "preset", "point", "seed", "status": "failed", "reason", "config"}

`correct` holds the correct predictions on every test row, packed, so that runs can be paired row by row. The line is
made from the run's folder; the folder can be deleted afterwards.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fedpeft.config import RunConfig, build_config, read_toml
from fedpeft.data.rows import get_test_source
from fedpeft.errors import FedpeftError, RunError
from fedpeft.machine import files
from fedpeft.models.calibration import calibrate
from fedpeft.models.client_accuracy import compute_client_accuracies, compute_worst_tenth
from fedpeft.plugin_files import shorten_version
from fedpeft.reporting.records import Records
from fedpeft.reporting.run_folder import describe_unfinished, resume_command
from fedpeft.reporting.summary import OWN_ROWS, OWN_VALIDATION_ROWS, VALIDATION_ROWS, Costs, Quality, Summary
from fedpeft.reporting.user_files import MadeOf, load_record, parse_record
from fedpeft.studies.line_types import EACH_ROUND, check_size, check_values
from fedpeft.studies.statistics import TestCounts

QUANTILES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
"""Of the clients' accuracies, that are kept."""

BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, BadZipFile, zlib.error)
"""What reading a file raises that is not what was written."""

FILE = "file "
"""Begins the name of what a run's own file held (`Result.contents`)."""

CLIENTS = "clients of "
"""Begins the same, of a file that says who the clients are."""

FINISHED, FAILED = "finished", "failed"


@dataclass(frozen=True)
class Result:
    """One run of a study, or one on its own.

    Attributes:
        config: the resolved settings, as they were stored.
        settled: those that the run has planned itself, where they are others.
        plugin: where its parts from outside came from (`fedpeft.plugins.Plugin.record`).
        made_of: the user's own files that it was made of (`fedpeft.reporting.user_files`); empty: none, it is private,
            or an
            earlier version has made it.
        status: finished or failed.
        seed: the run's seed.
        study: name of the study; empty for a run on its own.
        preset: the study's preset.
        point: axis -> label of its value.
        reason: why it failed.
        summary: summary.json.
        rounds: the lines of rounds.jsonl.
        local_steps: steps of all clients in all rounds; None where no client tells.
        trained_rows: those steps times the batch size.
        correct: packed correct predictions per test row.
        count: packed predictions per test row; None where each row is one prediction.
        loss: packed loss per test row of a language model, in nats summed over its tokens; None of other models.
        calibration: see `fedpeft.models.calibration`; None for language modelling.
        client_accuracy: quantiles over clients and mean of the worst tenth; None if it isn't known, or under privacy.
    """

    config: Mapping[str, Any]
    status: str
    seed: int
    plugin: tuple[Mapping[str, Any], ...] = ()
    made_of: MadeOf = ()
    settled: Mapping[str, Any] = field(default_factory=dict)
    study: str = ""
    preset: str = ""
    point: Mapping[str, str] = field(default_factory=dict)
    reason: str | None = None
    summary: Mapping[str, Any] | None = None
    rounds: tuple[Mapping[str, Any], ...] = ()
    local_steps: int | None = None
    trained_rows: int | None = None
    correct: Mapping[str, Any] | None = None
    count: Mapping[str, Any] | None = None
    loss: Mapping[str, Any] | None = None
    calibration: Mapping[str, Any] | None = None
    client_accuracy: Mapping[str, Any] | None = None

    @property
    def finished(self) -> bool:
        """Whether there are numbers."""
        return self.status == FINISHED

    @property
    def contents(self) -> dict[str, str]:
        """What was in its parts from outside and its user's own files, digests in short: settings don't tell it."""
        parts = [("plugin ", p["source"], str(p.get("sha256", p.get("version")))) for p in self.plugin]
        clients = self.config.get("clients")  # who they are is a setting, beside which all else can be compared
        own = [(CLIENTS if own.file == clients else FILE, own.file, own.sha256) for own in self.made_of if own.sha256]
        named = [(kind, Path(source).name, said) for kind, source, said in (*parts, *own)]
        return {kind + name: f"{name} {shorten_version(said)}" for kind, name, said in named}

    @property
    def own_rows(self) -> bool:
        """Whether its accuracy and loss are those of clients' own models, each on rows of its own."""
        return bool((self.summary or {}).get("accuracy_of") == OWN_ROWS)

    @property
    def scored(self) -> TestCounts | None:
        """The test rows; None where they were not kept."""
        if self.correct is None:
            return None
        correct = unpack(self.correct)
        count = np.ones_like(correct) if self.count is None else unpack(self.count)
        return TestCounts(correct, count, get_test_source(str(self.config.get("dataset", ""))))

    def line(self) -> str:
        """The JSON line, without what is empty."""
        plain = {k: v for k, v in asdict(self).items() if v is not None and v != ()}
        return json.dumps(plain, allow_nan=False) + "\n"


def resolve_config(config: Mapping[str, Any]) -> RunConfig | None:
    """The run that stored settings describe today; None if a setting is no longer legal.

    A setting that is newer than the stored line has its default, so that old results stay valid.
    """
    try:
        return build_config(config, "the stored configuration")
    except FedpeftError:
        return None


# ------------------------------------------------------------------------------------------------------- packed numbers


def pack(values: NDArray[np.float64]) -> dict[str, Any]:
    """Numbers as text: bits for 0 and 1, 32-bit integers for small whole ones, else single precision; compressed."""
    whole = values.astype(np.int32)
    if not (whole == values).all():
        kind, raw = "f4", values.astype("<f4").tobytes()
    elif ((whole == 0) | (whole == 1)).all():
        kind, raw = "bits", np.packbits(whole.astype(np.uint8)).tobytes()
    else:
        kind, raw = "i4", whole.astype("<i4").tobytes()
    return {
        "kind": kind,
        "length": len(whole),
        "data": base64.b64encode(zlib.compress(raw, 9)).decode(),
    }


def unpack(packed: Mapping[str, Any]) -> NDArray[np.float64]:
    """Return the numbers that `pack` has made a text of.

    Raises:
        ValueError, KeyError, TypeError: they are none, or others than the text says.
    """
    length, bits = int(packed["length"]), {"bits": 1, "i4": 32, "f4": 32}[packed["kind"]]
    expected = -(-length * bits // 8)
    raw = zlib.decompressobj().decompress(base64.b64decode(packed["data"]), expected + 1)  # a bomb holds far more
    if len(raw) != expected:
        raise ValueError(f"packed numbers of another length than {length}")
    if packed["kind"] == "bits":
        return np.unpackbits(np.frombuffer(raw, np.uint8), count=packed["length"]).astype(np.float64)
    return np.frombuffer(raw, {"i4": "<i4", "f4": "<f4"}[packed["kind"]]).astype(np.float64)


# ------------------------------------------------------------------------------------------------------- a run's folder


KINDS: Mapping[str, Any] = {"int": (int, float), "float": (int, float), "str": str, "Mapping": Mapping}
"""Types of a summary's values, by how `fedpeft.reporting.summary` declares them."""


def check_summary(summary: Any) -> dict[str, Any]:
    """Return a run's summary, in which each measure has the type that the report computes with.

    Raises:
        ValueError: it is no JSON object, or a value has another type.
    """
    if not isinstance(summary, dict):
        raise ValueError("it has no summary")
    check_size(summary)
    for measure in (one for part in (Quality, Costs, Summary) for one in fields(part)):
        kind = KINDS.get(str(measure.type).partition("[")[0].removesuffix(" | None"), object)
        value = summary.get(measure.name)
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{measure.name} in its summary must be {measure.type}, got {value!r:.40}")
    return summary


def read_run(folder: Path) -> Result:
    """The result in a run's folder.

    Raises:
        RunError: the run is not finished, or a file is missing or broken; the folder is named.
    """
    if not (folder / "config.toml").is_file():
        raise RunError(f"FP5135 {folder} holds no run: there is no config.toml in it")
    config = read_toml(folder / "config.toml")
    records_of_plugins = config.pop("plugin", [])
    if not (folder / "summary.json").is_file():
        raise RunError(describe_unfinished(folder))
    try:
        summary = check_summary(files.read_json(folder / "summary.json"))
        if summary.get("accuracy_of") in (VALIDATION_ROWS, OWN_VALIDATION_ROWS):
            raise RunError(
                f"FP5216 {folder} holds a trial of a search, which has seen no test rows; score it on them first: "
                f"{resume_command(folder)}"
            )
        records = Records(folder)
        rounds, clients = records.read("rounds.jsonl"), records.read("clients.jsonl")
        for number, line in enumerate(rounds, start=1):
            if not line.keys() >= EACH_ROUND:
                raise RunError(
                    f"FP5217 line {number} of {folder / 'rounds.jsonl'} is damaged: it lacks what each line has"
                )
        each = [line["steps"] for line in clients]
        steps = None if None in each else sum(map(int, each))
        scores = _load_arrays(folder / "predictions.npz")
        correct, count = scores.get("correct"), scores.get("count")
        calibration = None
        if correct is not None and summary["metric"] == "accuracy" and scores["confidence"].any():  # of pairs all are 0
            calibration = calibrate(scores["confidence"], correct).to_dict()
        private = bool(config.get("privacy"))  # quantiles of clients' accuracies give away their shares of classes
        return Result(
            config=config,
            status=FINISHED,
            seed=int(config.get("seed", summary["seed"])),
            plugin=tuple(records_of_plugins),
            made_of=() if private else load_record(folder),
            summary=summary,
            rounds=tuple(rounds),
            local_steps=steps,
            trained_rows=None if steps is None else steps * int(config["batch_size"]),
            correct=None if correct is None else pack(correct),
            count=None if count is None or (count == 1).all() else pack(count),
            loss=pack(scores["loss"]) if scores and summary["metric"] == "perplexity" else None,
            calibration=calibration,
            client_accuracy=None if private else compute_client_accuracy(scores, _load_arrays(folder / "clients.npz")),
        )
    except BROKEN as error:
        raise RunError(f"FP5218 {folder} holds a broken run: {type(error).__name__}: {error}") from error


def _load_arrays(path: Path) -> dict[str, NDArray[np.float64]]:
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name].astype(np.float64) for name in found.files}


def compute_client_accuracy(
    scores: Mapping[str, NDArray[np.float64]], clients: Mapping[str, NDArray[np.float64]]
) -> dict[str, Any] | None:
    """How the final model serves each client (`fedpeft.models.client_accuracy`); None where classes are not known."""
    if "labels" not in clients or "test_labels" not in clients or "correct" not in scores:
        return None
    accuracy_K = compute_client_accuracies(
        scores["correct"], clients["test_labels"].astype(np.int64), clients["labels"]
    )
    if not len(accuracy_K):
        return None
    return {
        "clients": len(accuracy_K),
        "quantiles": [float(q) for q in np.quantile(accuracy_K, QUANTILES)],
        "worst_tenth": compute_worst_tenth(accuracy_K),
    }


# -------------------------------------------------------------------------------------------------------- results.jsonl


class ResultsFile:
    """results.jsonl: one line per run, appended and flushed to the disk; the last line of a configuration counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cut_short = False

    def read(self) -> list[Result]:
        """All lines; one that a kill cut short at the end is left out, and `cut_short` set.

        Raises:
            RunError: the file can't be read, or another line is broken.
        """
        self.cut_short = False
        if not self.path.exists():
            return []
        try:
            lines = files.read(self.path).split(b"\n")
        except OSError as error:
            raise RunError(f"FP5100 {self.path} can't be read: {error.strerror}") from error
        found: list[Result] = []
        self.cut_short = bool(lines[-1])
        for number, line in enumerate(lines[:-1], 1):
            if not line.strip():
                continue
            try:
                found.append(_parse_result(files.parse_json(line)))
            except (ValueError, TypeError, KeyError) as error:
                raise RunError(
                    f"FP5219 line {number} of {self.path} is not a result ({error}); mend or remove that line"
                ) from error
        return found

    def mend(self) -> None:
        """Cut off a last line that is not whole: it holds no result, and the next line must not be glued to it.

        Raises:
            RunError: the file can't be written.
        """
        try:
            with open(self.path, "r+b") as file:
                whole = file.read().rfind(b"\n") + 1
                file.truncate(whole)
        except OSError as error:
            raise RunError(f"FP5102 {self.path} can't be written: {error.strerror}") from error

    def append(self, result: Result) -> None:
        """Add a line; it is on the disk when this returns.

        Raises:
            RunError: the disk is full or can't be written.
        """
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(result.line())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"FP5102 {self.path} can't be written: {error.strerror}") from error


def _parse_result(plain: Any) -> Result:
    if not isinstance(plain, dict):
        raise TypeError("it is not a JSON object")
    if plain.get("status") not in (FINISHED, FAILED) or not isinstance(plain.get("config"), dict):
        raise ValueError("it has no status or no config")
    check_values(plain)
    for name in ("correct", "count"):
        if plain.get(name) is not None:
            try:
                unpack(plain[name])
            except (*BROKEN, OverflowError) as error:
                raise ValueError(f"{name} holds no packed numbers: {error}") from error
    if plain["status"] == FINISHED:
        check_summary(plain.get("summary"))
    several = {name: tuple(plain.get(name, ())) for name in ("rounds", "plugin")}
    several["made_of"] = parse_record(plain.get("made_of", ()))
    return Result(**{**plain, **several, "config": dict(plain["config"])})


def select_latest(results: list[Result]) -> list[Result]:
    """The last line of each configuration, as it is understood today, in the order of first lines.

    Of runs on their own, those that other contents of the same files have made are others; a study has one of each.
    """
    chosen: dict[object, Result] = {}
    for result in results:
        config = resolve_config(result.config) or json.dumps(result.config, sort_keys=True)
        contents = () if result.study else tuple(result.contents.items())
        chosen[result.study, result.preset, config, contents] = result
    return list(chosen.values())
