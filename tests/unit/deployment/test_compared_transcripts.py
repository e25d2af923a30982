"""Two clients compare what they were told: the same, otherwise, or nothing that proves anything."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from fedpeft.commands import transcript as command
from fedpeft.communication.broadcast_digests import BroadcastDigests, compute_common_digest, compute_digest, format_form
from fedpeft.deployment.transcript.announcements import Announcements
from fedpeft.parts.families import strategies
from tests.deployment.signing_server import SETTINGS, STATE, Server, policy, task
from tests.refusals import has_error, refuses


def run_of(server, joins, names=("edge-1", "edge-2"), rounds=3):
    clients = [joins(name) for name in names]
    for round_number in range(1, rounds + 1):
        asked = server.round(task(round_number))
        for name, client in zip(names, clients, strict=True):
            server.sends(client, asked, name=name)
    return [str(server.folder / f"{name}.transcript.jsonl") for name in names]


def test_two_clients_that_were_told_the_same(server, joins, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    one, other = run_of(server, joins)
    ca = str(server.folder / "certs" / "ca.pem")
    assert command.main([one, other, "--certificate", ca]) == 0
    said = capsys.readouterr().out
    assert "same: model and settings of 3 records, up to the training of round 3" in said
    assert "all are the server's" in said
    assert "edge-1" in said
    assert command.main([one, str(server.folder / "server.jsonl")]) == 0
    assert "not checked; give --certificate" in capsys.readouterr().out
    assert command.main([one, other, "--certificate", str(server.folder / "certs" / "server.pem")]) == 0
    capsys.readouterr()
    server.sends(joins("edge-2"), server.round(task(4)), name="edge-2")
    assert command.main([one, other]) == 0
    assert "only one of both knows 1 more records" in capsys.readouterr().out


def test_one_client_s_transcript_twice_shows_nothing_of_the_others(server, joins, capsys):
    one, _ = run_of(server, joins)
    assert command.main([one, one]) == 2
    told = capsys.readouterr()
    assert has_error(told.err, "FP5228", "edge-1")
    assert "same:" not in told.out


def test_two_clients_that_were_told_otherwise(server, joins, tmp_path, capsys):
    """The server tells the second client another model from round 2 on, with a second chain and its own key."""
    first = run_of(server, joins, ("edge-1",))[0]
    (tmp_path / "second.jsonl").write_bytes(
        b"".join((tmp_path / "server.jsonl").read_bytes().splitlines(keepends=True)[:1])
    )
    double = Server(tmp_path, "second")
    client = joins("edge-2")
    double.sends(client, task(1), name="edge-2")
    double.sends(client, double.round(task(2), state={"a": torch.ones(1)}), name="edge-2")
    second = str(tmp_path / "edge-2.transcript.jsonl")
    assert command.main([first, second, "--certificate", str(tmp_path / "certs" / "ca.pem")]) == 1
    said = capsys.readouterr().out
    assert "different: from record 1 (the training of round 2) on" in said
    assert "states" in said


def test_the_form_and_the_work_of_each_client_are_shown(server, joins, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    first, second = task(1), task(1, client=1, steps=3, base_precision="nf4")
    second = replace(second, rank=1, alpha=2.0)
    states = {format_form(asked.form): compute_digest(STATE) for asked in (first, second)}
    server.said.announce(BroadcastDigests("train", 1, states, compute_common_digest(first)))
    server.sends(joins("edge-1"), first, name="edge-1")
    server.sends(joins("edge-2"), second, name="edge-2")
    one, other = (str(server.folder / f"{name}.transcript.jsonl") for name in ("edge-1", "edge-2"))
    assert command.main([one, other]) == 0
    said = capsys.readouterr().out
    assert "rank 2, alpha 4, " in said
    assert "rank 1, alpha 2, steps 3, base_precision nf4, " in said
    for name in ("rank", "alpha", "steps", "base_precision"):
        assert f"not alike: {name} in 1 records, which the server may choose" in said
    assert "not alike: client" not in said


def test_models_of_groups_are_shown_as_not_comparable(server, joins, capsys):
    grouped = policy(mixed=False, strategy=strategies.build("fedlease"))
    asked = task(1)
    server.said.announce(
        BroadcastDigests("train", 1, {format_form(asked.form): "groups"}, compute_common_digest(asked))
    )
    for name in ("edge-1", "edge-2"):
        assert server.sends(joins(name, policy=grouped), asked, name=name).released == ""
    one, other = (str(server.folder / f"{name}.transcript.jsonl") for name in ("edge-1", "edge-2"))
    assert command.main([one, other]) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert "not comparable: the model of 1 records: each group of clients has a model of its own" in said
    with refuses("FP5246", "round 1", "rank 2, alpha 4.0"):
        joins("edge-3").receive(server.said.get_records_since(0)[0])


def test_two_federations_and_files_that_prove_nothing(server, joins, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    one, other = run_of(server, joins)
    ca = str(server.folder / "certs" / "ca.pem")
    lines = (tmp_path / "edge-2.transcript.jsonl").read_text().splitlines(keepends=True)
    changed = tmp_path / "changed.jsonl"

    def says(content, *words, certificate=ca):
        changed.write_text(content)
        assert command.main([one, str(changed), *(["--certificate", certificate] if certificate else [])]) == 2
        assert has_error(capsys.readouterr().err, *words)

    says("", "FP5129", "changed.jsonl", "FP5130")
    says("no json\n", "FP5101", "line 1", "changed.jsonl")
    says("".join(lines[2:]), "FP5129", "FP5086", "record 1", -1)
    says("".join(lines[:2] + lines[4:]), "FP5129", "FP5086", "record 2", 0)
    says("".join(lines).replace('\\"cohort\\": 2', '\\"cohort\\": 3'), "FP5129", "FP5108")
    stripped = [json.dumps({**json.loads(line), "signature": ""}) + "\n" for line in lines]
    says("".join(stripped), "FP5129", "FP5107")
    assert command.main([one, str(changed)]) == 0
    assert "signatures: none" in capsys.readouterr().out
    says("".join([*lines, lines[-1].replace("edge-2", "edge-3")]), "FP5129", "FP5131", certificate=None)
    unsigned = Server(tmp_path, "elsewhere", tls=False)
    unsigned.said = Announcements(tmp_path / "elsewhere.jsonl", "f" * 16, SETTINGS, 2, None)
    unsigned.round(task(1))
    assert command.main([one, str(tmp_path / "elsewhere.jsonl")]) == 1
    assert "two federations" in capsys.readouterr().out
    assert command.main([one, str(tmp_path / "missing.jsonl")]) == 2
    assert command.main([one, other, "--certificate", str(tmp_path / "missing.pem")]) == 2
