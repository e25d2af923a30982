"""A result: everything that is kept of one run, as one JSON line from which tables and figures are rebuilt.

    {"study", "preset", "point", "seed", "status": "finished", "config", "summary", "rounds", "local_steps",
     "trained_rows", "correct", "count", "calibration", "client_accuracy"}
    {"study", "preset", "point", "seed", "status": "failed", "reason", "config"}

`correct` holds the correct predictions on every test example, packed, so that runs can be paired by example. The line
is made from the run's folder, which can be deleted afterwards.
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

from fedpeft.data.rows import get_test_source
from fedpeft.errors import FedpeftError, RunError
from fedpeft.machine import files
from fedpeft.models.calibration import calibrate
from fedpeft.models.client_accuracy import compute_client_accuracies, compute_worst_tenth
from fedpeft.parts.plugin_files import shorten_version
from fedpeft.reporting.records import Records
from fedpeft.reporting.run_folder import describe_unfinished, resume_command
from fedpeft.reporting.summary import OWN_ROWS, OWN_VALIDATION_ROWS, VALIDATION_ROWS, Costs, Quality, Summary
from fedpeft.reporting.user_files import MadeOf, load_record, parse_record
from fedpeft.study.line_types import EACH_ROUND, check_size, check_values
from fedpeft.study.statistics import TestCounts
from fedpeft.wiring.config import RunConfig, build_config, check_format, read_toml

QUANTILES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
"""The kept quantiles of the clients' accuracies."""

BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, BadZipFile, zlib.error)
"""Errors that reading a damaged file raises."""

FILE = "file "
"""Prefix of the names of a run's own files in `Result.contents`."""

CLIENTS = "clients of "
"""Prefix of the name of a file that defines the clients in `Result.contents`."""

FINISHED, FAILED = "finished", "failed"


@dataclass(frozen=True)
class Result:
    """One run of a study, or a single run.

    Attributes:
        config: the resolved settings, as they were stored.
        settled: settings that the run itself changed when it resolved them.
        plugin: the sources of its plugins (`fedpeft.parts.plugins.Plugin.record`).
        made_of: the user's own files that the run depends on (`fedpeft.reporting.user_files`); empty if there are
            none, if the run is private, or if an earlier version made it.
        status: finished or failed.
        seed: the run's seed.
        study: name of the study; empty for a single run.
        preset: the study's preset.
        point: axis -> label of its value.
        reason: why it failed.
        summary: summary.json.
        rounds: the lines of rounds.jsonl.
        local_steps: steps of all clients in all rounds; None if clients do not report them.
        trained_rows: those steps times the batch size.
        correct: packed correct predictions per test example.
        count: packed predictions per test example; None if each example is one prediction.
        loss: packed loss per test example of a language model, in nats summed over its tokens; None for other models.
        calibration: see `fedpeft.models.calibration`; None for language modeling.
        client_accuracy: quantiles over clients and mean of the worst tenth; None if unknown or under privacy.
        folder: the folder of a single run, which names it; empty in a line of a study.
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
    folder: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether the run has finished, so that it has numbers."""
        return self.status == FINISHED

    @property
    def contents(self) -> dict[str, str]:
        """Names and short digests of its plugins and the user's own files, which the settings do not contain."""
        parts = [("plugin ", p["source"], str(p.get("sha256", p.get("version")))) for p in self.plugin]
        clients = self.config.get(
            "clients"
        )  # the file is named by a setting, and runs that differ in it can be compared
        user_files = [
            (CLIENTS if record.file == clients else FILE, record.file, record.sha256)
            for record in self.made_of
            if record.sha256
        ]
        named = [(kind, Path(source).name, digest) for kind, source, digest in (*parts, *user_files)]
        return {kind + name: f"{name} {shorten_version(digest)}" for kind, name, digest in named}

    @property
    def own_rows(self) -> bool:
        """Whether accuracy and loss are those of clients' own models, each on that client's own examples."""
        return bool((self.summary or {}).get("accuracy_of") == OWN_ROWS)

    @property
    def metric(self) -> str | None:
        """The main metric, which `accuracy` contains; None for a failed run."""
        return (self.summary or {}).get("metric")

    @property
    def test_source(self) -> str:
        """The dataset without the settings that do not change its test examples."""
        return get_test_source(str(self.config.get("dataset", "")))

    @property
    def data_digests(self) -> tuple[str, ...]:
        """The digests of the user's own files with examples; empty if the run has no record of them."""
        dataset = str(self.config.get("dataset", ""))
        return tuple(record.sha256 for record in self.made_of[1:] if record.sha256 and record.file in dataset)

    @property
    def is_preview(self) -> bool:
        """Whether the run used only a sample of the examples, as `--quick` does."""
        return bool((self.summary or {}).get("sampled"))

    @property
    def early_end(self) -> str:
        """A sentence on why the run ended before its last round; empty: it did not."""
        summary, rounds = self.summary or {}, self.config.get("rounds")
        done = summary.get("rounds")
        if not isinstance(rounds, int) or not isinstance(done, int) or done >= rounds:
            return ""
        reason = summary.get("ended_early")
        return f"ended after {done} of {rounds} rounds" + (f". Reason: {reason}" if reason else "")

    @property
    def test_counts(self) -> TestCounts | None:
        """The counts per test example; None if they were not kept."""
        if self.correct is None:
            return None
        correct = unpack(self.correct)
        count = np.ones_like(correct) if self.count is None else unpack(self.count)
        return TestCounts(correct, count, self.test_source)

    def line(self) -> str:
        """Return the result as a JSON line without empty values."""
        plain = {k: v for k, v in asdict(self).items() if v is not None and v != () and k != "folder"}
        return json.dumps(plain, allow_nan=False) + "\n"


def resolve_config(config: Mapping[str, Any]) -> RunConfig | None:
    """Return the run that stored settings describe today; None if a setting is no longer legal.

    A setting that is newer than the stored line gets its default, so that old results stay valid.
    """
    try:
        return build_config(config, "the stored configuration")
    except FedpeftError:
        return None


# ------------------------------------------------------------------------------------------------------- packed numbers


def pack(values: NDArray[np.float64]) -> dict[str, Any]:
    """Pack numbers as text: bits for 0 and 1, int32 for small whole numbers, otherwise float32; zlib and base64."""
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
    """Return the numbers that `pack` packed.

    Raises:
        ValueError, KeyError, TypeError: the data is malformed, or its length differs from `length`.
    """
    length, bits = int(packed["length"]), {"bits": 1, "i4": 32, "f4": 32}[packed["kind"]]
    expected = -(-length * bits // 8)
    raw = zlib.decompressobj().decompress(
        base64.b64decode(packed["data"]), expected + 1
    )  # a decompression bomb contains far more
    if len(raw) != expected:
        raise ValueError(f"packed numbers of another length than {length}")
    if packed["kind"] == "bits":
        return np.unpackbits(np.frombuffer(raw, np.uint8), count=packed["length"]).astype(np.float64)
    return np.frombuffer(raw, {"i4": "<i4", "f4": "<f4"}[packed["kind"]]).astype(np.float64)


# ------------------------------------------------------------------------------------------------------- a run's folder


KINDS: Mapping[str, Any] = {"int": (int, float), "float": (int, float), "str": str, "Mapping": Mapping}
"""Python types of a summary's values, by their annotation in `fedpeft.reporting.summary`."""


def check_summary(summary: Any) -> dict[str, Any]:
    """Return a run's summary if each measure has the type that the report computes with.

    Raises:
        ValueError: it is not a JSON object, or a value has another type.
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


def pack_scores(scores: Mapping[str, NDArray[np.float64]], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a result keeps of predictions.npz: `correct`, `count`, `loss` and `calibration` of `Result`.

    Args:
        scores: the arrays of predictions.npz, (rows,) each; empty if the run has none.
        summary: summary.json, which contains the main metric.
    """
    if "correct" not in scores:
        return {}
    packed: dict[str, Any] = {"correct": pack(scores["correct"])}
    if "count" in scores and (scores["count"] != 1).any():
        packed["count"] = pack(scores["count"])
    if summary["metric"] == "perplexity":
        packed["loss"] = pack(scores["loss"])
    if summary["metric"] == "accuracy" and scores["confidence"].any():  # all are 0 for pairs
        packed["calibration"] = calibrate(scores["confidence"], scores["correct"]).to_dict()
    return packed


def read_run(folder: Path) -> Result:
    """Read the result from a run's folder.

    Raises:
        RunError: the run is not finished, or a file is missing or broken. The message names the folder.
    """
    if not (folder / "config.toml").is_file():
        raise RunError(f"FP5135 {folder} holds no run: there is no config.toml in it; give a run's folder, runs/NAME")
    config = read_toml(folder / "config.toml")
    check_format(config, folder / "config.toml")
    records_of_plugins = config.pop("plugin", [])
    if not (folder / "summary.json").is_file():
        raise RunError(describe_unfinished(folder))
    try:
        summary = check_summary(files.read_json(folder / "summary.json"))
        if summary.get("accuracy_of") in (VALIDATION_ROWS, OWN_VALIDATION_ROWS):
            raise RunError(
                f"FP5216 {folder} holds a trial of a search, which has not used test examples; score it on them first: "
                f"{resume_command(folder)}"
            )
        records = Records(folder)
        rounds, clients = records.read("rounds.jsonl"), records.read("clients.jsonl")
        for number, line in enumerate(rounds, start=1):
            if not line.keys() >= EACH_ROUND:
                raise RunError(
                    f"FP5217 line {number} of {folder / 'rounds.jsonl'} is damaged: it must have "
                    f"{', '.join(sorted(EACH_ROUND))}"
                )
        each = [line["steps"] for line in clients]
        steps = None if None in each else sum(map(int, each))
        scores = _load_arrays(folder / "predictions.npz")
        private = bool(config.get("privacy"))  # quantiles of clients' accuracies would reveal their class shares
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
            **pack_scores(scores, summary),
            client_accuracy=None if private else compute_client_accuracy(scores, _load_arrays(folder / "clients.npz")),
        )
    except BROKEN as error:
        raise RunError(f"FP5218 {folder} holds a broken run: {type(error).__name__}: {error}") from error


def _load_arrays(path: Path) -> dict[str, NDArray[np.float64]]:
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name].astype(np.float64) for name in archive.files}


def compute_client_accuracy(
    scores: Mapping[str, NDArray[np.float64]], clients: Mapping[str, NDArray[np.float64]]
) -> dict[str, Any] | None:
    """Return quantiles over clients of the final model's accuracy, and the mean of the worst tenth.

    Returns None if the classes of clients or test examples are unknown (`fedpeft.models.client_accuracy`).
    """
    if "labels" not in clients or "test_labels" not in clients or "correct" not in scores:
        return None
    accuracies = compute_client_accuracies(
        scores["correct"], clients["test_labels"].astype(np.int64), clients["labels"]
    )
    if not len(accuracies):
        return None
    return {
        "clients": len(accuracies),
        "quantiles": [float(q) for q in np.quantile(accuracies, QUANTILES)],
        "worst_tenth": compute_worst_tenth(accuracies),
    }


# -------------------------------------------------------------------------------------------------------- results.jsonl


class ResultsFile:
    """results.jsonl: one line per run, appended and flushed to disk. The last line of a configuration counts."""

    def __init__(self, path: Path) -> None:
        """Hold the path; nothing is read yet."""
        self.path = path
        self.cut_short = False

    def read(self) -> list[Result]:
        """Read all lines; leave out a last line that a kill cut short, and set `cut_short`.

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
        results: list[Result] = []
        self.cut_short = bool(lines[-1])
        for number, line in enumerate(lines[:-1], 1):
            if not line.strip():
                continue
            try:
                results.append(_parse_result(files.parse_json(line)))
            except (ValueError, TypeError, KeyError) as error:
                raise RunError(
                    f"FP5219 line {number} of {self.path} is not a result ({error}); correct or remove that line"
                ) from error
        return results

    def mend(self) -> None:
        """Remove an incomplete last line, so that the next line is not appended to it.

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
        """Append a line and flush it to disk.

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
    return Result(**{**plain, **several, "config": dict(plain["config"]), "folder": ""})


def select_latest(results: list[Result]) -> list[Result]:
    """Return the last line of each configuration as it resolves today, in the order of the first lines.

    Single runs also count as different if their files had different contents. A study has one result per configuration.
    """
    chosen: dict[object, Result] = {}
    for result in results:
        config = resolve_config(result.config) or json.dumps(result.config, sort_keys=True)
        contents = () if result.study else tuple(result.contents.items())
        chosen[result.study, result.preset, config, contents] = result
    return list(chosen.values())
