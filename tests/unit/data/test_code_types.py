"""Return types of functions: pinned packages, none of them in both parts, no function twice."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fedpeft.data.cached_rows import hash_rows
from fedpeft.data.datasets import code_types
from fedpeft.data.datasets.code_types import HELD_OUT, PACKAGES, TYPES, drop_duplicates, read_all
from fedpeft.data.python_functions import Function
from fedpeft.data.rows import load_dataset

PERMISSIVE = {"MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause"}


def test_the_list_is_pinned_permissive_and_in_order() -> None:
    names = [package.name for package in PACKAGES]
    assert names == sorted(set(names))
    for package in PACKAGES:
        assert package.license_id in PERMISSIVE
        assert len(package.sha256) == 64
        assert int(package.sha256, 16) > 0
        assert package.asset.file.endswith("-py3-none-any.whl")
    assert [PACKAGES.index(package) % 5 for package in HELD_OUT] == [4] * 8


def function(name: str, text: str, kind: str = "int") -> Function:
    return Function(name, text, kind, fingerprint=text)


def test_the_first_of_those_that_are_alike_counts_in_any_package() -> None:
    seen: set[str] = set()
    first = list(drop_duplicates(iter([function("a", "x"), function("b", "y"), function("c", "x")]), seen))
    second = list(drop_duplicates(iter([function("d", "y"), function("e", "z")]), seen))
    assert [f.name for f in first + second] == ["a", "b", "e"]


def test_rows_of_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        package.name: [function(f"f{i}", f"def f{i}(): pass", TYPES[i % 2]) for i in range(30)]
        for package in PACKAGES[:5]
    }
    found[PACKAGES[0].name] += [function("long", "x" * 2000), function("other", "def g(): pass", "set")]
    monkeypatch.setattr(code_types, "read_all", lambda: found)
    data = load_dataset("code_types(package_rows=20)")
    assert data.train.owners is not None
    assert data.test.owners is not None
    assert Counter(data.train.owners.tolist()) == dict.fromkeys((p.name for p in PACKAGES[:4]), 20)
    assert set(data.test.owners.tolist()) == {PACKAGES[4].name}
    everything = load_dataset("code_types")
    assert len(everything.train) == 4 * 30
    assert len(load_dataset("code_types(characters=3000)").train) == 4 * 30 + 1
    assert list(load_dataset("code_types(package_rows=20)").train.inputs) == list(data.train.inputs)


@pytest.mark.slow
def test_the_packages_themselves() -> None:
    data = load_dataset("code_types")
    assert data.train.owners is not None
    assert data.test.owners is not None
    assert not set(data.train.owners.tolist()) & set(data.test.owners.tolist())
    fingerprints = [function.fingerprint for functions in read_all().values() for function in functions]
    assert len(set(fingerprints)) == len(fingerprints)
    for rows in (data.train, data.test):
        assert rows.labels is not None
        shares = np.bincount(rows.labels, minlength=len(TYPES)) / len(rows)
        assert 0.25 < shares.max() < 0.45  # none
        assert shares.min() > 0.01
        assert not any("->" in text.splitlines()[0] for text in rows.inputs)
    assert hash_rows(data.train).startswith("7a52d2c789eea47c")  # on every machine, and version of Python
    assert hash_rows(data.test).startswith("4b6ec8fa08578ede")
