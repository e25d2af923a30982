"""Columns of labels: what they are taken as, and what is refused, each in one sentence."""

from __future__ import annotations

import json
import re
from decimal import Decimal

import numpy as np
import pytest

from fedpeft.data.label_columns import LabelColumn, compute_moments
from fedpeft.data.partition import USUAL
from fedpeft.data.rows import BINS, assign_quantile_bins, load_dataset, split_validation
from fedpeft.parts.families import PARTITIONS, TASKS
from fedpeft.simulation.rows import SimulatedRows
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run
from tests.refusals import refuses
from tests.targets import LABELS, prices, rows_of, tagged


def found(values, asked="auto", column="y"):
    made = LabelColumn(column, asked)
    for number, value in enumerate(values, 1):
        made.add(value, f"row {number} of x")
    return made.parse()


@pytest.mark.parametrize(
    ("values", "asked", "kind", "taken"),
    [
        (["a", "b"], "auto", "class", ["a", "b"]),
        ([1, 2, 3], "auto", "class", ["1", "2", "3"]),
        (["1", "2"], "auto", "class", ["1", "2"]),
        (["1.5", "2", "-3e2"], "auto", "number", [1.5, 2.0, -300.0]),
        (["1.5", "2"], "class", "class", ["1.5", "2"]),
        (["1.5", "v2"], "auto", "class", ["1.5", "v2"]),
        ([1, 2.5, 3], "auto", "number", [1.0, 2.5, 3.0]),
        ([np.float32(0.5), 2], "auto", "number", [0.5, 2.0]),
        ([1, 2, 5], "number", "number", [1.0, 2.0, 5.0]),
        ([*range(90_000, 90_020)], "auto", "number", [*map(float, range(90_000, 90_020))]),
        ([*range(90_000, 90_010)] * 2, "auto", "class", [*map(str, range(90_000, 90_010))] * 2),
        ([*range(90_000, 90_020)], "class", "class", [*map(str, range(90_000, 90_020))]),
        ([1.0, 2.0], "class", "class", ["1", "2"]),
        ([20260101.0, 20260102.0, 0.1234567], "class", "class", ["20260101", "20260102", "0.1234567"]),
        ([Decimal("1.50"), Decimal(2)], "auto", "number", [1.5, 2.0]),
        ([Decimal(1), Decimal(2)], "class", "class", ["1", "2"]),
        ([1.0, 2.0], "number", "number", [1.0, 2.0]),
        ([["a", "b"], [], ["b", "b"]], "auto", "labels", [("a", "b"), (), ("b",)]),
        ([[3, 1]], "auto", "labels", [("3", "1")]),
        (["a; b", "", "b", None], "labels", "labels", [("a", "b"), (), ("b",), ()]),
    ],
)
def test_what_a_column_is_taken_as(values, asked, kind, taken):
    labels = found(values, asked)
    assert (labels.kind, list(labels.values)) == (kind, taken)
    assert bool(labels.notes) == (asked == "auto" and kind != "class"), "what was taken by itself is said"


@pytest.mark.parametrize(
    ("values", "asked", "words"),
    [
        ([1.0, 2.0], "auto", ("FP3071", "row 1 of x", "1.0", "label_type=number")),
        ([Decimal("NaN")], "auto", ("FP3066", "nan")),
        ([0.5, "x"], "auto", ("FP3072", "'x'")),
        ([float("nan")], "auto", ("FP3066", "nan")),
        (["inf"], "number", ("FP3072", "row 1 of x", "'inf'")),
        (["x"], "number", ("FP3072", "'x'")),
        ([["a"], "b"], "auto", ("FP3069", "row 2 of x", "'b'")),
        ([["a"]], "class", ("FP3066", "['a']")),
        ([0.5], "labels", ("FP3066", "0.5")),
        ([None], "auto", ("FP3066", "row 1 of x", "None")),
        ([[["a"]]], "auto", ("FP3066", "[['a']]")),
        ([{}], "auto", ("FP3066", "{}")),
    ],
)
def test_what_is_no_label_is_one_sentence(values, asked, words):
    with refuses(*words) as caught:
        found(values, asked)
    assert "\n" not in str(caught.value)


COMMAS = [f"{i % 7},{i:02}" for i in range(60)]
PAIRS = [f"{a},{b}" for a in range(1, 9) for b in range(1, 9) if a != b]


@pytest.mark.parametrize(
    ("values", "asked", "words"),
    [
        ([*COMMAS, "4", "5", "-2,5", "n/a"], "auto", ("FP3070",)),
        ([f"{i},500" for i in range(1, 40)], "auto", ("FP3070", "1,500'; write 1500, or 1.500 instead")),
        (["1,000.5"], "number", ("FP3072", "1,000.5'; write 1000.5 instead")),
        (["1,500"], "number", ("FP3072", "1,500'; write 1500, or 1.500 instead")),
        (["one, two"], "number", ("FP3072", "one, two")),
    ],
)
def test_numbers_with_a_comma_are_refused_with_how_to_write_them(values, asked, words):
    with refuses(*words):
        found(values, asked)


@pytest.mark.parametrize(
    ("values", "asked", "first"),
    [
        (COMMAS, "auto", 0.0),
        ([f"1.{i:03},5" for i in range(40)], "auto", 1000.5),
        ([f"{a},{b}" for a in range(5) for b in range(10)], "auto", 0.0),
        ([f"{a},{b}" for a in range(1, 10) for b in (49, 95, 99)], "auto", 1.49),
        (["1,63"], "number", 1.63),
        (["0,500"], "number", 0.5),
    ],
)
def test_a_comma_that_can_only_be_a_decimal_sign_is_one_and_this_is_reported(values, asked, first):
    labels = found(values, asked)
    assert (labels.kind, labels.values[0]) == ("number", first)
    assert "decimal=','" in labels.notes[0]


@pytest.mark.parametrize(
    ("values", "asked"),
    [
        (COMMAS, "class"),
        (["1,5", "2,0", "2,5"] * 20, "auto"),
        (PAIRS, "auto"),
        ([*PAIRS, "1", "2,3"], "auto"),
        ([*COMMAS[:50], *["1,2,3"] * 5], "auto"),
    ],
)
def test_few_labels_with_a_comma_are_classes(values, asked):
    assert (found(values, asked).kind, list(found(values, asked).values)) == ("class", values)


def test_numbers_are_told_by_fractions_and_their_moments_are_those_of_the_training_rows(tmp_path):
    path = prices(tmp_path / "p.csv")
    data = load_dataset(f"file(path={str(path)!r}, label=price)")
    assert (data.label_names, data.train.targets) == (("price",), "numbers")
    task = TASKS.build(data.task)
    assert task.mean == pytest.approx(sum(data.train.labels) / len(data.train))
    assert task.deviation == pytest.approx(np.sqrt(((data.train.labels - task.mean) ** 2).mean()))
    assert not task.known
    assert task.labels(data.train).std() == pytest.approx(1, rel=1e-5)
    assert len(data.notes) == 1
    known = load_dataset(f"file(path={str(path)!r}, label=price, mean=500, deviation=80)")
    assert known.task == "regression(mean=500.0, deviation=80.0, known=True)"
    held = sorted({*known.test.labels.tolist()} & {row["price"] for row in rows_of(120)})
    assert len(held) == len(known.test) == 24
    spread = np.bincount(assign_quantile_bins(data.train.labels), minlength=BINS)
    assert spread.max() - spread.min() <= 1


def test_lists_and_columns_of_0_and_1_are_the_same_labels(tmp_path):
    one = load_dataset(f"file:{tagged(tmp_path / 't.jsonl')}")
    table = [{"text": row["text"], **{name: int(name in row["tags"]) for name in LABELS}} for row in rows_of(120)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    other = load_dataset(f"file(path={str(tmp_path / 'c.jsonl')!r}, label={' + '.join(LABELS)!r})")
    assert one.task == other.task == "multi_label"
    assert one.label_names == other.label_names == LABELS
    assert one.train.inputs == other.train.inputs
    assert np.array_equal(one.train.labels, other.train.labels)
    assert one.train.labels.shape == (96, 3)
    assert one.train.take(np.array([3, 1])).labels.tolist() == one.train.labels[[3, 1]].tolist()
    table[4]["wet"] = 2
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    with refuses("FP3067", "line 5 of", "wet", "2"):
        load_dataset(f"file(path={str(tmp_path / 'c.jsonl')!r}, label={' + '.join(LABELS)!r})")


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_columns_of_tables_keep_their_types(suffix, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = rows_of(40)
    names = datasets.Features({"text": datasets.Value("string"), "price": datasets.Value("float32"),
                               "tags": datasets.List(datasets.ClassLabel(names=list(LABELS)))})  # fmt: skip
    numbered = [{**row, "tags": [LABELS.index(tag) for tag in row["tags"]]} for row in rows]
    table = datasets.table.InMemoryTable.from_pylist(numbered, schema=names.arrow_schema)
    made = datasets.Dataset(table, datasets.DatasetInfo(features=names), fingerprint="made")
    if suffix == ".parquet":
        made.to_parquet(str(tmp_path / "a.parquet"))
    else:
        import pyarrow as pa

        with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_file(file, table.table.schema) as writer:
            writer.write_table(table.table)
    path = str(tmp_path / f"a{suffix}")
    numbers = load_dataset(f"file(path={path!r}, label=price)")
    assert numbers.train.targets == "numbers"
    labels = load_dataset(f"file(path={path!r}, label=tags)")
    assert (labels.task, labels.label_names) == ("multi_label", LABELS)


@pytest.mark.parametrize(
    ("rows", "more", "words"),
    [
        ([("a", "0.5"), ("b", "0.5"), ("c", "0.5")], "", ("FP3077", "0.5")),
        ([("a", "0.5"), ("b", "0.7"), ("c", "0.9")], ", mean=1", ("FP3159",)),
        ([("a", "x"), ("b", "y"), ("c", "x")], ", mean=1, deviation=1", ("FP3158",)),
    ],
)
def test_numbers_that_can_t_be_learned_are_one_sentence(rows, more, words, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows * 4))
    with refuses(*words):
        load_dataset(f"file(path={str(path)!r}{more})")


def test_numbers_may_be_small():
    assert compute_moments(np.array([1e-14, 3e-14]), "x") == pytest.approx((2e-14, 1e-14), abs=0)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([f"{i}.5 m" for i in range(40)], "taken as classes, 40 of them in 40 rows; .* label_type=number"),
        ([f"{i}" for i in range(21)] * 3, "taken as classes, 21 different whole numbers; label_type=number"),
        (["wet; loud", "dry"] * 20, "1 of whose 2 names have ';' in them; label_type=labels"),
        (["wet", "dry"] * 20, ""),
    ],
)
def test_classes_that_look_like_something_else_are_said(labels, words, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f'text {i},"{label}"\n' for i, label in enumerate(labels)))
    test = tmp_path / "t.csv"
    test.write_text(f'text,label\nx,"{labels[0]}"\n')
    (*_, said) = ("", *load_dataset(f"file(path={str(path)!r}, test={str(test)!r})").notes)
    assert re.search(words, said) if words else not said
    asked = load_dataset(f"file(path={str(path)!r}, test={str(test)!r}, label_type=class)")
    assert not asked.notes


def test_rows_without_classes_are_spread_iid_by_default(tmp_path):
    """No partition by classes can spread several labels a row, or none; what was looked at before a run is its own."""
    several, prices_too = tagged(tmp_path / "t.jsonl"), prices(tmp_path / "p.csv")
    plain = f"file(path={str(several)!r}, label=None)"
    for dataset in (f"file:{several}", f"sample(of='file:{several}', rows=8)", plain):
        assert SimulatedRows.load(parse_run(RunConfig(dataset=dataset)), 4).spec.config.partition == "iid"
    assert (
        SimulatedRows.load(
            parse_run(RunConfig(dataset=f"file(path={str(prices_too)!r}, label=price)")), 4
        ).spec.config.partition
        == USUAL
    )
    with refuses("FP3089"):
        SimulatedRows.load(parse_run(RunConfig(dataset=f"file:{several}", partition="dirichlet")), 4)


def test_test_rows_have_labels_of_the_training_rows_kind(tmp_path):
    path, other = tagged(tmp_path / "t.jsonl", 40), tmp_path / "o.jsonl"
    other.write_text('{"text": "x", "label": ["wet", "new"]}\n')
    with refuses("FP3076", "1", "occur in the training examples", "new"):
        load_dataset(f"file(path={str(path)!r}, test={str(other)!r})")
    other.write_text('{"text": "x", "label": "wet"}\n')
    with refuses("FP3157", "several labels each"):
        load_dataset(f"file(path={str(path)!r}, test={str(other)!r})")


def test_partitions_of_numbers_go_by_quantiles_and_several_labels_are_refused(tmp_path):
    numbers = load_dataset(f"file(path={str(prices(tmp_path / 'p.csv'))!r}, label=price)").train
    skewed, even = (PARTITIONS.build(f"dirichlet(alpha={alpha})").split(numbers, 4, 0) for alpha in (0.1, 1000))
    skewed.check(len(numbers))
    skew = [split.statistics(numbers.classes).label_distance for split in (skewed, even)]
    assert skew[0] > 2 * skew[1]
    means = [[numbers.labels[split.shard(k)].mean() for k in range(4)] for split in (skewed, even)]
    assert np.ptp(means[0]) > np.ptp(means[1])
    labels = load_dataset(f"file:{tagged(tmp_path / 't.jsonl')}").train
    with refuses("FP3089"):
        PARTITIONS.build("dirichlet").split(labels, 4, 0)
    assert PARTITIONS.build("iid").split(labels, 4, 0).statistics(labels.classes, len(labels)).label_distance is None
    rest, held = split_validation(numbers, 20)
    assert abs(held.labels.mean() - rest.labels.mean()) < 0.3 * numbers.labels.std(), "one of each quantile"
