"""A project made from one of Flower's FlowerTune templates, as settings of a run.

Its pyproject.toml is read; its Python files are compared with the templates', and never executed.

Source: github.com/adap/flower, examples/flowertune-llm-*, and before them `flwr new` (Apache-2.0), up to March 2026.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fedpeft.data.datasets.flowertune import TRACKS
from fedpeft.data.model_config import load_model_config
from fedpeft.errors import ConfigError, ModelError
from fedpeft.models.base_model import resolve_model
from fedpeft.parts import suggest_legal
from fedpeft.wiring.config import RunConfig, build_config, read_toml

POSITIVE = {
    "model.lora.peft-lora-r": int,
    "model.lora.peft-lora-alpha": float,
    "train.save-every-round": int,
    "train.learning-rate-max": float,
    "train.seq-length": int,
    "train.training-arguments.per-device-train-batch-size": int,
    "train.training-arguments.gradient-accumulation-steps": int,
    "train.training-arguments.num-train-epochs": float,
    "strategy.fraction-train": float,
    "num-server-rounds": int,
}
"""Keys whose values are numbers above 0."""

OTHERS = {
    "model.name": str,
    "model.quantization": int,
    "model.gradient-checkpointing": bool,
    "model.lora.peft-lora-dropout": float,
    "model.lora.use-dora": bool,
    "model.lora.target-modules": str,
    "train.learning-rate-min": float,
    "train.training-arguments.gradient-checkpointing": bool,
    "train.training-arguments.max-steps": int,
    "train.training-arguments.weight-decay": float,
    "train.training-arguments.max-grad-norm": float,
    "train.training-arguments.warmup-steps": int,
    "strategy.use-flexlora": bool,
    "static.dataset.name": str,
    "task.name": str,
}
HONOURED: Mapping[str, type] = POSITIVE | OTHERS
"""Keys that have an effect on a run. Entries have added dropout, targets, DoRA, FlexLoRA and the task's name."""

LEFT_OUT = {
    "train.dynamic-data-seed": "a client continues in its examples where it stopped, whatever the value",
    "train.training-arguments.output-dir": "a run's folder is --output",
    "train.training-arguments.learning-rate": "the round's rate replaces it, as in the template",
    "train.training-arguments.logging-steps": "every round is recorded",
    "train.training-arguments.save-steps": "every round leaves a checkpoint",
    "train.training-arguments.save-total-limit": "the newest checkpoint is kept",
    "train.training-arguments.lr-scheduler-type": "the rate is constant within a round",
    "strategy.fraction-evaluate": "the server holds the held-out examples, and no client evaluates",
}
"""Keys of the templates that have no effect here, with the reason."""

DEFAULTS: Mapping[str, Any] = {
    "model.quantization": 4,
    "model.gradient-checkpointing": True,
    "model.lora.peft-lora-r": 32,
    "model.lora.peft-lora-alpha": 64.0,
    "model.lora.peft-lora-dropout": 0.075,
    "train.save-every-round": 5,
    "train.learning-rate-max": 5e-5,
    "train.learning-rate-min": 1e-6,
    "train.seq-length": 512,
    "train.training-arguments.per-device-train-batch-size": 8,
    "train.training-arguments.gradient-accumulation-steps": 1,
    "train.training-arguments.num-train-epochs": 3.0,
    "train.training-arguments.max-steps": -1,
    "train.training-arguments.max-grad-norm": 1.0,
    "strategy.fraction-train": 1.0,
}
"""Values of missing keys, from the template's code or transformers' TrainingArguments."""

NEEDED = ("model.name", "num-server-rounds", "static.dataset.name")

LEAST_CLIENTS = 2
"""The fewest clients of a round: Flower's FedAvg asks no fewer."""

ARGUMENTS = "train.training-arguments."
"""Prefix of the keys that are transformers' TrainingArguments."""


@dataclass(frozen=True)
class FlowerTuneProject:
    """The content of a project.

    Attributes:
        folder: holds pyproject.toml.
        values: values of the keys in `HONOURED`, checked.
        ignored: keys that have no effect here, with the reason.
        code: Python files that differ from those of the templates.
        track: one of `fedpeft.data.datasets.flowertune.TRACKS`.
        clients: number of SuperNodes.
    """

    folder: Path
    values: Mapping[str, Any]
    ignored: Mapping[str, str]
    code: tuple[str, ...]
    track: str
    clients: int

    @classmethod
    def read(
        cls, folder: Path, given: Iterable[str] = (), ignore_code: bool = False, track: str = "", clients: int = 0
    ) -> FlowerTuneProject:
        """Read the project in a folder.

        Args:
            folder: has a pyproject.toml.
            given: further keys, KEY=VALUE, which override the file's.
            ignore_code: whether keys that only changed code can read are left out, instead of rejected.
            track: the track if the project does not state it; empty: the project's, or by its dataset.
            clients: the number of clients if the project does not state it; 0: the project's, or the track's.

        Raises:
            ConfigError: there is no such project; or a key is unknown, missing or has an illegal value.
        """
        content = read_toml(folder / "pyproject.toml")
        flower = _get_table(_get_table(content, "tool"), "flwr")
        found = _flatten_table(_get_table(_get_table(flower, "app"), "config"))
        if not found:
            raise ConfigError(
                f"FP1360 {folder}/pyproject.toml has no [tool.flwr.app.config], so it is not a FlowerTune project; "
                "make one with: flwr new @flwrlabs/flowertune-llm-general-nlp"
            )
        code = find_changed_files(folder)
        said = dict(map(_parse_assignment, given))
        for key in said:
            if key not in HONOURED and key not in LEFT_OUT:
                raise ConfigError(f"FP1361 --set has no key {key!r}; {suggest_legal(key, (*HONOURED, *LEFT_OUT))}")
        values, ignored = _split_by_effect(found | said, ignore_code)
        track = _choose_track(track or str(values.get("task.name", "")), str(values["static.dataset.name"]), folder)
        nodes = _count_supernodes(flower)
        return cls(folder, values, ignored, code, track, clients or nodes or TRACKS[track][1])

    def config(self, rows: str, test: str | None = None, **chosen: Any) -> RunConfig:
        """Return the settings of the run that the project describes.

        Args:
            rows: a file, a folder or a hub's dataset with the examples.
            test: a file of test examples; None: some examples are held out.
            chosen: settings that override those of the project.

        Raises:
            FedpeftError: there is no such model, or the layers for LoRA are unknown.
        """
        v, more = self.values, f", test={test!r}" if test else ""
        per_device, passes = (
            v[ARGUMENTS + name] for name in ("per-device-train-batch-size", "gradient-accumulation-steps")
        )
        steps, epochs = v[ARGUMENTS + "max-steps"], v[ARGUMENTS + "num-train-epochs"]
        settings = {
            "clients": 0,
            "partition": "natural",
            "dataset": f"flowertune(name={rows!r}, track={self.track}, clients={self.clients}{more})",
            "cohort": min(self.clients, max(int(self.clients * v["strategy.fraction-train"]), LEAST_CLIENTS)),
            "rounds": v["num-server-rounds"],
            "model": v["model.name"],
            "tokens": v["train.seq-length"],
            "peft": self._format_peft(),
            "strategy": "flexlora" if v.get("strategy.use-flexlora") else "fedit",
            "batch_size": per_device * passes,
            "local_work": f"steps({steps})" if steps > 0 else f"epochs({epochs})",
            "learning_rate": v["train.learning-rate-max"],
            "optimizer": self._format_optimizer(per_device if passes > 1 else 0),
            "safeguard": "none",  # the template keeps every step, and judging one takes as long as many steps
            "measure": f"validation(every={min(v['train.save-every-round'], v['num-server-rounds'])}, keep=last)",
        }
        return build_config(settings | chosen, str(self.folder))

    def _format_peft(self) -> str:
        v = self.values
        bits, dora = v["model.quantization"], bool(v.get("model.lora.use-dora"))
        if bits and dora:
            raise ConfigError(
                "FP1362 model.lora.use-dora needs a base that is not quantized; add --set model.quantization=0, or "
                "leave DoRA out"
            )
        targets = v.get("model.lora.target-modules") or _find_default_targets(v["model.name"])
        where = "all" if targets == "all-linear" else repr(tuple(t.strip() for t in targets.split(",") if t.strip()))
        name = "qlora" if bits else "lora"
        if dora:
            name = "dora"
        return (
            f"{name}(rank={v['model.lora.peft-lora-r']}, alpha={v['model.lora.peft-lora-alpha']}, targets={where}, "
            f"layers=0, dropout={v['model.lora.peft-lora-dropout']}{', bits=8' if bits == 8 else ''})"
        )

    def _format_optimizer(self, rows_per_pass: int) -> str:
        v = self.values
        checkpointing = v.get("model.gradient-checkpointing") or v.get(ARGUMENTS + "gradient-checkpointing")
        settings = {
            "schedule": "annealing",
            "floor": v["train.learning-rate-min"] / v["train.learning-rate-max"],
            "max_norm": v[ARGUMENTS + "max-grad-norm"],
            "weight_decay": v.get(ARGUMENTS + "weight-decay", 0.0),
            "warmup": v.get(ARGUMENTS + "warmup-steps", 0),
            "rows_per_pass": rows_per_pass,
            "checkpointing": bool(checkpointing),
        }
        return "adamw(" + ", ".join(f"{name}={value}" for name, value in settings.items() if value) + ")"


def _get_table(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = content.get(key, {})
    return found if isinstance(found, dict) else {}


def _flatten_table(table: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested tables as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flatten_table(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return flat


def _parse_assignment(text: str) -> tuple[str, Any]:
    """Return key and value of KEY=VALUE; a value that is not TOML is a text."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise ConfigError(f"FP1363 --set takes KEY=VALUE, such as train.seq-length=256, got {text!r}")
    key = "static.dataset.name" if key == "dataset.name" else key
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def _split_by_effect(found: Mapping[str, Any], ignore_code: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values of keys that have an effect, and the other keys with the reason why they have none.

    Raises:
        ConfigError: a key is unknown, missing or has an illegal value.
    """
    values, ignored = dict(DEFAULTS), {}
    for key, value in found.items():
        if key in HONOURED:
            values[key] = _check_value(key, value)
        elif key in LEFT_OUT:
            if value not in ("", False, 0, 0.0) and (key, value) != (ARGUMENTS + "lr-scheduler-type", "constant"):
                ignored[key] = LEFT_OUT[key]
        elif key.startswith(ARGUMENTS) and _is_argument(key.removeprefix(ARGUMENTS)):
            ignored[key] = "fedpeft's local steps have no such setting"
        elif ignore_code:
            ignored[key] = "only the project's own code reads it"
        else:
            raise ConfigError(
                f"FP1364 the project has a key {key!r} that the templates' code does not read; "
                f"{suggest_legal(key, (*HONOURED, *LEFT_OUT))}; if code of your own reads it: --ignore-code "
                f"leaves both out"
            )
    if missing := [key for key in NEEDED if key not in values]:
        raise ConfigError(f"FP1365 the project has no {missing[0]}; give it with --set {missing[0]}=VALUE")
    if values["train.learning-rate-min"] > values["train.learning-rate-max"]:
        raise ConfigError("FP1366 train.learning-rate-min is above train.learning-rate-max; swap them")
    return values, ignored


def _is_argument(name: str) -> bool:
    from transformers import TrainingArguments

    return name.replace("-", "_") in {field.name for field in fields(TrainingArguments)}


def _check_value(key: str, value: Any) -> Any:
    """Return the value in the type of its key.

    Raises:
        ConfigError: the type or the range is wrong.
    """
    kind: Any = HONOURED[key]
    if kind is float and type(value) is int:  # not a truth value
        value = float(value)
    if key == "model.lora.target-modules" and isinstance(value, list) and all(isinstance(v, str) for v in value):
        value = ",".join(value)
    if type(value) is not kind:
        raise ConfigError(f"FP1367 {key} must be of type {kind.__name__}, got {value!r:.60}")
    if key in POSITIVE and not value > 0:
        raise ConfigError(f"FP1368 {key} must be above 0, got {value}")
    if key == "model.quantization" and value not in (4, 8, 0):
        raise ConfigError(
            f"FP1369 model.quantization must be 4 or 8 (bits of the base's weights), or 0 for none, got {value}"
        )
    if key == "strategy.fraction-train" and value > 1:
        raise ConfigError(f"FP1370 {key} must be at most 1, got {value}")
    return value


def _find_default_targets(model: str) -> str:
    """Return the layers in which the `peft` library puts LoRA by default; the templates do not set them."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL

    kind = load_model_config(resolve_model(model)).model_type
    if kind not in USUAL:
        raise ModelError(
            f"FP4080 the peft library has no default target layers for models of type {kind!r}; name them: --set "
            "model.lora.target-modules=q_proj,v_proj"
        )
    return ",".join(USUAL[kind])


def _choose_track(named: str, dataset: str, folder: Path) -> str:
    """Return the track that the user, the dataset or the project's code names."""
    told = {_normalize_name(track): track for track in TRACKS} | {"nlp": "general_nlp", "general": "general_nlp"}
    if named:
        if _normalize_name(named) not in told:
            raise ConfigError(f"FP1371 there is no FlowerTune track {named!r}; {suggest_legal(named, TRACKS)}")
        return told[_normalize_name(named)]
    for track, (own, _) in TRACKS.items():
        if dataset == own:
            return track
    for file in _find_python_files(folder):
        if (task := TASK.search(_read_text(file))) and _normalize_name(task[1]) in told:
            return told[_normalize_name(task[1])]
    raise ConfigError(
        f"FP1372 the dataset {dataset} belongs to no track; give the track whose columns it has with --track: "
        f"{', '.join(TRACKS)}"
    )


def _normalize_name(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def _count_supernodes(flower: Mapping[str, Any]) -> int:
    """Return the number of clients in a project for Flower before 1.26; 0: it has none."""
    federations = _get_table(flower, "federations")
    federation = _get_table(federations, str(federations.get("default", "")))
    nodes = _flatten_table(federation).get("options.num-supernodes", 0)
    return nodes if isinstance(nodes, int) and nodes > 0 else 0


TASK = re.compile(r'llm_task\s*=\s*"([^"]*)"')

# fmt: off
TEMPLATES = frozenset((
    "e3b0c44298fc1c14", "a38b612dda8a38b1", "336c72616bc78fab", "ba0b3ee006814ecf", "6e2fcf77bd28a85d",
    "e03e8771b236536d", "cc10802285b768dc", "635ede28423c1f18", "b48b04bb06cc3ef8", "c155745392146fee",
    "10bbb9907c20f817", "c21ac430aed9f040", "5f18f6f10ccef2a5", "cfd7138fd5c58ca5", "389280e34747c943",
    "61de15471cd0f639", "28da10633e84142f", "fe2e307145bd2567", "9cbd54fdb16e2c91", "1d1ff52bfe6aaa2e",
    "73e9e7096c7dbbba", "ba7120489519d6d3", "6b6fd76628c8aa40", "5f9c32ab633a0224", "14110a86bcdfce0a",
    "c70649de941c3558", "f3047a700ce0c7a2",
))
# fmt: on
"""Fingerprints of the templates' Python files, of all tracks and versions."""


def find_changed_files(folder: Path) -> tuple[str, ...]:
    """Return the project's Python files that differ from those of the templates, by their path in it."""
    return tuple(
        str(file.relative_to(folder))
        for file in _find_python_files(folder)
        if compute_fingerprint(_read_text(file), file.parent.name) not in TEMPLATES
    )


def compute_fingerprint(source: str, package: str) -> str:
    """Return the fingerprint of a file's code, which is the same for all tracks.

    It ignores comments, blank lines and a docstring of one line.
    """
    lines = [line.rstrip() for line in source.splitlines()]
    lines = [line for line in lines if line and not line.lstrip().startswith("#")]
    if lines and re.fullmatch(r'"""[^"]*"""', lines[0]):
        lines = lines[1:]
    text = TASK.sub('llm_task="TRACK"', "\n".join(lines).replace(package, "PACKAGE"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _find_python_files(folder: Path) -> list[Path]:
    """Return the project's own Python files, without those of environments or hidden folders in it."""
    files = []
    for file in sorted(folder.rglob("*.py")):
        inside = file.relative_to(folder).parts[:-1]
        if not any(part.startswith(".") or part in ("site-packages", "build", "results") for part in inside):
            files.append(file)
    return files


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"FP1078 {file} can't be read: {error.strerror}") from None
