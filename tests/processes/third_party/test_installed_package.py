"""Somebody else's package, built as a wheel and installed: its parts in simulations, studies, on Ray, with clients."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w

from fedpeft.wiring.config import read_toml

PACKAGE = Path(__file__).with_name("rules")
pytestmark = pytest.mark.slow
SETTINGS = ["--dataset", "colours", "--strategy", "half_mean(share=0.25)", "--clients", "2", "--cohort", "all",
            "--rounds", "1", "--local-work", "steps(1)", "--tokens", "32", "--dtype", "fp32", "--head",
            "zero"]  # fmt: skip


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Return the environment of a Python in which the package is installed."""
    folder = tmp_path_factory.mktemp("third-party")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(PACKAGE)]
    subprocess.run(built, check=True, capture_output=True)
    [wheel] = folder.glob("somebodys_parts-2.1-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True,
                   capture_output=True)  # fmt: skip
    paths = os.pathsep.join(filter(None, (str(folder / "site"), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "300"}


def command(module, *words, environment, folder):
    done = subprocess.run([sys.executable, "-m", "fedpeft", module, *words], cwd=folder, env=environment,
                          capture_output=True, text=True, timeout=1200)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("grid", ["cohort", "ray"])
def test_a_simulation_with_two_workers_uses_its_parts(environment, tmp_path, grid):
    if grid == "ray":
        pytest.importorskip("ray", reason="ray is not installed: pip install 'fedpeft[ray]'")
    command("simulate", *SETTINGS, "--workers", "2", "--grid", grid, "--output", "run", environment=environment,
            folder=tmp_path)  # fmt: skip
    [record] = read_toml(tmp_path / "run" / "config.toml")["plugin"]
    assert record == {
        "source": "somebodys-parts", "version": "2.1", "parts": ["datasets.colours", "strategies.half_mean"]
    }  # fmt: skip
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] == 1


def test_a_study_uses_its_parts(environment, tmp_path):
    given = dict(zip((flag[2:].replace("-", "_") for flag in SETTINGS[::2]), SETTINGS[1::2], strict=True))
    base = {name: int(value) if value.isdigit() else value for name, value in given.items() if name != "strategy"}
    study = {"seeds": [0], "base": base, "axes": {"strategy": ["fedit", given["strategy"]]}}
    (tmp_path / "study.toml").write_text(tomli_w.dumps(study))
    command("study", "study.toml", "--jobs", "1", environment=environment, folder=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {line["point"]["strategy"]: line["status"] for line in lines} == {
        "fedit": "finished", "half_mean(share=0.25)": "finished"
    }  # fmt: skip


def test_real_clients_load_it_only_if_their_own_command_names_it(environment, tmp_path):
    for name in ("a", "b"):
        rows = [{"text": f"{colour} thing", "label": colour} for colour in ("red", "green", "blue") * 8]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    log = tmp_path / "serve.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "fedpeft.serve", *SETTINGS, "--listen", address, "--insecure", "--output", "run"],
            cwd=tmp_path, env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    clients = []
    try:
        deadline = time.monotonic() + 600
        while "listen" not in log.read_text():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)

        def joined(name, *more):
            words = ["--server", address, "--insecure", "--name", name, "--data", f"{name}.jsonl", "--state", "state",
                     "--threads", "1"]  # fmt: skip
            return subprocess.Popen(
                [sys.executable, "-m", "fedpeft.join", *words, *more],
                cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip

        clients.append(joined("a"))
        said, _ = clients[0].communicate(timeout=600)
        assert clients[0].returncode == 2
        assert "the installed package somebodys-parts has one: add --plugin somebodys-parts" in said
        clients += [joined(name, "--plugin", "somebodys-parts") for name in ("a", "b")]
        for client in clients[1:]:
            said, _ = client.communicate(timeout=600)
            assert client.returncode == 0, said
        assert server.wait(600) == 0, log.read_text()
    finally:
        for process in (server, *clients):
            process.kill()
            process.wait()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] == 1
