"""The command `fedpeft join`: a client of a federation, from the first connection to its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.markup import escape

from fedpeft.communication.messages import Instruction, Report
from fedpeft.deployment.client.edge import EdgeClient, check_machine
from fedpeft.deployment.client.shared_settings import compute_settings_digest
from fedpeft.deployment.client.state_folder import get_client_folder, get_ledger_folder, lock_state_folder
from fedpeft.deployment.identity.certificates import check_name, name_of
from fedpeft.deployment.identity.credentials import Credentials, describe_exposure
from fedpeft.deployment.identity.signing import Verifier
from fedpeft.deployment.options import EdgeOptions, JoinOptions
from fedpeft.deployment.transcript.transcript import FILE as TRANSCRIPT
from fedpeft.deployment.transcript.transcript import Transcript, compute_record_limit
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.deployment.wire.connection import Link, LostError, UnkeptError, yield_waits
from fedpeft.errors import ConfigError, RunError
from fedpeft.machine.terminal import Console
from fedpeft.privacy.client_protection import OWN
from fedpeft.privacy.secure_sum.cohorts import FEWEST
from fedpeft.reporting.console import ConsoleObserver, format_bytes, format_duration, silence_libraries
from fedpeft.reporting.phases import SILENCE

if TYPE_CHECKING:
    from fedpeft.deployment.client.trainer_edge import TrainerEdge


def link_of(options: JoinOptions) -> Link:
    """Return how to reach the server.

    Raises:
        ConfigError, RunError: an address, a name or certificates that can't be used.
    """
    if options.insecure:
        if not options.name:
            raise ConfigError("FP1201 without TLS a client must give its name: --name edge-1")
        return Link(options.server, check_name(options.name), None)
    own = Credentials.load_client(options.certs)
    name = name_of(own.certificate)
    if options.name not in ("", name):
        raise ConfigError(
            f"FP1202 --name {options.name} is not the name in the certificate in {options.certs}, {name}: leave --name "
            "out, or give the folder of that client"
        )
    return Link(options.server, name, own)


@dataclass
class Patience:
    """Waits between attempts to connect: they grow, and they end.

    Attributes:
        give_up: seconds without a connection after which to give up; 0: never.
    """

    give_up: float
    say: ConsoleObserver
    _waits: Iterator[float] = field(default_factory=yield_waits)
    _since: float | None = None
    _unreached: str = ""
    _diagnosed: bool = False

    def reset(self) -> None:
        """Reset the waits after a successful connection."""
        self._waits = yield_waits()
        self.note_contact()

    def note_contact(self) -> None:
        """Note that the server is there. The waits keep their length, since it may be gone again at once."""
        if self._unreached:
            self.say.say(f"connected to {escape(self._unreached)}")
        self._since, self._unreached, self._diagnosed = None, "", False

    def wait_for_retry(self, link: Link, error: LostError) -> None:
        """Wait before the next attempt.

        Raises:
            RunError: trying again won't help, or it has taken too long.
        """
        told = str(error)
        if not isinstance(error, UnkeptError):  # with it, there is a connection
            told = f"no connection to {link.address} ({error})"
            self._handle_unreached(link, error)
        seconds = next(self._waits)
        self.say.say(f"{escape(told)}; again in {seconds:.1f} s")
        time.sleep(seconds)

    def _handle_unreached(self, link: Link, error: LostError) -> None:
        self._unreached = link.address
        if self._since is None:
            self._since = time.monotonic()
        if not self._diagnosed:
            self._diagnosed = link.diagnose()
        if self.give_up and time.monotonic() - self._since > self.give_up:
            raise RunError(
                f"FP5155 {link.address} could not be reached for {self.give_up:g} s: {error}; check --server, and ask "
                "whoever runs the server whether it listens there"
            )


def join(options: JoinOptions, edge_options: EdgeOptions, console: Console) -> None:
    """Take part in a federation until it is finished.

    Raises:
        FedpeftError: a mistake that the user can fix.
    """
    link = link_of(options)
    check_machine(options.data, edge_options)
    silence_libraries()
    with ConsoleObserver(console, silence=SILENCE) as observer:
        if link.credentials and (said := describe_exposure(options.certs / "client.key")):
            observer.say(f"[bold yellow]warning[/] {escape(said)}")
        patience = Patience(options.give_up, observer)
        observer.wait(f"connecting to {link.address}")
        description = wait_for_description(link, patience)
        observer.enter("loading examples and model")
        state = options.state.expanduser()
        folder = get_client_folder(state, description.run, link.name)
        with lock_state_folder(folder):
            edge = EdgeClient(
                description, options.data, folder, get_ledger_folder(state), observer, edge_options, link.credentials
            )
            precision = edge_options.precision or edge.config.dtype
            model = escape(edge.setup.model_directory.name)
            observer.say(
                f"[bold]{link.name}[/]  {len(edge.rows)} examples, {model} in {precision} on "
                f"{escape(str(edge.hardware))}"
            )
            _say_privacy(edge, observer)
            transcript = open_transcript(edge, link)
            if link.credentials is None:
                observer.say("[bold]rounds[/]  are chained by hashes and, without TLS, not signed by the server")
            edge.warm_up()
            try:
                take_part(edge, link, transcript, patience, observer)
            finally:
                edge.close()


def wait_for_description(link: Link, patience: Patience) -> v2.Description:
    """Return the server's description of the federation, as soon as the server is there.

    Raises:
        RunError: it refuses this client, or is out of reach for too long.
    """
    while True:
        try:
            with link.open() as connection:
                description = connection.describe()
        except LostError as error:
            patience.wait_for_retry(link, error)
        else:
            patience.reset()
            return description


def open_transcript(edge: EdgeClient | TrainerEdge, link: Link) -> Transcript:
    """Return the transcript of what the server has told this client of the rounds, in its folder.

    Raises:
        RunError: the file can't be read, or contradicts the server's present settings.
    """
    return Transcript(
        edge.folder / TRANSCRIPT,
        edge.description.run,
        compute_settings_digest(edge.description),
        link.name,
        Verifier(link.credentials.authority) if link.credentials else None,
        compute_record_limit(edge.config.rounds),
        edge.policy,
    )


def _say_privacy(edge: EdgeClient, observer: ConsoleObserver) -> None:
    """Tell the user what protects this machine's examples, and from whom."""
    mechanism, secure = edge.setup.mechanism, edge.setup.secure_sum
    if secure is not None:
        fewest = edge.options.fewest
        others = ", where the others give that --fewest, too" if fewest > FEWEST else ""
        observer.say(
            f"[bold]privacy[/] {secure.name}: updates leave this machine under masks; the server learns sums of "
            f"{fewest} clients or more{others}, and this client takes part in one a round"
        )
        if edge.roster is not None:
            members = len(edge.roster.members)
            observer.say(f"[bold]roster[/]  {members} clients, hash {edge.roster.hash}: the others must see the same")
        else:
            observer.say(
                "[bold yellow]warning[/] no --roster is given: the server is trusted to be honest, if curious, since "
                "whoever has the authority's key could invent clients and read the updates among them"
            )
    elif mechanism is None:
        observer.say("[bold]privacy[/] updates are not protected, so they can reveal something about your examples")
    elif edge.protection is None:
        observer.say(f"[bold]privacy[/] {mechanism.name}: the server is trusted to clip updates and to add the noise")
    if edge.protection is not None:
        observer.say(f"[bold]privacy[/] {edge.protection.describe()}")
        for warning in edge.protection.warnings():
            observer.say(f"[bold yellow]warning[/] {warning}")


def _format_task(instruction: Instruction) -> str:
    """Return a task's name for people."""
    step = f", step {instruction.step} of the secure sum" if instruction.step else ""
    return f"{instruction.kind} round {instruction.round}{step}"


def _format_answer(instruction: Instruction, report: Report, silent: bool) -> str:
    """Return a line about a task and its answer; a `silent` client tells the server 1 for any number of examples."""
    called = _format_task(instruction)
    if report.error:
        return f"{called}: {escape(report.error)}"
    if instruction.step:
        return f"{called}: {format_bytes(report.bytes)}"
    rows = "" if silent else f"{report.rows} examples, "
    loss = f"loss {report.loss:.3f}, " if report.loss else ""  # 0: not measured, or it must not leave this machine
    return f"{called}: {rows}{loss}{format_bytes(report.bytes)}, {format_duration(report.seconds)}"


def take_part(
    edge: EdgeClient | TrainerEdge, link: Link, transcript: Transcript, patience: Patience, observer: ConsoleObserver
) -> None:
    """Carry out the server's instructions until it needs this client no more.

    Raises:
        RunError: it refuses this client, contradicts itself, or is out of reach for too long.
    """
    done: tuple[str, Report] = "", Report(0, 0, b"")

    def note_contact() -> None:
        patience.note_contact()
        observer.wait("waiting for a task")

    observer.wait(f"connecting to {link.address}")
    while True:
        try:
            with link.open() as connection:
                registration, limit = edge.create_registration(), edge.instruction_limit
                for task, instruction in connection.iterate_tasks(registration, limit, transcript, note_contact):
                    patience.reset()
                    if task != done[0]:  # after a lost connection the server asks again for what is done already
                        observer.enter(_format_task(instruction))
                        done = task, edge.handle(instruction)
                    report = done[1]
                    observer.enter(f"{_format_task(instruction)}: sending {format_bytes(report.bytes)}")
                    verdict = connection.submit(task, report)
                    observer.say(f"{_format_answer(instruction, report, edge.silent)} ({verdict})")
                    observer.wait("waiting for a task")
            observer.say(
                f"the federation is finished: the trained model is on the server {escape(link.address)}, and its "
                "operator hands it out (fedpeft export RUN)"
            )
            observer.say(f"this client's records of it are in {escape(str(edge.folder))}")
            own = edge.protection
            if own is not None:
                observer.say(
                    f"privacy: epsilon {own.compute_epsilon():.3g} at dp_delta {own.delta:.2g} per "
                    f"{own.mechanism.privacy_unit}, from {own.ledger.releases(OWN)} releases; the ledger is "
                    f"{own.ledger.path}; with all other runs on these examples epsilon "
                    f"{own.lifetime.spent(own.delta):.3g}"
                )
            return
        except LostError as error:
            observer.wait(f"connecting to {link.address}")
            patience.wait_for_retry(link, error)
