"""A real client beside training: what does not fit is said, a full disk is one sentence, and nothing is lost."""

from __future__ import annotations

import json
import resource
import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
import torch
from fedpeft.clients.pool import Worker

from fedpeft.communication.messages import Report
from fedpeft.deployment.edge import Edge
from fedpeft.deployment.options import EdgeOptions, ServeOptions
from fedpeft.deployment.wire import v1_pb2 as v1
from fedpeft.errors import DataError, FedpeftError, ModelError, PayloadError, RunError
from fedpeft.models.base_model import resolve_model
from fedpeft.serve import main as serve
from fedpeft.server.progress import Checkpoints


@contextmanager
def full_disk(room):
    """No file of this process grows beyond `room` bytes: writing more fails, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def told(made):
    return v1.Description.FromString(made.server.gateway.description.SerializeToString())


def joins(made, observer, description=None, **options):
    return Edge(
        description or told(made), made.folder / "0.jsonl", made.folder / "edge-0", made.folder / "ledgers", observer,
        EdgeOptions(device="cpu", threads=1, **options),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- what must fit


def test_labels_that_the_server_does_not_know(federation, observer):
    made = federation(clients=1)
    description = told(made)
    del description.labels[:]
    description.labels.extend(["this", "that"])
    with pytest.raises(DataError, match=r"labels in column 'label' that the federation does not know.*'this', 'that'"):
        joins(made, observer, description)


def test_columns_of_other_names(federation, observer):
    made = federation(clients=1)
    description = told(made)
    description.text_column = "body"
    with pytest.raises(DataError, match="no column 'body' for the text"):
        joins(made, observer, description)
    assert joins(made, observer, description, text_column="text").registration().rows == 40


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_without_bf16_holds_the_base_in_fp32(federation, observer, monkeypatch, fast, precision):
    monkeypatch.setattr("fedpeft.deployment.capacity.fast_bf16", lambda device: fast)
    made = federation(clients=1, dtype="bf16")
    assert joins(made, observer).registration().precision == precision
    assert joins(made, observer, precision="bf16").registration().precision == "bf16", "what is asked for"


def test_another_tokenizer_other_weights_and_other_lengths(federation, observer):
    made = federation(clients=1)
    for field, value, says in (
        ("tokenizer_hash", "0" * 64, "texts would be cut into other tokens"),
        ("weights_hash", "0" * 64, "updates would not fit"),
        ("tokens", 16, "cuts texts to 16 tokens, the model here reads 32"),
    ):
        description = told(made)
        setattr(description, field, value)
        with pytest.raises(ModelError, match=says):
            joins(made, observer, description)


def test_a_changed_model_folder_is_noticed(federation, observer, tmp_path):
    made = federation(clients=1)
    copy = tmp_path / "model"
    shutil.copytree(resolve_model("tiny"), copy)
    assert joins(made, observer, model=str(copy)).registration().rows == 40
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-5}))
    with pytest.raises(ModelError, match=r"(is|are) not the server's"):
        joins(made, observer, model=str(copy))


def test_settings_of_another_version(federation, observer):
    made = federation(clients=1)
    description = told(made)
    description.config += "\nwings = 2\n"
    with pytest.raises(RunError, match=r"the server's settings can't be used.*wings"):
        joins(made, observer, description)


def test_a_cohort_of_many_clients_does_not_trouble_one(federation):
    """A number of clients per round is the server's matter: a client of its own has a population of one."""
    made = federation(clients=2, cohort=2, rounds=1)
    assert made.run().round == 1


class Useless:
    """A client that answers every task with an error."""

    def handle(self, asked):
        return Report(asked.client, asked.round, b"", error="no")


@pytest.mark.parametrize("settings", [{}, {"strategy": "flexlora"}, {"scaffold": True, "optimizer": "sgd"}], ids=str)
def test_a_cohort_of_useless_clients_ends_no_federation(federation, settings):
    """Rounds of one client each; in those of client 0 the model stays as it is, and others go on."""
    made = federation(cohort=1, rounds=6, **settings)
    made.server.edges[0] = Useless()
    assert made.run().round == 6
    rounds, clients = (
        [json.loads(line) for line in (made.folder / "server" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("rounds", "clients")
    )
    assert {line["client"] for line in clients} == {0, 1}
    for line, result in zip(clients, rounds, strict=True):
        assert (line.get("rejected") == "no") == (line["client"] == 0) == (result["rejected"] == 1)
        assert (result["update_norm"] == 0) == (line["client"] == 0)


def test_where_all_clients_fail_the_run_ends_and_the_lines_say_why(federation):
    made = federation(clients=1, rounds=1)
    made.server.edges[0] = Useless()
    with pytest.raises(RunError, match="none of 1 clients returned a valid update"):
        made.run()
    [line] = (made.folder / "server" / "clients.jsonl").read_text().splitlines()
    assert json.loads(line)["rejected"] == "no"


def test_more_rows_than_the_server_believes_are_refused(federation):
    with pytest.raises(RunError, match="this client has 90 rows, and the server takes at most 50 of one client"):
        federation(serve=ServeOptions(most_rows=50))


def test_clients_with_texts_alone_train_a_language_model(federation):
    """No classes, no head: each client's perplexity on its own held-out rows is all that is known, and it falls."""
    made = federation(dataset="tiny_lm", rounds=3, local_steps=8, evaluate_every=1, serve=ServeOptions(held_out=0.2))
    assert made.run().round == 3
    rounds = [json.loads(line) for line in (made.folder / "server" / "rounds.jsonl").read_text().splitlines()]
    assert rounds[-1]["loss"] < rounds[0]["loss"]


def test_a_server_of_images_or_conversations_is_refused(tmp_path, capsys):
    turns = [{"role": "user", "content": "how are you"}, {"role": "assistant", "content": "well"}]
    (tmp_path / "talk.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 20)
    for dataset, what in (("digits", "images"), (f"file:{tmp_path / 'talk.jsonl'}", "conversations")):
        assert serve(["--dataset", dataset, "--clients", "1", "--insecure", "--output", str(tmp_path / what)]) == 2
        assert f"holds {what}; clients of a server join with texts" in " ".join(capsys.readouterr().err.split())


# --------------------------------------------------------------------------------------------------------- full disks


def test_a_full_disk_at_the_server_ends_the_run_in_one_sentence_and_resume_goes_on(federation, tmp_path, observer):
    whole = federation(rounds=3).run()
    for name in ("server", "edge-0", "edge-1"):
        (tmp_path / name).rename(tmp_path / f"{name}-whole")
    made = federation(rounds=3)
    size = next((tmp_path / "server-whole" / "checkpoint").iterdir()).stat().st_size
    with ExitStack() as disk:
        observer.round_done = lambda result: disk.enter_context(full_disk(size // 2)) if result.round == 1 else None
        with pytest.raises(RunError, match=r"the checkpoint in .* can't be written: File too large"):
            made.run()
    del observer.round_done
    assert Checkpoints(tmp_path / "server" / "checkpoint").load().round == 1
    again = federation(rounds=3)
    progress = again.run()
    assert progress.round == 3
    assert all(torch.equal(progress.adapter[n], whole.adapter[n]) for n in whole.adapter)


def test_a_full_disk_at_the_client_costs_a_round_and_nothing_else(federation):
    made = federation(codec="ef14 | topk(fraction=0.1) | quantize(bits=4) | rans", rounds=2)
    made.run()
    instruction = next(i for i in made.server.direct.asked if i.client == 0 and i.round == 2)
    good = made.server.direct.reports[made.server.direct.asked.index(instruction)]
    edge = made.server.edges[0]
    with full_disk(1000):
        report = edge.handle(instruction)
    assert "the state of client 0 can't be written" in report.error
    assert "\n" not in report.error
    assert not list((made.folder / "edge-0").rglob("*.partial"))
    assert edge.handle(instruction).payload == good.payload


def test_a_full_disk_stops_a_private_client_before_anything_leaves_it(federation):
    made = federation(privacy="local_dp(noise_multiplier=1)", rounds=2)
    made.run()
    instruction = replace(made.server.direct.asked[-1], learning_rate=1e-4)
    edge = made.server.edges[instruction.client]
    ledger = edge.protection.ledger.path.stat().st_size
    with full_disk(ledger):
        report = edge.handle(instruction)
    assert "privacy ledger" in report.error
    assert not report.payload
    with full_disk(ledger + 400):
        report = edge.handle(instruction)
    assert "answer can't be kept" in report.error
    assert not report.payload
    assert edge.handle(instruction).payload


def test_all_errors_of_a_client_are_for_its_user(federation, observer):
    made = federation(clients=1)
    for content in ("", "{}\n", "not json\n", '{"text": "x"}\n'):
        (made.folder / "0.jsonl").write_text(content)
        with pytest.raises(FedpeftError):
            joins(made, observer)


def test_a_rank_beyond_the_client_s_own_is_refused_before_anything_is_allocated(federation):
    where = federation()
    where.run()
    [asked, *_] = [i for i in where.server.direct.asked if i.kind == "train"]
    report = where.server.edges[asked.client].handle(replace(asked, rank=20_000))
    assert "asks for an adapter of rank 20000, this client's has at most 2" in report.error


def test_a_task_of_an_unknown_kind_is_not_worked_on(federation):
    made = federation(rounds=1)
    made.run()
    asked, edge = made.server.direct.asked[0], made.server.edges[0]
    for kind in ("trian", "", "Train"):
        report = edge.handle(replace(asked, kind=kind))
        assert f"asks for {kind!r}; this version knows prepare, train or evaluate" in report.error
        assert not report.payload
    with pytest.raises(PayloadError, match="one at a time"):
        edge.workers.pool.submit(Worker.handle, [asked, replace(asked, kind="evaluate")]).result()


@pytest.mark.parametrize(("device", "words"), [("foo", "'foo' is no device"), ("cuda:7", "there is no cuda:7 here")])
def test_a_device_that_is_not_there(federation, device, words):
    with pytest.raises(RunError, match=words):
        federation(options=[{"device": device}, {}])
