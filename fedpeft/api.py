"""Python interface of fedpeft: functions that do the work of commands and return runs.

    import fedpeft

    run = fedpeft.run_simulation(clients=20, dataset="tiny", strategy="flexlora", rounds=5)
    run.accuracy, run.history, run.plot(), run.predict(["a text"])

Settings are those of the commands, with `_` for `-` (`fedpeft.RunConfig`). Parts may be objects instead of
texts: `strategy=MyRule(tau=0.9)`, `codec=[Rotate(), Quantize(bits=4)]`, `server_optimizer=Averaged(of=Momentum())`.
A call prints only its progress. After it, threads, warnings, the environment and the libraries' verbosity are as
before, and no process is left. Scripts need no `if __name__ == "__main__"`.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedpeft.data.in_memory import NAME, convert_to_dataset, create_part
from fedpeft.data.rows import Dataset
from fedpeft.errors import ConfigError, RunError, require_extra
from fedpeft.machine.terminal import Console
from fedpeft.parts import Family, format_part, list_nested_parts, name_of, plugins
from fedpeft.reporting.console import ConsoleObserver, silence_libraries
from fedpeft.reporting.exports.hub import check_name, push
from fedpeft.reporting.finished_run import FinishedRun
from fedpeft.reporting.observer import RoundResult
from fedpeft.reporting.plots import plot_run
from fedpeft.reporting.records import Records
from fedpeft.reporting.run_folder import remove_on_error, resolve_settings
from fedpeft.simulate import simulate
from fedpeft.study.results import Result
from fedpeft.wiring import catalogue
from fedpeft.wiring.config import RunConfig, build_config, read_config

OnRound = Callable[[RoundResult], bool | None]
SUITS = "the model that suits the rows"
"""Key, beside the settings, of what `model="auto"` means for rows in memory: later commands don't have the rows."""

GIVEN_MODEL = "given_model"
"""Folder, in the run's folder, of a model that was given as an object."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: the run's folder, which commands take, too.
        config: its settings.
        summary: its results, as in summary.json.
        parts: the parts that were given as objects, by group and name.
    """

    folder: Path
    config: RunConfig
    summary: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, type]] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        """Return the folder and the main metric, on one line."""
        metric = str(self.summary["metric"])
        value = self.summary.get(metric, self.summary["accuracy"])
        return f"Run({str(self.folder)!r}, {metric}={'None' if value is None else f'{value:.4g}'})"

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the test examples, or on those that `summary["accuracy_of"]` names; 0 to 1."""
        value = self.summary["accuracy"]
        return None if value is None else float(value)

    @cached_property
    def history(self) -> Any:
        """One row per round (`fedpeft.reporting.observer.RoundResult`): a pandas frame, or dicts without pandas."""
        return _build_frame(Records(self.folder).read("rounds.jsonl"))

    @cached_property
    def clients(self) -> Any:
        """One row per client and round, as `history` is."""
        return _build_frame(Records(self.folder).read("clients.jsonl"))

    @property
    def adapter(self) -> Path:
        """Folder of the adapter, or of the whole model after full fine-tuning."""
        whole = self.folder / "model"
        return whole if whole.is_dir() else self.folder / "adapter"

    def plot(self) -> Any:
        """Plot validation accuracy and losses over rounds; return the matplotlib figure."""
        return plot_run(Records(self.folder).read("rounds.jsonl"), dict(self.summary))

    def predict(self, inputs: str | Iterable[str], *, new_tokens: int = 40) -> list[str]:
        """Return the model's answer to each input, as `fedpeft predict` prints it.

        Args:
            inputs: texts, or image files for a run on images; a single one counts as a list of one.
            new_tokens: most tokens of a language model's answer, at least 1.

        Raises:
            FedpeftError: the model can't read an input, or the run's files are missing.
        """
        from fedpeft.evaluate.prediction import predict_answers

        with _restore_process_state(), plugins.use_parts(self.parts):
            silence_libraries()
            texts = [inputs] if isinstance(inputs, str) else list(inputs)
            return predict_answers(FinishedRun.read(self.folder), texts, new_tokens)

    def evaluate(self, *, rows: int = 0, own: str = "", alone: str = "") -> Any:
        """Compare the run with its base and, if asked, with its clients, as `fedpeft evaluate` does.

        Args:
            rows: at most this many test examples; 0: all.
            own: clients whose own adapters are compared, "0,3" or "all".
            alone: clients to train alone on their own examples, "0,3" or "all".

        Returns:
            One row per model with its measures: a pandas frame, or a list of dicts without pandas.

        Raises:
            FedpeftError: the run's examples or clients can't be used, or a package is missing.
        """
        require_extra("flwr", "simulate", "an evaluation")
        from fedpeft.evaluate.evaluation import Evaluation, EvaluationRequest

        with _restore_process_state(), plugins.use_parts(self.parts), ConsoleObserver(Console(quiet=True)) as observer:
            silence_libraries()
            wanted = EvaluationRequest(rows=rows, own=own, alone=alone)
            found = Evaluation(FinishedRun.read(self.folder), wanted, observer).evaluate()
        return _build_frame([{"model": name, **measures} for name, measures in found.table.items()])

    def model(self) -> nn.Module:
        """Return the finished model on the CPU, in fp32 and evaluation mode; called with a batch, it returns logits.

        Raises:
            FedpeftError: the base model, or a plugin that it needs, is missing.
        """
        with _restore_process_state(), plugins.use_parts(self.parts):
            silence_libraries()
            finished = FinishedRun.read(self.folder)
            return finished.model(finished.base()).eval()

    def push_to_hub(self, name: str, *, merge: bool = False, public: bool = False, endpoint: str | None = None) -> str:
        """Send the adapter, or with `merge` the whole model, with its card to ORG/NAME on the hub; return its address.

        Raises:
            FedpeftError: the run can't be merged, or the hub is out of reach. The error names the folder to send later.
        """
        from fedpeft.commands.export import export

        check_name(name)
        folder = Path(tempfile.mkdtemp(prefix="fedpeft-")) / self.folder.name
        with (
            remove_on_error(folder.parent, kept=lambda: False),
            _restore_process_state(),
            plugins.use_parts(self.parts),
        ):
            export(self.folder, folder, merge, Console(quiet=True))
        sent = push(folder, name, public, endpoint)
        shutil.rmtree(folder.parent)
        return sent


def open_run(folder: str | Path, **objects: Any) -> Run:
    """Return the finished run in a folder; warn of a plugin that has changed since.

    Args:
        folder: the run's folder.
        objects: settings that the run was given as objects, such as `dataset=frame` or `strategy=MyRule(tau=0.9)`. The
            folder does not contain them, and `evaluate`, `predict` and `model` may need them.

    Raises:
        RunError: there is no run, it is not finished, or it was given another object.
        ConfigError: a setting is unknown, or its value is neither a text nor a part.
        DataError: the dataset can't be used.
    """
    parts: dict[str, dict[str, type]] = {}
    with plugins.use_parts({}), _use_objects(objects, parts) as texts:
        given = build_config({name: texts[name] for name in objects}, "open_run")
        found = FinishedRun.read(Path(folder))
    for name in objects:
        now, was = getattr(given, name), getattr(found.config, name)
        if now != was:
            raise RunError(
                f"FP5254 {folder} is a run of {name}={was}, but open_run was given {now}; give it the object of the run"
            )
    for note in plugins.take_notes():
        warnings.warn(note, stacklevel=2)
    return Run(found.folder, found.config, found.summary, parts)


def run_simulation(
    config: RunConfig | str | Path | None = None,
    *,
    output: str | Path | None = None,
    resume: str | Path | None = None,
    plugin: str | Iterable[str] = (),
    on_round: OnRound | None = None,
    progress: bool = True,
    tokenizer: Any = None,
    **settings: Any,
) -> Run:
    """Simulate a federation, as `fedpeft simulate` does.

    Args:
        config: settings, or a TOML file of them; `settings` override them.
        output: the run's folder; None: a new one under runs/.
        resume: folder of an interrupted run to continue; objects that it was given have to be given again.
        plugin: files, folders or installed packages with parts (`fedpeft.parts.plugins`).
        on_round: function that receives each finished round; if it returns True, the run ends with that round.
        progress: whether to show progress.
        tokenizer: that of a `model` given as an object.
        settings: fields of `RunConfig`. Those that are parts may be objects; `dataset` whatever
            `fedpeft.data.in_memory.convert_to_dataset` takes; `model` one of transformers.

    Raises:
        FedpeftError: a user's mistake, such as a wrong setting or file, in one sentence.
    """
    parts: dict[str, dict[str, type]] = {}
    with _restore_process_state(), plugins.use_parts({}):  # what is named here is forgotten afterwards
        catalogue.use([plugin] if isinstance(plugin, str) else plugin)
        with _use_objects(settings, parts) as values:
            made = _run(config, values, output, resume, tokenizer, on_round, Console(quiet=not progress))
    return dataclasses.replace(made, parts=parts)  # which its model needs, too


@contextmanager
def _use_objects(settings: Mapping[str, Any], parts: dict[str, dict[str, type]]) -> Iterator[dict[str, Any]]:
    """Yield the settings with texts in place of objects, whose classes are parts within the context.

    Args:
        settings: values by name.
        parts: receives the classes, by group and name.

    Raises:
        ConfigError: a value is neither a text nor a part.
        DataError: a dataset can't be used.
    """
    values: dict[str, Any] = dict(settings)
    for name, value in values.items():
        _check_given(name, value)
    dataset = values.get("dataset", "")
    if not isinstance(dataset, str) and not _is_known(_get_families("dataset"), type(dataset)):
        values = _add_rows(values, parts)
    objects = {name: _list_objects(name, value) for name, value in values.items()}
    for name, several in objects.items():
        for part in several:
            _add(_get_families(name), part, parts)
    with plugins.use_parts(parts):
        catalogue.use(())
        texts = {
            name: _get_separator(name).join(map(format_part, several)) for name, several in objects.items() if several
        }
        yield values | texts


def _run(
    config: RunConfig | str | Path | None,
    values: dict[str, Any],
    output: str | Path | None,
    resume: str | Path | None,
    tokenizer: Any,
    on_round: OnRound | None,
    console: Console,
) -> Run:
    if resume is not None:
        if config is not None or not (Path(resume) / "config.toml").is_file():
            raise RunError(
                f"FP5011 {resume} holds no run to resume, or a config was given with it; a resumed run keeps its "
                "own config"
            )
        config = Path(resume) / "config.toml"
    goes_on = resume is not None
    if isinstance(config, str | Path):
        config = read_config(Path(config), goes_on, of_run=goes_on)
    default = config or RunConfig()
    model = values.pop("model", None)
    if isinstance(model, str | Path):
        values["model"] = str(model)
        model = None
    suits = values.pop(SUITS, "auto")
    chosen = build_config({**dataclasses.asdict(default), **values}, "run_simulation")
    if chosen.model == "auto" and resume is None:
        chosen = dataclasses.replace(chosen, model=suits)
    chosen, folder = resolve_settings(
        chosen, default, None if output is None else Path(output), None if resume is None else Path(resume)
    )
    with remove_on_error(folder, lambda: any((folder / "checkpoint").glob("*"))):
        if model is not None and resume is None:
            chosen = dataclasses.replace(chosen, model=_save_model(model, tokenizer, folder / GIVEN_MODEL))
        simulate(chosen, folder, resume is not None, console, on_round=on_round)
    return open_run(folder)


def run_study(
    study: str | Path, *, preset: str | None = None, output: str | Path | None = None, jobs: int = 0,
    progress: bool = True,
) -> Any:  # fmt: skip
    """Run what is missing of a study, as `fedpeft study` does, and make its report.

    Args:
        study: its TOML file.
        preset: one of the file's; None: the one that it names.
        output: folder of the results; None: the file's, or the preset's.
        jobs: runs at a time; 0: as many as the cores allow.
        progress: whether to show progress.

    Returns:
        One row per run, in a pandas frame, or in a list of dicts without pandas: the axes' values, the seed, the
        status, the reason for a failure, and the content of summary.json.

    Raises:
        FedpeftError: a user's mistake, such as a wrong setting or file, in one sentence.
    """
    require_extra("flwr", "simulate", "a study")
    from fedpeft.study import __main__ as command

    asked = command.Command(Path(study), preset, None if output is None else Path(output), jobs)
    with _restore_process_state(), plugins.use_parts({}):
        results = command.complete_study(asked, Console(quiet=not progress))
    return _build_frame([_build_row(result) for result in results])


def _build_row(result: Result) -> dict[str, Any]:
    """Return a run of a study as a row; a column with an axis's name holds the axis's label."""
    row = {**result.point, "seed": result.seed, "status": result.status, "reason": result.reason}
    tables = {key for key, value in (result.summary or {}).items() if isinstance(value, Mapping)}
    return row | {key: value for key, value in (result.summary or {}).items() if key not in row.keys() & tables}


def _build_frame(records: list[dict[str, Any]]) -> Any:
    """Return the records as a pandas frame, or unchanged if pandas is not installed."""
    try:
        import pandas
    except ImportError:
        return records
    return pandas.DataFrame(records)


def _list_objects(name: str, value: Any) -> list[Any]:
    """Return the objects of parts in a setting's value; empty: the value is a text or number."""
    several = list(value) if isinstance(value, list | tuple) and _get_separator(name) else [value]
    return several if all(_is_part(part, name) for part in several) else []


def _check_given(name: str, value: Any) -> None:
    """Refuse what can't be a part: a class, or an object of none.

    Raises:
        ConfigError: says how a part is given.
    """
    if catalogue.find_flag(name) is None:
        return
    if isinstance(value, type):
        raise ConfigError(
            f"FP1035 {name} was given the class {value.__name__} itself; give an object of it, "
            f"{name}={value.__name__}(...), or a text, such as {name}={_get_example(name)!r} (docs/own-parts.md "
            "describes such a class)"
        )
    rows_or_model = name in ("dataset", "model")  # which have their own sentences
    if rows_or_model or isinstance(value, str) or (name == "cohort" and isinstance(value, int | float)):
        return
    if not _list_objects(name, value):
        several = ", or a list of them" if _get_separator(name) else ""
        raise ConfigError(
            f"FP1036 {name} must be a text, such as {name}={_get_example(name)!r}, or an object of a part's class, a "
            f"frozen dataclass{several} (docs/own-parts.md), got {value!r:.80}"
        )


def _get_example(setting: str) -> str:
    return str(getattr(RunConfig(), setting)) or next(iter(_get_families(setting)[0].own_names), f"my_{setting}")


def _get_families(setting: str) -> tuple[Family[Any], ...]:
    """Return the families whose parts a setting takes; empty: its value is not a part."""
    flag = catalogue.find_flag(setting)
    return flag.families if flag else ()


def _get_separator(setting: str) -> str:
    """Return the separator of parts in a setting's text; empty: the text names one part."""
    flag = catalogue.find_flag(setting)
    return flag.joined if flag else ""


def _is_part(value: Any, name: str) -> bool:
    is_object = dataclasses.is_dataclass(value) and not isinstance(value, type | Dataset)
    return is_object and bool(_get_families(name))


def _add(families: tuple[Family[Any], ...], part: Any, parts: dict[str, dict[str, type]]) -> None:
    """Add the class of a part, and of the parts in its settings, to `parts` unless texts can name it."""
    cls = type(part)
    if not _is_known(families, cls):
        fitting = (family for family in families if family.can_hold(part))
        parts.setdefault(next(fitting, families[0]).group, {})[cls.__name__] = cls
    for family, nested in list_nested_parts(part):
        _add((family,), nested, parts)


def _is_known(families: tuple[Family[Any], ...], cls: type) -> bool:
    """Return whether a class is a part that texts can name."""
    name = name_of(cls)
    return any(name in family.names and family.part(name) is cls for family in families)


def _add_rows(values: dict[str, Any], parts: dict[str, dict[str, type]]) -> dict[str, Any]:
    """Return the settings with a dataset in memory as a part; rows given client by client keep their client."""
    by_client = isinstance(values["dataset"], list | tuple) and all(isinstance(c, tuple) for c in values["dataset"])
    dataset = convert_to_dataset(values["dataset"])
    parts.setdefault("datasets", {})[NAME], text = create_part(dataset)
    own = {"clients": 0, "partition": "natural"} if by_client else {}
    return {**own, **values, "dataset": text, SUITS: dataset.default_model}


def _save_model(model: Any, tokenizer: Any, folder: Path) -> str:
    """Save a model of transformers to a folder for worker processes and later commands; return the folder's path."""
    if not hasattr(model, "save_pretrained") or not hasattr(tokenizer, "save_pretrained"):
        raise ConfigError(
            f"FP1037 model must be a text, or a model of transformers with its tokenizer=, got {type(model).__name__} "
            f"and {type(tokenizer).__name__}"
        )
    _check_class(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder.absolute())


def _check_class(model: Any) -> None:
    """Refuse a class in whose place another would be loaded, or none."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, MODEL_MAPPING

    kind, config = type(model), type(model.config)
    every = (MODEL_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING)
    entries: list[Any] = [mapping[config] for mapping in every if config in mapping]
    found = [one for entry in entries for one in (entry if isinstance(entry, tuple) else (entry,))]  # Funnel has two
    if kind in found or kind.__module__.startswith("transformers."):
        return
    instead = " or ".join(dict.fromkeys(one.__name__ for one in found)) or "no class that transformers knows"
    raise ConfigError(
        f"FP1038 model is of the class {kind.__name__}, but its config.json selects {instead}; register "
        f"{kind.__name__} in a file of your own (docs/own-parts.md) and name that file as plugin, or give an "
        "object of that class"
    )


@contextmanager
def _restore_process_state() -> Iterator[None]:
    """Restore the state of the process that a run changes."""
    from transformers.utils import logging

    threads, environment = torch.get_num_threads(), dict(os.environ)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    exact, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(exact, warn_only=warn)
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()  # type: ignore[no-untyped-call]
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]
            os.environ.update(environment)
