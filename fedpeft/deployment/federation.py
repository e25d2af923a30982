"""A federation of real clients: the rounds of a simulation, with clients that are reached over gRPC.

All that a configuration makes (layout, strategy, server optimizer, checkpoints, the saved adapter) is the
simulation's; what differs is where rows are. The server has none, or rows to evaluate on; class names come from these,
from a list, or from the configured data set.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.serverapp import Grid

from fedpeft import __version__
from fedpeft.config import RunConfig
from fedpeft.data import cached_rows, user_rows
from fedpeft.data.datasets.file import records
from fedpeft.data.partition import Partition
from fedpeft.data.rows import Dataset, Rows, load_dataset, split_validation
from fedpeft.deployment.authentication import Doorkeeper
from fedpeft.deployment.event_log import Events
from fedpeft.deployment.gateway import Gateway
from fedpeft.deployment.grid import GrpcGrid, StoppedError
from fedpeft.deployment.members import Member, Roster
from fedpeft.deployment.wire import v1_pb2 as v1
from fedpeft.errors import ConfigError, DataError, PrivacyError, RunError
from fedpeft.parts import setting
from fedpeft.peft.adapter import ClientForm
from fedpeft.privacy.engine import Protection
from fedpeft.privacy.mechanism import MECHANISMS, Federation
from fedpeft.privacy.remote_engine import SecondBook, Terms
from fedpeft.run.observer import Metrics
from fedpeft.run.profiles import Profile
from fedpeft.run.records import Records
from fedpeft.server.progress import RunStore
from fedpeft.server.rounds import Server
from fedpeft.server.sampling import Reachable
from fedpeft.simulation.simulation import VALIDATION_ROWS, Simulation, SimulationObserver

ROSTER = "roster.json"
OWN_TEST = "dataset"
"""As `eval_data`: the validation and test rows of the configured data set."""

BYTES_PER_PARAMETER = 16
"""A report's payloads may have this many bytes per trainable parameter, and a megabyte."""


@dataclass(frozen=True)
class ServeOptions:
    """What a server of real clients needs beside a run's configuration."""

    labels: str = setting("", "class names in order: a,b,c (default: those of --eval-data or of the data set)")
    text_column: str = setting("text", "column of the clients' texts")
    label_column: str = setting("label", "column of the clients' classes")
    eval_data: str = setting("", "rows to evaluate on: a file, or the word dataset for those of --dataset")
    held_out: float = setting(0.0, "share of the clients' own rows to evaluate on instead", low=0, high=0.5)
    listen: str = setting("127.0.0.1:8470", "HOST:PORT to listen at; 0.0.0.0:8470 for all of the machine's addresses")
    certs: str = setting("certs", "folder that python -m fedpeft.certs has made")
    insecure: bool = setting(False, "no TLS: clients are who they say they are; on this machine only")
    insecure_anywhere: bool = setting(False, "no TLS, whoever can reach the address")
    metrics: str = setting("", "HOST:PORT of Prometheus metrics, e.g. 127.0.0.1:9470; empty: none")
    health: str = setting("", "HOST:PORT of gRPC health checks without TLS, e.g. 127.0.0.1:8471; empty: none")
    wait_for: int = setting(0, "clients to wait for before round 1; 0: all", low=0)
    quorum: float = setting(0.5, "share of a cohort that must answer before the deadline counts", above=0, high=1)
    deadline: float = setting(3600.0, "seconds after which a round goes on without stragglers; 0: never", low=0)
    most_rows: int = setting(1_000_000, "rows that a client may join with: they are its weight, and believed", low=1)
    patience: float = setting(15.0, "seconds that a round's start waits for clients that have gone", low=0)


class Described(Dataset):
    """A data set of which one side knows a part only: class names without rows, or the rows of one client."""

    def __post_init__(self) -> None:
        """Nothing to check: rows are the other side's."""


def labelled_rows(path: str, text: str, label: str | None, names: Sequence[str] | None) -> tuple[Rows, tuple[str, ...]]:
    """The rows of a file, with labels as positions in `names` (None: the names that occur, sorted), and the names.

    Raises:
        DataError: the file can't be read, lacks a column, or holds a label that is not in `names`.
    """
    table = user_rows.read(path, records(path), user_rows.Names(text, label, None))
    if table.labels is None:
        return Rows(table.texts), ()
    known = tuple(names or sorted(set(table.labels)))
    position = {name: i for i, name in enumerate(known)}
    unknown = sorted(set(table.labels) - position.keys())
    if unknown:
        shown = ", ".join(repr(name) for name in unknown[:5])
        raise DataError(
            f"{path} has {len(unknown)} labels in column {label!r} that the federation does not know: {shown}; "
            f"its labels are {', '.join(map(repr, known[:20]))}"
        )
    return Rows(table.texts, np.array([position[name] for name in table.labels], np.int64)), known


class Deployment(Simulation):
    """A run with real clients.

    Args:
        config: as for a simulation; how rows lie on clients is not its matter.
        folder: the run's folder; exists.
        observer: is told how things go on.
        options: the server's own settings.
        doorkeeper: reads clients' names.
        events: the log.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        observer: SimulationObserver,
        options: ServeOptions,
        doorkeeper: Doorkeeper,
        events: Events,
    ) -> None:
        self.options = options
        if config.clients < 1:
            raise ConfigError("a server needs to know how many clients there may be: --clients N, at least 1")
        for name in ("attack", "centralised", "forgetting"):
            if getattr(config, name):
                raise ConfigError(f"{name} belongs to simulations: real clients keep their rows; leave it out")
        if config.grid != "cohort":
            raise ConfigError("grid says where simulated clients run, and these are real; leave it out")
        self._check_privacy(config, options)
        self.roster = Roster(folder / ROSTER, config.clients)
        super().__init__(config, folder, observer)
        if options.wait_for > self.clients:
            raise ConfigError(f"wait_for={options.wait_for} is more than the {self.clients} clients there may be")
        self.given = self.profiles
        self.profiles = self.own = list(self.given)
        limit = BYTES_PER_PARAMETER * self.setup.layout.numel + (1 << 20)
        self.stopping = threading.Event()
        self.gateway = Gateway(self._description(), self.roster, doorkeeper, limit, self._accept, events)

    # ------------------------------------------------------------------------------------------------------- privacy

    @staticmethod
    def _check_privacy(config: RunConfig, options: ServeOptions) -> None:
        if not config.privacy:
            return
        mechanism = MECHANISMS.build(config.privacy)
        if not mechanism.protects:
            raise ConfigError(
                f"--privacy {mechanism.name} protects nobody: it is the reference of studies in simulations; leave it "
                "out, or take dp_sgd, local_dp or user_dp"
            )
        if mechanism.audit:
            raise ConfigError("audit=True attacks the rows of a simulation, and real clients keep theirs; leave it out")
        if options.held_out and mechanism.silent:
            raise PrivacyError(
                "--held-out lets clients report losses on their own rows, which epsilon does not cover; leave it out, "
                f"or allow it with {mechanism.name}(raw_metrics=True, ...)"
            )

    def _protection(self) -> Protection | None:
        """The server's ledger: of its own noise (user_dp), or the second book of clients that add noise themselves."""
        config, mechanism = self.config, self.setup.mechanism
        if mechanism is None:
            return None
        ones = np.ones(self.clients, np.int64)
        federation = Federation(
            strategy=self.setup.strategy,
            method=self.setup.method,
            layout=self.setup.layout,
            rows=ones,  # each client knows its own number only
            steps=ones,
            participations=config.rounds * ones,
            batch_size=config.batch_size,
            rounds=config.rounds,
            cohort=self.sampler.size,
            even=len(set(self.sampler.weights)) <= 1,
        )
        identity = f"{self.roster.run} {config.to_toml()} {self.work.data_key} {self.work.model_key} {self.fixed}"
        if mechanism.noises_updates:
            return SecondBook(
                mechanism,
                federation,
                self.folder,
                identity,
                config.seed,
                lambda: {m.id: m.terms for m in self.roster.members if m.id >= 0 and m.terms is not None},
                lambda client: self.profiles[client].steps,
            )
        return Protection(mechanism, federation, self.folder, identity, config.stop_at_budget, config.seed)

    # -------------------------------------------------------------------------------------------------- what is known

    def _data(self) -> tuple[Dataset, Rows, Rows, Partition]:
        options, source = self.options, None
        names: tuple[str, ...] | None = tuple(w.strip() for w in options.labels.split(",") if w.strip()) or None
        if names and (len(set(names)) < len(names) or len(names) < 2):
            raise ConfigError(f"labels={options.labels!r} must name at least two classes, each once: a,b,c")
        rows, test = Rows([], np.zeros(0, np.int64)), None
        if options.eval_data == OWN_TEST or not (names or options.eval_data):
            source = load_dataset(self.config.dataset)
            names = source.label_names
            if options.eval_data:
                held = min(VALIDATION_ROWS, max(1, len(source.train) // 10))
                rows, test = split_validation(source.train, held)[1], source.test
        elif options.eval_data:
            rows, names = labelled_rows(options.eval_data, options.text_column, options.label_column, names)
        if source is not None and (source.kind != "text" or source.task == "instruction"):
            what = "conversations" if source.kind == "text" else "images"
            raise ConfigError(f"{source.name} holds {what}; clients of a server join with texts")
        if names is None and not options.eval_data:
            rows = Rows([])
        dataset = Described(
            name=source.name if source else "clients' own rows",
            kind="text",
            task="classification" if names else "causal_lm",
            train=rows,
            test=test or rows,
            label_names=names,
            default_model=source.default_model if source else "minilm",
        )
        nobody = np.zeros(self.config.clients + 1, np.int64)
        return dataset, rows.take(np.zeros(0, np.int64)), rows, Partition(nobody[:0], nobody)

    @property
    def held_out(self) -> float:
        """Share of its rows that a client is evaluated on and does not train on."""
        return self.options.held_out or super().held_out

    @property
    def secret_cohort(self) -> bool:
        """Whether nobody may know who takes part in a round, nor how many do."""
        return self.protection is not None and self.protection.mechanism.secret_cohort

    @property
    def has_rows(self) -> bool:
        """Whether the server can evaluate by itself."""
        return len(self.validation) > 0

    def _description(self) -> v1.Description:
        """What clients are told."""
        config = dataclasses.replace(
            self.config,
            model=self.dataset.default_model if self.config.model == "auto" else self.config.model,
            peft=self.setup.peft,
            ranks="",
            profiles="",
        )
        return v1.Description(
            run=self.roster.run,
            software=__version__,
            config=config.to_toml(),
            labels=self.dataset.label_names or (),
            task=self.dataset.task,
            text_column=self.options.text_column,
            label_column=self.options.label_column,
            tokenizer_hash=cached_rows.file_hash(self.setup.model_directory, cached_rows.TOKENIZER_FILES),
            weights_hash=self.work.model_key,
            tokens=self.setup.tokens,
            held_out=self.held_out,
        )

    # -------------------------------------------------------------------------------------------------------- clients

    def _accept(self, registration: v1.Registration) -> Terms | None:
        """What a client declares of its privacy; one that can't take part is refused with a RunError."""
        if not registration.rows:
            raise RunError("a client needs at least one row")
        if registration.rows > self.options.most_rows:
            raise RunError(
                f"this client has {registration.rows} rows, and the server takes at most {self.options.most_rows} of "
                "one client; give it fewer rows, or the server a larger --most-rows"
            )
        if registration.rank and self.setup.layout.form is None:
            raise RunError(f"{self.config.peft} has no ranks to choose; leave out --rank")
        forms = [p.form for p in self.profiles] + [self._form(Profile(self.setup.layout.form), registration.rank)]
        try:
            self.setup.strategy.check(self.setup.layout, forms)
        except ConfigError as error:
            raise RunError(f"rank {registration.rank} does not fit: {error}") from None
        return Terms.declared(registration) if isinstance(self.protection, SecondBook) else None

    def _form(self, profile: Profile, rank: int) -> ClientForm | None:
        """The form of a client that can hold `rank` (0: any), at the scale of its profile."""
        form = profile.form
        if not rank or form is None or rank >= form.rank:
            return form
        return ClientForm(rank, form.scale * rank)

    def present(self) -> Sequence[int]:
        """Ids of the clients that are connected; waits until enough are, and a moment for those that have just gone.

        Before round 1 it waits for as many as are wanted, and then gives out ids.
        """
        options = self.options
        wanted = min(options.wait_for or self.clients, self.clients)
        if self.roster.started:
            wanted = max(1, round(options.quorum * min(self.sampler.size, wanted)))
        waiting_since = time.monotonic()
        announced = False
        while True:
            here = [s.member for s in self.gateway.sessions() if s.connected and not s.member.dropped]
            if len(here) >= wanted and not self._missed(here, waiting_since):
                break
            if self.stopping.is_set():
                raise StoppedError
            if not announced and time.monotonic() - waiting_since > 1:
                self.observer.phase(f"waiting for clients: {len(here)} of {wanted} are connected", 0)
                announced = True
            with self.gateway.arrivals:
                self.gateway.arrivals.wait(0.2)
        self.roster.start()
        ranks = {member.id: member.rank for member in self.roster.members}
        for id, given in enumerate(self.given):
            self.own[id] = dataclasses.replace(given, form=self._form(given, ranks.get(id, 0)))
        return sorted(member.id for member in here)

    def _missed(self, here: Sequence[Member], since: float) -> bool:
        """Whether a member is away that was here a moment ago; those of an earlier server since this wait began."""
        seen = {s.member.name: s.seen for s in self.gateway.sessions()}
        earliest = time.monotonic() - self.options.patience
        away = (m for m in self.roster.members if not m.dropped and m not in here)
        return any(seen.get(m.name, since) > earliest for m in away)

    def grid(self) -> Grid:
        """Real clients."""
        # Nobody waits for one client alone; and with secret cohorts whether one counts must not depend on the others.
        quorum = 0.0 if self.setup.strategy.asynchronous or self.secret_cohort else self.options.quorum
        return GrpcGrid(self.gateway, quorum, self.options.deadline, self.stopping)

    def server(self, records: Records) -> Server:
        """The simulation's server, with clients that come and go."""
        return Server(
            setup=dataclasses.replace(self.setup, profiles=self.own),
            grid=self.grid(),
            sampler=Reachable(self.sampler, self.present),
            store=RunStore.of(records),
            observer=self.observer,
            evaluate=self.evaluate if self.has_rows else None if self.held_out else _nobody_knows,
            fixed=self.fixed,
            privacy=self.protection,
            remote=True,
            stopping=self.stopping.is_set,
        )

    def close(self, farewell: str | None = None) -> None:
        """End connections and workers."""
        self.gateway.close(farewell)
        super().close()


def _nobody_knows(*_: object) -> Metrics | None:
    return None
