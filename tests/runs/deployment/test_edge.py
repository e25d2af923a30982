"""A real client beside training: what does not fit is said, and useless or lying clients end no federation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fedpeft.clients.store import FILE

from fedpeft.communication.codec import parse_codec
from fedpeft.communication.decoding import decode
from fedpeft.communication.messages import Report
from fedpeft.deployment.options import ServeOptions
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.errors import RunError
from fedpeft.machine.cache import get_cache_directory
from fedpeft.privacy.client_protection import FAILED
from fedpeft.reporting.records import Records
from tests.here import Federation
from tests.refusals import has_error, refuses


def told(made):
    return v2.Description.FromString(made.server.gateway.description.SerializeToString())


def test_a_cohort_of_many_clients_does_not_trouble_one(federation):
    """A number of clients per round is the server's matter: a client of its own has a population of one."""
    made = federation(clients=2, cohort=2, rounds=1)
    assert made.run().round == 1


class Useless:
    """A client that answers every task with an error."""

    def handle(self, asked):
        return Report(asked.client, asked.round, b"", error="no")


@pytest.mark.parametrize("settings", [{}, {"strategy": "flexlora"}, {"drift": "scaffold", "optimizer": "sgd"}], ids=str)
def test_a_cohort_of_useless_clients_ends_no_federation(federation, settings, monkeypatch):
    """Rounds of one client each; in those of client 0 the model stays as it is, and others go on."""
    made = federation(cohort=1, rounds=6, **settings)
    made.server.edges[0] = Useless()
    monkeypatch.setattr(made.server.observer, "say", (said := []).append)
    assert made.run().round == 6
    assert any("valid update; the model stays as it is; edge-0: FP6000 no" in line for line in said)
    rounds, clients = (
        [json.loads(line) for line in (made.folder / "server" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("rounds", "clients")
    )
    assert {line["client"] for line in clients} == {0, 1}
    for line, result in zip(clients, rounds, strict=True):
        assert (line.get("rejected") == "FP6000 no") == (line["client"] == 0) == (result["rejected"] == 1)
        assert (result["update_norm"] == 0) == (line["client"] == 0)


LIES = [
    {"correct": 5e306},
    {"correct": -1.0},
    {"correct": 9.0},
    {"count": 1e300},
    {"loss": 1e308},
    {"loss": float("nan")},
]


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_an_evaluation_that_no_rows_can_lead_to_does_not_count(federation, lie):
    made = federation(rounds=1, measure="validation(every=1)", serve=ServeOptions(held_out=0.2))
    honest = made.server.edges[0]

    class Liar:
        def handle(self, asked):
            if asked.kind != "evaluate":
                return honest.handle(asked)
            return replace(Report(asked.client, asked.round, b"", 8, loss=1.0, correct=4.0, count=8.0), **lie)

    made.server.edges[0] = Liar()
    server = made.server.server(Records(made.folder / "server"))
    progress = made.server.train(server)
    own = server.evaluate_own_rows(progress)
    assert own.clients == 1
    assert 0 <= own.pooled_accuracy <= 1
    assert 0 < own.pooled_loss < 100


def test_the_final_evaluation_contradicts_no_record_of_its_round(federation):
    """Clients evaluate the average in the last round and at the end; only the server's rows find a best state."""
    given = {"rounds": 2, "server_optimizer": "averaged", "serve": ServeOptions(held_out=0.2)}
    made = federation(measure="validation(every=1)", **given)
    server = made.server.server(Records(made.folder / "server"))
    progress = made.server.train(server)
    assert not torch.equal(progress.adapter["head.weight"], progress.reached_state["head.weight"])
    assert server.evaluate_own_rows(progress).clients == 2
    with refuses("FP1391", "keep=best", "--held-out"):
        federation(measure="validation(every=1, keep=best)", **given)


def test_whoever_claims_all_the_rows_does_not_own_the_evaluation(federation):
    made = federation(rounds=1, clients=3, serve=ServeOptions(held_out=0.2, most_weight=2.0))
    honest = made.server.edges[0]

    class Liar:
        def handle(self, asked):
            if asked.kind != "evaluate":
                return honest.handle(asked)
            return Report(asked.client, asked.round, b"", 10**6, loss=50.0, correct=0.0, count=1e6)

    made.server.edges[0] = Liar()
    server = made.server.server(Records(made.folder / "server"))
    own = server.evaluate_own_rows(made.server.train(server))
    told = [r for r in made.server.direct.reports if r.count][-3:]
    assert [r.count for r in told] == [1e6, 18.0, 12.0]
    assert own.pooled_accuracy == (told[1].correct + told[2].correct) / (2 * 18 + 18 + 12)


def test_a_loss_that_would_hide_the_others_is_refused(federation):
    made = federation(rounds=1)
    honest = made.server.edges[0]

    class Liar:
        def handle(self, asked):
            return replace(honest.handle(asked), loss=1e308)

    made.server.edges[0] = Liar()
    made.run()
    [result] = [json.loads(line) for line in (made.folder / "server" / "rounds.jsonl").read_text().splitlines()]
    assert result["rejected"] == 1
    assert 0 < result["train_loss"] < 100


def test_where_all_clients_fail_the_run_ends_and_the_lines_say_why(federation):
    made = federation(clients=1, rounds=1)
    made.server.edges[0] = Useless()
    with pytest.raises(RunError, match=r"^FP5207 .*none of 1 clients .* edge-0: FP6000 no$"):
        made.run()
    [line] = (made.folder / "server" / "clients.jsonl").read_text().splitlines()
    assert json.loads(line)["rejected"] == "FP6000 no"


def claiming(edge, rows):
    """From now on the client says that it has so many rows."""
    handle, head = edge.handle, edge.setup.head

    def lie(instruction):
        report = handle(instruction)
        payload = report.payload
        if instruction.kind == "prepare":  # the statistics are as large as the claim
            width = edge.setup.start["head.weight"].shape[1]
            found = decode(payload, head.shapes(width, edge.setup.facts.classes, report.rows))
            payload = parse_codec("fp32").encode({n: t * rows / report.rows for n, t in found.items()})
        return replace(report, rows=rows, payload=payload)

    edge.handle = lie


@pytest.mark.parametrize("head", ["zero", "ridge"])
def test_claimed_rows_are_a_weight_up_to_a_share(head, tmp_path, observer):
    """A client that claims all the rows there are counts as one that has ten times the median client's."""
    states = []
    for claimed in (400, 1_000_000):
        folder = tmp_path / str(claimed)
        folder.mkdir()
        made = Federation(folder, observer, rounds=1, head=head)
        claiming(made.server.edges[1], claimed)
        made.server.roster.enter("edge-1", 0, None, claimed)
        progress = made.run()
        states.append(progress.started if head == "ridge" else progress.adapter)
    for name, tensor in states[0].items():
        assert (tensor - states[1][name]).norm() <= 0.03 * tensor.norm(), name


def test_clients_with_texts_alone_train_a_language_model(federation):
    """No classes, no head: each client's perplexity on its own held-out rows is all that is known, and it falls."""
    made = federation(
        dataset="tiny_lm",
        rounds=3,
        local_work="steps(8)",
        measure="validation(every=1)",
        serve=ServeOptions(held_out=0.2),
    )
    assert made.run().round == 3
    rounds = [json.loads(line) for line in (made.folder / "server" / "rounds.jsonl").read_text().splitlines()]
    assert rounds[-1]["loss"] < rounds[0]["loss"]


def test_damaged_state_of_a_client_is_one_sentence(federation):
    made = federation(codec="ef14 | topk(fraction=0.1)", rounds=2, clients=1)
    made.run()
    [asked] = [i for i in made.server.direct.asked if i.kind == "train" and i.round == 2]
    (made.folder / "edge-0" / "clients" / FILE).write_bytes(b"damaged")
    report = made.server.edges[0].handle(asked)
    assert has_error(report.error, "FP5010", "0")
    assert has_error(report.error, "FP5010")


@pytest.mark.parametrize("privacy", ["", "local_dp(noise_multiplier=1)"])
def test_the_server_reads_nothing_of_the_machine_in_an_error(federation, monkeypatch, privacy):
    """The user does: the whole sentence is said here."""
    made = federation(clients=1, rounds=1, privacy=privacy)
    made.run()
    [asked] = [i for i in made.server.direct.asked if i.kind == "train"]
    edge, here = made.server.edges[0], []
    edge.observer = SimpleNamespace(say=here.append)
    for error, told in (
        (RunError(f"{edge.folder / 'clients'} can't be written"), "FP5000 its state/clients can't be written"),
        (RunError(f"{edge.ledgers} and {edge.file}"), "FP5000 its ledgers and its examples"),
        (RunError(f"{edge.setup.model_directory} or {get_cache_directory()}"), "FP5000 its model or its cache"),
        (RunError(f"{Path.home() / 'x'}"), "FP5000 ~/x"),
        (RuntimeError(f"a library has not found {edge.file}"), FAILED),
        (FileNotFoundError(2, "No such file or directory", "/srv/patients.csv"), FAILED),
    ):

        def fail(_, error=error):
            raise error

        monkeypatch.setattr(edge.workers, "answer", fail)
        assert edge.handle(replace(asked, learning_rate=asked.learning_rate / 2)).error == told
        assert str(error) in here[-1].replace("\\[", "[")


def test_why_a_round_goes_on_without_a_client_is_said(federation, monkeypatch):
    made = federation(cohort=2, rounds=1)
    made.server.edges[1] = Useless()
    monkeypatch.setattr(made.server.observer, "say", (said := []).append)
    assert made.run().round == 1
    assert "round 1 without edge-1: FP6000 no" in said


def test_nobody_is_named_where_it_is_secret_who_was_asked(federation, monkeypatch):
    made = federation(
        clients=4, cohort=3, rounds=4, privacy="user_dp(noise_multiplier=1, clip=0.5, start=0, plan=False)"
    )
    made.server.edges[0] = made.server.edges[1] = Useless()
    monkeypatch.setattr(made.server.observer, "say", (said := []).append)
    assert made.run().round == 4
    assert not any("edge-" in line or "without" in line for line in said)


def test_how_many_others_a_round_goes_on_without_is_said(federation, monkeypatch):
    made = federation(clients=3, cohort=3, rounds=1)
    made.server.edges[1], made.server.edges[2] = Useless(), Useless()
    monkeypatch.setattr(made.server.observer, "say", (said := []).append)
    assert made.run().round == 1
    assert "round 1 without edge-1: FP6000 no (and 1 more)" in said
