"""Data sets that a program passes: those of pandas and of the `datasets` library, rows, and splits of them."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pandas
import pytest
from PIL import Image

from fedpeft.data.in_memory import convert_to_dataset, create_part
from tests.refusals import has_error, refuses

WORDS = ("wet", "cold", "dry")
ROWS = [{"text": f"{WORDS[i % 3]} day {i}", "label": WORDS[i % 3]} for i in range(30)]
NUMBERS = datasets.Dataset.from_dict(
    {"text": [row["text"] for row in ROWS], "label": [i % 3 for i in range(30)],
     "hospital": [f"h{i % 4}" for i in range(30)]},
    features=datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(WORDS)),
         "hospital": datasets.Value("string")}
    ),
)  # fmt: skip
TALK = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]


def columns_of(data):
    """Return the columns of all splits of a data set, as plain values."""
    columns = [(rows.inputs, rows.labels, rows.owners) for _, rows in data.parts]
    return [[None if column is None else list(column) for column in split] for split in columns]


def test_numbers_of_classes_have_their_names_and_owners_are_found():
    data = convert_to_dataset(NUMBERS)
    assert (data.task, data.label_names) == ("classification", ("cold", "dry", "wet"))
    assert sorted(set(data.train.owners)) == ["h0", "h1", "h2", "h3"]
    assert any("'hospital': partition='natural', clients=0" in note for note in data.notes)
    named = [{**row, "hospital": f"h{i % 4}"} for i, row in enumerate(ROWS)]
    for same in (named, pandas.DataFrame(named), NUMBERS.with_format("numpy")):
        assert columns_of(convert_to_dataset(same)) == columns_of(data)


def test_the_splits_of_a_dict_are_used():
    parts = NUMBERS.train_test_split(test_size=6, seed=0)
    splits = datasets.DatasetDict(train=parts["train"], dev=NUMBERS.select(range(6)), test=parts["test"], more=NUMBERS)
    data = convert_to_dataset(splits)
    assert [len(rows) for _, rows in data.parts] == [24, 6, 6]
    assert any("splits that no run uses: more" in note for note in data.notes)
    frames = {name: splits[name].to_pandas() for name in ("train", "test")}
    assert convert_to_dataset(frames).test.inputs == data.test.inputs
    with refuses("FP3197", "a, b"):
        convert_to_dataset({"a": NUMBERS, "b": NUMBERS})
    with refuses("FP3196", "val, dev"):
        convert_to_dataset(datasets.DatasetDict(train=NUMBERS, dev=NUMBERS, val=NUMBERS))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (NUMBERS.rename_column("text", "body"), ("FP3155", "dataset", "'text'", "rename_column(COLUMN, 'text')")),
        (pandas.DataFrame(ROWS).rename(columns={"text": "body"}), ("FP3155", "dataset", "'text'")),
        (NUMBERS.rename_column("label", "topic"), ("FP3199", "dataset", "topic", "rename_column(COLUMN, 'label')")),
        ({"train": NUMBERS, "test": NUMBERS.remove_columns("label")}, ("FP3155", "dataset['test']", "'label'")),
        (pandas.DataFrame([*ROWS, {"text": "no label", "label": None}]), ("FP3062", "dataset", "1 row", "row 30")),
        (pandas.DataFrame(ROWS).astype({"label": "category"}).assign(text=None), ("FP3062", "dataset", "empty text")),
        (NUMBERS.add_item({"text": "hidden", "label": -1, "hospital": "h0"}), ("FP3124", "row 30 of dataset", "-1")),
        (NUMBERS.to_iterable_dataset(), ("FP3198", "dataset", "streaming=True")),
        (datasets.IterableDatasetDict(train=NUMBERS.to_iterable_dataset()), ("FP3198", "dataset['train']")),
        (NUMBERS.select([]), ("FP3028", "dataset")),
        (datasets.DatasetDict(train=NUMBERS, test=NUMBERS.select([])), ("FP3028", "dataset['test']")),
        (pandas.DataFrame({"text": [], "label": []}), ("FP3028", "dataset")),
        ([], ("FP3028", "dataset")),
        (pandas.DataFrame([{**ROWS[0], "site": "a", "clinic": "b"}]), ("FP3181", "site, clinic", "keep one")),
        (pandas.DataFrame([*ROWS, ROWS[0]]).assign(site=["a"] * 30 + [None]), ("FP3062", "1 row", "'site'", "row 30")),
        (pandas.DataFrame(ROWS)["text"], ("FP3060", "Series")),
        ({"train": 3}, ("FP3060", "dataset['train']", "int")),
        ([(3, [1])], ("FP3060", "dataset", "list")),
    ],
    ids=range(18),
)  # fmt: skip
def test_what_can_t_be_used_is_one_sentence(given, says):
    with refuses(*says) as caught:
        convert_to_dataset(given)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert not any(name in sentence for name in ("incomplete=", "owner=")), "settings that Python does not take"


def test_texts_alone_are_for_a_language_model():
    data = convert_to_dataset(NUMBERS.remove_columns("label"))
    assert (data.task, data.label_names, data.train.owners[0][0]) == ("causal_lm", None, "h")


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({"messages": TALK}, "instruction"),
        ({"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "good day"}]}, "instruction"),
        ({"instruction": "greet", "input": "", "output": "good day"}, "instruction"),
        ({"prompt": "hello", "completion": "good day"}, "instruction"),
        ({"prompt": "hello", "chosen": "good day", "rejected": "go"}, "dpo(beta=0.1)"),
        ({"input": "hello", "target": "good day"}, "seq2seq"),
        ({"tokens": ["Ada", "sleeps"], "ner_tags": ["NAME", "O"]}, "token_labels"),
    ],
)
def test_instruction_data_and_labels_of_words_are_known_by_their_columns(row, task):
    rows = [{**row, "site": f"s{i % 2}"} for i in range(10)]
    for given in (datasets.Dataset.from_list(rows), pandas.DataFrame(rows), rows):
        data = convert_to_dataset(given)
        assert data.task == task
        assert sorted(set(data.train.owners)) == ["s0", "s1"]
    part, _ = create_part(data)
    assert part.suited_head == ("zero" if task == "token_labels" else None)
    if task == "instruction":
        assert "good day" in json.dumps(json.loads(data.train.inputs[0]))


def pictures(count, side=12, **more):
    values = [Image.fromarray(np.full((side, side, 3), 20 * i, np.uint8)) for i in range(count)]
    columns = {"img": values, "label": [i % 2 for i in range(count)], **more}
    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "light"])}
    return datasets.Dataset.from_dict(
        columns, datasets.Features(features | {name: datasets.Value("string") for name in more})
    )


def test_a_column_of_images_takes_the_place_of_texts():
    data = convert_to_dataset(datasets.DatasetDict(train=pictures(10), test=pictures(3)))
    assert (data.kind, data.task, data.default_model) == ("image", "classification", "dinov2_small")
    assert data.train.inputs.shape == (10, 64, 64, 3)
    assert data.train.inputs[:, 5, 5, 0].tolist() == [20 * i for i in range(10)]
    assert data.test.inputs[:, 5, 5, 0].tolist() == [0, 20, 40]
    assert data.label_names == ("dark", "light")
    held_out = convert_to_dataset(pictures(10, site=[f"s{i % 2}" for i in range(10)]))
    assert sorted(set(held_out.train.owners)) == ["s0", "s1"]
    assert {20 * i for i in range(10)} == {int(x) for _, rows in held_out.parts for x in rows.inputs[:, 5, 5, 0]}


def test_images_that_can_t_be_used_are_one_sentence():
    with refuses("FP3155", "dataset", "'label'"):
        convert_to_dataset(pictures(6).rename_column("label", "kind"))
    both = pictures(6).add_column("more", [None] * 6).cast_column("more", datasets.Image())
    with refuses("FP3200", "dataset", "img, more"):
        convert_to_dataset(both)
    with refuses("FP3201", "dataset['test']"):
        convert_to_dataset(datasets.DatasetDict(train=pictures(6), test=NUMBERS))
    missing = pictures(6).map(lambda row, i: {"img": None if i == 4 else row["img"]}, with_indices=True)
    with pytest.raises(Exception, match="FP") as caught:
        convert_to_dataset(missing)
    assert has_error(str(caught.value), "FP3059", "row 4 of dataset")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"


@pytest.mark.parametrize("image", [{"bytes": EPS, "path": None}, {"bytes": None, "path": "https://localhost/a.png"}])
def test_an_image_starts_no_program_and_fetches_no_file(image, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("the image was decoded by the library")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", fail)
    monkeypatch.setattr("datasets.features.image.xopen", fail)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("string")})
    given = datasets.Dataset.from_dict({"img": [image] * 6, "label": ["a", "b"] * 3}, features)
    with refuses("FP3059", "row 0 of dataset"):
        convert_to_dataset(given)
    texts = given.add_column("text", [f"text {i}" for i in range(6)])
    assert convert_to_dataset(texts).kind == "text"


def test_an_image_in_memory_that_is_too_large_is_one_sentence(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    with refuses("FP3059", "row 0 of dataset"):
        convert_to_dataset(pictures(6))


def test_images_are_read_from_files_and_converted_as_their_feature_asks(tmp_path):
    files = []
    for i in range(6):
        files.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(np.full((12, 12, 3), (200, 20 * i, 0), np.uint8)).save(files[-1])
    for mode, first in ((None, 200), ("L", 60)):
        given = datasets.Dataset.from_dict({"img": files, "label": ["a", "b"] * 3})
        data = convert_to_dataset(given.cast_column("img", datasets.Image(mode=mode)))
        assert {int(x) for _, rows in data.parts for x in rows.inputs[:, 5, 5, 0]} >= {first}


def test_the_same_examples_make_the_same_part():
    assert create_part(convert_to_dataset(NUMBERS))[1] == create_part(convert_to_dataset(NUMBERS.to_pandas().assign(
        label=[WORDS[i % 3] for i in range(30)])))[1]  # fmt: skip
