"""Finished runs for tests that read them: each worker makes a run once, whoever asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedpeft.simulate import main as simulate
from tests.keys import keys_of


def as_flags(**settings: Any) -> list[str]:
    """Return settings as flags of `simulate`; True stands for a flag without a value."""
    names = {name: f"--{name.replace('_', '-')}" for name in settings}
    return [names[name] if value is True else f"{names[name]}={value}" for name, value in settings.items()]


class FinishedRuns:
    """Makes runs in one folder and keeps them.

    A test that changes a run copies it first: the next test that asks for the run fails if a file has changed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: dict[tuple[str, ...], tuple[Path, dict[Path, tuple[int, int]]]] = {}

    def __call__(self, **settings: Any) -> Path:
        """Return the folder of a finished run with one worker and these settings."""
        words = tuple(as_flags(**{"workers": 1, **settings}))
        if words not in self._made:
            run = self.folder / str(len(self._made)) / "run"
            with keys_of(f"finished run {' '.join(words)}"):
                assert simulate([*words, "--output", str(run)]) == 0
            self._made[words] = run, list_files(run)
        run, files = self._made[words]
        assert list_files(run) == files, f"a test has changed the finished run {' '.join(words)}; let it copy the run"
        return run


def list_files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return the size and the time of the last change of each file in a folder."""
    files = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {path: (found.st_size, found.st_mtime_ns) for path, found in files.items()}
