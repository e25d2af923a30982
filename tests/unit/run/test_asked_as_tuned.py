"""A finished language model is asked in the form that the columns of its rows have told, where no setting names one."""

from __future__ import annotations

import json

import pytest

from fedpeft.data.conversations import format_question
from fedpeft.data.rows import load_dataset
from fedpeft.models.answers.questions import QuestionForm
from fedpeft.models.base_model import resolve_model
from tests.refusals import refuses

COLUMNS = {
    "alpaca": ("instruction", "output"),
    "bare": ("prompt", "completion"),
}


def written(folder, columns):
    file = folder / "rows.jsonl"
    lines = [json.dumps(dict(zip(columns, (f"Ask {i}", f"answer {i}"), strict=True))) for i in range(30)]
    file.write_text("\n".join(lines))
    return file


def prompt_of(row):
    return json.loads(str(row))["prompt"]


@pytest.mark.parametrize("template", COLUMNS)
def test_columns_tell_how_a_new_question_is_put(template, tmp_path):
    file = written(tmp_path, COLUMNS[template])
    for text in (f"file:{file}", f"sample(of='file:{file}', rows=10)", f"file(path='{file}', template=alpaca)"):
        if "template" in text and template == "bare":
            continue
        data = load_dataset(text)
        assert data.template == template
        assert data.task == "instruction"
        asked = format_question(None, "Ask 7", data.template)
        prompts = {prompt_of(row) for rows in (data.train, data.test) for row in rows.inputs}
        assert asked[1] is False
        assert asked[0] in prompts or data.sampled
        assert prompt_of(QuestionForm(True, data.template).pack_row("Ask 7", "x", "here")) == asked[0]


def test_a_template_that_refuses_a_question_is_one_sentence(tmp_path):
    from fedpeft.data.tokens import load_tokenizer

    file = tmp_path / "own.jinja"
    file.write_text("{{ messages[5].content }}{{ raise_exception('no') }}")
    with refuses("FP3023", "the chat template", "own.jinja"):
        format_question(load_tokenizer(resolve_model("tiny_lm")), "Ask", str(file))
