"""Optional trackers: a run's records also go to TensorBoard, MLflow or Weights & Biases during the run.

The JSON lines remain authoritative: a tracker that fails is reported once and left out, and never stops a run. All need
the extra `fedpeft[track]`. TensorBoard writes to `tensorboard/` in the run's folder. MLflow writes to its own default
or MLFLOW_TRACKING_URI. Weights & Biases writes to the account that is logged in, or with WANDB_MODE=offline to `wandb/`
in the run's folder.
"""

from __future__ import annotations

import importlib
import tomllib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from fedpeft.errors import ConfigError
from fedpeft.machine.files import replace
from fedpeft.parts import suggest_legal
from fedpeft.reporting.records import Records

MAIN_MEASURES = ("accuracy", "loss", "perplexity", "baseline_accuracy", "uplink_bytes", "downlink_bytes", "seconds")
"""The measures of summary.json that are sent at the end."""


class Tracker(Protocol):
    """A destination of a run's records."""

    def begin(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Begin or continue the run."""

    def measure(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers after round `step`."""

    def end(self, values: Mapping[str, float]) -> None:
        """Send the final numbers, and end the run."""


class TensorBoard:
    """Event files in `tensorboard/` of the run's folder."""

    needs = "torch.utils.tensorboard"

    def begin(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open the event file."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))
        self._writer.add_text("settings", "\n".join(f"    {k} = {v!r}" for k, v in settings.items()))

    def measure(self, step: int, values: Mapping[str, float]) -> None:
        """Write one scalar for each number."""
        for name, value in values.items():
            self._writer.add_scalar(f"round/{name}", value, step)
        self._writer.flush()

    def end(self, values: Mapping[str, float]) -> None:
        """Write one scalar for each number, and close the file."""
        for name, value in values.items():
            self._writer.add_scalar(f"final/{name}", value, 0)
        self._writer.close()


class MLflow:
    """A run of the experiment `fedpeft`; a resumed run keeps its identity, stored in `mlflow_run`."""

    needs = "mlflow"

    def begin(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Start or continue the run."""
        self._client: Any = importlib.import_module("mlflow")
        self._client.set_experiment("fedpeft")
        identity = folder / "mlflow_run"
        known = identity.read_text(encoding="utf-8").strip() if identity.exists() else None
        run = self._client.start_run(run_id=known, run_name=folder.name)
        if known is None:
            replace(identity, f"{run.info.run_id}\n".encode())
            self._client.log_params(dict(settings))

    def measure(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of a round."""
        self._client.log_metrics({f"round/{k}": v for k, v in values.items()}, step=step)

    def end(self, values: Mapping[str, float]) -> None:
        """Log the final metrics, and end the run."""
        self._client.log_metrics({f"final/{k}": v for k, v in values.items()})
        self._client.end_run()


class WandB:
    """A run of the project `fedpeft`; a resumed run keeps its identity, stored in `wandb_run`."""

    needs = "wandb"

    def begin(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Start or continue the run."""
        client: Any = importlib.import_module("wandb")
        identity = folder / "wandb_run"
        known = identity.read_text(encoding="utf-8").strip() if identity.exists() else None
        self._run: Any = client.init(
            project="fedpeft", name=folder.name, id=known, resume="allow", dir=str(folder), config=dict(settings)
        )
        if known is None:
            replace(identity, f"{self._run.id}\n".encode())

    def measure(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of a round."""
        self._run.log({f"round/{name}": value for name, value in values.items()}, step=step)

    def end(self, values: Mapping[str, float]) -> None:
        """Set the final metrics as the run's summary, and end the run."""
        self._run.summary.update({f"final/{name}": value for name, value in values.items()})
        self._run.finish()


TRACKERS: dict[str, type[TensorBoard] | type[MLflow] | type[WandB]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}


def check_trackers(names: str) -> list[Tracker]:
    """Return the trackers that `names` lists, separated by commas; none for an empty text.

    Raises:
        ConfigError: a tracker is unknown, or its package is not installed.
    """
    found: list[Tracker] = []
    for name in (n.strip() for n in names.split(",") if n.strip()):
        if name not in TRACKERS:
            raise ConfigError(f"FP1395 unknown tracker {name!r}; {suggest_legal(name, TRACKERS)}")
        try:
            importlib.import_module(TRACKERS[name].needs)
        except ImportError:
            raise ConfigError(f"FP1396 tracking to {name} needs an extra: pip install 'fedpeft[track]'") from None
        found.append(TRACKERS[name]())
    return found


class TrackedRecords(Records):
    """Records that also go to trackers, once they are written."""

    def __init__(self, folder: Path, trackers: list[Tracker], private: bool = False) -> None:
        """Hold the trackers; they begin with the first record."""
        super().__init__(folder, private)
        self._trackers = trackers
        self._begun = False

    def append(self, name: str, *entries: dict[str, Any]) -> None:
        """Append lines, and send those of rounds to the trackers."""
        super().append(name, *entries)
        if name == "rounds.jsonl":
            for entry in entries:
                self._send("measure", int(entry["round"]), _select_numbers(entry))

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a file; the summary ends the run of the trackers."""
        super().write_json(name, content)
        if name == "summary.json":
            self._send("end", _select_numbers({k: content.get(k) for k in MAIN_MEASURES} | _flatten_trust(content)))

    def _send(self, method: str, *values: Any) -> None:
        if not self._begun:
            self._begun = True
            settings = tomllib.loads((self.folder / "config.toml").read_text(encoding="utf-8"))
            settings.pop("format", None)  # a run of version 0.2.0 has none
            self._call("begin", self.folder, settings)
        self._call(method, *values)

    def _call(self, method: str, *values: Any) -> None:
        for tracker in list(self._trackers):
            try:
                getattr(tracker, method)(*values)
            except Exception as error:  # a server that is down must not end a run
                self._trackers.remove(tracker)
                name = type(tracker).__name__
                warnings.warn(f"{name} failed and is left out from here on: {error}", RuntimeWarning, stacklevel=2)


def _flatten_trust(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of `--measure` with one name for each number: trust/calibration/test/after/error."""
    found: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        for name, inner in value.items() if isinstance(value, Mapping) else ():
            walk(inner, f"{path}/{name.replace(' ', '_')}")
            found[f"{path}/{name.replace(' ', '_')}"] = inner

    walk(summary.get("trust"), "trust")
    return found


def _select_numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in entry.items() if isinstance(v, int | float) and not isinstance(v, bool)}
