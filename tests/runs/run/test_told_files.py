"""Every file that is left in a run's folder is told of in docs/files.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpeft.deployment.server import federation
from fedpeft.deployment.transcript import announcements
from fedpeft.privacy import engine
from fedpeft.reporting import records, run_folder, task_matrix, user_files
from fedpeft.rounds import ensemble
from fedpeft.simulate import main
from fedpeft.simulation import alone, pooled
from fedpeft.wiring import profiles

TOLD = (Path(__file__).parents[3] / "docs" / "files.md").read_text(encoding="utf-8")
TABLE = TOLD.partition("### Other files")[2]
SMALL = ["--dataset", "tiny", "--clients", "4", "--cohort", "all", "--rounds", "2", "--dtype", "fp32", "--workers", "1",
         "--local-work", "steps(1)"]  # fmt: skip
NAMED = (
    *(run_folder.GIVEN_UP, run_folder.SERVERS_OPTIONS, federation.ROSTER, announcements.FILE, profiles.PROFILES),
    *(records.LINES, records.CONFIDENTIAL, user_files.RECORD, task_matrix.PICTURE, engine.KEY, engine.LEDGER),
    *(ensemble.STATES, pooled.POOLED, alone.FOLDER),
)


def is_told(name: str) -> bool:
    """Whether a file or folder is in the table, or lines of it are described above."""
    return f"`{name}`" in TABLE or f"`{name}/`" in TABLE or f"\n### {name}\n" in TOLD


@pytest.mark.fast
@pytest.mark.parametrize("name", [name for names in NAMED for name in ([names] if isinstance(names, str) else names)])
def test_names_that_the_code_has_for_files_are_told(name):
    assert is_told(name)


@pytest.mark.parametrize(
    "more",
    [
        ["--codec", "ef14 | topk(fraction=0.5)", "--measure",
         "validation(every=1) + pooled + alone(clients=1) + ensemble + disagreement"],
        ["--privacy", "distributed_dp(noise_multiplier=1)"],
        ["--drift", "scaffold", "--optimizer", "sgd(max_norm=0)", "--peft", "full"],
    ],
    ids=["much is measured", "private", "whole models"],
)  # fmt: skip
def test_what_a_run_leaves_is_told(more, tmp_path):
    assert main([*SMALL, *more, "--output", str(tmp_path / "run")]) == 0
    left = {file.name for file in (tmp_path / "run").iterdir()}
    assert {"config.toml", "rounds.jsonl", "checkpoint"} < left
    assert {name for name in left if not is_told(name)} == set()
