"""What the two ends of a federation of real clients are told beside a run's configuration."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from functools import partial
from pathlib import Path

from fedpeft.data.client_rows import LABEL, LARGEST, TEXT
from fedpeft.data.prompt_templates import check_readable, read_template
from fedpeft.data.table_format import AUTO, DECIMALS, TableFormat
from fedpeft.deployment.addresses import parse_address
from fedpeft.families import TASKS
from fedpeft.models.precisions import BASES
from fedpeft.parts import setting
from fedpeft.privacy.secure_sum.cohorts import FEWEST

OWN_TEST = "dataset"
"""As `eval_data`: the validation and test rows of the configured data set."""

MOST_CLIENT_ROWS = 1_000_000
"""As many as clients take as a batch."""


@dataclass(frozen=True)
class ServeOptions:
    """What a server of real clients needs beside a run's configuration."""

    labels: str = setting("", "class names in order: a,b,c (default: those of --eval-data or of the data set)")
    task: str = setting(
        "",
        "what is learned: 'regression(mean=50, deviation=10)', multi_label, token_labels, seq2seq, causal_lm, "
        "instruction (conversations) or dpo (preferences) (default: one class, or as --dataset)",
        nested=TASKS,
    )
    text_column: str = setting(TEXT, "column of the clients' texts; of pairs, where both are left so, input")
    label_column: str = setting(
        LABEL,
        "column of the clients' labels; several of 0 and 1: 'toxic + insult'; of pairs, where both are left so, target",
    )
    side: int = setting(
        0, "clients' rows are pictures, brought to so many pixels per side (default: as --dataset)", low=0, high=LARGEST
    )
    template: str = setting(
        "",
        "of conversations: chat (the model's own, the default), alpaca, flowertune or FILE.jinja, which clients need",
        check=check_readable,
    )
    eval_data: str = setting(
        "", "rows to evaluate on: a file, of pictures a folder, or the word dataset for those of --dataset"
    )
    held_out: float = setting(0.0, "share of the clients' own rows to evaluate on instead", low=0, high=0.5)
    client_rows: int = setting(
        0,
        "rows that a client has, roughly, as all may know: under a privacy budget, training is planned by it (0: not "
        "known)",
        low=0,
        high=MOST_CLIENT_ROWS,
    )
    listen: str = setting(
        "127.0.0.1:8470",
        "HOST:PORT to listen at; 0.0.0.0:8470 for all of the machine's addresses",
        check=partial(parse_address, option="listen"),
    )
    certs: str = setting("certs", "folder that python -m fedpeft.certs has made")
    insecure: bool = setting(False, "no TLS: clients are who they say they are; on this machine only")
    insecure_anywhere: bool = setting(False, "no TLS, whoever can reach the address")
    metrics: str = setting(
        "",
        "HOST:PORT of Prometheus metrics, e.g. 127.0.0.1:9470; empty: none",
        check=partial(parse_address, option="metrics"),
    )
    dashboard: str = setting("", "port of a page that shows the run, to this machine only; 0: any free; empty: none")
    health: str = setting(
        "",
        "HOST:PORT of gRPC health checks without TLS, e.g. 127.0.0.1:8471; empty: none",
        check=partial(parse_address, option="health"),
    )
    wait_for: int = setting(0, "clients to wait for before round 1; 0: all", low=0)
    quorum: float = setting(0.5, "share of a cohort that must answer before the deadline counts", above=0, high=1)
    deadline: float = setting(3600.0, "seconds after which a round goes on without stragglers; 0: never", low=0)
    most_rows: int = setting(1_000_000, "rows that a client may join with: they are its weight, and believed", low=1)
    most_weight: float = setting(
        10.0, "most weight of a client in the mean, in numbers of rows of the median client; 0: no limit", low=0
    )
    readmit: str = setting("", "with --resume: names of dropped clients that may come back: a,b")
    patience: float = setting(15.0, "seconds that a round's start waits for clients that have gone", low=0)


@dataclass(frozen=True)
class JoinOptions:
    """How a client reaches its server, and where its rows, certificates and state are."""

    server: str = setting(MISSING, "HOST:PORT of the server", check=partial(parse_address, option="server"))
    data: Path = setting(MISSING, "your rows: a .csv, .tsv or .jsonl file, or a folder of pictures")
    certs: Path = setting(Path("certs"), "the folder you were handed: ca.pem, client.pem, client.key")
    insecure: bool = setting(False, "no TLS: for a server on this machine that runs without it")
    name: str = setting("", "your name, with --insecure; else it stands in the certificate")
    state: Path = setting(Path("~/.local/state/fedpeft"), "where your state is kept between rounds and restarts")
    give_up: float = setting(0.0, "seconds without a connection after which to end; 0: never", low=0)


@dataclass(frozen=True)
class EdgeOptions:
    """What a client decides for itself."""

    text_column: str = setting("", "column of your texts, if it has another name than the server says")
    label_column: str = setting(
        "", "column of your classes, or of what answers your texts, if it has another name than the server says"
    )
    sep: str = setting(AUTO, "what separates the columns of your file: ',', ';', tab, ...; auto: detected, reported")
    encoding: str = setting(AUTO, "of your file: utf-8, latin-1, cp1252, utf-16, ...; auto: detected, and reported")
    decimal: str = setting(
        AUTO, "decimal sign of your numbers; auto: a comma if they have no other reading", choices=DECIMALS
    )
    template: str = setting(
        "",
        "FILE.jinja, if the federation writes conversations by a file that you have been handed",
        check=read_template,
    )
    model: str = setting("", "folder of the base model, if the server's name for it means nothing here")
    device: str = setting("auto", "cpu, cuda, cuda:N, or auto: cuda if it is there")
    precision: str = setting(
        "",
        "of the frozen base here; empty: the server's, or what suits the memory and the CPU",
        choices=BASES,
    )
    batch_size: int = setting(0, "rows per local step; 0: as the server says, or fewer where memory is short", low=0)
    threads: int = setting(0, "of torch on a CPU; 0: one per core", low=0, high=1024)
    rank: int = setting(0, "the largest LoRA rank to hold; 0: the server's", low=0, high=1024)
    max_epsilon: float | None = setting(
        None,
        "your own privacy budget, over all runs on your file of rows, whatever the server says; a federation that "
        "can't keep it is refused",
        above=0,
    )
    max_delta: float = setting(1e-3, "the largest privacy delta that you accept", above=0, below=1)
    collude: float = setting(
        0.0,
        "share of a secure sum's clients that you assume to collude with the server; sums that do not tolerate so many "
        "are refused, and distributed_dp counts without their noise",
        low=0,
        high=0.9,
    )
    roster: str = setting(
        "", "file of the certificates whose owners yours may be added up with (python -m fedpeft.certs --roster)"
    )
    roster_hash: str = setting("", "what its hash must be, as you were told by another way")
    fewest: int = setting(FEWEST, "clients in a sum under masks that yours takes part in, itself included", low=FEWEST)

    @property
    def file_format(self) -> TableFormat:
        """The format of the client's text files."""
        return TableFormat(self.sep, self.encoding, self.decimal, "--NAME VALUE")
