"""Real clients whose rows are conversations, prompts with answers, or preferences."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from fedpeft import plugins
from fedpeft.config import RunConfig
from fedpeft.data.datasets.clients import Clients
from fedpeft.data.made_words import WORDS
from fedpeft.data.rows import Dataset, Rows, load_dataset
from fedpeft.deployment.described import check_description, told_form
from fedpeft.deployment.options import EdgeOptions, ServeOptions
from fedpeft.deployment.servers_rows import ServersRows, with_form
from fedpeft.deployment.wire import v2_pb2 as v2
from tests.chat import with_template
from tests.here import Federation
from tests.refusals import refuses

CHATS = ServeOptions(task="instruction", held_out=0.25)


def talk(i: int) -> tuple[str, str]:
    """A question of two words, and its answer: the words that stand after them in the list."""
    return f"{WORDS[i % 20 + 2]} {WORDS[i % 7 + 30]}", f"{WORDS[i % 20 + 3]} {WORDS[i % 7 + 31]}"


def messages(asked: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


FORMS = {
    "messages": lambda asked, answer: {"messages": messages(asked, answer)},
    "ShareGPT": lambda asked, answer: {
        "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    },
    "alpaca": lambda asked, answer: {"instruction": asked, "input": "", "output": answer},
    "completions": lambda asked, answer: {"prompt": asked, "completion": answer},
    "own names": lambda asked, answer: {"talk": messages(asked, answer), "text": "beside"},
}
"""A row as each way of writing it has it."""


class Conversing(Federation):
    """A federation whose clients each write conversations in their own way."""

    def rows(self, k):
        form = list(FORMS.values())[k]
        return [form(*talk(i + 50 * k)) for i in range(40)]


def federation(folder, observer, serve=CHATS, kind=Conversing, **given):
    model = given.pop("model", None) or str(with_template(folder / "model"))
    told = with_form(RunConfig(), serve)
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


@pytest.mark.parametrize("name", FORMS)
def test_one_conversation_is_one_row_however_it_is_written(name, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(FORMS[name](*talk(3))) + "\n")
    form = Clients(task="instruction", text="talk" if name == "own names" else "text")
    assert [json.loads(str(row)) for row in form.read(file, None, "")[0].inputs] == [messages(*talk(3))]


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


@dataclass(frozen=True)
class Written:
    """Prompts of one's own."""

    def load(self):
        rows = Rows([json.dumps({"prompt": f"{i}?", "answer": "yes"}) for i in range(20)])
        return Dataset("written", "text", "instruction", rows, rows, None, "smollm2")


def test_rows_of_a_data_set_are_the_server_s_own(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(FORMS["messages"](*talk(i))) + "\n" for i in range(40)))
    found = ServersRows.of(RunConfig(dataset=f"file:{file}"), ServeOptions(eval_data="dataset"))
    assert (found.form.learns, found.form.template, found.dataset.default_model) == ("instruction", "chat", "smollm2")
    assert len(found.validation)
    own = ServersRows.of(RunConfig(), ServeOptions(task="instruction", eval_data=str(file)))
    assert len(own.validation) == 40
    assert load_dataset(f"file:{file}").task == own.dataset.task
    alpaca = tmp_path / "alpaca.jsonl"
    alpaca.write_text("".join(json.dumps(FORMS["alpaca"](*talk(i))) + "\n" for i in range(40)))
    asked = ServeOptions(eval_data="dataset", template="alpaca")
    for options in (asked, ServeOptions(eval_data="dataset")):
        assert ServersRows.of(RunConfig(dataset=f"file:{alpaca}"), options).form.template == "alpaca"
    with plugins.given({"datasets": {"written": Written}}):
        with refuses("FP1152"):
            ServersRows.of(RunConfig(dataset="written"), ServeOptions(eval_data="dataset"))
        assert ServersRows.of(RunConfig(dataset="written"), asked).form.template == "alpaca"
    with refuses("FP1151", "--template alpaca", "rows.jsonl", "chat"):
        ServersRows.of(RunConfig(dataset=f"file:{file}"), asked)
    with refuses("FP3107", "none.jinja"):
        with_form(RunConfig(), ServeOptions(task="instruction", template="none.jinja"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "x", "label": "y"}', ("FP3019", "has no column 'output' for the answer")),
        ('{"prompt": "x", "chosen": "y", "rejected": "z"}', ("FP3026", "conversations")),
        ('{"messages": [{"role": "user", "content": "x"}]}', ("FP3016",)),
    ],
)
def test_a_client_s_rows_of_another_form_are_for_its_user(content, words, tmp_path):
    (tmp_path / "rows.jsonl").write_text(content + "\n")
    with refuses(*words):
        Clients(task="instruction").read(tmp_path / "rows.jsonl", None, "")


def test_preferences_that_are_none(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(FORMS["messages"](*talk(0))) + "\n")
    with refuses("FP3026", "preferences: columns prompt, chosen and rejected"):
        Clients(task="dpo").read(tmp_path / "rows.jsonl", None, "")
    with refuses("FP1107", "foo"):
        Clients(task="instruction", template="foo")
    with refuses("FP1089"):
        Clients(task="dpo", text="question")


def test_a_server_s_template_is_checked():
    for template in ("chat", "alpaca", "0" * 64):
        check_description(v2.Description(task="instruction", template=template))
    for template in ("", "x.jinja", "/etc/passwd", "{{ messages }}", "0" * 63):
        with refuses("FP5067"):
            check_description(v2.Description(task="dpo(beta=0.2)", template=template))


def test_a_template_is_no_matter_of_others():
    told = v2.Description(task="causal_lm", text_column="text")
    with refuses("FP1115", "--template own.jinja"):
        told_form(told, EdgeOptions(template="own.jinja"))
