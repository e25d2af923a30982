"""Every partition part: disjoint, covering, no client empty, seeded; and what makes each of them itself."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.data.partition import Partition, Shards, fill_empty_clients, split
from fedpeft.data.rows import Rows, load_dataset, split_validation
from fedpeft.parts.families import PARTITIONS
from fedpeft.wiring.auto_defaults import resolve_auto
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run
from tests.refusals import refuses


def rows_of(count: int, classes: int = 5, owners: int = 0, seed: int = 0) -> Rows:
    generator = np.random.default_rng(seed)
    # squared: unequal classes, and some with very few rows
    labels = (generator.random(count) ** 2 * classes).astype(np.int64)
    return Rows(
        [f"text {i}" for i in range(count)],
        labels,
        np.array([f"o{i % owners}" for i in range(count)]) if owners else None,
    )


SPECS = ("iid", "dirichlet", "dirichlet(alpha=0.01)", "dirichlet(alpha=1000.0)", "quantity", "quantity(alpha=0.01)")


def test_every_part_is_tried_here() -> None:
    assert {spec.split("(")[0] for spec in SPECS} | {"grouped", "natural", "resample"} == set(PARTITIONS.names)


@settings(max_examples=60, deadline=None)
@given(
    spec=st.sampled_from(SPECS),
    clients=st.integers(1, 60),
    more=st.integers(0, 200),
    classes=st.integers(1, 12),
    seed=st.integers(0, 2**32),
)
def test_disjoint_covering_non_empty_and_seeded(spec: str, clients: int, more: int, classes: int, seed: int) -> None:
    rows = rows_of(clients + more, classes, seed=seed)
    partition = PARTITIONS.build(spec).split(rows, clients, seed)
    assert len(partition) == clients
    assert sorted(np.concatenate([partition.shard(k) for k in range(clients)])) == list(range(len(rows)))
    assert all(len(partition.shard(k)) > 0 for k in range(clients))
    assert partition.indices.dtype == partition.offsets.dtype == np.int64
    partition.check(len(rows))
    again = PARTITIONS.build(spec).split(rows, clients, seed)
    np.testing.assert_array_equal(partition.indices, again.indices)
    np.testing.assert_array_equal(partition.offsets, again.offsets)


@pytest.mark.parametrize("spec", SPECS)
def test_another_seed_gives_another_partition(spec: str) -> None:
    rows = rows_of(300)
    one, two = (PARTITIONS.build(spec).split(rows, 10, seed) for seed in (0, 1))
    assert not np.array_equal(one.indices, two.indices)


@pytest.mark.parametrize("spec", SPECS)
def test_ten_thousand_clients_are_fast(spec: str) -> None:
    rows = rows_of(11_000, 20)
    part = PARTITIONS.build(spec)
    start = time.process_time()
    part.split(rows, 10_000, 0).check(len(rows))
    assert time.process_time() - start < 1.0  # measured: 0.03 s


def test_iid_sizes_differ_by_one_at_most() -> None:
    sizes = PARTITIONS.build("iid").split(rows_of(103), 10, 0).sizes
    assert sizes.min() == 10
    assert sizes.max() == 11


def test_dirichlet_skew_grows_as_alpha_falls_and_has_the_expected_spread() -> None:
    rows = Rows([""] * 20_000, np.arange(20_000) % 10)
    distances = []
    for alpha in (100.0, 1.0, 0.1):
        partition = PARTITIONS.build(f"dirichlet(alpha={alpha})").split(rows, 20, 0)
        distances.append(partition.statistics(rows.labels).label_distance)
    assert distances[0] is not None
    assert distances[0] < 0.05 < 0.2 < distances[1] < distances[2]  # type: ignore[operator]
    # The share of one class that one client gets is Beta(alpha, (clients - 1) alpha): mean 1/K and this variance.
    clients, alpha = 20, 1.0
    counts = []
    for seed in range(40):
        partition = PARTITIONS.build("dirichlet(alpha=1.0)").split(rows, clients, seed)
        counts += [np.bincount(rows.labels[partition.shard(k)], minlength=10) / 2000 for k in range(clients)]
    variance = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    assert np.var(counts) == pytest.approx(variance, rel=0.1)


def test_quantity_skews_sizes_but_not_labels() -> None:
    rows = Rows([""] * 20_000, np.arange(20_000) % 4)
    partition = PARTITIONS.build("quantity(alpha=0.5)").split(rows, 10, 0)
    statistics = partition.statistics(rows.labels)
    assert statistics.rows_max > 5 * statistics.rows_min
    assert statistics.label_distance is not None
    assert statistics.label_distance < 0.1


def test_empty_clients_take_from_the_largest() -> None:
    assignment = np.array([0] * 6 + [1] * 2)
    result = fill_empty_clients(assignment, 5, np.random.default_rng(0))
    assert sorted(np.bincount(result, minlength=5)) == [1, 1, 1, 2, 3]
    assert (result[6:] == 1).all()  # the small client kept its rows
    assert (assignment == [0] * 6 + [1] * 2).all()  # the argument is left alone


@settings(max_examples=30, deadline=None)
@given(owners=st.integers(1, 30), more=st.integers(0, 100), data=st.data())
def test_natural_keeps_owners_whole(owners: int, more: int, data: st.DataObject) -> None:
    rows = rows_of(owners + more, owners=owners)
    assert rows.owners is not None
    clients = data.draw(st.integers(0, owners))
    keep = data.draw(st.sampled_from(["largest", "random"]))
    partition = PARTITIONS.build(f"natural(keep={keep})").split(rows, clients, 3)
    assert len(partition) == (clients or owners)
    partition.check(len(rows), covering=clients in (0, owners))
    for k in range(len(partition)):
        (owner,) = set(rows.owners[partition.shard(k)].tolist())
        assert len(partition.shard(k)) == (rows.owners == owner).sum()
    if keep == "largest":
        left = np.setdiff1d(rows.owners, rows.owners[partition.indices])
        assert all((rows.owners == o).sum() <= partition.sizes.min() for o in left)
    assert partition.statistics(rows.labels).unused_rows == len(rows) - len(partition.indices)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=40), data=st.data())
def test_grouped_clients_have_whole_owners_that_follow_each_other(sizes: list[int], data: st.DataObject) -> None:
    names = np.repeat([f"owner {number:02d}" for number in range(len(sizes))], sizes)
    rows = Rows([""] * len(names), None, data.draw(st.permutations(range(len(names))).map(lambda order: names[order])))
    clients = data.draw(st.integers(1, len(sizes)))
    partition = PARTITIONS.build("grouped").split(rows, clients, 3).check(len(rows))
    assert len(partition) == clients
    groups = [sorted(set(rows.owners[partition.shard(k)].tolist())) for k in range(clients)]
    assert [owner for group in groups for owner in group] == sorted(set(names.tolist()))
    if clients * max(sizes) <= len(rows):
        assert partition.sizes.max() <= len(rows) / clients + max(sizes)


def test_grouped_clients_have_about_as_many_rows_each() -> None:
    rows = Rows([""] * 1000, None, np.array([f"{owner:03d}" for owner in np.arange(1000) // 5]))
    assert set(PARTITIONS.build("grouped").split(rows, 30, 0).sizes.tolist()) == {30, 35}


@pytest.mark.parametrize(
    ("spec", "clients", "rows", "error"),
    [
        ("iid", 11, rows_of(10), ("FP3087", 11, 10, 10)),
        ("dirichlet", 11, rows_of(10), ("FP3087", 11, 10, 10)),
        ("quantity", 0, rows_of(10), ("FP3086", "at least 1", 0)),
        ("dirichlet", 2, Rows(["a", "b"]), ("FP3088", "iid")),
        ("dirichlet", 2, Rows(["a", "b"], None, np.array(["x", "y"])), ("FP3088", "iid", "natural")),
        ("natural", 2, rows_of(10), ("FP3092", "owner=COLUMN")),
        ("natural", 4, rows_of(10, owners=3), ("FP3094", 3, 4, "1 to 3", 0)),
        ("grouped", 2, rows_of(10), ("FP3090", "owner=COLUMN")),
        ("grouped", 4, rows_of(10, owners=3), ("FP3091", 3, 4, "1 to 3")),
        ("grouped", 0, rows_of(10, owners=3), ("FP3091", 3, 0, "1 to 3")),
        ("natural", -1, rows_of(10, owners=3), ("FP3093", "at least 1", "0 for all owners", -1)),
    ],
)
def test_impossible_requests_are_one_sentence(spec: str, clients: int, rows: Rows, error: tuple[str, object]) -> None:
    with refuses(*error):
        PARTITIONS.build(spec).split(rows, clients, 0)


@pytest.mark.parametrize("name", ["office", "tiny_lm", "tiny_pairs", "tiny_seq2seq"])
def test_rows_without_labels_lie_with_their_owners_where_a_run_does_not_say(name: str) -> None:
    assert load_dataset(name).train.labels is None
    text = resolve_auto(parse_run(RunConfig(dataset=name))).config.partition
    assert PARTITIONS.build(text).split(load_dataset(name).train, 0, 0).sizes.min() > 0


def test_the_concentration_needs_no_key() -> None:
    for name in ("dirichlet", "quantity"):
        assert PARTITIONS.build(f"{name}(0.1)") == PARTITIONS.build(f"{name}(alpha=0.1)") != PARTITIONS.build(name)
        with refuses("FP1227", "alpha", "at least"):
            PARTITIONS.build(f"{name}(0)")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dirichlet(alpha=0.0)", ("FP1227", "alpha", "at least 0.001")),
        ("dirichlet(beta=1)", ("FP1225", "no setting 'beta")),
        ("dirichlett", ("FP1231", "did you mean 'dirichlet")),
        ("natural(keep=smallest)", ("FP1227", "one of 'largest', 'random")),
    ],
)
def test_wrong_specs_are_one_sentence(text: str, words: tuple[str, ...]) -> None:
    with refuses(*words):
        PARTITIONS.build(text)


@pytest.mark.parametrize(
    ("indices", "offsets", "words"),
    [
        ([0, 1, 2], [0, 1, 1, 3], ("FP3079", "1")),
        ([0, 1, 1], [0, 1, 2, 3], ("FP3082", "1")),
        ([0, 1, 3], [0, 1, 2, 3], ("FP3081", "2")),
        ([0, 1], [0, 1, 2], ("FP3083", "1", "2")),
        ([0, 1, 2], [0, 1, 2], ("FP3080",)),
    ],
)
def test_check_finds_illegal_partitions(indices: list[int], offsets: list[int], words: tuple[str, ...]) -> None:
    with refuses(*words):
        Partition(np.array(indices), np.array(offsets)).check(3)


class Own:
    """A partition of somebody's own."""

    def __init__(self, made: object) -> None:
        self.made = made

    def split(self, rows: Rows, clients: int, seed: int) -> Shards:
        return self.made  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ([[0, 1], [2]], ("FP3084", "list")),
        (Partition.from_shards([np.arange(3)]), ("FP3085", "1", "2")),
        (Partition.from_shards([np.arange(2), np.arange(1, 3)]), ("FP3082", "1")),
        (Partition.from_shards([np.arange(2), np.arange(2, 4)]), ("FP3081", "2")),
        (Partition.from_shards([np.arange(3), np.arange(0)]), ("FP3079", "1", "1")),
    ],
)
def test_what_another_part_makes_is_checked(made: object, words: tuple[str, ...]) -> None:
    with refuses(*words):
        split(Own(made), rows_of(3), 2, 0)


def test_another_part_may_leave_rows_out() -> None:
    assert len(split(Own(Partition.from_shards([np.arange(1), np.arange(2, 3)])), rows_of(3), 2, 0)) == 2


def test_statistics_of_a_partition_worked_by_hand() -> None:
    labels = np.array([0, 0, 1, 1, 1, 1, 0, 0])
    partition = Partition.from_shards([np.array([1, 0]), np.array([2, 3]), np.array([4, 5, 6, 7])])
    np.testing.assert_array_equal(partition.shard(0), [0, 1])
    statistics = partition.statistics(labels)
    assert (statistics.rows_min, statistics.rows_median, statistics.rows_max) == (2, 2.0, 4)
    assert statistics.label_distance == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert statistics.label_entropy == pytest.approx((0 + 0 + 1) / 3)
    assert "3 clients, examples 2 / 2 / 4" in str(statistics)
    assert partition.statistics(None, rows=10).unused_rows == 2
    assert partition.statistics(None).label_distance is None


@settings(max_examples=40, deadline=None)
@given(count=st.integers(5, 200), classes=st.integers(1, 6), data=st.data())
def test_validation_is_stratified_and_takes_no_class_away(count: int, classes: int, data: st.DataObject) -> None:
    rows = rows_of(count, classes)
    assert rows.labels is not None
    present = np.unique(rows.labels)
    held = data.draw(st.integers(1, max(1, count - len(present))))
    rest, validation = split_validation(rows, held)
    assert len(validation) == held
    assert sorted([*rest.inputs, *validation.inputs]) == sorted(rows.inputs)
    np.testing.assert_array_equal(np.unique(rest.labels), present)  # type: ignore[arg-type]
    for label in present:
        candidates = (rows.labels == label).sum() - 1
        share = held * candidates / (count - len(present))
        assert abs((validation.labels == label).sum() - share) <= 1
    again = split_validation(rows, held)[1]
    assert list(again.inputs) == list(validation.inputs)


def test_validation_that_leaves_nothing_is_one_sentence() -> None:
    with refuses("FP3146", "10", "10"):
        split_validation(rows_of(10), 10)
