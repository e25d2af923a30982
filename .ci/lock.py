"""python .ci/lock.py: write requirements.lock, the core environment with a hash of every file that pip takes.

pip resolves what `pyproject.toml` asks for and reports what it would install; nothing is installed. The hashes are
those of the files for the machine that this runs on (its system, processor and Python), which the lock's head names.

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


def dependencies() -> list[str]:
    """What the core needs, as `pyproject.toml` says it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return list(project["dependencies"])


def resolved(requirements: list[str]) -> dict[str, Any]:
    """pip's report of what it would install into an empty environment.

    Raises:
        SystemExit: pip can't resolve it.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report"]
        if subprocess.run([*command, str(report), "--only-binary", ":all:", *requirements]).returncode:
            raise SystemExit("pip can't resolve the dependencies of pyproject.toml; what it said stands above")
        made: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        return made


def lock_of(report: dict[str, Any]) -> str:
    """The lock: names, versions and hashes, and no word of where the files were found.

    Raises:
        SystemExit: a file has no SHA-256.
    """
    told = report["environment"]
    head = (
        f"# Made by python .ci/lock.py for {told['sys_platform']} {told['platform_machine']}, "
        f"Python {told['python_version']}; use it with pip install --require-hashes -r requirements.lock"
    )
    lines = []
    for item in report["install"]:
        name, version = item["metadata"]["name"].lower().replace("_", "-"), item["metadata"]["version"]
        sha256 = item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if not sha256:
            raise SystemExit(f"{name} {version} comes without a SHA-256, so that it can't be locked")
        lines.append(f"{name}=={version} --hash=sha256:{sha256}")
    return "\n".join([head, *sorted(lines)]) + "\n"


if __name__ == "__main__":
    LOCK.write_text(lock_of(resolved(dependencies())), encoding="utf-8")
    print(f"{LOCK.name}: made on {platform.platform()}")
