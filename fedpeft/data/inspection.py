"""Warnings about a usable dataset, one sentence each, before anything is trained on it."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.partition import Shards
from fedpeft.data.rows import Dataset, Inputs, Rows

FEW = 10
"""Fewest examples of a class that can be learned and evaluated."""

FREQUENT = 0.9
"""Share of one class above which a constant prediction looks like a good result."""


def hash_inputs(inputs: Inputs) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each text, without regard to case and space, or of each image; uint64 (rows,).

    Among ten million rows, two different ones have the same hash in 1 of 370,000 datasets.
    """
    if isinstance(inputs, np.ndarray):
        content = (np.ascontiguousarray(x).tobytes() for x in inputs)
    else:
        content = (" ".join(text.lower().split()).encode("utf-8", "surrogatepass") for text in inputs)
    hashes = (int.from_bytes(hashlib.blake2b(each, digest_size=8).digest(), "little") for each in content)
    return np.fromiter(hashes, np.uint64, len(inputs))


def check_rows(dataset: Dataset) -> list[str]:
    """Return warnings about duplicates within and across splits, and about rare or dominant classes."""
    distinct, index, inverse = np.unique(hash_inputs(dataset.train.inputs), return_index=True, return_inverse=True)
    first, found = index[inverse], list[str]()  # position of each row's first duplicate
    if len(distinct) < len(first):
        found.append(f"{len(first) - len(distinct):,} of {len(first):,} training examples are duplicates")
    for name, rows in (("validation", dataset.validation), ("test", dataset.test)):
        if rows is not None:
            found += _describe_overlap(name, rows, distinct)
    if dataset.train.labels is not None:
        wrong = {"numbers": _check_numbers, "labels": _check_labels}
        found += wrong.get(dataset.train.targets, _check_classes)(dataset, dataset.train.labels, first)
    return found


MEMORY = 0.01
"""Share of test examples that also occur in training, above which a run warns; for R8 it is 0.002."""

HASHED = 100_000
"""Most rows among which a run looks for duplicates; 20,000 rows of 20 Newsgroups take a second."""


def report_test_overlap(dataset: Dataset) -> list[str]:
    """Return warnings about test examples that also occur in training; empty if these are few or rows are too many.

    Only labeled examples are compared; generated texts may begin alike.
    """
    if dataset.train.labels is None or len(dataset.train) + len(dataset.test) > HASHED:
        return []
    return _describe_overlap("test", dataset.test, hash_inputs(dataset.train.inputs), MEMORY)


def _describe_overlap(name: str, rows: Rows, trained: NDArray[np.uint64], share: float = 0.0) -> list[str]:
    """Return a warning if more than `share` of the rows have a hash in `trained`."""
    shared = int(np.isin(hash_inputs(rows.inputs), trained).sum())
    if shared <= share * len(rows):
        return []
    return [
        f"{shared:,} of {len(rows):,} {name} examples also occur in the training examples, so their score "
        "measures memorization; remove them from one of the sets"
    ]


def _check_classes(dataset: Dataset, labels: np.ndarray, first: NDArray[np.int64]) -> list[str]:
    found: list[str] = []
    if contradicting := int((labels != labels[first]).sum()):
        found.append(f"{contradicting:,} training examples have another class than an equal example")
    names, counts = dataset.label_names or (), np.bincount(labels, minlength=dataset.classes)
    few = np.flatnonzero(counts < FEW)
    if len(few):
        shown = ", ".join(f"{names[i]} ({counts[i]})" for i in few[:5])
        found.append(f"{len(few)} of {len(names)} classes have fewer than {FEW} training examples: {shown}")
    if counts.max() > FREQUENT * len(labels):
        share = counts.max() / len(labels)
        found.append(
            f"{share:.0%} of the training examples have the class {names[counts.argmax()]}, so accuracy is hard to "
            "interpret"
        )
    tested = np.bincount(np.asarray(dataset.test.labels), minlength=dataset.classes)
    if len(untested := np.flatnonzero(tested == 0)):
        found.append(f"{len(untested)} of {len(names)} classes have no test examples, e.g. {names[untested[0]]}")
    return found


FAR = 10.0
"""Distance from the mean, in standard deviations, at which a number weighs on the squared error as a hundred others
do.
"""


OUTSIDE = 0.05
"""Share of test examples outside the range of the training examples, above which the sets probably differ."""


def _check_numbers(dataset: Dataset, numbers: np.ndarray, first: NDArray[np.int64]) -> list[str]:
    found: list[str] = []
    deviation = max(float(numbers.std()), np.finfo(float).tiny)
    if apart := int((np.abs(numbers[first] - numbers) > deviation).sum()):
        found.append(f"{apart:,} training examples differ by more than a standard deviation from an equal example")
    if far := int((np.abs(numbers - numbers.mean()) > FAR * deviation).sum()):
        found.append(
            f"{far:,} training examples lie more than {FAR:g} standard deviations from the mean and dominate the "
            "squared error; check them, or predict logarithms"
        )
    low, high = float(numbers.min()), float(numbers.max())
    test = np.asarray(dataset.test.labels)
    if (outside := int(((test < low) | (test > high)).sum())) > OUTSIDE * len(test):
        found.append(f"{outside:,} of {len(test):,} test examples lie outside the training range {low:g} to {high:g}")
    return found


def _check_labels(dataset: Dataset, labels: np.ndarray, first: NDArray[np.int64]) -> list[str]:
    found: list[str] = []
    if contradicting := int((labels != labels[first]).any(1).sum()):
        found.append(f"{contradicting:,} training examples have other labels than an equal example")
    names, counts = dataset.label_names or (), labels.sum(0, dtype=np.int64)
    few = np.flatnonzero(counts < FEW)
    if len(few):
        shown = ", ".join(f"{names[i]} ({counts[i]})" for i in few[:5])
        found.append(f"{len(few)} of {len(names)} labels have fewer than {FEW} training examples: {shown}")
    frequent = np.flatnonzero(counts > FREQUENT * len(labels))
    if len(frequent):
        found.append(f"{len(frequent)} of {len(names)} labels occur in nearly every example, e.g. {names[frequent[0]]}")
    untested = np.flatnonzero(np.asarray(dataset.test.labels).sum(0) == 0)
    if len(untested):
        found.append(f"{len(untested)} of {len(names)} labels have no test examples, e.g. {names[untested[0]]}")
    return found


def check_lengths(lengths: np.ndarray, tokens: int) -> list[str]:
    """Return a warning about rows longer than `tokens`; `lengths` (rows,) are those before truncation."""
    cut = int((lengths > tokens).sum())
    if not cut:
        return []
    need = int(np.ceil(np.percentile(lengths, 95)))
    return [
        f"{cut:,} of {len(lengths):,} examples are longer than {tokens} tokens and would be truncated; --tokens {need} "
        "keeps 95 % whole"
    ]


def check_partition(partition: Shards, rows: Rows) -> list[str]:
    """Return warnings about clients with few examples, or with one class only."""
    found, sizes = list[str](), partition.sizes
    if tiny := int((sizes < FEW).sum()):
        found.append(f"{tiny:,} of {len(sizes):,} clients have fewer than {FEW} examples, the smallest {sizes.min()}")
    if rows.targets == "classes" and rows.labels is not None:
        labels = rows.labels
        single = sum(len(np.unique(labels[partition.shard(k)])) == 1 for k in range(len(partition)))
        if single:
            found.append(f"{single:,} of {len(sizes):,} clients have examples of one class only")
    return found
