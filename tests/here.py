"""A federation in one process, for tests: a real server and real clients, and a grid that needs no sockets."""

from __future__ import annotations

import json
from dataclasses import replace

from flwr.app import Message
from rich.console import Console

from fedpeft.communication.flower_grid import OwnGrid, get_node_id
from fedpeft.communication.flower_messages import read_instruction, write_record
from fedpeft.data.rows import load_dataset
from fedpeft.deployment.client.edge import EdgeClient
from fedpeft.deployment.client.shared_settings import compute_settings_digest
from fedpeft.deployment.identity.authentication import Doorkeeper
from fedpeft.deployment.identity.certificates import Authority
from fedpeft.deployment.identity.credentials import Credentials
from fedpeft.deployment.options import EdgeOptions, ServeOptions
from fedpeft.deployment.server import federation
from fedpeft.deployment.server.event_log import Events
from fedpeft.deployment.transcript.transcript import FILE as TRANSCRIPT
from fedpeft.deployment.transcript.transcript import Transcript, compute_record_limit
from fedpeft.privacy.secure_sum.sum import sums_in
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.records import Records
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig

TINY = {"dataset": "tiny", "tokens": 32, "clients": 2, "cohort": "all", "rounds": 2, "workers": 1, "seed": 3,
        "head": "zero", "local_work": "steps(2)", "peft": "lora(rank=2, layers=1)", "dtype": "fp32",
        "learning_rate": 3e-3, "optimizer": "adamw(warmup=8, head_rate=1.0)",
        "measure": "validation(every=100)"}  # fmt: skip
ROWS, MORE_ROWS = (40, 90), (60, 50, 70, 45, 55)


class Direct(OwnGrid):
    """Hands each instruction to its client, in this process, which checks it against the server's records."""

    def __init__(self, server):
        super().__init__()
        self.server, self.edges = server, server.edges
        self.transcripts = {}
        self.asked, self.reports, self._ready = [], [], []

    def accepted(self, asked):
        """Return an instruction as the client's transcript hands it on."""
        said, edge = self.server.announcements, self.edges[asked.client]
        if not hasattr(edge, "policy"):  # one that a test has put there, which checks nothing
            return asked
        if asked.client not in self.transcripts:
            told, name = edge.description, f"edge-{asked.client}"
            given = (
                told.run,
                compute_settings_digest(told),
                name,
                None,
                compute_record_limit(edge.config.rounds),
                edge.policy,
            )
            self.transcripts[asked.client] = Transcript(edge.folder / TRANSCRIPT, *given)
        transcript = self.transcripts[asked.client]
        for record in said.get_records_since(len(transcript)):
            transcript.receive(record)
        return transcript.accept(asked, said.create_statement(f"edge-{asked.client}", asked))

    def get_node_ids(self):
        return [get_node_id(client) for client in range(len(self.edges))]

    def push_messages(self, messages):
        identifiers = []
        for message in messages:
            identifiers.append(self._stamp(message))
            self.asked.append(self.accepted(read_instruction(message)))
            self.reports.append(self.edges[self.asked[-1].client].handle(self.asked[-1]))
            self._ready.append(Message(write_record(self.reports[-1]), reply_to=message))
        return identifiers

    def pull_messages(self, message_ids):
        ready, self._ready = self._ready, []
        return ready


class Here(federation.Federation):
    """A server whose clients are in this process."""

    def create_grid(self):
        self.direct = Direct(self)
        return self.direct

    def wait_for_present(self):
        self.roster.start()
        for member in self.roster.members:
            given = self.given[member.id]
            self.own[member.id] = replace(given, form=self._choose_form(given, member.rank))
        return [member.id for member in self.roster.members]


class Federation:
    """A server and its clients, each with a folder and rows of its own."""

    def __init__(self, folder, observer, options=(), serve=None, **given):
        self.folder, self.observer = folder, observer
        self.config = RunConfig(**{**TINY, **given})
        self.options = options or [{}] * self.config.clients
        (folder / "server").mkdir(exist_ok=True)
        self.summed = sums_in(self.config.privacy) is not None  # for which clients have certificates
        if self.summed and not (folder / "certs").exists():
            authority = Authority(folder / "certs", 1)
            authority.ensure()
            for k in range(self.config.clients):
                authority.client(f"edge-{k}")
        for k in range(self.config.clients):
            self.keep(k)
        self.serve = serve or ServeOptions()
        self.start()
        self.server.edges = [self.edge(k) for k in range(self.config.clients)]

    def file(self, k):
        """Where the rows of client k are."""
        return self.folder / f"{k}.jsonl"

    def keep(self, k):
        """Write the rows of client k."""
        self.file(k).write_text("".join(json.dumps(row) + "\n" for row in self.rows(k)))

    def rows(self, k):
        """Return the examples in the file of client k."""
        data, counts = load_dataset(self.config.dataset), (*ROWS, *MORE_ROWS)
        names, first = data.label_names, sum(counts[:k])
        return [{"text": data.train.inputs[i]} | ({"label": names[data.train.labels[i]]} if names else {})
                for i in range(first, first + counts[k])]  # fmt: skip

    def start(self, edges=()):
        """Start the server, or start it again, with these clients."""
        events = Events(self.folder / "server" / "serve.jsonl", lambda *_: None)
        folder = self.folder / "server"
        authority = (self.folder / "certs" / "ca.pem").read_bytes() if self.summed else b""
        self.server = Here(self.config, folder, self.observer, self.serve, Doorkeeper(None, authority), events)
        self.server.edges = list(edges)

    def edge(self, k):
        """Client k, started (again)."""
        home = self.folder / f"edge-{k}"
        home.mkdir(exist_ok=True)
        options = EdgeOptions(**{"device": "cpu", "threads": 1, **self.options[k]})
        data, ledgers = self.file(k), self.folder / "ledgers"
        own = Credentials.load_client(self.folder / "certs" / "clients" / f"edge-{k}") if self.summed else None
        edge = EdgeClient(self.server.gateway.description, data, home, ledgers, self.observer, options, own)
        edge.warm_up()
        registration = edge.create_registration()
        terms = self.server._accept(registration)
        self.server.roster.enter(f"edge-{k}", registration.rank, terms, registration.rows)
        return edge

    def run(self):
        self.server.wait_for_present()  # by which clients get their ids
        records = Records(self.folder / "server", private=self.server.protection is not None)
        return self.server.train(self.server.server(records))


class OfSimulation(Federation):
    """Real clients, each with the examples of a client of a simulation with the same settings."""

    def __init__(self, folder, observer, simulation, serve=None, **given):
        self.simulation = simulation
        super().__init__(folder, observer, serve=serve or ServeOptions(eval_data="dataset"), **given)

    def rows(self, k):
        rows, names = self.simulation.rows, self.simulation.rows.dataset.label_names
        shard = rows.partition.shard(k)
        return [{"text": rows.train.inputs[i], "label": names[rows.train.labels[i]]} for i in shard]


def run_simulation(simulation):
    """Run a simulation to its end; return its last state and its records."""
    records = Records(simulation.folder)
    state = simulation.train(simulation.server(records))
    simulation.close()
    return state, records


def make_simulation(folder, **given):
    """Return a simulation with `TINY` and the given settings in a new folder."""
    folder.mkdir(parents=True)
    return Simulation(RunConfig(**{**TINY, **given}), folder, ConsoleObserver(Console(quiet=True)))
