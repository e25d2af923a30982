"""python -m fedpeft.simulate: a federation on this machine, from data to a scored adapter."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape

from fedpeft import plugins
from fedpeft.config import RunConfig, from_mapping, read_config
from fedpeft.errors import ConfigError, FedpeftError, RunError
from fedpeft.machine.files import writing
from fedpeft.machine.memory import PeakMemory
from fedpeft.run import catalogue
from fedpeft.run.console import ConsoleObserver, duration, size, summary_table
from fedpeft.run.observer import RoundResult
from fedpeft.run.records import Records
from fedpeft.run.trackers import TrackedRecords, check_trackers

if TYPE_CHECKING:
    from flwr.serverapp import Grid

    from fedpeft.models.scoring import Scores
    from fedpeft.privacy.engine import Protection
    from fedpeft.run.final_score import FinalScore, Scorer
    from fedpeft.run.setup import Setup
    from fedpeft.server.progress import Progress
    from fedpeft.simulation.simulation import Simulation

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


@dataclass(frozen=True)
class Command:
    """Simulate a federation: split a data set over many clients and fine-tune one adapter with all of them.

    python -m fedpeft.simulate --clients 100
    """

    config: Annotated[
        Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[CONFIG.toml]", help="settings; flags override them")
    ] = None
    output: Annotated[Path | None, tyro.conf.arg(help="the run's folder (default: runs/DATE-DATASET-STRATEGY)")] = None
    resume: Annotated[Path | None, tyro.conf.arg(help="continue the interrupted run in this folder")] = None
    track: Annotated[str, tyro.conf.arg(help="also send the records to tensorboard or mlflow (both: a,b)")] = ""
    plugin: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FILE", help="parts of your own: a file, folder or installed package (repeatable)"),
    ] = ()
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


def parse(arguments: list[str]) -> tuple[RunConfig, Path, bool, str]:
    """Configuration, run folder, whether an earlier run is continued, and trackers.

    Raises:
        ConfigError, RunError: settings or folders that can't be used.
    """
    command = _command(arguments, RunConfig())
    plugins.use(command.plugin)
    default = default_settings(command.config, command.resume)
    command = _command(arguments, default)
    config, folder = checked_settings(command.run, default, command.output, command.resume)
    return config, folder, command.resume is not None, command.track


def _command(arguments: list[str], default: RunConfig) -> Command:
    return tyro.cli(Command, args=arguments, default=Command(run=default), prog="python -m fedpeft.simulate")


def default_settings(file: Path | None, resume: Path | None) -> RunConfig:
    """The configuration that flags override: that of the run to resume, of the TOML file, or the defaults.

    Raises:
        ConfigError: the file says something wrong, or both are given.
        RunError: there is no run in the folder `resume`.
    """
    if resume is not None:
        if file is not None:
            raise ConfigError(f"a resumed run keeps its settings, but {file} was given; leave it out")
        file = resume / "config.toml"
        if not file.is_file():
            raise RunError(
                f"{resume} holds no run to resume: there is no config.toml in it; "
                f"start a new run with --output {resume}"
            )
    return read_config(file) if file else RunConfig()


def checked_settings(
    run: RunConfig, default: RunConfig, output: Path | None, resume: Path | None
) -> tuple[RunConfig, Path]:
    """The checked configuration, and the run's folder: the one to resume, `output`, or a new one under runs/.

    Raises:
        ConfigError, RunError: settings or folders that can't be used.
    """
    config = from_mapping(dataclasses.asdict(run), "the command line")
    if resume is not None:
        changed = [f.name for f in dataclasses.fields(RunConfig) if getattr(default, f.name) != getattr(config, f.name)]
        if changed or output:
            raise RunError(
                f"a resumed run keeps its settings and folder, but {', '.join(changed) or 'output'} was given; "
                "start a new run to change it"
            )
        return config, resume
    name = (
        f"{datetime.now():%Y%m%d-%H%M%S}-{config.dataset.split(':')[0].split('(')[0]}-{config.strategy.split('(')[0]}"
    )
    folder = output or Path("runs") / name
    refuse_file(folder)
    if folder.is_dir() and not _never_began(folder):
        raise RunError(
            f"{folder} exists and is not empty; give another --output, or continue it with --resume {folder}"
        )
    return config, folder


def _never_began(folder: Path) -> bool:
    """Whether a folder holds nothing, or what a run leaves that was killed before its config.toml was there."""
    return all(f.name in (".lock", "serve.jsonl", "roster.json") or f.suffix == ".partial" for f in folder.iterdir())


def refuse_file(folder: Path) -> None:
    """RunError where there is a file in the place of the `folder` to write to."""
    try:
        taken = folder.lstat() is not None and not folder.is_dir()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # `make_folder` says what is the matter
    except (OSError, ValueError) as error:  # a name of too many bytes, or with a NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"{str(folder)[:60]!r} can't name a folder: {reason}; give another --output") from None
    if taken:
        raise RunError(f"{folder} is a file, and --output names a folder; give another --output")


def located(config: RunConfig) -> RunConfig:
    """The configuration with the files and folders that it names written absolutely: it holds wherever it is read.

    Raises:
        ConfigError: unknown data set.
    """
    from fedpeft.data.rows import DATASETS
    from fedpeft.models.base_model import local_folder

    def absolute(path: str) -> str:
        there = Path(path).expanduser()
        return str(there.absolute()) if there.exists() else path

    return dataclasses.replace(
        config,
        model=str(local_folder(config.model) or config.model),
        dataset=DATASETS.with_paths(config.dataset, absolute),
        forgetting=DATASETS.with_paths(config.forgetting, absolute) if config.forgetting else "",
        profiles=absolute(config.profiles) if config.profiles else "",
    )


SERVERS_OPTIONS = "serve.toml"
"""What a folder of `python -m fedpeft.serve` holds beside a simulation's files."""


def refuse_servers_run(folder: Path) -> None:
    """RunError where `folder` is a server's, whose clients' rows are not here."""
    if (folder / SERVERS_OPTIONS).exists():
        raise RunError(
            f"{folder} is the run of a server, and its rows have stayed with the clients; it goes on with: "
            f"python -m fedpeft.serve --resume {folder}"
        )


def make_folder(folder: Path) -> None:
    """Make the run's folder, or RunError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"the run's folder {folder} can't be made: {error.strerror}; give another --output") from error


@contextmanager
def begun(folder: Path, kept: Callable[[], bool]) -> Iterator[None]:
    """Removes a new run's folder again, empty or missing before, where an error comes and nothing in it is `kept`."""
    new = not folder.exists() or not any(folder.iterdir())
    try:
        yield
    except BaseException:
        if new and not kept():
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep a run's folder from a second process that would continue it at the same time, or RunError."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise RunError(f"another process is at work on the run in {folder}; wait for its end, or stop it") from None
    except OSError as error:
        raise RunError(f"the run's folder {folder} can't be written: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def quiet_libraries() -> None:
    """No download bars, parallelism notes or deprecation warnings of the libraries underneath."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def simulate(
    config: RunConfig,
    folder: Path,
    resume: bool,
    console: Console,
    track: str = "",
    grid: Callable[[int], Grid] | None = None,
    on_round: Callable[[RoundResult], bool | None] | None = None,
) -> dict[str, Any]:
    """Run (or continue) a simulation; returns its summary.

    `grid` makes another Flower grid than the configured one, for a number of clients: inside a Flower app, Flower's.
    `on_round` is told of each finished round; where it returns True, the run ends with it.

    Raises:
        FedpeftError: what the user can mend; a new run's folder is removed if nothing was trained yet.
    """
    quiet_libraries()
    from fedpeft.simulation.simulation import Simulation

    catalogue.use(())
    if not resume:
        config = located(config)
    trackers = check_trackers(track)
    started = time.perf_counter()
    with ExitStack() as held, PeakMemory() as memory, ConsoleObserver(console, on_round=on_round) as observer:
        if resume:
            refuse_servers_run(folder)
            held.enter_context(alone_in(folder))
        simulation = Simulation(config, folder, observer, grid)
        observer.metric = simulation.setup.task.metric
        if not resume:
            held.enter_context(begun(folder, lambda: simulation.checkpoints.taken))
        make_folder(folder)
        records = TrackedRecords(folder, trackers, private=simulation.protection is not None)
        if not resume:
            held.enter_context(alone_in(folder))
            records.write("config.toml", catalogue.to_toml(simulation.config))
        try:
            summary = _run(simulation, records, observer, console)
        finally:
            simulation.close()
        summary["seconds"] = time.perf_counter() - started
        summary["resumed"] = resume
        summary["peak_memory_bytes"] = memory.bytes or None
    records.write_json("summary.json", summary)
    from fedpeft.run.plots import plot_rounds

    with writing(folder / "rounds.svg"):
        plot_rounds(folder / "rounds.svg", records.read("rounds.jsonl"), summary)
    return summary


def _run(simulation: Simulation, records: Records, observer: ConsoleObserver, console: Console) -> dict[str, Any]:
    from fedpeft.run.final_score import save
    from fedpeft.simulation.forgetting import forgotten
    from fedpeft.simulation.pooled import train_on_pooled_rows
    from fedpeft.simulation.probe import base_probe

    config, setup, rows, workers = simulation.config, simulation.setup, simulation.rows, simulation.workers
    folder = simulation.folder
    _introduce(simulation, observer)
    probe = base_probe(setup, rows, workers)
    server = simulation.server(records)
    progress = simulation.train(server)
    kept, residual = progress.result
    save(setup, kept, folder, residual)
    pooled: tuple[Path, float] | None = None
    if config.centralised:
        state, rate = train_on_pooled_rows(setup, rows, workers, simulation.sampler.size, progress.started)
        pooled = folder / "centralised", rate
        pooled[0].mkdir(exist_ok=True)
        save(setup, state, pooled[0])
    own = server.own_rows(progress) if setup.personal else None
    simulation.close()
    scorer = simulation.scorer
    score = scorer.score(folder, "scoring the saved adapter on the test rows (fp32)")
    _save_predictions(simulation, score.scores, records)
    own_base = [config.dtype if config.dtype != "fp64" else "fp32"]
    by_precision = {
        base: scorer.score(folder, f"scoring on a base in {base}", base).accuracy
        for base in dict.fromkeys([*own_base, *setup.base_precisions] if setup.base_precisions else [])
    }
    last = _last(simulation, scorer, progress) or score
    centralised = scorer.score(pooled[0], "scoring the adapter of the pooled data (fp32)") if pooled else None
    lost = None
    if simulation.second is not None:
        observer.phase(f"forgetting: {simulation.second.name} on the base and on the result", 1)
        lost = forgotten(setup, simulation.second, folder, workers.work.model_key)
    attacked = {}
    if setup.mechanism is not None and setup.mechanism.audit:
        from fedpeft.audit.__main__ import attacks

        attacked = attacks(simulation)
    loss = own.loss if own else score.loss
    return {
        "metric": setup.task.metric,
        "accuracy": own.accuracy if own else score.accuracy,
        "accuracy_of": "mean over clients, own held-out rows" if own else "global model, test rows",
        "worst_accuracy": own.worst_accuracy if own else None,
        "shared_accuracy": score.accuracy if own else None,
        "accuracy_by_base": by_precision or None,
        "loss": loss,
        "perplexity": None if setup.facts.task == "classification" else math.exp(loss),
        "kept_round": progress.kept_round,
        "last_accuracy": None if own else last.accuracy,
        "last_loss": None if own else last.loss,
        "baseline_accuracy": probe.accuracy if probe else None,
        "centralised_accuracy": centralised.accuracy if centralised else None,
        "centralised_loss": centralised.loss if centralised else None,
        "centralised_learning_rate": pooled[1] if pooled else None,
        **_calibration(score),
        "forgetting": lost.as_dict() if lost else None,
        **costs(setup, progress, simulation.sampler.size, simulation.protection, simulation.fixed),
        **attacked,
        "partition": simulation.statistics.as_dict(),
    }


def _last(simulation: Simulation, scorer: Scorer, progress: Progress) -> FinalScore | None:
    """The score of the last state, where another is kept; None: it is the one that is kept."""
    from fedpeft.run.final_score import save

    if progress.kept_round == progress.round:
        return None
    folder = simulation.folder / "last"
    folder.mkdir(exist_ok=True)
    save(simulation.setup, progress.adapter, folder, progress.residual.total)
    return scorer.score(folder, "scoring the last state on the test rows (fp32)")


def _introduce(simulation: Simulation, observer: ConsoleObserver) -> None:
    """What is about to be done, on what."""
    config, setup, executor = simulation.config, simulation.setup, simulation.workers.work.executor
    observer.say(f"[bold]data[/]    {simulation.rows.dataset.name}: {simulation.statistics}")
    observer.say(model_line(setup))
    for note in setup.notes:
        observer.say(f"[bold]note[/]    {escape(note)}")
    graphics = "".join(f", {name}" for name in dict.fromkeys(simulation.fixed["gpus"]))
    observer.say(
        f"[bold]run[/]     {config.rounds} rounds of {simulation.sampler.size} clients, {config.peft}, "
        f"{config.strategy}, {config.codec}, {config.dtype}, {executor} on "
        f"{simulation.fixed['workers']} worker(s){graphics} -> {simulation.folder}"
    )
    if executor == "batched" and {"nf4", "int8"} & set(setup.base_precisions):
        observer.say("[bold]note[/]    clients with a base in nf4 or int8 are trained one after another, not batched")
    say_privacy(simulation.protection, observer)
    if config.executor == "batched" and not setup.method.batched:
        observer.say(f"[bold]note[/]    {setup.method.name} has no batched form: clients train one by one")


def say_privacy(protection: Protection | None, observer: ConsoleObserver) -> None:
    """What a run claims, if it does."""
    if protection is None:
        return
    observer.say(f"[bold]privacy[/] {protection.terms()}")
    for warning in protection.warnings():
        observer.say(f"[bold yellow]warning[/] {warning}")


def _calibration(score: FinalScore) -> dict[str, Any]:
    """Expected calibration error on the test rows, as it is and after temperature scaling; empty for language."""
    from fedpeft.models.calibration import calibrate

    scores = score.scores
    if not scores.confidence.any():
        return {}
    before, after = (calibrate(c, scores.correct).error for c in (scores.confidence, scores.scaled))
    return {"calibration_error": before, "calibration_error_scaled": after, "temperature": score.temperature}


def model_line(setup: Setup) -> str:
    """One line about the base model and what is trained."""
    trained = setup.layout.numel
    return (
        f"[bold]model[/]   {setup.model_directory.name}: {setup.parameters / 1e6:.1f} M parameters, "
        f"{trained:,} trained and exchanged ({100 * trained / setup.parameters:.2f} %)"
    )


def costs(
    setup: Setup, progress: Progress, cohort: int, protection: Protection | None, fixed: Mapping[str, Any]
) -> dict[str, Any]:
    """What a run has cost, and on what: the part of the summary that is independent of where clients are."""
    counters = progress.counters
    parameters = counters.uplink_parameters
    update_bytes = counters.uplink_bytes - counters.prepare_bytes
    return {
        "task": setup.facts.task,
        "rounds": progress.round,
        "clients": setup.clients,
        "cohort": cohort,
        "parameters": setup.layout.numel,
        "uplink_bytes": counters.uplink_bytes,
        "downlink_bytes": counters.downlink_bytes,
        "prepare_bytes": counters.prepare_bytes,
        "base_bytes": counters.base_bytes,
        "rejected": counters.rejected,
        "rejected_by_client": None if protection else {str(k): n for k, n in progress.rejections.items()},
        "uplink_bytes_per_parameter": update_bytes / parameters if parameters else None,
        "epsilon": None,
        "dp_delta": None,
        **(protection.summary() if protection else {}),
        "seconds": None,
        "seconds_per_round": counters.round_seconds / max(1, progress.round),
        "peak_memory_bytes": None,
        "seed": setup.config.seed,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "flwr", "fedpeft")},
        "hardware": {
            "cpu": fixed["cpu"],
            "gpus": fixed["gpus"],
            "workers": fixed["workers"],
            "kernel": fixed["kernel"],
            "system": platform.platform(),
        },
    }


def _save_predictions(simulation: Simulation, scores: Scores, records: Records) -> None:
    """Scores per test row; and, as confidential as clients.jsonl, what classes each client holds."""
    import numpy as np

    records.write_arrays("predictions.npz", **vars(scores))
    rows = simulation.rows
    train_labels, test_labels = rows.train.labels, rows.dataset.test.labels
    if train_labels is not None and test_labels is not None:
        partition, classes = rows.partition, rows.dataset.classes
        shards = (train_labels[partition.shard(client)] for client in range(len(partition)))
        labels = np.stack([np.bincount(shard, minlength=classes) for shard in shards])
        records.write_arrays("clients.npz", labels=labels, test_labels=test_labels)


def epsilon_line(summary: dict[str, Any]) -> str:
    """What a private run has spent."""
    return f"{summary['epsilon']:.2f} (median {summary['epsilon_median']:.2f}), delta {summary['dp_delta']:.2g}"


def _lost(summary: dict[str, Any]) -> list[tuple[str, Any]]:
    found = summary.get("forgetting")
    if not found:
        return []
    return [(f"second task, {found['dataset']}: {found['measure']}", f"{found['before']:.4f} -> {found['after']:.4f}")]


def show(summary: dict[str, Any], folder: Path, console: Console) -> None:
    """Print the numbers that matter."""
    rows: list[tuple[str, Any]] = []
    if summary["metric"] == "accuracy":
        of = "saved adapter, fp32" if summary["worst_accuracy"] is None else summary["accuracy_of"]
        rows.append((f"[bold]test accuracy[/] ({of})", f"[bold]{summary['accuracy']:.4f}[/]"))
        if summary["worst_accuracy"] is not None:
            rows.append(("worst tenth of the clients", f"{summary['worst_accuracy']:.4f}"))
            rows.append(("global adapter alone, test rows", f"{summary['shared_accuracy']:.4f}"))
        rows.append(("frozen base, linear probe", f"{summary['baseline_accuracy']:.4f}"))
    else:
        rows.append(("[bold]test perplexity[/] (saved adapter, fp32)", f"[bold]{summary['perplexity']:.3f}[/]"))
    if summary["centralised_accuracy"] is not None:
        value = summary["centralised_accuracy"]
        if summary["metric"] != "accuracy":
            value = math.exp(summary["centralised_loss"])
        rows.append(("same adapter on the pooled data", f"{value:.4f}"))
    if summary["last_loss"] is not None and summary["kept_round"] != summary["rounds"]:
        value = summary["last_accuracy"] if summary["metric"] == "accuracy" else math.exp(summary["last_loss"])
        rows.append((f"kept: after round {summary['kept_round']}; after the last, {summary['rounds']}", f"{value:.4f}"))
    sent = summary["uplink_bytes_per_parameter"]
    rows += [
        ("test loss", f"{summary['loss']:.4f}"),
        *_lost(summary),
        ("uplink / downlink", f"{size(summary['uplink_bytes'])} / {size(summary['downlink_bytes'])}"),
        ("of it before round 1", size(summary["prepare_bytes"])),
        ("bytes per parameter and update", f"{sent:.3f}" if sent is not None else "no update was sent"),
        (
            "time since it was resumed" if summary["resumed"] else "time",
            f"{duration(summary['seconds'])}, {duration(summary['seconds_per_round'])} per round",
        ),
    ]
    if summary["rejected"]:
        of = summary["rejected_by_client"]
        rows.append(("updates left out", f"{summary['rejected']}{f', of {len(of)} clients' if of else ''}"))
    if summary["dp_delta"] is not None:
        rows.insert(0, (f"[bold]epsilon[/] per {summary['privacy']['unit']}", f"[bold]{epsilon_line(summary)}[/]"))
    if "membership_auc" in summary:
        rows.append(("membership inference, area under the curve", f"{summary['membership_auc']:.3f}"))
    if "audit_epsilon" in summary:
        found = f"epsilon at least {summary['audit_epsilon']:.2f} of {summary['audit_claimed']:.2f} claimed"
        rows.append(("canary audit of its mechanism", found))
    if summary["peak_memory_bytes"]:
        rows.append(("peak memory, all processes", size(summary["peak_memory_bytes"])))
    rows.append(("files", str(folder)))
    console.print(summary_table("summary", rows))


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 0, 2 for a user's mistake, 130 after Ctrl-C."""
    console = Console()
    folder: Path | None = None
    try:
        config, folder, resume, track = parse(sys.argv[1:] if arguments is None else arguments)
        summary = simulate(config, folder, resume, console, track)
    except FedpeftError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        left = folder is not None and (folder / "config.toml").exists()
        how = f"continue with: python -m fedpeft.simulate --resume {folder}" if left else "no round was finished"
        console.print(f"\ninterrupted; {how}", highlight=False)
        return INTERRUPTED
    show(summary, folder, console)
    return 0


def one_press_a_second() -> Callable[[int, object], None]:
    """What Ctrl-C does: a press is a KeyboardInterrupt, unless it follows another within a second.

    A hand that presses twice means one interruption; the second would find the first being handled, in the middle of
    cleaning up. An exception that is lost, as those in destructors are, can be had again after a second.
    """
    last = -math.inf

    def press(number: int, frame: object) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 1:
            last = now
            raise KeyboardInterrupt

    return press


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a job in the background ignores it
        signal.signal(signal.SIGINT, one_press_a_second())
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is written: a second Ctrl-C would only show where Python ends
    sys.exit(code)
