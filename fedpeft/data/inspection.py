"""What is wrong with a data set that can be used: one sentence each, before anything is trained on it."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.partition import Shards
from fedpeft.data.rows import Dataset, Inputs, Rows

FEW = 10
"""Rows of a class below which it can't be learned, nor its accuracy be told."""

FREQUENT = 0.9
"""The share of one class from which on naming it always looks like learning."""


def hash_inputs(inputs: Inputs) -> NDArray[np.uint64]:
    """A hash of each text, without regard to case and space, or of each image; (rows,).

    64 bits: of ten million rows, two that differ have the same one in 1 of 370,000 data sets.
    """
    if isinstance(inputs, np.ndarray):
        content = (np.ascontiguousarray(x).tobytes() for x in inputs)
    else:
        content = (" ".join(text.lower().split()).encode("utf-8", "surrogatepass") for text in inputs)
    hashes = (int.from_bytes(hashlib.blake2b(each, digest_size=8).digest(), "little") for each in content)
    return np.fromiter(hashes, np.uint64, len(inputs))


def check_rows(dataset: Dataset) -> list[str]:
    """Rows that occur twice, within a split and across, classes with few rows or nearly all."""
    distinct, index, inverse = np.unique(hash_inputs(dataset.train.inputs), return_index=True, return_inverse=True)
    first, found = index[inverse], list[str]()  # of each row, the first that says the same
    if len(distinct) < len(first):
        found.append(f"{len(first) - len(distinct):,} of {len(first):,} training rows say what another one says")
    for name, rows in (("validation", dataset.validation), ("test", dataset.test)):
        if rows is not None:
            found += _describe_overlap(name, rows, distinct)
    if dataset.train.labels is not None:
        wrong = {"numbers": _check_numbers, "labels": _check_labels}
        found += wrong.get(dataset.train.targets, _check_classes)(dataset, dataset.train.labels, first)
    return found


MEMORY = 0.01
"""Share of the test rows that training rows say, too, above which a run says so: of R8 it is 0.002."""

HASHED = 100_000
"""Rows up to which a run looks for equal ones, of itself: it takes a second for every 20,000 of 20 Newsgroups."""


def report_test_overlap(dataset: Dataset) -> list[str]:
    """What a run has to say of test rows that it trains on; empty: they are few, or rows are too many to look for them.

    Only where rows are predicted: texts that are answered, or go on, may begin alike.
    """
    if dataset.train.labels is None or len(dataset.train) + len(dataset.test) > HASHED:
        return []
    return _describe_overlap("test", dataset.test, hash_inputs(dataset.train.inputs), MEMORY)


def _describe_overlap(name: str, rows: Rows, trained: NDArray[np.uint64], share: float = 0.0) -> list[str]:
    """A sentence, where more than a share of the rows are among those of training, whose digests are given."""
    shared = int(np.isin(hash_inputs(rows.inputs), trained).sum())
    if shared <= share * len(rows):
        return []
    return [
        f"{shared:,} of {len(rows):,} {name} rows occur in the training rows, too, so that their score tells of "
        "memory; leave them out of one"
    ]


def _check_classes(dataset: Dataset, labels: np.ndarray, first: NDArray[np.int64]) -> list[str]:
    found: list[str] = []
    if contradicting := int((labels != labels[first]).sum()):
        found.append(f"{contradicting:,} training rows have another class than an equal row has")
    names, counts = dataset.label_names or (), np.bincount(labels, minlength=dataset.classes)
    few = np.flatnonzero(counts < FEW)
    if len(few):
        shown = ", ".join(f"{names[i]} ({counts[i]})" for i in few[:5])
        found.append(f"{len(few)} of {len(names)} classes have fewer than {FEW} training rows: {shown}")
    if counts.max() > FREQUENT * len(labels):
        share = counts.max() / len(labels)
        found.append(
            f"{share:.0%} of the training rows are of the class {names[counts.argmax()]}; accuracy says little"
        )
    tested = np.bincount(np.asarray(dataset.test.labels), minlength=dataset.classes)
    if len(untested := np.flatnonzero(tested == 0)):
        found.append(f"{len(untested)} of {len(names)} classes have no test rows, e.g. {names[untested[0]]}")
    return found


FAR = 10.0
"""Standard deviations from the mean beyond which a number pulls on the squared error as a hundred others do."""


OUTSIDE = 0.05
"""The share of test rows beyond all training rows from which on both are not of one kind."""


def _check_numbers(dataset: Dataset, numbers: np.ndarray, first: NDArray[np.int64]) -> list[str]:
    found: list[str] = []
    deviation = max(float(numbers.std()), np.finfo(float).tiny)
    if apart := int((np.abs(numbers[first] - numbers) > deviation).sum()):
        found.append(f"{apart:,} training rows differ by more than a standard deviation from an equal row")
    if far := int((np.abs(numbers - numbers.mean()) > FAR * deviation).sum()):
        found.append(
            f"{far:,} training rows lie more than {FAR:g} standard deviations from the mean, and rule the squared "
            "error; look at them, or take logarithms"
        )
    low, high = float(numbers.min()), float(numbers.max())
    test = np.asarray(dataset.test.labels)
    if (outside := int(((test < low) | (test > high)).sum())) > OUTSIDE * len(test):
        found.append(f"{outside:,} of {len(test):,} test rows lie outside of the training rows' {low:g} to {high:g}")
    return found


def _check_labels(dataset: Dataset, labels: np.ndarray, first: NDArray[np.int64]) -> list[str]:
    found: list[str] = []
    if contradicting := int((labels != labels[first]).any(1).sum()):
        found.append(f"{contradicting:,} training rows have other labels than an equal row has")
    names, counts = dataset.label_names or (), labels.sum(0, dtype=np.int64)
    few = np.flatnonzero(counts < FEW)
    if len(few):
        shown = ", ".join(f"{names[i]} ({counts[i]})" for i in few[:5])
        found.append(f"{len(few)} of {len(names)} labels have fewer than {FEW} training rows: {shown}")
    frequent = np.flatnonzero(counts > FREQUENT * len(labels))
    if len(frequent):
        found.append(f"{len(frequent)} of {len(names)} labels are those of nearly every row, e.g. {names[frequent[0]]}")
    untested = np.flatnonzero(np.asarray(dataset.test.labels).sum(0) == 0)
    if len(untested):
        found.append(f"{len(untested)} of {len(names)} labels have no test rows, e.g. {names[untested[0]]}")
    return found


def check_lengths(lengths: np.ndarray, tokens: int) -> list[str]:
    """Rows that are cut to `tokens`; `lengths` (rows,) are whole."""
    cut = int((lengths > tokens).sum())
    if not cut:
        return []
    need = int(np.ceil(np.percentile(lengths, 95)))
    return [
        f"{cut:,} of {len(lengths):,} rows are longer than {tokens} tokens and would be cut there; --tokens {need} "
        "holds 95 % whole"
    ]


def check_partition(partition: Shards, rows: Rows) -> list[str]:
    """Clients that hold next to nothing, or one class only."""
    found, sizes = list[str](), partition.sizes
    if tiny := int((sizes < FEW).sum()):
        found.append(f"{tiny:,} of {len(sizes):,} clients have fewer than {FEW} rows, the smallest {sizes.min()}")
    if rows.targets == "classes" and rows.labels is not None:
        labels = rows.labels
        single = sum(len(np.unique(labels[partition.shard(k)])) == 1 for k in range(len(partition)))
        if single:
            found.append(f"{single:,} of {len(sizes):,} clients have rows of one class only")
    return found
