"""Both ends of the ranges of dependencies: what the ends are, and what is shown of them."""

from __future__ import annotations

import pytest

from experiments.versions import ends
from experiments.versions.ends import resolved
from fedpeft.errors import RunError


@pytest.mark.medium
def test_ranges_that_contradict_each_other_are_one_sentence(monkeypatch, tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "x"\nversion = "1"\ndependencies = []\n[project.optional-dependencies]\ntest = []\n'
        "serve = ['numpy>=2', 'numpy<1']\n"
    )
    monkeypatch.setattr(ends, "ROOT", tmp_path)
    with pytest.raises(RunError, match="the lowest versions can't be resolved"):
        resolved("lowest", "3.11")
