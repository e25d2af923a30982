"""Classes and labels that a user names beforehand, so that no training row decides which there are."""

from __future__ import annotations

import json

import pytest

from fedpeft.data.rows import load_dataset
from tests.refusals import refuses


def written(path, labels, **more):
    rows = [{"text": f"word {i}", "label": label, **more} for i, label in enumerate(labels)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_a_class_that_one_row_alone_has_changes_nothing_where_classes_are_named(tmp_path):
    plain, more = (written(tmp_path / f"{n}.jsonl", ["good", "bad"] * 20 + ["odd"] * n) for n in (0, 1))
    found = [load_dataset(f"file(path={path!r})") for path in (plain, more)]
    assert [data.label_names for data in found] == [("bad", "good"), ("bad", "good", "odd")]
    assert all(data.labels_of_rows for data in found)
    named = [load_dataset(f"file(path={path!r}, labels='odd, good, bad')") for path in (plain, more)]
    for data in named:
        assert (data.label_names, data.labels_of_rows) == (("odd", "good", "bad"), False)
        texts = dict(zip(data.train.inputs, data.train.labels.tolist(), strict=True))
        assert all(label == 1 + int(text.split()[1]) % 2 for text, label in texts.items() if text != "word 40")
    assert len(load_dataset(f"sample(of=\"file(path={plain!r}, labels='bad,good')\", rows=20)").train) == 20
    assert load_dataset(f"sample(of='file:{plain}', rows=20)").labels_of_rows
    assert load_dataset(f"tasks(sets=['file:{plain}', 'tiny'])").labels_of_rows
    assert not load_dataset("tiny").labels_of_rows


def test_several_labels_a_row_are_named_as_well(tmp_path):
    path = written(tmp_path / "a.jsonl", [["wet"], ["loud", "wet"], []] * 10)
    assert load_dataset(f"file(path={path!r})").labels_of_rows
    data = load_dataset(f"file(path={path!r}, labels='wet,dry,loud')")
    assert (data.label_names, data.labels_of_rows) == (("wet", "dry", "loud"), False)
    assert data.train.labels.sum(0).tolist()[1] == 0


def test_columns_of_several_labels_have_their_names(tmp_path):
    path = written(tmp_path / "a.jsonl", [0, 1] * 10, wet=1)
    assert not load_dataset(f"file(path={path!r}, label='label + wet')").labels_of_rows


@pytest.mark.parametrize(
    ("labels", "more", "words"),
    [
        (["a", "b", "c"], "labels='a,b'", ("FP3073", "a, b", "c")),
        ([["a"], ["c"]], "labels='a,b'", ("FP3076", "1", "occur in labels", "c")),
        (["a", "b"], "labels='a,a'", ("FP1106", "must name at least one, each once")),
        (["a", "b"], "labels=' , '", ("FP1106", "must name at least one, each once")),
        ([0.5, 1.25], "labels='a,b'", ("FP3156", "a,b", "label_type=class")),
        ([0, 1], "labels='a,b', label=None", ("FP3156", "a,b", "no labels")),
        ([0, 1], "labels='a,b', label='label + wet'", ("FP3156", "a,b", "label columns")),
    ],
)
def test_names_that_can_not_be_are_one_sentence(labels, more, words, tmp_path):
    path = written(tmp_path / "a.jsonl", labels * 10, wet=1)
    with refuses(*words):
        load_dataset(f"file(path={path!r}, {more})")
