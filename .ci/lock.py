"""python .ci/lock.py: write requirements.lock: clients, simulations and servers, with a hash of every file.

pip resolves the requirements of `pyproject.toml` and reports what it would install; nothing is installed. The hashes
belong to the files for this machine (its system, processor and Python), which the first line of the lock names.

    pip install --require-hashes -r requirements.lock && pip install --no-deps .
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements.lock"
EXTRAS = ("simulate", "server")


def read_dependencies() -> list[str]:
    """Return the requirements of clients, simulations and servers from `pyproject.toml`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [text for extra in EXTRAS for text in project["optional-dependencies"][extra]]
    return [text for text in (*project["dependencies"], *extras) if not text.startswith("fedpeft[")]


def resolve_dependencies(requirements: list[str]) -> dict[str, Any]:
    """Return pip's report of what it would install into an empty environment.

    Raises:
        SystemExit: pip can't resolve the requirements.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report"]
        if subprocess.run([*command, str(report), "--only-binary", ":all:", *requirements]).returncode:
            raise SystemExit("pip can't resolve the dependencies of pyproject.toml; see its output above")
        made: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        return made


def format_lock(report: dict[str, Any]) -> str:
    """Return the lock: names, versions and hashes, without the locations of the files.

    Raises:
        SystemExit: a file has no SHA-256.
    """
    environment = report["environment"]
    head = (
        f"# Made by python .ci/lock.py for {environment['sys_platform']} {environment['platform_machine']}, "
        f"Python {environment['python_version']}; use it with pip install --require-hashes -r requirements.lock"
    )
    lines = []
    for item in report["install"]:
        name, version = item["metadata"]["name"].lower().replace("_", "-"), item["metadata"]["version"]
        sha256 = item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if not sha256:
            raise SystemExit(f"{name} {version} comes without a SHA-256, so it can't be locked")
        lines.append(f"{name}=={version} --hash=sha256:{sha256}")
    return "\n".join([head, *sorted(lines)]) + "\n"


if __name__ == "__main__":
    LOCK.write_text(format_lock(resolve_dependencies(read_dependencies())), encoding="utf-8")
    print(f"{LOCK.name}: made on {platform.platform()}")
