"""The package's metadata: complete, and what it claims holds."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fedpeft
from tests.hiding import EXTRAS, PROJECT, find_dependencies

ROOT = Path(__file__).parent.parent.parent


def test_the_metadata_is_complete():
    assert {"description", "readme", "license", "authors", "requires-python", "keywords", "classifiers"} <= set(PROJECT)
    assert PROJECT["version"] == fedpeft.__version__
    pythons = {c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)}
    assert pythons == {"3.11", "3.13"}, "those that tests have run on"


def test_the_files_of_the_sdist_exist():
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert [name for name in targets["sdist"]["only-include"] if not (ROOT / name).exists()] == []


def test_a_client_has_none_of_the_packages_of_the_extras():
    client = find_dependencies(PROJECT["dependencies"])
    others = {canonicalize_name(Requirement(text).name) for extra in ("simulate", "server", "ray", "tune", "test")
              for text in EXTRAS[extra]} - {"fedpeft"}  # fmt: skip
    assert {"flwr", "matplotlib", "scikit-learn", "torchmetrics", "grpcio-health-checking"} <= others
    assert client & others == set()


@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - {"dev", "docs"}))
def test_the_extra_dev_has_every_extra_that_tests_use(extra):
    without = {"cloud", "energy", "track", "all"}  # services and cards that no test has
    assert extra in without or find_dependencies(EXTRAS[extra]) <= find_dependencies(EXTRAS["dev"])
