"""fedpeft simulate: a federation on this machine, from data to a scored adapter."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.markup import escape

from fedpeft.errors import ConfigError, require_extra
from fedpeft.machine.cores import count_usable_cores
from fedpeft.machine.files import raise_write_errors
from fedpeft.machine.memory import PeakMemory
from fedpeft.machine.terminal import Console
from fedpeft.parts import plugins
from fedpeft.parts.families import GRIDS
from fedpeft.reporting import help_page
from fedpeft.reporting.command import parse_run_flags, run_command, start_command
from fedpeft.reporting.console import (
    ConsoleObserver,
    format_model_line,
    say_privacy,
    set_library_variables,
    silence_libraries,
)
from fedpeft.reporting.dashboard.server import show_dashboard
from fedpeft.reporting.observer import RoundResult, compute_perplexity
from fedpeft.reporting.phases import SILENCE
from fedpeft.reporting.phrases import count_of
from fedpeft.reporting.records import Records
from fedpeft.reporting.run_folder import (
    load_default_settings,
    lock_folder,
    make_folder,
    refuse_servers_run,
    remove_on_error,
    resolve_paths,
    resolve_settings,
    resume_command,
)
from fedpeft.reporting.summary import OWN_ROWS, TEST_ROWS, Costs, Quality, Summary, count_distinct_rows, show
from fedpeft.reporting.trackers import TrackedRecords, check_trackers
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.quick import shorten_config

if TYPE_CHECKING:
    from flwr.serverapp import Grid

    from fedpeft.reporting.final_score import FinalScore
    from fedpeft.rounds.evaluation import OwnRows
    from fedpeft.rounds.progress import ServerState
    from fedpeft.simulation.probe import BegunProbe
    from fedpeft.simulation.simulation import Simulation


ABOUT = """Simulate a federation: split a dataset over many clients and fine-tune one adapter with all of them.
fedpeft simulate --clients 100"""

OPTIONS = {
    "CONFIG.toml": "settings; flags override them",
    "--output FOLDER": "the run's folder (default: runs/DATE-DATASET-STRATEGY)",
    "--quick": "a preview in about a minute: few rounds, texts of 64 tokens, and a sample of the examples",
    "--resume FOLDER": "continue the interrupted run in this folder",
    "--track NAMES": "also send the records to tensorboard, mlflow or wandb (several: a,b)",
    "--dashboard PORT": "serve a page of the running run to this machine only; 0: any free port",
    "--plugin FILE": "parts of your own: a file, folder or installed package (repeatable)",
}


@dataclass(frozen=True)
class Command:
    """Flags of the command, see `OPTIONS`."""

    config: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[CONFIG.toml]")] = None
    output: Path | None = None
    resume: Path | None = None
    track: str = ""
    dashboard: str = ""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    plugin: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
    ] = ()
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


def parse(arguments: list[str]) -> tuple[RunConfig, Path, bool, dict[str, str]]:
    """Return the configuration, the run's folder, whether a run is resumed, and `track` and `dashboard`.

    Raises:
        ConfigError, RunError: settings or folders that can't be used.
    """
    command, default = parse_run_flags(Command, arguments, _format_help, _load_defaults)
    config, folder = resolve_settings(command.run, default.run, command.output, command.resume)
    if command.quick:
        if command.resume is not None:
            raise ConfigError("FP1407 a resumed run keeps its settings, but --quick was given; leave it out")
        config = shorten_config(config)
    return config, folder, command.resume is not None, {"track": command.track, "dashboard": command.dashboard}


def _format_help() -> str:
    return help_page.format_page("fedpeft simulate [CONFIG.toml] [OPTIONS]", ABOUT, OPTIONS)


def _load_defaults(command: Command) -> Command:
    return Command(run=load_default_settings(command.config, command.resume))


def simulate(  # noqa: PLR0913
    config: RunConfig,
    folder: Path,
    resume: bool,
    console: Console,
    track: str = "",
    dashboard: str = "",
    grid: Callable[[int], Grid] | None = None,
    on_round: Callable[[RoundResult], bool | None] | None = None,
    begins: Callable[[Simulation], None] | None = None,
    tested: bool = True,
) -> Summary:
    """Run (or continue) a simulation; return its summary.

    Args:
        config: the settings.
        folder: the run's folder.
        resume: whether to continue the run in this folder.
        console: receives progress and results.
        track: names of trackers that also receive the records, joined by commas.
        dashboard: port of a page that shows the run; empty: none.
        grid: creates another Flower grid than the configured one, given the number of clients.
        on_round: receives each finished round; if it returns True, the run ends with that round.
        begins: receives the simulation before it begins.
        tested: whether to score the run on test examples; if not, it is scored on validation examples
            (`fedpeft.simulation.trial_score`).

    Raises:
        FedpeftError: what the user can mend; a new run's folder is removed if nothing was trained yet.
    """
    require_extra("flwr", "simulate", "a simulation")
    from fedpeft.machine.activation_cache_limit import keep_states

    started = time.perf_counter()
    with (
        keep_states(),
        ExitStack() as held,
        PeakMemory() as memory,
        show_dashboard(dashboard, folder, console) as live,
        ConsoleObserver(console, on_round=on_round, silence=SILENCE, live=live) as observer,
    ):
        observer.phase("loading libraries", 1)
        set_library_variables()
        if grid is None and _needs_processes(config):
            from fedpeft.machine.processes import get_forkserver  # multiprocessing would delay --help

            get_forkserver()  # which imports the libraries while this process does, and reads the rows
        silence_libraries()
        from fedpeft.simulation.simulation import Simulation
        from fedpeft.wiring import catalogue

        catalogue.use(())
        if not resume:
            config = resolve_paths(config)
        trackers = check_trackers(track)
        if resume:
            refuse_servers_run(folder)
            held.enter_context(lock_folder(folder))
        simulation = Simulation(config, folder, observer, grid, tested)
        observer.metric = simulation.setup.task.metric
        if live is not None:
            protection = simulation.protection
            spent = None if protection is None else lambda: protection.epsilons()[0]
            live.watch(simulation.setup.clients, private=protection is not None, epsilon=spent)
        if not resume:
            held.enter_context(remove_on_error(folder, lambda: simulation.checkpoints.exists))
        make_folder(folder)
        records = TrackedRecords(folder, trackers, private=simulation.protection is not None)
        if not resume:
            held.enter_context(lock_folder(folder))
            records.write("config.toml", catalogue.format_setup_toml(simulation.setup))
        try:
            if begins is not None:
                begins(simulation)
            summary = _run(simulation, records, observer, tested)
        finally:
            simulation.close()
        if summary.seconds is not None:  # the stored summary of a finished run
            return summary
        seconds, peak, phases = time.perf_counter() - started, memory.bytes or None, observer.phases.seconds
        summary = replace(summary, seconds=seconds, resumed=resume, peak_memory_bytes=peak, phases=phases)
    records.write_json("summary.json", summary.to_dict())
    from fedpeft.reporting.plots import plot_rounds

    with raise_write_errors(folder / "rounds.svg"):
        plot_rounds(folder / "rounds.svg", records.read("rounds.jsonl"), summary.to_dict())
    return summary


def _needs_processes(config: RunConfig) -> bool:
    """Return whether the run needs worker processes on this machine; GPUs, which can reduce them, are not counted."""
    workers = config.workers or count_usable_cores()
    return workers > 1 and GRIDS.build(config.grid).cluster is None


SCORED = "scoring the saved adapter on the test set (fp32)"
"""The phase of the final score."""


def _run(simulation: Simulation, records: Records, observer: ConsoleObserver, tested: bool) -> Summary:
    from fedpeft.reporting import user_files
    from fedpeft.simulation.probe import begin_probe

    setup, rows, config = simulation.setup, simulation.rows, simulation.config
    user_files.record(records, user_files.find_own_files(config, simulation.workers.work.model_key, records.folder))
    _print_introduction(simulation, observer)
    if not tested:
        from fedpeft.simulation.trial_score import run_trial

        return run_trial(simulation, records)
    tokens = setup.tokens if rows.dataset.sampled else None
    with begin_probe(setup, rows, simulation.workers, tokens) as probe:
        return _summarize(simulation, records, observer, probe)


def _summarize(simulation: Simulation, records: Records, observer: ConsoleObserver, begun: BegunProbe) -> Summary:
    from fedpeft.reporting.final_score import compute_calibration, save
    from fedpeft.rounds.best_state import summarize_validation
    from fedpeft.simulation.of_rows import measure_rows
    from fedpeft.simulation.predictions import save_predictions
    from fedpeft.simulation.private_probe import score_private_probe
    from fedpeft.simulation.retrieval import measure_retrieval
    from fedpeft.wiring.measurement import ScoredRun, TrainedRun
    from fedpeft.wiring.measurements import Findings

    setup, rows = simulation.setup, simulation.rows
    server = simulation.server(records, stopping=lambda: begun.has_failed)
    progress = simulation.train(server)
    if begun.has_failed:
        begun.wait_for_result()  # raises why
    if (stored := _find_stored_summary(simulation, progress)) is not None:
        observer.say("[bold]note[/]    the run had finished: no round was left, so its scores are kept")
        return stored
    kept, residual = progress.result
    save(setup, kept, simulation.folder, residual)
    own = server.evaluate_own_rows(progress) if setup.personal else None
    evaluate = partial(simulation.workers.evaluate, version=0) if len(rows.validation) else None
    findings = Findings(setup, simulation.begun, observer.say)
    findings.ask(TrainedRun(setup, progress, records, server, evaluate, simulation))
    private = score_private_probe(simulation)
    simulation.close()
    score = simulation.scorer.score(
        simulation.folder, SCORED, temperature=findings.temperature, asks=findings.list_questions
    )
    save_predictions(simulation, score.scores, records)
    secret, lines = simulation.protection is not None, records.read("rounds.jsonl")
    disclosed = setup, kept, lines, rows.dataset.test, score
    kept_round = progress.kept_round
    findings.compute(ScoredRun(*disclosed, simulation.folder, records, None, secret, simulation, kept_round))
    last = score if kept_round == progress.round else _score_last_state(simulation, progress)
    probe = begun.wait_for_result()
    quality = Quality(
        metric=setup.task.metric,
        **_choose_scores(own, score, last),
        accuracy_by_base=_score_by_precision(simulation) or None,
        perplexity=compute_perplexity((own or score).loss) if setup.task.metric == "perplexity" else None,
        kept_round=kept_round,
        **summarize_validation(progress.best),
        baseline_accuracy=probe.accuracy if probe else None,
        private_probe_accuracy=private,
        **compute_calibration(score),
        **_run_attacks(simulation),
        retrieval=measure_retrieval(simulation, score.sides),
        **findings.quality,
    )
    observer.enter("summing up")
    return Summary(
        quality=quality,
        costs=Costs.of(setup, progress, simulation.sampler.size, simulation.protection, simulation.fixed),
        distinct_rows=_count_distinct_rows(simulation, records),
        partition=simulation.statistics.to_dict(),
        sampled=rows.dataset.sampled,
        hooks=server.sections(progress),
        ended_early=server.early_end or None,
        trust=findings.sections or None,
        **measure_rows(simulation, score, probe, records),
    )


def _find_stored_summary(simulation: Simulation, progress: ServerState) -> Summary | None:
    """Return the summary in the run's folder if it is of this state and all scored files are there; otherwise None."""
    stored, folder = Summary.read(simulation.folder), simulation.folder
    if (
        stored is None
        or stored.costs.rounds != progress.round
        or stored.quality.accuracy_of not in (TEST_ROWS, OWN_ROWS)
    ):
        return None
    saved = "model" if simulation.setup.method.whole_model else "adapter"
    return stored if (folder / saved).is_dir() and (folder / "predictions.npz").is_file() else None


def _choose_scores(own: OwnRows | None, score: FinalScore, last: FinalScore | None) -> dict[str, Any]:
    """Return the scores of the global model on the test examples, or of each client's `own` model on its own.

    Without a score of the `last` state, its fields are None.
    """
    if own is None:
        return {
            "accuracy": score.accuracy,
            "accuracy_of": TEST_ROWS,
            "loss": score.loss,
            "last_accuracy": last.accuracy if last else None,
            "last_loss": last.loss if last else None,
        }
    return {
        "accuracy": own.accuracy,
        "accuracy_of": OWN_ROWS,
        "worst_accuracy": own.worst_accuracy,
        "shared_accuracy": score.accuracy,
        "loss": own.loss,
    }


def _score_by_precision(simulation: Simulation) -> dict[str, float]:
    """Return the kept state's accuracy by precision of the base; empty: all clients use the run's precision."""
    config, precisions = simulation.config, simulation.setup.base_precisions
    if not precisions:
        return {}
    bases = dict.fromkeys([config.dtype if config.dtype != "fp64" else "fp32", *precisions])
    score = simulation.scorer.score
    return {base: score(simulation.folder, f"scoring on a base in {base}", base).accuracy for base in bases}


def _run_attacks(simulation: Simulation) -> dict[str, Any]:
    """Return the results of attacks if the mechanism asks for them; else an empty mapping."""
    mechanism = simulation.setup.mechanism
    if mechanism is None or not mechanism.audit:
        return {}
    from fedpeft.audit.attacks import run_attacks

    return run_attacks(simulation)


def _score_last_state(simulation: Simulation, progress: ServerState) -> FinalScore | None:
    """Save and score the last state beside a better one that is kept; return None unless a setting asks for it."""
    from fedpeft.reporting.final_score import save

    if not simulation.setup.measured.validation.score_last:
        return None
    folder = simulation.folder / "last"
    folder.mkdir(exist_ok=True)
    save(simulation.setup, progress.reached_state, folder, progress.residual.total)
    return simulation.scorer.score(folder, "scoring the last state on the test set (fp32)")


def _print_introduction(simulation: Simulation, observer: ConsoleObserver) -> None:
    """Print the data, the model and the settings of the run that is about to begin."""
    from fedpeft.data.inspection import report_test_overlap
    from fedpeft.wiring.advice import advise

    config, setup, executor = simulation.config, simulation.setup, simulation.workers.work.executor
    observer.say(f"[bold]data[/]    {escape(f'{simulation.rows.dataset.name}: {simulation.statistics}')}")
    if simulation.rows.dataset.sampled:
        of = f"{len(simulation.rows.all):,} training and {len(simulation.rows.dataset.test):,} test examples"
        observer.say(f"[bold]sample[/]  {of}, for a preview: do not report its numbers")
    observer.say(format_model_line(setup))
    notes = [*plugins.take_notes(), *simulation.rows.dataset.notes, *setup.notes]
    notes += report_test_overlap(simulation.rows.dataset) if setup.task.targets else []
    notes += setup.cut_rows(simulation.workers.work.data_key)
    for note in filter(None, (*notes, *advise(setup, simulation.statistics, simulation.most_steps))):
        observer.say(f"[bold]note[/]    {escape(note)}")
    graphics = "".join(f", {name}" for name in dict.fromkeys(simulation.fixed["gpus"]))
    observer.say(
        f"[bold]run[/]     {count_of(config.rounds, 'round')} of {count_of(simulation.sampler.size, 'client')}, "
        f"{escape(config.peft)}, {escape(config.strategy)}, updates in {escape(config.codec)}, base in {config.dtype}, "
        f"{executor} on {count_of(simulation.fixed['workers'], 'worker')}{graphics} -> "
        f"{escape(str(simulation.folder))}"
    )
    in_few_bits = {"nf4", "int8"} & {setup.method.base_precision, *setup.base_precisions}
    if in_few_bits and setup.grid.executor == "batched" and not simulation.fixed["gpus"]:
        observer.say("[bold]note[/]    clients with a base in nf4 or int8 are trained one after another, not batched")
    say_privacy(simulation.protection, observer)
    if setup.grid.executor == "batched" and not (setup.method.batched and setup.task.batched):
        name = setup.facts.task.partition("(")[0] if setup.method.batched else setup.method.name
        observer.say(f"[bold]note[/]    {name} has no batched form: clients train one by one")


def _count_distinct_rows(simulation: Simulation, records: Records) -> int | None:
    """Return the number of distinct rows for summary.json; None if it is secret, or if clients share rows."""
    if simulation.protection is not None or simulation.rows.partition.resampled:
        return None
    return count_distinct_rows(records.read("clients.jsonl"))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 2 for a user's mistake, 130 after Ctrl-C or SIGTERM."""
    folder: Path | None = None

    def work() -> None:
        nonlocal folder
        console = Console()
        config, folder, resume, told = parse(sys.argv[1:] if arguments is None else arguments)
        summary = simulate(config, folder, resume, console, told["track"], told["dashboard"])
        show(summary, folder, console)

    def explain_interruption() -> str:
        left = folder is not None and (folder / "config.toml").exists()
        how = f"continue with: {resume_command(folder)}" if folder and left else "no round was finished"
        return f"interrupted; {how}"

    return run_command(work, explain_interruption)


if __name__ == "__main__":
    start_command("simulate")
