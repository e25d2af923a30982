"""Real clients whose rows are words with tags, and clients whose tables have other separators and encodings."""

from __future__ import annotations

import pytest

from fedpeft.deployment.client.edge import check_machine
from fedpeft.deployment.description import check_description
from fedpeft.deployment.options import EdgeOptions, ServeOptions
from fedpeft.deployment.server.examples import ServersRows, add_form
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.wiring.auto_defaults import resolve_auto
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run
from tests.here import Federation
from tests.refusals import refuses
from tests.tagged import LABELS, sentences, write_conll

WORDS = ServeOptions(task="token_labels", labels=",".join(LABELS), held_out=0.25)


def test_a_server_s_own_rows_and_settings(tmp_path):
    conll = write_conll(tmp_path / "own.conll", sentences(20))
    found = ServersRows.load(parse_run(RunConfig()), ServeOptions(task="token_labels", eval_data=str(conll)))
    assert (found.dataset.label_names, len(found.validation)) == (LABELS, 20)
    config = add_form(RunConfig(), WORDS)
    assert config.model == "minilm"
    assert resolve_auto(parse_run(RunConfig(dataset=config.dataset, peft="lora"))).config.head == "zero"
    of_data = ServersRows.load(parse_run(RunConfig(dataset=f"file:{conll}")), ServeOptions(eval_data="dataset"))
    assert (of_data.form.task, of_data.dataset.label_names) == ("token_labels", LABELS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "token_labels"}, ("FP1144", "'token_labels'", "reviews", "--labels")),
        ({"task": "token_labels", "labels": "O"}, ("FP1106", "labels='O'")),
        ({"task": "token_labels", "labels": "O,X", "side": 64}, ("FP1086", "side=64", "token_labels")),
    ],
)
def test_what_a_server_is_told_wrongly_is_one_sentence(options, words):
    with refuses(*words):
        ServersRows.load(parse_run(add_form(RunConfig(), ServeOptions(**options))), ServeOptions(**options))


@pytest.mark.parametrize(
    ("labels", "side", "words"), [([], 0, ("FP5241", 0)), (["O"], 0, ("FP5241", 1)), (["O", "X"], 64, ("FP5066", 64))]
)
def test_a_description_that_no_server_gives_is_refused(labels, side, words):
    with refuses(*words):
        check_description(v2.Description(task="token_labels", labels=labels, side=side))


def test_a_client_s_table_is_read_in_its_own_format(tmp_path, observer, monkeypatch):
    """Semicolons, Latin-1 and decimal commas: one client sets them, one leaves them to be detected."""
    told: list[str] = []
    monkeypatch.setattr(type(observer), "say", lambda self, text: told.append(text), raising=False)

    class Clinics(Federation):
        def file(self, k):
            return self.folder / f"{k}.csv"

        def keep(self, k):
            rows = "".join(f"Fieber über Nacht {i};{36 + i % 4},{i % 10}\n" for i in range(60))
            self.file(k).write_bytes(f"text;wert\n{rows}".encode("latin-1"))

    options = [{"sep": ";", "encoding": "latin-1", "decimal": ","}, {}]
    serve = ServeOptions(task="regression(mean=37, deviation=1)", label_column="wert")
    made = Clinics(tmp_path, observer, options, serve=serve, model="tiny", head="ridge")
    edges = made.server.edges
    assert edges[0].rows.inputs == edges[1].rows.inputs
    assert edges[0].rows.labels.tolist() == edges[1].rows.labels.tolist()
    assert min(edges[0].rows.labels) == 36
    assert "detected in 1.csv: sep=';', encoding='cp1252'" in told
    assert any("decimal=','" in line for line in told)
    assert not any("0.csv" in line for line in told)


def test_a_client_s_ambiguous_table_is_told_the_flag(tmp_path):
    (tmp_path / "t.csv").write_bytes("text;label\nзуб;x\n".encode("cp1251"))
    with refuses("FP3185", "t.csv", "--encoding 'ENCODING'"):
        check_machine(tmp_path / "t.csv", EdgeOptions())
    check_machine(tmp_path / "t.csv", EdgeOptions(encoding="cp1251"))
