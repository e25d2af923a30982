"""macOS, which lacks some of Linux's functions, and Windows, where every command ends with one sentence."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from fedpeft.__main__ import COMMANDS
from fedpeft.machine import cores, files, growing_array

LACKING = ("posix_fallocate", "sched_getaffinity", "fdatasync")
"""Functions of `os` that macOS lacks and a run uses elsewhere."""

AS_MACOS = "import os\n" + "".join(f"del os.{name}\n" for name in LACKING)
"""Without these functions from the start of a process, and of those that it starts."""


@pytest.fixture
def macos(monkeypatch):
    for name in LACKING:
        monkeypatch.delattr(os, name)


@pytest.mark.fast
@pytest.mark.parametrize("size", [0, 1, files.ZEROS - 1, files.ZEROS, 3 * files.ZEROS + 5])
def test_a_file_has_room_where_the_system_can_t_reserve_it(size, tmp_path, macos):
    with open(tmp_path / "file", "wb") as file:
        files.reserve(file.fileno(), size)
        files.flush_data(file.fileno())
    assert (tmp_path / "file").stat().st_size == size
    assert not any((tmp_path / "file").read_bytes())
    assert (tmp_path / "file").stat().st_blocks * 512 >= size, "a file that is only lengthened has no room"


@pytest.mark.fast
def test_large_arrays_lie_in_files_there_too(tmp_path, monkeypatch, macos):
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path))
    monkeypatch.setattr(growing_array, "PIECE", 100)
    made = growing_array.create_zeros(1000, np.float32)
    assert isinstance(made, np.memmap)
    made[-1] = 3.0
    assert (made.sum(), len(made)) == (3.0, 1000)


@pytest.mark.fast
def test_cores_are_counted_without_an_affinity(macos):
    assert cores.count_usable_cores() >= 1


def with_site(folder, text):
    """Return the environment of a process that runs `text` before anything else."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(text)
    places = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(places)}


@pytest.mark.medium
def test_a_run_ends_the_same_where_functions_are_lacking(tmp_path):
    command = [
        sys.executable, "-m", "fedpeft.simulate", "--dataset", "tiny", "--tokens", "16", "--clients", "2",
        "--rounds", "1", "--dtype", "fp32", "--workers", "1", "--seed", "3", "--local-work", "steps(2)",
    ]  # fmt: skip
    scores = []
    for name, text in (("linux", ""), ("macos", AS_MACOS)):
        environment = with_site(tmp_path / name, text) | {"FEDPEFT_CACHE": str(tmp_path / f"cache-{name}")}
        output = tmp_path / f"run-{name}"
        done = subprocess.run([*command, "--output", output], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        scores.append((output / "adapter" / "adapter_model.safetensors").read_bytes())
    assert scores[0] == scores[1]


@pytest.mark.medium
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_names_wsl_on_windows(command, tmp_path):
    environment = with_site(tmp_path / "site", "import sys\nsys.platform = 'win32'\n")
    done = subprocess.run(
        [sys.executable, "-m", "fedpeft", *command.split()],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "use it inside WSL" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.medium
def test_the_one_command_and_the_library_name_wsl_on_windows(tmp_path):
    environment = with_site(tmp_path / "site", "import sys\nsys.platform = 'win32'\n")
    script = "from fedpeft.__main__ import main\nmain()"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "use it inside WSL" in done.stderr
    assert "Traceback" not in done.stderr
    library = "from fedpeft import run_simulation"
    done = subprocess.run([sys.executable, "-c", library], env=environment, capture_output=True, text=True)
    assert "ImportError: fedpeft runs on Linux and macOS; on Windows, use it inside WSL" in done.stderr
