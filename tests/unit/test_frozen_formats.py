"""Frozen formats: this version reads what 0.3.0 wrote, and writes what 0.3.0 reads (docs/api.md)."""

from __future__ import annotations

import dataclasses
import json
import runpy
import shutil
import sqlite3
import tomllib
from contextlib import closing
from pathlib import Path

import pytest
import torch
from fedpeft.clients.store import FORMAT, ClientStore

from fedpeft.communication.messages import ADDED, Instruction, Report
from fedpeft.deployment.client.shared_settings import format_client_settings, parse_shared_settings
from fedpeft.deployment.description import check_description
from fedpeft.deployment.transcript.round_record import RoundRecord, TaskRecord, parse_record
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.deployment.wire.channel import WIRE
from fedpeft.deployment.wire.parcel import IncomingParcel, split_into_parts
from fedpeft.parts import plugins
from fedpeft.privacy.ledger import Ledger
from fedpeft.rounds.progress import Checkpoints
from fedpeft.wiring.config import RunConfig, read_config
from tests.refusals import refuses

FOLDER = Path(__file__).parent.parent / "golden" / "formats"
FORMATS = runpy.run_path(str(FOLDER / "make_formats.py"))
WIRE_FOLDER = FOLDER / "wire"
MESSAGES = FORMATS["MESSAGES"]


def read_parts(cls, parts):
    """Return the content of a message, as both ends read it."""
    header, *chunks = parts
    incoming = IncomingParcel(cls, 1 << 20, header.header)
    for part in chunks:
        incoming.add(part.chunk)
    return incoming.get_content()


def list_sent(parts):
    """Return the names of all fields and payloads that travel."""
    header = next(iter(parts)).header
    return {*header.fields, *(payload.name for payload in header.payloads)}


def test_the_fixtures_are_small_and_complete():
    files = [file for file in FOLDER.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert sum(file.stat().st_size for file in files) < 500_000
    assert {file.stem for file in WIRE_FOLDER.glob("*.parts")} == set(MESSAGES)
    sent = {Instruction: set(), Report: set()}
    for content in MESSAGES.values():
        sent[type(content)] |= list_sent(split_into_parts("t", content))
    local = {"released", "recorded"}  # a client fills them in
    added = set(ADDED)  # 0.3.0 did not have them, and its files are never written anew
    assert sent[Instruction] == {field.name for field in dataclasses.fields(Instruction)} - local - added
    assert sent[Report] == {field.name for field in dataclasses.fields(Report)}


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_a_message_of_0_3_0_is_read_and_would_be_sent_alike(name):
    content = MESSAGES[name]
    parts = FORMATS["decode_parts"]((WIRE_FOLDER / f"{name}.parts").read_bytes())
    assert read_parts(type(content), parts) == content
    assert list_sent(split_into_parts("round 3", content)) == list_sent(parts)


def test_an_older_peer_reads_a_message_unless_a_field_that_it_lacks_is_used():
    @dataclasses.dataclass(frozen=True)
    class Later(Report):
        """A report of a later version."""

        more: int = 0

    sent = Later(1, 2, b"abc", rows=7)
    assert read_parts(Report, split_into_parts("t", sent)) == Report(1, 2, b"abc", rows=7)
    with refuses("FP6097", "more"):
        read_parts(Report, split_into_parts("t", dataclasses.replace(sent, more=1)))


@pytest.mark.parametrize(("name", "cls"), [("record", RoundRecord), ("statement", TaskRecord)])
def test_a_record_of_0_3_0_is_read_and_would_be_written_alike(name, cls):
    content = (WIRE_FOLDER / f"{name}.json").read_bytes()
    assert parse_record(cls, content) == FORMATS[name.upper()]
    assert FORMATS[name.upper()].to_bytes() == content


@pytest.mark.parametrize("name", ["registration", "description", "introduction"])
def test_what_ends_say_of_themselves_is_read(name):
    made = FORMATS[name.upper()]
    assert type(made).FromString((WIRE_FOLDER / f"{name}.bin").read_bytes()) == made


def test_a_client_of_0_3_0_is_sent_settings_that_it_knows():
    description = v2.Description.FromString((WIRE_FOLDER / "description.bin").read_bytes())
    check_description(description)
    assert parse_shared_settings(description.config).clients == 3
    known = set(tomllib.loads(description.config))
    assert set(tomllib.loads(format_client_settings(RunConfig()))) == known
    assert v2.Introduction.FromString((WIRE_FOLDER / "introduction.bin").read_bytes()).wire == WIRE


@pytest.mark.parametrize("name", ["run", "private_run"])
def test_a_checkpoint_of_0_3_0_is_read(name):
    state = Checkpoints(FOLDER / name / "checkpoint").load()
    assert state.round == 1
    assert state.adapter
    assert all(torch.isfinite(tensor).all() for tensor in state.adapter.values())


def test_states_of_clients_of_0_3_0_are_read(tmp_path):
    shutil.copytree(FOLDER / "run" / "clients", tmp_path / "clients")
    store = ClientStore(tmp_path / "clients")
    states = [store.load(client, 1, tidy=False) for client in range(3)]
    assert all(states)
    with closing(sqlite3.connect(store.file)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (FORMAT,)
        database.execute(f"PRAGMA user_version = {FORMAT + 1}")
    with refuses("FP5010", FORMAT + 1, FORMAT):
        store.load(0, 1, tidy=False)
    with refuses("FP5001", FORMAT + 1, FORMAT):
        store.stage(0, 2, states[0])


def test_a_new_file_of_states_has_the_format_s_number(tmp_path):
    store = ClientStore(tmp_path)
    store.stage(4, 1, {"x": torch.ones(2)})
    with closing(sqlite3.connect(store.file)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (FORMAT,)
    assert torch.equal(store.load(4, 1)["x"], torch.ones(2))


def test_a_ledger_of_0_3_0_is_read(tmp_path):
    file = shutil.copy(FOLDER / "private_run" / "ledger.jsonl", tmp_path)
    terms = json.loads(Path(file).read_text().splitlines()[0])
    book = Ledger(Path(file), {name: value for name, value in terms.items() if name != "version"})
    assert book.spent
    assert book.attempts(1) == 1


# -------------------------------------------------------------------------------------------- run folders and plugins


def test_the_settings_of_a_run_of_0_3_0_are_read_and_a_later_format_is_refused(tmp_path):
    file = Path(shutil.copy(FOLDER / "run" / "config.toml", tmp_path))
    assert file.read_text().startswith("format = 1\n")
    assert read_config(file, of_run=True).rounds == 3
    file.write_text(file.read_text().replace("format = 1", "format = 2"))
    with refuses("FP1521", "config.toml", 2, 1):
        read_config(file, of_run=True)


def test_a_plugin_of_0_3_0_is_loaded_and_a_later_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "_state", plugins._PluginState())
    file = FOLDER / "plugin.py"
    assert plugins.find_plugin(str(file)).names == [
        "codecs.flipped", "hooks.last_round", "measurements.size", "strategies.half_mean"
    ]  # fmt: skip
    later = tmp_path / "later.py"
    later.write_text(file.read_text().replace("plugin_format = 1", "plugin_format = 2"))
    with refuses("FP1522", "later.py", 2, 1):
        plugins.find_plugin(str(later))
