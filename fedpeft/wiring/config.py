"""RunConfig: what a run is. A command-line flag, a TOML key and a Flower run-config key are the same thing.

Precedence: defaults < TOML file < flags. Details of a part go inside its text, `name(key=value, ...)`.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tomli_w

from fedpeft.errors import ConfigError
from fedpeft.parts import check_settings, plugins, setting

FORMAT: Final = 1
"""Number of the frozen format of run folders, which their config.toml contains (docs/api.md)."""

DTYPES = ("auto", "bf16", "fp32", "fp64")


@dataclass(frozen=True)
class RunConfig:
    """A federated fine-tuning run. Every field is a flag: `--learning-rate 0.002`."""

    clients: int | str = setting(
        100,
        "number of clients; 0: one per owner of a natural partition; or a TOML file of [[profile]] tables with counts",
        low=0,
    )
    rounds: int = setting(20, "rounds of federated training", low=1)
    cohort: int | float | str = setting(
        "auto",
        "clients per round: auto (all of up to 20, else a tenth but at least 10), a fraction (0.1), a number (20), "
        "all, or a sampler such as eafl(0.1)",
        above=0,
    )
    dataset: str = setting("reviews", "dataset: a name, file:PATH (CSV, JSON, Parquet, a folder, ...) or hf:NAME")
    partition: str = setting(
        "auto",
        "split of the examples over clients: iid, dirichlet, natural, grouped, ...; auto: the dataset's own, or "
        "dirichlet, or iid if examples have no class or several labels",
    )
    model: str = setting("auto", "base model: a name, a local folder, or ORG/NAME on the hub; auto: the dataset's own")
    tokens: int = setting(128, "cut texts to this many tokens, or to what the model reads", low=4, high=131072)
    peft: str = setting(
        "auto",
        "PEFT method: lora(rank=8, alpha=32, targets=all, layers=4), ia3, full, ...; auto: lora, or head2toe for "
        "images with classes",
    )
    dtype: str = setting(
        "auto",
        "precision of the frozen base and activations; auto: bf16, or fp32 on machines without it",
        choices=DTYPES,
    )
    head: str = setting("auto", "start of the head: ridge, discriminant, ...; auto: ridge, or a private one")
    strategy: str = setting(
        "fedit", "aggregation rule: fedit, flexlora, krum, ..., each with weighting=auto|rows|uniform"
    )
    server_optimizer: str = setting("sgd", "server optimizer that applies the mean update: sgd, momentum, adam, ...")
    ranks: str = setting(
        "",
        "LoRA ranks of clients by id: RANK*CLIENTS,... such as 4*50,8*30,32*20; auto: by the tables of --clients FILE",
    )
    drift: str = setting(
        "auto",
        "corrections of client drift: fedprox(mu=0.01), scaffold, label_shift, la_lora, fed_muon, joined by +; auto: "
        "label_shift if clients' classes differ much; empty: none",
    )
    attack: str = setting("", "simulate hostile clients: sign_flip(fraction=0.1), label_flip, scaled_update, ...")
    batch_size: int = setting(4, "examples per local step", low=1)
    local_work: str = setting("epochs(1.0)", "local work per round: epochs(1.0) over a client's examples, or steps(10)")
    learning_rate: float = setting(2e-3, "learning rate of the local optimizer", above=0)
    optimizer: str = setting(
        "adamw(warmup=8)",
        "local optimizer: adamw or sgd(warmup=0, max_norm=0, head_rate=0.1, schedule=constant|linear|cosine)",
    )
    privacy: str = setting(
        "", "privacy: dp_sgd(epsilon=8, at_budget=sit_out), user_dp, local_dp, distributed_dp, secure_sum"
    )
    codec: str = setting("fp32", "codec of updates: fp32, bf16, small (32x), tiny (100x), steps, ...")
    budget_megabytes: float = setting(
        0.0, "limit on the traffic of all rounds, both ways, by fewer bits and then fewer clients; 0: none", low=0
    )
    downlink: str = setting("auto", "codec of the model; auto: the preset that matches --codec, else without loss")
    safeguard: str = setting("auto", "check of each step: undo(rise=0.25, rate=0.25) or none; auto: undo, if possible")
    grid: str = setting("cohort", "place where clients run: cohort(executor=batched|sequential) or ray(address=auto)")
    workers: int = setting(0, "worker processes; 0: one per GPU, or one per core without GPUs", low=0, high=1024)
    measure: str = setting(
        "validation(every=4)",
        "measurements: validation(every=4, keep=auto|best|last, patience=0, public=False, score_last=False), pooled, "
        "alone(clients=4), forgetting(dataset=NAME), calibration(rows=auto|server|clients), disagreement, "
        "energy(watts=6), laplace, ensemble, robustness, backdoor, evaluate(questions=FILE), joined by +",
    )
    hook: str = setting("", "hooks of your own in the round loop, from --plugin FILE: budget(seconds=60), joined by +")
    seed: int = setting(0, "seed of all random draws", low=0, high=2**64 - 1)

    def to_toml(self) -> str:
        """All settings as TOML, re-runnable."""
        return tomli_w.dumps(dataclasses.asdict(self))


GROUPS: Mapping[str, tuple[str, ...]] = {
    "data": ("dataset", "partition", "tokens"),
    "model and method": ("model", "peft", "head", "dtype"),
    "clients and rounds": ("clients", "cohort", "rounds", "ranks", "attack"),
    "training": ("local_work", "batch_size", "learning_rate", "optimizer", "drift"),
    "aggregation": ("strategy", "server_optimizer", "safeguard"),
    "communication": ("codec", "downlink", "budget_megabytes"),
    "privacy": ("privacy",),
    "machine": ("grid", "workers", "seed"),
    "measurements": ("measure", "hook"),
}
"""The settings of a run, by what they are about."""


def build_config(values: Mapping[str, Any], source: str) -> RunConfig:
    """Return a checked configuration from keys and values.

    Raises:
        ConfigError: unknown key, wrong type, value out of range; `source` is named.
    """
    given = {name: _parse_number(value, NUMBERS_AS_TEXTS.get(name, ())) for name, value in values.items()}
    for name, value in given.items():
        if name in WHOLE and isinstance(value, int) and value.bit_length() > MOST_BITS:
            raise ConfigError(
                f"FP1508 {source}: {name:.40} is a whole number of {value.bit_length()} bits; legal are {MOST_BITS} at "
                "most"
            )
    return RunConfig(**check_settings(source, RunConfig, given))


MOST_BITS: Final = 64
"""Most bits of a whole number in a configuration, as in TOML. Python reads longer ones, but refuses to print some."""

WHOLE: Final = {field.name for field in dataclasses.fields(RunConfig) if "int" in str(field.type)}
"""Settings that may be a whole number."""

NUMBERS_AS_TEXTS: Mapping[str, tuple[type, ...]] = {"clients": (int,), "cohort": (int, float)}
"""Settings in which a text that is such a number means the number, as on the command line."""


def _parse_number(value: Any, kinds: tuple[type, ...]) -> Any:
    """Return the finite number that a text contains, of the first type in `kinds` that fits; else the value itself."""
    for kind in kinds if isinstance(value, str) else ():
        try:
            number = kind(value)
            finite = math.isfinite(number)
        except (ValueError, OverflowError):  # the latter: a whole number of more than 308 digits
            continue
        return number if finite else value
    return value


def read_config(path: Path, goes_on: bool = True, of_run: bool = False) -> RunConfig:
    """Return the checked configuration in a TOML file and load its plugins.

    Args:
        path: the file.
        goes_on: whether the run that it is of is continued, with the plugins that it began with (`plugins.use`).
        of_run: whether it lies in the folder of a run, whose code is not run, and not where a user has written it.

    Raises:
        ConfigError: the file can't be used; or (`goes_on`) a plugin that it names is missing, or has changed since the
            run began.
    """
    content = read_toml(path)
    check_format(content, path)
    use_plugins(content, path, goes_on, of_run)
    return build_config(content, str(path))


def check_format(content: dict[str, Any], path: Path) -> None:
    """Take the key `format` out of the `content` of a run's config.toml, and check it. A user's file has none.

    Raises:
        ConfigError: a later version of fedpeft wrote it.
    """
    if (number := content.pop("format", FORMAT)) != FORMAT:
        raise ConfigError(
            f"FP1521 {path} has the format {number!r:.20}, and this version of fedpeft reads {FORMAT}; install the "
            "version that wrote it"
        )


def use_plugins(content: dict[str, Any], path: Path, goes_on: bool = True, of_run: bool = False) -> None:
    """Take the key `plugin` out of the `content` of a TOML file, and load what it names.

    Raises:
        ConfigError: no text, list of texts or list of records; or a plugin can't be loaded.
    """
    given = content.pop("plugin", [])
    sources = [given] if isinstance(given, str) else given
    if not isinstance(sources, list) or not all(isinstance(source, str | dict) for source in sources):
        raise ConfigError(f'FP1075 {path}: plugin must be a list of files, such as ["my_rules.py"], got {given!r:.100}')
    plugins.use(sources, path.parent, goes_on, path.parent if of_run else None)


def read_toml(path: Path) -> dict[str, Any]:
    """Return the keys and values of a TOML file.

    Raises:
        ConfigError: the file is missing, not readable or not TOML.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ConfigError(f"FP1076 {path} is not a file; give a TOML file of settings")
        with open(path, "rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"FP1077 there is no configuration file {path}") from None
    except OSError as error:
        raise ConfigError(f"FP1078 {path} can't be read: {error.strerror}") from error
    except RecursionError:
        raise ConfigError(f"FP1079 {path} is nested too deep for a configuration") from None
    except ValueError as error:  # of TOML, of UTF-8, and integers of more digits than Python reads
        raise ConfigError(f"FP1080 {path} is not valid TOML: {error}") from error
