"""Results that are committed belong to their studies: none is refused, so that a study's command goes on from them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fedpeft.study.runner import Workplace
from fedpeft.study.study_file import read_study

ROOT = Path(__file__).parents[3]


def with_results() -> list[tuple[Path, str]]:
    """(study file, preset) of each results.jsonl that lies where its command looks for it."""
    found = []
    for path in sorted((ROOT / "experiments").rglob("study.toml")):
        for preset in tomllib.loads(path.read_text(encoding="utf-8")).get("presets", {"": {}}):
            if (read_study(path, preset).folder / "results.jsonl").exists():
                found.append((path, preset))
    return found


@pytest.mark.parametrize(("path", "preset"), with_results(), ids=lambda value: str(value).removeprefix(str(ROOT)))
def test_results_match_their_study(path: Path, preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = read_study(path, preset)
    assert Workplace(study, study.folder).done
