"""The commands of docs/deploy*.md, the examples under clients/, and the Flower app's run config."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fedpeft.machine.cache import get_cache_directory
from tests.unit.deployment.test_deploy import BLOCKS, ROOT

[TRIED] = [block for block in BLOCKS if block[0].endswith("> rows.csv")]


@pytest.mark.slow
def test_the_walk_through_on_one_machine_works(tmp_path):
    """Its lines as they stand, at a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    lines = [line.replace("8470", port) for line in TRIED]
    for line in lines[:2]:
        subprocess.run(line, shell=True, cwd=tmp_path, check=True, timeout=300)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "FEDPEFT_CACHE": str(get_cache_directory()),
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(shlex.split(line), cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
        for line in lines[2:]
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert (tmp_path / "runs" / "tried" / "adapter" / "adapter_model.safetensors").exists()
    assert all("the federation is finished: the trained model is on the server 127.0.0.1:" in t for t in said[1:])
    assert all("this client's records of it are in " in text for text in said[1:])


@pytest.mark.medium
@pytest.mark.parametrize("file", ["certs/ca.key", "certs/revoked.pem", "edge-1/client.key"])
def test_certificates_are_not_committed(file, tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_bytes((ROOT / ".gitignore").read_bytes())
    assert subprocess.run(["git", "-C", str(tmp_path), "check-ignore", "-q", file]).returncode == 0
