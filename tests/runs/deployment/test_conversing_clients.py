"""Real clients whose rows are conversations, prompts with answers, or preferences."""

from __future__ import annotations

import json

import pytest

from fedpeft.data.made_words import WORDS
from fedpeft.deployment.options import ServeOptions
from fedpeft.deployment.server.examples import add_form
from fedpeft.reporting.final_score import save
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.measurement import ScoredRun
from fedpeft.wiring.measurements import Findings
from tests.chat import with_template
from tests.here import Federation
from tests.refusals import refuses
from tests.unit.deployment.test_conversing_clients import FORMS, talk

CHATS = ServeOptions(task="instruction", held_out=0.25)


class Conversing(Federation):
    """A federation whose clients each write conversations in their own way."""

    def rows(self, k):
        form = list(FORMS.values())[k]
        return [form(*talk(i + 50 * k)) for i in range(40)]


def federation(folder, observer, serve=CHATS, kind=Conversing, **given):
    model = given.pop("model", None) or str(with_template(folder / "model"))
    told = add_form(RunConfig(), serve)
    settings = {"model": model, "tokens": 32, "dataset": told.dataset, "measure": "validation(every=1)"}
    return kind(folder, observer, serve=serve, **settings | given)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "server" / "rounds.jsonl").read_text().splitlines()]


def test_clients_train_on_conversations_however_they_are_written(tmp_path, observer):
    options = [{}, {}, {}, {}, {"text_column": "talk"}]
    made = federation(tmp_path, observer, clients=5, options=options, rounds=4, learning_rate=3e-2)
    told = made.server.gateway.description
    assert (told.task, list(told.labels), told.template, told.side) == ("instruction", [], "chat", 0)
    made.run()
    assert [report.error for report in made.server.direct.reports] == [""] * len(made.server.direct.reports)
    lines = lines_of(tmp_path)
    assert all(line["rejected"] == 0 for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"], "on rows of their own that nobody trained on"


def test_the_server_calibrates_the_choices_of_its_questions(tmp_path, observer):
    file = tmp_path / "questions.jsonl"
    rows = [{"question": WORDS[n], "choices": list(WORDS[n + 1 : n + 4]), "answer": n % 3} for n in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = federation(tmp_path, observer, measure=f"calibration(questions='{file}')")
    progress, setup, folder = made.run(), made.server.setup, tmp_path / "server"
    save(setup, progress.result[0], folder)
    findings = Findings(setup, made.server.begun, pytest.fail)
    kept = {"kept_round": progress.kept_round}
    findings.compute(ScoredRun(setup, progress.result[0], [], None, None, folder=folder, records=None, **kept))
    found = findings.sections["calibration"]
    assert found["test"]["after"]["rows"] == found["base"]["after"]["rows"] == found["fitted_on"] == 2
    assert found["kept_round"] > 0


class Preferring(Federation):
    def rows(self, k):
        rows = (talk(i + 50 * k) for i in range(24))
        return [{"prompt": asked, "chosen": answer, "rejected": WORDS[0]} for asked, answer in rows]


def test_clients_train_on_preferences(tmp_path, observer):
    serve = ServeOptions(task="dpo(beta=0.2)", held_out=0.25)
    made = federation(tmp_path, observer, serve, Preferring, rounds=3, learning_rate=3e-2)
    assert made.server.gateway.description.task == "dpo(beta=0.2)"
    made.run()
    lines = lines_of(tmp_path)
    assert lines[-1]["loss"] < lines[0]["loss"]


class Templated(Federation):
    def rows(self, k):
        return [FORMS["alpaca"](*talk(i)) for i in range(20)]


def test_a_template_of_a_file_is_handed_to_the_clients_and_compared(tmp_path, observer):
    file, other = tmp_path / "own.jinja", tmp_path / "other.jinja"
    file.write_text("{{ instruction }} " + WORDS[5])
    other.write_text("{{ instruction }} " + WORDS[6])
    serve = ServeOptions(task="instruction", held_out=0.25, template=str(file))
    made = federation(tmp_path, observer, serve, Templated, model="tiny_lm", options=[{"template": str(file)}] * 2)
    told = made.server.gateway.description
    assert len(told.template) == 64
    made.run()
    for own, words in (("", ("FP1116",)), (str(other), ("FP1117",))):
        made.options[0] = {"template": own}
        with refuses(*words):
            made.edge(0)
    told.template = "alpaca"
    with refuses("FP1115", "alpaca"):
        made.edge(0)


@pytest.mark.slow
def test_a_named_template_is_known_everywhere(tmp_path, observer):
    serve = ServeOptions(task="instruction", held_out=0.25, template="alpaca")
    made = federation(tmp_path, observer, serve, Templated, model="tiny_lm")
    made.run()
    assert made.server.gateway.description.template == "alpaca"
