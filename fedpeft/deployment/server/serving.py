"""A federation of real clients, from the first connection to a saved adapter."""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
import tomli_w
from rich.markup import escape

from fedpeft.data.prompt_templates import SUFFIX
from fedpeft.deployment.addresses import is_loopback, parse_address
from fedpeft.deployment.identity.authentication import Doorkeeper
from fedpeft.deployment.identity.certificates import RevocationList
from fedpeft.deployment.identity.credentials import Credentials, describe_exposure
from fedpeft.deployment.identity.signing import Signer
from fedpeft.deployment.options import OWN_TEST, ServeOptions
from fedpeft.deployment.server.event_log import Events
from fedpeft.deployment.server.federation import Federation
from fedpeft.deployment.server.grid import StoppedError
from fedpeft.deployment.server.monitoring import Operation
from fedpeft.deployment.wire.tls_failures import Handshakes
from fedpeft.errors import ConfigError
from fedpeft.machine.memory import PeakMemory
from fedpeft.machine.terminal import Console
from fedpeft.parts import plugins
from fedpeft.privacy.secure_sum.sum import sums_in
from fedpeft.reporting import user_files
from fedpeft.reporting.console import (
    ServeObserver,
    format_model_line,
    say_privacy,
    silence_libraries,
)
from fedpeft.reporting.dashboard.live import LiveState
from fedpeft.reporting.dashboard.server import show_dashboard
from fedpeft.reporting.final_score import FinalScore, note_undefined, save
from fedpeft.reporting.observer import compute_perplexity
from fedpeft.reporting.phrases import count_of
from fedpeft.reporting.records import Records
from fedpeft.reporting.run_folder import (
    SERVERS_OPTIONS,
    lock_folder,
    make_folder,
    remove_on_error,
    resolve_paths,
)
from fedpeft.reporting.summary import OWN_ROWS, Costs, Quality, Summary
from fedpeft.reporting.task_matrix import measure_tasks
from fedpeft.rounds.best_state import summarize_validation
from fedpeft.rounds.evaluation import OwnRows
from fedpeft.rounds.progress import ServerState
from fedpeft.wiring import catalogue
from fedpeft.wiring.advice import advise_on_steps
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.measurement import ScoredRun, TrainedRun
from fedpeft.wiring.measurements import Findings
from fedpeft.wiring.setup import Setup

FAREWELL = "the federation is finished"


def resolve_option_paths(options: ServeOptions) -> ServeOptions:
    """Return the options with absolute paths, because a resume may be typed in another folder."""

    def absolute(path: str) -> str:
        return str(Path(path).expanduser().absolute())

    own, template = options.eval_data in ("", OWN_TEST), options.template
    return dataclasses.replace(
        options,
        certs=absolute(options.certs),
        eval_data=options.eval_data if own else absolute(options.eval_data),
        template=absolute(template) if template.endswith(SUFFIX) else template,
    )


def load_security(options: ServeOptions) -> tuple[grpc.ServerCredentials | None, Doorkeeper, Signer | None]:
    """Return what the server shows, asks for, and signs with, after a check of its address.

    Raises:
        ConfigError: no TLS although others could connect, or no address.
        RunError: certificates are missing or can't be used.
    """
    parse_address(options.listen, "listen")
    if options.insecure or options.insecure_anywhere:
        if not options.insecure_anywhere and not is_loopback(options.listen):
            raise ConfigError(
                f"FP1403 without TLS anyone who reaches {options.listen} could join, or read all messages; "
                "listen at 127.0.0.1, make certificates with fedpeft certs, or give "
                "--insecure-anywhere"
            )
        return None, Doorkeeper(None), None
    folder = Path(options.certs)
    own = Credentials.load_server(folder)
    secret = grpc.ssl_server_credentials([(own.key, own.certificate)], own.authority, require_client_auth=True)
    return secret, Doorkeeper(RevocationList(folder / "revoked.pem", own.authority), own.authority), Signer(own)


def serve(config: RunConfig, options: ServeOptions, folder: Path, resume: bool, console: Console) -> Summary:
    """Run (or continue) a federation, and return its summary.

    Raises:
        FedpeftError: a mistake that the user can fix.
        StoppedError: the server was asked to stop; it can be resumed.
    """
    silence_libraries()
    config, options = resolve_paths(config), resolve_option_paths(options)
    credentials, doorkeeper, signer = load_security(options)
    if signer is None and sums_in(config.privacy) is not None:
        raise ConfigError(
            f"FP1404 --privacy {config.privacy} needs certificates: without TLS anyone who forwards a message "
            "could pose as any client and remove the masks; leave --insecure out"
        )
    started = time.perf_counter()
    make_folder(folder)
    going = threading.Event()
    with (
        remove_on_error(folder, going.is_set),
        lock_folder(folder),
        PeakMemory() as memory,
        show_dashboard(options.dashboard, folder, console) as live,
        ServeObserver(console, live) as observer,
    ):
        events = Events(folder / "serve.jsonl", observer.event)
        if signer and (said := describe_exposure(Path(options.certs) / "server.key")):
            observer.say(f"[bold yellow]warning[/] {escape(said)}")
        observer.enter("loading examples and model")
        federation = Federation(config, folder, observer, options, doorkeeper, events, signer)
        observer.watch(federation)
        if live is not None:
            _watch(live, federation)
        records = Records(folder, private=True)  # who took part is private, as in the log
        farewell = None

        def note_refusal(reason: str) -> None:
            federation.gateway.admission.note_refusal(
                reason=f"TLS: {(signer and signer.describe_objection()) or reason}"
            )

        with Handshakes(note_refusal), _StopOnSignal(federation), Operation(federation, observer, options):
            try:
                federation.gateway.start(options.listen, credentials)
                if not resume:
                    records.write("config.toml", catalogue.format_setup_toml(federation.setup))
                user_files.record(records, user_files.find_own_files(config, federation.fixed["model"], folder))
                kept = dataclasses.replace(options, readmit="")  # it applies to this start only
                records.write(SERVERS_OPTIONS, tomli_w.dumps(dataclasses.asdict(kept)))
                going.set()
                with log_end(events):
                    summary = _run(federation, records, observer)
                farewell = FAREWELL
            finally:
                federation.close(farewell)
        seconds, peak = time.perf_counter() - started, memory.bytes or None
        summary = dataclasses.replace(summary, seconds=seconds, resumed=resume, peak_memory_bytes=peak)
    records.write_json("summary.json", summary.to_dict())
    return summary


def _watch(live: LiveState, federation: Federation) -> None:
    """Let the dashboard show the number of connected clients, and the spent budget."""
    protection = federation.protection

    def count_connections() -> dict[str, int]:
        sessions = federation.gateway.list_sessions()
        here = {"connected": sum(bool(s.connected) for s in sessions)}
        return here if federation.secret_cohort else here | {"at work": sum(bool(s.task) for s in sessions)}

    spent = None if protection is None else lambda: protection.epsilons()[0]
    live.watch(federation.setup.clients, private=protection is not None, epsilon=spent, connected=count_connections)


def announce(federation: Federation, observer: ServeObserver) -> None:
    """Print what the server is about to do: model, notes, rounds, protection and address."""
    config, setup, gateway = federation.config, federation.setup, federation.gateway
    observer.say(format_model_line(setup))
    for note in (*plugins.take_notes(), *setup.notes, *advise_on_steps(setup, setup.training.steps_for(10**6))):
        observer.say(f"[bold]note[/]    {escape(note)}")
    observer.say(
        f"[bold]run[/]     {config.rounds} rounds of {federation.sampler.size} of {count_of(setup.clients, 'client')}, "
        f"{escape(f'{config.peft}, {config.strategy} -> {federation.folder}')}"
    )
    say_privacy(federation.protection, observer)
    if setup.secure_sum is not None:
        observer.say(
            f"[bold]privacy[/] {setup.secure_sum.name}: this server learns sums of the clients' updates, and no update"
        )
    observer.say(f"[bold]listen[/]  port {gateway.port}, run {federation.roster.run}")
    if not federation.announcements.is_signed:
        observer.say(
            "[bold]rounds[/]  are chained by hashes and, without TLS, not signed: nobody can prove who sent what"
        )


def _run(federation: Federation, records: Records, observer: ServeObserver) -> Summary:
    config, setup, gateway = federation.config, federation.setup, federation.gateway
    observer.metric = setup.task.metric
    announce(federation, observer)
    gateway.events.emit("listening", port=gateway.port, run=federation.roster.run)
    server = federation.server(records)
    federation.gather()
    progress = federation.train(server)
    if federation.stopping.is_set() and progress.round < config.rounds:
        raise StoppedError
    kept, residual = progress.result
    save(setup, kept, federation.folder, residual)
    own = server.evaluate_own_rows(progress) if federation.held_out else None
    findings = Findings(setup, federation.begun, observer.say)
    findings.ask(TrainedRun(setup, progress, records, server))
    gateway.close(FAREWELL)
    received, sent = gateway.count_wire_bytes()
    scorer = federation.scorer
    score = scorer.score(federation.folder, "scoring the saved adapter (fp32)") if scorer else None
    secret, test = federation.protection is not None, federation.rows.dataset.test if scorer else None
    disclosed = setup, kept, records.read("rounds.jsonl"), test, score
    findings.compute(ScoredRun(*disclosed, federation.folder, records, None, secret, None, progress.kept_round))
    return Summary(
        quality=_summarize_quality(own, score, setup, progress, findings.temperature),
        costs=Costs.of(setup, progress, federation.sampler.size, federation.protection, federation.fixed),
        wire_received_bytes=None if federation.secret_cohort else received,
        wire_sent_bytes=None if federation.secret_cohort else sent,
        refused=gateway.admission.refused,
        targets=note_undefined(score.measures or None, observer) if score else None,
        hooks=server.sections(progress),
        ended_early=server.early_end or None,
        trust=findings.sections or None,
        tasks=measure_tasks(setup.facts.tasks, test, federation.folder, score.scores, records)
        if score is not None and test is not None
        else None,
    )


def _summarize_quality(
    own: OwnRows | None, score: FinalScore | None, setup: Setup, progress: ServerState, temperature: float | None
) -> Quality:
    """Return the quality of the result on the clients' examples, else on the server's; NaN if nobody has any."""
    accuracy, loss, of = math.nan, math.nan, "global model, the server's rows"
    if own is not None and own.clients and setup.personal:
        accuracy, loss, of = own.accuracy, own.loss, OWN_ROWS
    elif own is not None and own.clients:
        accuracy, loss, of = own.pooled_accuracy, own.pooled_loss, "clients' own held-out rows, by rows"
    elif score is not None:
        accuracy, loss = score.accuracy, score.loss
    return Quality(
        metric=setup.task.metric,
        accuracy=accuracy,
        accuracy_of=None if math.isnan(accuracy) else of,
        worst_accuracy=own.worst_accuracy if own else None,
        shared_accuracy=score.accuracy if score else None,
        loss=loss,
        perplexity=compute_perplexity(loss) if setup.task.metric == "perplexity" else None,
        kept_round=progress.kept_round,
        **summarize_validation(progress.best),
        temperature=temperature,
    )


@contextmanager
def log_end(events: Events) -> Iterator[None]:
    """Log how a run ends: finished, stopped (by its user), or failed."""
    try:
        yield
    except (StoppedError, KeyboardInterrupt):
        events.emit("stopped")
        raise
    except Exception as error:
        events.emit("failed", reason=str(error) or type(error).__name__)
        raise
    events.emit("finished")


class _StopOnSignal:
    """A context in which SIGTERM and Ctrl-C end the round and then the server; a second Ctrl-C ends it at once."""

    def __init__(self, federation: Federation) -> None:
        """Hold the event that asks the federation to stop."""
        self._stopping = federation.stopping
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        """Install the handlers."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._stop)

    def __exit__(self, *_: object) -> None:
        """Restore the earlier handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _: FrameType | None) -> None:
        if self._stopping.is_set():
            raise KeyboardInterrupt
        self._stopping.set()
