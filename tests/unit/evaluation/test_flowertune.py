"""FlowerTune's tracks: answers in batches are those of the reference's loops, on made rows of each track's schema."""

from __future__ import annotations

import json
import random
import re

import pytest
import torch
from transformers import AutoTokenizer

from fedpeft.data.made_words import WORDS
from fedpeft.evaluate import flowertune
from fedpeft.evaluate.flowertune import TRACKS, find_sentiment, is_choice_right, read
from fedpeft.models.base_model import resolve_model
from fedpeft.parts.families import TASKS
from tests.refusals import refuses

ROWS = 200


def words(draw, least, most):
    return " ".join(draw.sample(WORDS, draw.randint(least, most)))


def nlp_row(draw):
    row = {"input": words(draw, 2, 6) + draw.choice(["?", ".", ""]), "target": draw.choice("ABCD"), "subset": "made"}
    return row | {letter: words(draw, 1, 2) for letter in "ABCD"}


def medical_row(draw):
    row = {"instruction": words(draw, 2, 4)}
    kind = draw.randrange(2)
    if kind == 0:
        options = {name: words(draw, 1, 2) for name in ("opa", "opb", "opc", "opd")}
        return row | options | {"question": words(draw, 2, 5), "cop": draw.randrange(4)}
    options = [{"key": key, "value": words(draw, 2, 3)} for key in "ABCD"]
    return row | {"question": words(draw, 2, 5), "options": options, "answer": draw.choice(options)["value"]}


def pubmed_row(draw):
    contexts = [words(draw, 2, 4) for _ in range(2)]
    return {
        "instruction": words(draw, 2, 4),
        "CONTEXTS": contexts,
        "QUESTION": words(draw, 2, 4),
        "final_decision": draw.choice(["yes", "no", "maybe"]),
    }


def finance_row(draw):
    given = words(draw, 2, 6) if draw.random() < 0.8 else ""
    return {
        "instruction": words(draw, 2, 3),
        "input": given,
        "output": draw.choice(["negative", "neutral", "positive"]),
    }


MADE = {"nlp": nlp_row, "medical": medical_row, "medical, yes or no": pubmed_row, "finance": finance_row}


@pytest.fixture(scope="module")
def model_and_tokenizer():
    """Return a tiny model whose vocabulary includes letters, yes, no and sentiments."""
    folder, task = resolve_model("tiny_lm"), TASKS.build("causal_lm")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["A", "B", "C", "D", "e", "yes", "no", "maybe", "positive", "Negative", "neutral"])
    tokenizer.add_tokens(["Instruction:", "Input:", "Answer:", "<|im_start|>", "<|im_end|>", "\n"])
    model = task.model(task.base(folder, torch.float32), None).eval()
    model.base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.copy_(parameter + 0.1 * torch.randn(parameter.shape, generator=generator))
    return model, tokenizer


def speaking(model, tokenizer, said):
    """Make the model generate these words most of the time."""
    generator = torch.Generator().manual_seed(1)
    weight = model.base.get_output_embeddings().weight
    with torch.no_grad():
        weight[229:240] = 0
        for word in said:
            weight[tokenizer.convert_tokens_to_ids(word)] = torch.randn(weight.shape[1], generator=generator)
    return model


def one_at_a_time(model, ids, new_tokens, ends):
    """Greedy, without cache or padding."""
    ids = list(ids)
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + new_tokens and (len(ids) == start or ids[-1] not in ends):
            ids.append(int(model.base(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids


def reference_prompt(row):
    """As the track's scripts write it."""
    if "CONTEXTS" in row:
        body = "\n".join(row["CONTEXTS"]) + "\n" + row["QUESTION"]
    else:
        question = row.get("input") or row["question"]
        columns = "ABCD" if "A" in row else ("opa", "opb", "opc", "opd") if "opa" in row else ()
        options = [row[column] for column in columns] or [option["value"] for option in row["options"]]
        question += "" if question[-1] in "?." else "?"
        listed = "\n".join(f"{'ABCD'[i]}. {option}" for i, option in enumerate(options))
        body = f"Question: {question}\n\nOptions:\n{listed}"
    instruction = row.get("instruction", "Answer the following multiple choice question.")
    return f"<|im_start|>question\n{instruction}\n{body}\nThe answer is:\n<|im_end|>\n<|im_start|>answer\n"


def reference_choice(row, said):
    """(predicted, right), as the track's scripts compare them, for answers without headings."""
    gold = row.get("final_decision") or row.get("target")
    if gold is None:
        keys = {option["value"]: option["key"] for option in row.get("options", ())}
        gold = "ABCD"[row["cop"]] if "cop" in row else keys[row["answer"]]
    output = re.sub(" +", " ", re.sub("[^a-zA-Z0-9]", " ", said.lower()).strip())
    if "final_decision" not in row:
        output = output[:1]
    return (output if output in ["a", "b", "c", "d", "e", "yes", "no"] else said.lower()), gold.lower()


@pytest.mark.parametrize("name", ["nlp", "medical", "medical, yes or no"])
def test_choices_are_read_as_the_reference_reads_them(model_and_tokenizer, tmp_path, name):
    model, tokenizer = model_and_tokenizer
    speaking(model, tokenizer, ["yes", "no", "maybe"] if "," in name else "ABCDe")
    draw = random.Random(name)
    rows = [MADE[name](draw) for _ in range(ROWS)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    track = name.split(",")[0]
    items = read(track, str(path))
    said = TRACKS[track].said(model, tokenizer, items)
    for row, item, text in zip(rows, items, said, strict=True):
        ids = tokenizer.encode(reference_prompt(row))
        made = one_at_a_time(model, ids, 1, {3})
        expected = tokenizer.decode(made[len(ids) :], skip_special_tokens=True)
        assert item.prompt == reference_prompt(row)
        assert text == expected.strip()
        predicted, gold = reference_choice(row, expected)
        assert TRACKS[track].is_right(text, item.right) == (predicted == gold)
    right = [TRACKS[track].is_right(text, item.right) for text, item in zip(said, items, strict=True)]
    assert 0 < sum(right) < ROWS


@pytest.mark.medium
def test_sentiments_are_read_as_the_reference_reads_them(model_and_tokenizer, tmp_path, monkeypatch):
    model, tokenizer = model_and_tokenizer
    speaking(model, tokenizer, ["positive", "Negative", "neutral"])
    monkeypatch.setattr(flowertune, "FINANCE_TOKENS", 44)
    draw, count = random.Random("finance"), 3 * flowertune.BATCH + 1
    rows = [finance_row(draw) for _ in range(count)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = read("finance", str(path))
    said = TRACKS["finance"].said(model, tokenizer, items)
    right = []
    for start in range(0, count, flowertune.BATCH):
        batch = rows[start : start + flowertune.BATCH]
        prompts = []
        for row in batch:
            given = f"Input: {row['input']}\n" if row["input"] else ""
            prompts.append(tokenizer(f"Instruction: {row['instruction']}\n{given}Answer: ")["input_ids"])
        new = 44 - max(map(len, prompts))
        for i, (row, prompt) in enumerate(zip(batch, prompts, strict=True)):
            whole = tokenizer.decode(one_at_a_time(model, prompt, new, {3}), skip_special_tokens=True)
            expected = whole.split("Answer: ")[1] if "Answer: " in whole else ""
            assert said[start + i] == expected
            words = [("positive", "Positive"), ("negative", "Negative")]
            read_as = next((w[0] for w in words if w[0] in expected or w[1] in expected), "neutral")
            right.append(read_as == row["output"])
    found = [TRACKS["finance"].is_right(text, item.right) for text, item in zip(said, items, strict=True)]
    assert found == right
    assert 0 < sum(right) < count


@pytest.mark.parametrize(
    ("said", "right", "is_right"),
    [
        (" A", "A", True),
        ("b) because", "B", True),
        ("<b>", "B", True),
        ("The answer is A", "A", False),  # its first letter is t
        ("f", "A", False),
        ("x\n## c", "C", True),
        ("yesyes", "yes", True),
        ("yesno", "yes", True),
        ("yes it is", "yes", False),
        ("maybe", "maybe", True),
        ("", "A", False),
    ],
)
def test_reading_by_hand(said, right, is_right):
    assert is_choice_right(said, right) is is_right


def test_sentiments_by_hand():
    assert [find_sentiment(text) for text in ("Positive news", "not negative but positive", "Negative", "meh")] == [
        "positive",
        "positive",
        "negative",
        "neutral",
    ]


def test_mistakes_are_one_sentence(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"input": "x", "A": "1", "B": "2", "C": "3", "target": "A"}) + "\n")
    with refuses("FP3462", "line 1", "rows.jsonl", "'D'", "nlp", "A, B, C, D and target", "input, A, B, C, target"):
        read("nlp", str(path))
    with refuses("FP1166", "code"):
        read("code", str(path))


@pytest.mark.parametrize("right", [2, 2.0, "2", "c", "C"])
def test_the_right_option_of_medmcqa_is_a_number_or_a_letter(tmp_path, right):
    """Parquet files of the hub's rows name the classes."""
    row = {"instruction": "", "question": "x?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": right}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert read("medical", str(path))[0].right == "C"


@pytest.mark.parametrize(
    ("track", "row", "said"),
    [
        ("nlp", {"input": "x?", **dict.fromkeys("ABCD", "y"), "target": 2}, "2"),
        (
            "nlp",
            {"input": "x?", **dict.fromkeys("ABCD", "y"), "target": "2"},
            "'2'",
        ),
        ("nlp", {"input": None, **dict.fromkeys("ABCD", "y"), "target": "C"}, "NoneType"),
        (
            "medical",
            {"instruction": "", "question": "x?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": -1},
            "KeyError(-1)",
        ),
        (
            "medical",
            {"instruction": "", "question": "x?", "options": [{"key": "A", "value": "a"}], "answer": "b"},
            "'b'",
        ),
        (
            "medical",
            {"instruction": "", "CONTEXTS": "one text", "QUESTION": "x?", "final_decision": "yes"},
            "CONTEXTS",
        ),
        (
            "medical",
            {"instruction": "", "CONTEXTS": ["one"], "QUESTION": "x?", "final_decision": True},
            "True",
        ),
        ("finance", {"instruction": "x", "input": "", "output": 1}, "1"),
    ],
)
def test_a_row_without_a_right_answer_that_can_be_read_is_refused(tmp_path, track, row, said):
    """A hidden answer, -1, was taken for D, and a digit for a letter that no model says."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with refuses("FP3165", "line 1", "rows.jsonl", track, said):
        read(track, str(path))
