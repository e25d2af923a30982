"""Prompt templates, by name and of a file: what they write, what is learned of it, what they refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from fedpeft.data.cached_rows import convert_to_arrays, restore_examples
from fedpeft.data.conversations import format_question, tokenize_row
from fedpeft.data.made_words import WORDS
from fedpeft.data.prompt_templates import PromptTemplate
from fedpeft.data.rows import load_dataset
from fedpeft.data.tagged_words import IGNORED
from fedpeft.errors import ConfigError, DataError
from fedpeft.models.answers.questions import QuestionForm
from fedpeft.models.base_model import resolve_model
from fedpeft.parts.families import TASKS
from fedpeft.simulate import main
from tests.chat import TEMPLATE
from tests.refusals import pattern_of, refuses

TASK = TASKS.build("instruction")


@pytest.fixture(scope="module")
def plain_model():
    return resolve_model("tiny_lm")


def record(i, **more):
    return {
        "instruction": " ".join(WORDS[2 + i : 5 + i]),
        "input": WORDS[i] if i % 2 else "",
        "output": " ".join(WORDS[40 + i : 43 + i]),
        **more,
    }


@pytest.fixture
def columns(tmp_path):
    return written(tmp_path / "rows.jsonl", [record(i) for i in range(30)])


def written(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def template(tmp_path, text):
    path = tmp_path / "own.jinja"
    path.write_text(text)
    return path


def learned(tokenizer, rows, i):
    """Return the text that counts in the loss, and the text that does not."""
    batch = rows.batch(np.array([i]))
    counted = batch["labels"][0] != IGNORED
    real = batch["attention_mask"][0] == 1
    return tuple(tokenizer.decode(batch["input_ids"][0][mask]) for mask in (counted, real & ~counted))


@pytest.mark.fast
def test_alpacas_prompts_are_those_of_the_paper():
    alpaca = PromptTemplate("alpaca")
    assert alpaca.format_prompt({"instruction": "Add.", "input": "1, 2"}, "row 1") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n"
        "### Response:"
    )
    for given in ({"instruction": "Sing."}, {"instruction": "Sing.", "input": ""}):
        assert alpaca.format_prompt(given, "row 1") == (
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            "\n\n### Instruction:\nSing.\n\n### Response:"
        )


@pytest.mark.fast
@pytest.mark.parametrize("kind", ["alpaca", "own"])
def test_answers_are_learned_and_prompts_are_not(kind, columns, tmp_path, plain_model):
    own = template(tmp_path, "Q {{ instruction }}{% if input %} {{ input }}{% endif %} A")
    data = load_dataset(f"file(path={str(columns)!r}, template={str(own) if kind == 'own' else kind!r})")
    assert data.task == "instruction"
    assert data.label_names is None
    tokenizer = AutoTokenizer.from_pretrained(plain_model)
    rows = TASK.tokenise(data.train, plain_model, 64)
    for i in range(len(rows)):
        row = json.loads(data.train.inputs[i])
        said, asked = learned(tokenizer, rows, i)
        assert said.split() == [*row["answer"].split(), "[EOS]"]
        assert not set(row["answer"].split()) & set(asked.split())
        assert asked.split()[0] == "[BOS]"


@pytest.mark.fast
def test_columns_in_the_models_own_chat_template(columns, chat_model):
    data = load_dataset(f"file(path={str(columns)!r}, template=chat)")
    rows = TASK.tokenise(data.train, chat_model, 64)
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    row = json.loads(data.train.inputs[0])
    said, asked = learned(tokenizer, rows, 0)
    assert said.split() == row[1]["content"].split()
    assert asked.split()[-1] == WORDS[1]
    assert [m["role"] for m in row] == ["user", "assistant"]


@pytest.mark.fast
def test_conversations_in_a_template_of_a_file(tmp_path, plain_model):
    """The model has none of its own; every answer is learned, of several turns, and nothing that the user says."""
    own = template(tmp_path, TEMPLATE)
    turns = [{"role": r, "content": WORDS[10 + i]} for i, r in enumerate(["user", "assistant"] * 3)]
    file = written(tmp_path / "chats.jsonl", [{"messages": turns}] * 12)
    data = load_dataset(f"file(path={str(file)!r}, template={str(own)!r})")
    rows = TASK.tokenise(data.train, plain_model, 64)
    said, asked = learned(AutoTokenizer.from_pretrained(plain_model), rows, 0)
    assert said.split() == [WORDS[11], WORDS[13], WORDS[15]]
    assert {WORDS[10], WORDS[12], WORDS[14]} <= set(asked.split())


@pytest.mark.fast
def test_another_text_of_a_template_makes_other_rows(tmp_path):
    """So that rows in the cache are never those of a template that has changed since."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    file = written(tmp_path / "chats.jsonl", [{"messages": turns}] * 12)
    own = template(tmp_path, TEMPLATE)
    before = load_dataset(f"file(path={str(file)!r}, template={str(own)!r})").train.inputs[0]
    own.write_text(TEMPLATE + "x")
    assert load_dataset(f"file(path={str(file)!r}, template={str(own)!r})").train.inputs[0] != before
    with refuses("FP3021"):
        tokenize_row(AutoTokenizer.from_pretrained(resolve_model("tiny_lm")), before)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("settings", "records", "error", "words"),
    [
        ("template=alpacca", None, ConfigError, ("FP1107", "alpacca", "alpaca, flowertune, bare")),
        ("template='missing.jinja'", None, DataError, ("FP3107", "missing.jinja")),
        ("template=alpaca, answer=response", None, DataError, ("FP3019", "line 1 of", "response")),
        ("template=alpaca", [record(0), record(1, output=" ")], DataError,
         ("FP3062", "no answer in", "output' (line 2)")),
        ("template=alpaca", [record(0, output=3)], DataError, ("FP3020", "line 1", "output", "3")),
        ("template=alpaca", [record(0, output="\ud83d")], DataError, ("FP3017", "line 1 of")),
        ("", [{"prompt": "a", "completion": "\udfff"}], DataError, ("FP3017", "line 1 of")),
        ("template=alpaca", [{"output": "x"}], DataError,
         ("FP3102", "line 1 of", "alpaca", "instruction' is undefined")),
        ("template=alpaca", [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
         ConfigError, ("FP1084",)),
    ],
)  # fmt: skip
def test_what_can_not_be_a_prompt_is_one_sentence(settings, records, error, words, columns, tmp_path):
    file = columns if records is None else written(tmp_path / "other.jsonl", records)
    with pytest.raises(error, match=pattern_of(*words)) as raised:
        load_dataset(f"file(path={str(file)!r}, {settings})")
    assert "\n" not in str(raised.value)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ instruction", ("FP3102", "line 1 of", "own.jinja", "line 1")),
        ("{% for %}", ("FP3102", "own.jinja")),
        ("{{ topic }}", ("FP3102", "topic' is undefined")),
        ("{{ instruction / 0 }}", ("FP3102", "own.jinja")),
        ("{{ ''.__class__.__mro__ }}", ("FP3102", "own.jinja", "unsafe")),
        ("{# nothing #}", ("FP3103",)),
        ("{{ raise_exception('no') }}", ("FP3102", "own.jinja")),
    ],
)
def test_a_template_that_fails_is_one_sentence(text, words, columns, tmp_path):
    own = template(tmp_path, text)
    with refuses(*words) as raised:
        load_dataset(f"file(path={str(columns)!r}, template={str(own)!r})")
    assert "\n" not in str(raised.value)


@pytest.mark.fast
def test_a_template_that_leaves_the_answer_out_is_refused(tmp_path, plain_model):
    own = template(tmp_path, "{% for m in messages %}{{ m.content if m.role == 'user' }}{% endfor %}")
    turns = [{"role": "user", "content": WORDS[3]}, {"role": "assistant", "content": WORDS[4]}]
    file = written(tmp_path / "chats.jsonl", [{"messages": turns}] * 12)
    data = load_dataset(f"file(path={str(file)!r}, template={str(own)!r})")
    with refuses("FP3022"):
        TASK.tokenise(data.train, plain_model, 64)


@pytest.mark.fast
def test_a_model_without_a_chat_template_is_one_sentence(columns, plain_model):
    data = load_dataset(f"file(path={str(columns)!r}, template=chat)")
    with refuses("FP4001"):
        TASK.tokenise(data.train, plain_model, 64)


def test_a_run_on_prompts_counts_what_is_cut_and_answers_in_its_template(columns, tmp_path, capsys):
    long = [record(i) for i in range(30)] + [record(31, output=" ".join(WORDS[:60]))] * 5
    file = written(tmp_path / "long.jsonl", long)
    own = template(tmp_path, "{{ instruction }}{% if input %} {{ input }}{% endif %}")
    words = ["--dataset", f"file(path={str(file)!r}, template={str(own)!r})", "--model=tiny_lm", "--clients=3"]
    words += ["--cohort=3", "--rounds=1", "--workers=1", "--partition=iid", "--dtype=fp32", "--tokens=32"]
    words += ["--local-work=steps(1)", "--peft=lora(rank=2)", "--output", str(tmp_path / "run")]
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    long = sum(len(json.loads(row)["answer"].split()) == 60 for row in load_dataset(words[1]).train.inputs)
    assert f"{long} of 28 examples are longer than 32 tokens and truncated" in said
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["task"] == "instruction"
    from fedpeft.commands.predict import main as predict

    assert predict([str(tmp_path / "run"), " ".join(WORDS[:3]), "--new-tokens=2"]) == 0


@pytest.mark.fast
def test_cut_rows_are_counted_in_plain_text_too(plain_model):
    task = TASKS.build("causal_lm")
    data = load_dataset("tiny_lm(owners=3)")
    rows = task.tokenise(data.train, plain_model, 16)
    longer = sum(len(text.split()) + 1 > 16 for text in data.train.inputs)
    assert 0 < rows.cut == longer
    assert restore_examples(convert_to_arrays(rows)).cut == longer


@pytest.mark.fast
def test_questions_are_put_as_in_training(tmp_path, chat_model):
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    chat = f"{WORDS[0]} hello {WORDS[1]}"
    assert [t.split() if isinstance(t, str) else t for t in format_question(tokenizer, "hello", None)] == [
        chat.split(),
        True,
    ]
    assert format_question(tokenizer, "hello", "alpaca")[0].endswith("### Instruction:\nhello\n\n### Response:")
    assert format_question(tokenizer, "hello", str(template(tmp_path, TEMPLATE)))[0].split() == chat.split()
    assert format_question(tokenizer, "hello", str(template(tmp_path, "Q: {{ question }} A:"))) == (
        "Q: hello A:",
        False,
    )
    with refuses("FP3106", "FP3102", "topic' is undefined"):
        format_question(tokenizer, "hello", str(template(tmp_path, "{{ topic }}: {{ instruction }}")))


@pytest.mark.fast
def test_a_template_of_several_columns_is_asked_by_a_json_object_of_them(tmp_path):
    own = str(template(tmp_path, "{% for _ in range(1) %}{{ city }} in {{ year }}{% endfor %}:"))
    assert format_question(None, '{"city": "Bern", "year": 1900}', own) == ("Bern in 1900:", False)
    asked = QuestionForm(True, own).pack_row('{"city": "Bern", "year": 1900}', "x", "here")
    assert json.loads(asked) == {"prompt": "Bern in 1900:", "answer": "x"}
    assert "### Input:\n1, 2" in format_question(None, '{"instruction": "Add.", "input": "1, 2"}', "alpaca")[0]
    for text in ('{"city": "Bern", "year": 1900, "years": 1}', '{"city": "Bern", "years": 1900}'):
        with refuses("FP3105", "years", "city, year"):
            format_question(None, text, own)
    with refuses("FP3105", "inptu", "input, instruction"):
        format_question(None, '{"instruction": "Add.", "inptu": "1, 2"}', "alpaca")
    for text in ("Bern", '{"city": "Bern"}', '{"town": "Bern"}', '["Bern"]'):
        with refuses("FP3106", "FP3102", "is undefined", '{"city": "...", "year'):
            format_question(None, text, own)


@pytest.mark.fast
def test_what_looks_like_columns_is_a_question_where_a_template_has_one(tmp_path):
    text = '{"instruction": "Sing."}'
    assert format_question(None, text, "bare") == (text, False)
    assert (
        format_question(None, text, str(template(tmp_path, "{% for _ in range(1) %}{{ city }}{% endfor %}:")))[0]
        == f"{text}:"
    )
    assert format_question(None, '{"year": 1}', "alpaca")[0].count('{"year": 1}') == 1
