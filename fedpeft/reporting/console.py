"""The terminal view of a run: rich progress bars, a line per round, and the summary."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from fedpeft.machine.terminal import Console
from fedpeft.reporting.observer import RoundResult, get_main_metric
from fedpeft.reporting.phases import SILENCE, Heartbeat, Phases
from fedpeft.reporting.phrases import break_between_phrases, count_of

if TYPE_CHECKING:
    from fedpeft.privacy.engine import PrivacyEngine
    from fedpeft.reporting.dashboard.live import LiveState
    from fedpeft.wiring.setup import Setup


def format_bytes(count: float) -> str:
    """Format bytes for people: 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def format_duration(seconds: float) -> str:
    """Format seconds for people: 3 min 20 s."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def format_measure(value: float, digits: int = 3) -> str:
    """Format a measure with `digits` decimals, or as 1.234e+56 if it has diverged."""
    return f"{value:.{digits}f}" if abs(value) < LONGEST or not math.isfinite(value) else f"{value:.{digits}e}"


def format_validation(metric: str, loss: float, accuracy: float) -> str:
    """Format the loss and the main metric of a state on the validation examples."""
    name, value = get_main_metric(metric, loss, accuracy)
    shown = "not a number" if value is None else format_measure(value)
    return f"validation: loss {format_measure(loss)}, {name} {shown}"


def format_amount(value: float) -> str:
    """Format a measure in any unit with four digits, or from ten thousand on as a whole number, 46,179."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < LONGEST else f"{value:.4g}"


ROUNDS = "rounds"
"""The phase of all rounds."""

BEFORE_ROUNDS = {"evaluate": "validation"}
"""Names of phases before round 1 that differ from the kind of instruction."""

LONGEST = 1e6
"""The least measure that is written as a power of ten."""


class StepsColumn(ProgressColumn):
    """Column with the finished and total steps; empty for a wait and for a single step, whose bar only moves."""

    def render(self, task: Task) -> Text:
        """Return the text for a task."""
        return Text("" if task.total is None else f"{task.completed:.0f}/{task.total:.0f}", style="progress.download")


def get_bar_length(steps: int) -> int | None:
    """Return the length of a bar; None, a bar that moves back and forth, if it would stand at 0/1 until its end."""
    return steps if steps > 1 else None


class ConsoleObserver:
    """Progress on the terminal; without a terminal, a line per round and phase.

    Args:
        console: the terminal, or another output.
        metric: the main metric of the run's task.
        on_round: called with each round's result; returns True to stop the run.
        silence: without a terminal, seconds without output after which a line reports the progress; None: never.
        live: the page that shows the same; None: there is none.
    """

    def __init__(
        self,
        console: Console,
        metric: str = "accuracy",
        on_round: Callable[[RoundResult], bool | None] | None = None,
        silence: float | None = None,
        live: LiveState | None = None,
    ) -> None:
        """Create the progress bars, which start with the context."""
        self.console = console
        self.live = live
        self.phases = Phases()
        self._repeats = math.inf  # how many more lines may interrupt the silence
        shown = not console.quiet and not console.is_terminal
        self._heartbeat = Heartbeat(self._print_heartbeat, silence) if silence is not None and shown else None
        self._on_round = on_round
        self._metric = metric
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            StepsColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._rounds: TaskID | None = None
        self._phase: TaskID | None = None
        self._cohort: TaskID | None = None
        self._total_rounds = 0
        self._round = ""

    @property
    def metric(self) -> str:
        """The main metric of the run's task."""
        return self._metric

    @metric.setter
    def metric(self, metric: str) -> None:
        self._metric = metric
        if self.live is not None:
            self.live.judge(metric)

    def __enter__(self) -> Self:
        """Start the progress bars and the heartbeat."""
        self._progress.start()
        if self._heartbeat is not None:
            self._heartbeat.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the heartbeat and the progress bars."""
        if self._heartbeat is not None:
            self._heartbeat.__exit__()
        self._progress.stop()

    def _print_heartbeat(self) -> None:
        if self._repeats <= 0:
            return
        self._repeats -= 1
        self._progress.console.print(f"...     {self.phases}", highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print a line above the progress bars."""
        if self._heartbeat is not None:
            self._heartbeat.reset()
        if self.live is not None:
            self.live.say(text)
        if not self.console.is_terminal:
            self._progress.console.print(text, highlight=False, soft_wrap=True)
            return
        line = break_between_phrases(Text.from_markup(text), self.console.width)
        self._progress.console.print(line, highlight=False)

    def phase(self, name: str, total: int) -> None:
        """Begin a phase of `total` steps, with a line if there is no terminal; 0: a wait, which gets one line only."""
        self.enter(name, total)
        self._repeats = math.inf if total else 0
        if not self.console.is_terminal:
            self.say(escape(name))

    def enter(self, name: str, total: int = 1) -> None:
        """Begin a phase of `total` steps, without a line."""
        self._remove_phase()
        self._repeats = math.inf
        self.phases.enter(name, total)
        if self.live is not None:
            self.live.phase(name, total)
        self._phase = self._progress.add_task(name, total=get_bar_length(total))

    def wait(self, name: str) -> None:
        """Begin a wait for others, maybe for hours; if it takes long, one line reports it."""
        self.enter(name, 0)
        self._repeats = 1

    def _remove_phase(self) -> None:
        if self._phase is not None:
            self._progress.remove_task(self._phase)
            self._phase = None

    def advance(self, steps: int = 1) -> None:
        """Count finished steps of the phase."""
        self.phases.advance(steps)
        if self.live is not None:
            self.live.advance(steps)
        if self._phase is not None:
            self._progress.advance(self._phase, steps)

    def begin_rounds(self, rounds: int, done: int) -> None:
        """Begin the rounds, of which `done` are done already."""
        self._total_rounds = rounds
        self._rounds = self._progress.add_task(ROUNDS, total=get_bar_length(rounds), completed=done)
        self._cohort = self._progress.add_task("clients of this round", total=None)
        self._begin_round(done + 1)
        if self.live is not None:
            self.live.begin_rounds(rounds)
        if done:
            self.say(f"continuing after round {done} of {rounds}")

    def client_done(self, phase: str, done: int, total: int) -> None:
        """Show how many clients have answered."""
        if self._cohort is None:  # before round 1
            if done:
                self.advance()
            elif phase == "prepare":
                self.phase("head statistics of the clients", total)
            else:  # steps of a secure sum, or the clients' own validation
                self.enter(f"{BEFORE_ROUNDS.get(phase, phase)} of the clients", total)
        else:
            if phase == "evaluate" and not done and self.phases.name == ROUNDS:
                self.begin_part("validation")
            self.phases.reach(done, total)
            if self.live is not None:
                self.live.set_answered(done, total)
            self._progress.update(self._cohort, completed=done, total=total)

    def begin_part(self, part: str = "") -> None:
        """Begin a part of the running round, or of the start."""
        if self._cohort is None:
            self.enter(f"{part} of the start")
            return
        self._remove_phase()  # such as the wait for clients that have gone
        self._repeats = math.inf
        if self.phases.name != ROUNDS:
            self.phases.enter(ROUNDS)
        self.phases.part(f"{self._round}: {part}" if part else self._round)

    def _begin_round(self, round_number: int) -> None:
        self._round = f"round {round_number}" if round_number <= self._total_rounds else "after the last round"
        self.begin_part()

    def round_done(self, result: RoundResult) -> bool:
        """Print a line about the round; return True if `on_round` asks to stop."""
        if self._rounds is not None:
            self._progress.update(self._rounds, completed=result.round)
        self._begin_round(result.round + 1)
        parts = [f"round {result.round:>3}/{self._total_rounds}", count_of(result.clients, "client")]
        if result.train_loss is not None:
            parts.append(f"train loss {format_measure(result.train_loss)}")
        if result.loss is not None and result.accuracy is not None:
            parts.append(format_validation(self.metric, result.loss, result.accuracy))
        if result.undone:
            parts.append("[bold yellow]undone[/]")
        parts.append(f"up {format_bytes(result.uplink_bytes)} down {format_bytes(result.downlink_bytes)}")
        if result.seconds is not None:
            parts.append(format_duration(result.seconds))
        if result.rejected:
            parts.append(f"[bold red]{result.rejected} updates rejected[/]")
        if self.live is not None:
            self.live.round_done(result)
        self.say("  ".join(parts))
        return bool(self._on_round and self._on_round(result))


class ServeObserver(ConsoleObserver):
    """Observer that also shows which clients are connected, and the bytes on the wire."""

    NAMES_SHOWN = 8

    def __init__(self, console: Console, live: LiveState | None = None) -> None:
        """Create the observer of a server, whose federation `watch` sets."""
        super().__init__(console, silence=SILENCE, live=live)
        self.last: RoundResult | None = None
        self.epsilon: float | None = None  # of the worst client, if metrics are served
        self._federation: Any = None
        self._connected: TaskID | None = None

    def watch(self, federation: Any) -> None:
        """Set the federation whose connections are shown."""
        self._federation = federation

    def event(self, event: str, fields: dict[str, Any]) -> None:
        """Show an entry of the log: refusals and drops as lines, connections as a state."""
        if event in ("refused", "dropped"):
            client = fields.get("client") or fields.get("peer") or "a client"
            self.say(f"[bold red]{event}[/] {escape(str(client))}: {escape(str(fields.get('reason', '')))}")
        elif event in ("connected", "disconnected"):
            if not self.console.is_terminal:
                self.say(f"{event} {fields['client']}")
            self._show_connected()

    def client_done(self, phase: str, done: int, total: int) -> None:
        """Show how many clients have answered, and the connections."""
        super().client_done(phase, done, total)
        self._show_connected()

    def _show_connected(self) -> None:
        if self._federation is None:
            return
        sessions = self._federation.gateway.list_sessions()
        names = sorted(s.member.name for s in sessions if s.connected)
        shown = ", ".join(names[: self.NAMES_SHOWN]) + (", ..." if len(names) > self.NAMES_SHOWN else "")
        text = f"connected ({shown})"
        if not self._federation.secret_cohort:
            up, down = (format_bytes(sum(getattr(s, f"{way}_bytes") for s in sessions)) for way in ("received", "sent"))
            text += f", up {up} down {down}"
        if self._connected is None:
            self._connected = self._progress.add_task(text, total=self._federation.setup.clients)
        self._progress.update(self._connected, description=text, completed=len(names))

    def round_done(self, result: RoundResult) -> bool:
        """Print a line about the round, and log it."""
        last = super().round_done(result)
        self.last = result
        if self._federation is not None:
            told = {"round": result.round, "clients": result.clients, "rejected": result.rejected}
            measures = {name: getattr(result, name) for name in ("train_loss", "loss", "accuracy", "seconds")}
            finite = {name: x if x is None or math.isfinite(x) else None for name, x in measures.items()}
            self._federation.gateway.events.emit("round", **told, **finite)
            if self._federation.options.metrics and self._federation.protection is not None:
                self.epsilon = self._federation.protection.epsilons()[0]
        return last


def create_summary_table(title: str, rows: list[tuple[str, Any]]) -> Table:
    """Create a table with two columns, names and values."""
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows:
        table.add_row(name, str(value))
    return table


def set_library_variables() -> None:
    """Set the environment variables by which libraries are quiet, in this process and in those that it starts."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # workers are forked from a process that never tokenizes
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def silence_libraries() -> None:
    """Turn off progress bars, parallelism notes and deprecation warnings of the underlying libraries."""
    set_library_variables()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # about palettes and camera metadata
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def say_privacy(protection: PrivacyEngine | None, observer: ConsoleObserver) -> None:
    """Print the privacy claims of a run, if it has any."""
    if protection is None:
        return
    observer.say(f"[bold]privacy[/] {protection.describe()}")
    if plan := protection.describe_plan():
        observer.say(f"[bold]plan[/]    {plan}")
    for warning in protection.warnings():
        observer.say(f"[bold yellow]warning[/] {warning}")


def format_model_line(setup: Setup) -> str:
    """Return one line about the base model and the trained parameters."""
    trained = setup.layout.numel
    return (
        f"[bold]model[/]   {escape(setup.model_directory.name)}: {setup.parameters / 1e6:.1f} M parameters, "
        f"{trained:,} trained and exchanged ({100 * trained / setup.parameters:.2f} %)"
    )
