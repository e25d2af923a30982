"""Questions to real clients: the server learns sums over their held-out rows, and what it makes of them."""

import dataclasses
import json

import pytest
import torch
from rich.console import Console
from rich.text import Text

from fedpeft.communication.messages import NOT_JOINED, Instruction, Report
from fedpeft.deployment.options import ServeOptions
from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.records import Records
from fedpeft.rounds.calibration import calibrate_on_clients
from fedpeft.rounds.evaluation import ask_own_rows
from fedpeft.simulate import main
from fedpeft.trust.questions.likelihoods import Likelihoods
from fedpeft.trust.questions.reliability import Reliability
from tests.here import Federation
from tests.refusals import has_error, pattern_of, refuses

MEASURE = "validation(every=100) + calibration(rows=clients)"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation")
    made = Federation(folder, ConsoleObserver(Console(quiet=True)), serve=ServeOptions(), measure=MEASURE)
    server = made.server.server(Records(folder / "server"))
    return made, server, made.server.train(server)


def pooled(made, progress, question):
    """Return the answer on all held-out examples together."""
    logits, labels = [], []
    for k, edge in enumerate(made.server.edges):
        side = edge.workers.pool._local.clients
        _, rows = side.choose_rows(k, 1)
        logits.append(side.bench.executor.compute_logits(progress.adapter, rows))
        labels.append(side.bench.get_labels(rows))
    return question.answer(torch.cat(logits), torch.cat(labels))


@pytest.mark.parametrize("question", [Likelihoods(), Reliability(temperature=1.3)])
def test_the_servers_sums_are_those_of_the_clients_rows_together(finished, question):
    made, server, progress = finished
    found = server.create_questions(progress).ask(question)
    assert found.clients == 2
    for name, tensor in pooled(made, progress, question).items():
        torch.testing.assert_close(found.total[name], tensor, rtol=1e-6, atol=1e-6)


def test_what_a_server_tells_of_its_clients_calibration(finished):
    _, server, progress = finished
    found = calibrate_on_clients(server.create_questions(progress), 15)
    assert found["clients"] == 2
    assert 0.05 <= found["temperature"] <= 20
    assert found["after"]["loss"] <= found["before"]["loss"]
    assert found["before"]["rows"] == round(0.2 * 40) + round(0.2 * 90)


def test_a_liar_and_an_unknown_question_do_not_count(finished):
    made, server, progress = finished
    edge = made.server.edges[0]
    asked = next(i for i in made.server.direct.asked if i.kind == "evaluate")
    assert has_error(
        edge.handle(dataclasses.replace(asked, asks="rows")).error,
        "FP6168",
        "class_sums, kronecker, layer_inputs, likelihoods, reliability",
    )
    assert has_error(edge.handle(dataclasses.replace(asked, asks="kronecker")).error, "FP6085")
    before, said = edge.handle, []
    edge.handle = lambda instruction: dataclasses.replace(before(instruction), rows=3)
    try:
        questions = dataclasses.replace(server.create_questions(progress), say=said.append)
        assert questions.ask(Likelihoods()).clients == 1
    finally:
        edge.handle = before
    assert has_error(said[0], "FP6165", "8", "3")


@pytest.mark.parametrize("counted", [0, 1])
def test_a_stranger_s_words_are_no_markup(finished, monkeypatch, counted):
    made, server, progress = finished
    strange = Report(0, progress.round, b"", error="[/bold] no", rows=3, count=counted)
    monkeypatch.setattr(made.server.edges[0], "handle", lambda _: strange)
    said: list[str] = []

    def say(line):
        said.append(Text.from_markup(line).plain)

    if counted:
        ask_own_rows(server.setup, server.transport, progress, say)
    else:
        dataclasses.replace(server.create_questions(progress), say=say).ask(Likelihoods())
    assert said == [f"edge-0's {'evaluation' if counted else 'answer'} does not count: FP6000 [/bold] no"]


def test_of_a_place_that_nobody_has_taken_nothing_is_said(finished, monkeypatch):
    """A federation of 100 places and 10 clients would tell of 90 answers that do not count, and of each question."""
    made, server, progress = finished
    away = Report(0, progress.round, b"", error=NOT_JOINED)
    monkeypatch.setattr(made.server.edges[0], "handle", lambda _: away)
    questions = dataclasses.replace(server.create_questions(progress), say=(said := []).append)
    assert questions.ask(Likelihoods()).clients == 1
    assert not said


@pytest.mark.fast
def test_only_evaluations_ask():
    with refuses("FP6055"):
        Instruction("train", 1, 0, b"", asks="reliability").check(1)


@pytest.mark.fast
def test_what_can_not_be_asked_is_refused(tmp_path):
    made = Federation(tmp_path, ConsoleObserver(Console(quiet=True)), measure=MEASURE)
    for given, error, said in (
        ({"privacy": "local_dp(epsilon=8)"}, PrivacyError, ("FP7094",)),
        ({"dataset": "tiny_lm"}, ConfigError, ("FP1582",)),
    ):
        with pytest.raises(error, match=pattern_of(*said)):
            Federation(tmp_path, made.observer, measure=MEASURE, **given)


@pytest.mark.slow
def test_a_simulation_asks_its_clients_and_predict_answers_by_their_temperature(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([
        "--dataset", "tiny", "--clients", "6", "--cohort", "3", "--rounds", "1", "--tokens", "32", "--workers", "1",
        "--dtype", "fp32", "--output", str(folder), "--measure", "calibration(rows=clients)",
    ]) == 0  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    found = summary["trust"]["calibration"]
    assert found["clients"]["clients"] == 6
    assert found["temperature"] == summary["temperature"]
    assert found["test"]["before"]["error"] == pytest.approx(summary["calibration_error"], abs=1e-6)
    assert found["test"]["after"]["error"] == pytest.approx(summary["calibration_error_scaled"], abs=1e-6)
    from fedpeft.commands.predict import main as predict

    capsys.readouterr()
    assert predict([str(folder), "ruzo"]) == 0
    plain = capsys.readouterr().out
    summary["temperature"] = 20.0
    (folder / "summary.json").write_text(json.dumps(summary))
    assert predict([str(folder), "--abstain", "0.9", "ruzo"]) == 0
    assert "no answer: " in (flat := capsys.readouterr().out)
    assert float(plain.split("(")[1].split(")")[0]) > float(flat.split("(")[1].split(")")[0])
    for words in (("ruzo", "--ensemble"), ("--ensemble", "ruzo")):
        assert predict([str(folder), str(folder), *words]) == 0
        assert capsys.readouterr().out.startswith("2 runs together: ")
    with pytest.raises(SystemExit):
        predict([str(folder), "--assemble", "ruzo"])
    assert predict([str(folder), "ruzo", "--ensemble"]) == 2
    assert predict([str(folder), "ruzo", "--abstain", "2"]) == 2
