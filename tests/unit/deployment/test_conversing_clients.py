"""Real clients whose rows are conversations, prompts with answers, or preferences."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from fedpeft.data.datasets.clients import Clients
from fedpeft.data.made_words import WORDS
from fedpeft.data.rows import Dataset, Rows, load_dataset
from fedpeft.deployment.description import build_form, check_description
from fedpeft.deployment.options import EdgeOptions, ServeOptions
from fedpeft.deployment.server.examples import ServersRows, add_form
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.parts import plugins
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run
from tests.refusals import refuses


def talk(i: int) -> tuple[str, str]:
    """Return a question of two words and its answer: the words after them in the list."""
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


@pytest.mark.parametrize("name", FORMS)
def test_one_conversation_is_one_row_however_it_is_written(name, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(FORMS[name](*talk(3))) + "\n")
    form = Clients(task="instruction", text="talk" if name == "own names" else "text")
    assert [json.loads(str(row)) for row in form.read(file, None, "")[0].inputs] == [messages(*talk(3))]


@dataclass(frozen=True)
class Written:
    """Prompts of one's own."""

    def load(self):
        rows = Rows([json.dumps({"prompt": f"{i}?", "answer": "yes"}) for i in range(20)])
        return Dataset("written", "text", "instruction", rows, rows, None, "smollm2")


def test_rows_of_a_data_set_are_the_server_s_own(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(FORMS["messages"](*talk(i))) + "\n" for i in range(40)))
    found = ServersRows.load(parse_run(RunConfig(dataset=f"file:{file}")), ServeOptions(eval_data="dataset"))
    assert (found.form.learns, found.form.template, found.dataset.default_model) == ("instruction", "chat", "smollm2")
    assert len(found.validation)
    own = ServersRows.load(parse_run(RunConfig()), ServeOptions(task="instruction", eval_data=str(file)))
    assert len(own.validation) == 40
    assert load_dataset(f"file:{file}").task == own.dataset.task
    alpaca = tmp_path / "alpaca.jsonl"
    alpaca.write_text("".join(json.dumps(FORMS["alpaca"](*talk(i))) + "\n" for i in range(40)))
    asked = ServeOptions(eval_data="dataset", template="alpaca")
    for options in (asked, ServeOptions(eval_data="dataset")):
        assert ServersRows.load(parse_run(RunConfig(dataset=f"file:{alpaca}")), options).form.template == "alpaca"
    with plugins.use_parts({"datasets": {"written": Written}}):
        with refuses("FP1152"):
            ServersRows.load(parse_run(RunConfig(dataset="written")), ServeOptions(eval_data="dataset"))
        assert ServersRows.load(parse_run(RunConfig(dataset="written")), asked).form.template == "alpaca"
    with refuses("FP1151", "--template alpaca", "rows.jsonl", "chat"):
        ServersRows.load(parse_run(RunConfig(dataset=f"file:{file}")), asked)
    with refuses("FP3107", "none.jinja"):
        add_form(RunConfig(), ServeOptions(task="instruction", template="none.jinja"))


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
        build_form(told, EdgeOptions(template="own.jinja"))
