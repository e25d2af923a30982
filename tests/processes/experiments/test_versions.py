"""Both ends of the ranges of dependencies: what the ends are, and what is shown of them."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from experiments.versions import ends
from experiments.versions.ends import resolve_end, select_own_versions
from fedpeft.errors import RunError
from tests.unit.experiments.test_versions import CORE


@pytest.mark.medium
def test_ranges_that_contradict_each_other_are_one_sentence(monkeypatch, tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "x"\nversion = "1"\ndependencies = []\n[project.optional-dependencies]\ntest = []\n'
        "serve = ['numpy>=2', 'numpy<1']\n"
    )
    monkeypatch.setattr(ends, "ROOT", tmp_path)
    with pytest.raises(RunError, match="the lowest versions can't be resolved"):
        resolve_end("lowest", "3.11")


@pytest.mark.long
@pytest.mark.parametrize("end", ["lowest", "newest"])
def test_each_end_is_in_its_range(end):
    """Asks a registry of packages."""
    versions = select_own_versions(resolve_end(end, "3.11"))
    for requirement in map(Requirement, CORE):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)])
