"""Settings of the two ends of a federation of real clients, beside a run's configuration."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from functools import partial
from pathlib import Path

from fedpeft.data.client_rows import LABEL, LARGEST, MOST_FRAMES, TEXT
from fedpeft.data.prompt_templates import check_readable, read_template
from fedpeft.data.table_format import AUTO, DECIMALS, TableFormat
from fedpeft.deployment.addresses import parse_address
from fedpeft.models.precisions import BASES
from fedpeft.parts import setting
from fedpeft.parts.families import TASKS
from fedpeft.privacy.secure_sum.cohorts import FEWEST

OWN_TEST = "dataset"
"""Value of `eval_data` that names the validation and test set of the configured dataset."""

MOST_CLIENT_ROWS = 1_000_000
"""Most examples per client; clients take as many as a batch."""


@dataclass(frozen=True)
class ServeOptions:
    """What a server of real clients needs beside a run's configuration."""

    labels: str = setting("", "class names in order: a,b,c (default: those of --eval-data or of the dataset)")
    task: str = setting(
        "",
        "what is learned: 'regression(mean=50, deviation=10)', multi_label, token_labels, seq2seq, causal_lm, "
        "instruction (conversations) or dpo (preferences), with --side also towers, captions or patch_labels "
        "(default: classification, or as --dataset)",
        nested=TASKS,
    )
    text_column: str = setting(
        TEXT, "column of the clients' texts; for pairs with both columns at their default, input"
    )
    label_column: str = setting(
        LABEL,
        "column of the clients' labels; several of 0 and 1: 'toxic + insult'; for pairs with both columns at their "
        "default, target",
    )
    side: int = setting(
        0,
        "clients' examples are images, scaled to this many pixels per side (default: as --dataset)",
        low=0,
        high=LARGEST,
    )
    frames: int = setting(
        0,
        "clients' examples are clips, with a folder of frames for each: this many are read (default: as --dataset)",
        low=0,
        high=MOST_FRAMES,
    )
    template: str = setting(
        "",
        "prompt template of conversations: chat (the model's own, the default), alpaca, flowertune or FILE.jinja, "
        "which clients need, too",
        check=check_readable,
    )
    eval_data: str = setting(
        "", "examples to evaluate on: a file, a folder of images, or the word dataset for those of --dataset"
    )
    held_out: float = setting(0.0, "share of the clients' own examples to evaluate on instead", low=0, high=0.5)
    client_rows: int = setting(
        0,
        "rough public number of examples per client; training under a privacy budget is planned for it (0: unknown)",
        low=0,
        high=MOST_CLIENT_ROWS,
    )
    listen: str = setting(
        "127.0.0.1:8470",
        "HOST:PORT to listen at; 0.0.0.0:8470 for all of the machine's addresses",
        check=partial(parse_address, option="listen"),
    )
    certs: str = setting("certs", "folder that fedpeft certs has made")
    insecure: bool = setting(False, "no TLS: clients' claimed names are accepted; on this machine only")
    insecure_anywhere: bool = setting(False, "no TLS, for anyone who can reach the address")
    metrics: str = setting(
        "",
        "HOST:PORT of Prometheus metrics, e.g. 127.0.0.1:9470; empty: none",
        check=partial(parse_address, option="metrics"),
    )
    dashboard: str = setting("", "port of a page that shows the run, on this machine only; 0: any free; empty: none")
    health: str = setting(
        "",
        "HOST:PORT of gRPC health checks without TLS, e.g. 127.0.0.1:8471; empty: none",
        check=partial(parse_address, option="health"),
    )
    wait_for: int = setting(0, "clients to wait for before round 1; 0: all", low=0)
    quorum: float = setting(0.5, "share of a cohort that must answer before the deadline counts", above=0, high=1)
    deadline: float = setting(3600.0, "seconds after which a round goes on without stragglers; 0: never", low=0)
    most_rows: int = setting(1_000_000, "most examples that a client may join with; they set its weight", low=1)
    most_weight: float = setting(
        10.0, "largest weight of a client, in multiples of the median client's examples; 0: no limit", low=0
    )
    readmit: str = setting("", "with --resume: names of dropped clients that may come back: a,b")
    patience: float = setting(15.0, "seconds that a round's start waits for clients that have disconnected", low=0)


@dataclass(frozen=True)
class JoinOptions:
    """How a client reaches its server, and where its examples, certificates and state are."""

    server: str = setting(MISSING, "HOST:PORT of the server", check=partial(parse_address, option="server"))
    data: Path = setting(MISSING, "your examples: a .csv, .tsv or .jsonl file, or a folder of images")
    certs: Path = setting(Path("certs"), "the folder you were handed: ca.pem, client.pem, client.key")
    insecure: bool = setting(False, "no TLS: for a server on this machine that runs without it")
    name: str = setting("", "your name, with --insecure; otherwise your certificate contains it")
    state: Path = setting(Path("~/.local/state/fedpeft"), "folder of your state between rounds and restarts")
    give_up: float = setting(0.0, "seconds without a connection after which to end; 0: never", low=0)


@dataclass(frozen=True)
class EdgeOptions:
    """Settings that a client chooses itself."""

    text_column: str = setting("", "column of your texts, if its name differs from the server's")
    label_column: str = setting("", "column of your classes or targets, if its name differs from the server's")
    sep: str = setting(AUTO, "what separates the columns of your file: ',', ';', tab, ...; auto: detected, reported")
    encoding: str = setting(AUTO, "encoding of your file, such as utf-8, latin-1 or utf-16; auto: detected, reported")
    decimal: str = setting(
        AUTO, "decimal sign of your numbers; auto: a comma if they have no other reading", choices=DECIMALS
    )
    template: str = setting(
        "",
        "FILE.jinja, if the federation writes conversations with a template file that you have been handed",
        check=read_template,
    )
    runs: str = setting(
        "",
        "folders of the finished runs that the federation's adapter_fusion combines, which you have been handed: a,b",
    )
    model: str = setting("", "folder of the base model, if the server's name for it is unknown here")
    device: str = setting("auto", "cpu, cuda, cuda:N, or auto: cuda if it is there")
    precision: str = setting(
        "",
        "precision of the frozen base here; empty: the server's, or what suits the memory and the CPU",
        choices=BASES,
    )
    batch_size: int = setting(0, "examples per local step; 0: the server's number, or fewer if memory is short", low=0)
    threads: int = setting(0, "torch threads on a CPU; 0: one per core", low=0, high=1024)
    rank: int = setting(0, "the largest LoRA rank to hold; 0: the server's", low=0, high=1024)
    max_epsilon: float | None = setting(
        None,
        "your own privacy budget over all runs on your file, whatever the server asks; a federation that exceeds it is "
        "refused",
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
        "",
        "file of the certificates whose owners' updates yours may be added up with (fedpeft certs --roster)",
    )
    roster_hash: str = setting("", "the roster's expected hash, as you received it on another channel")
    fewest: int = setting(FEWEST, "fewest clients in a sum under masks that you join, yourself included", low=FEWEST)

    @property
    def file_format(self) -> TableFormat:
        """The format of the client's text files."""
        return TableFormat(self.sep, self.encoding, self.decimal, "--NAME VALUE")
