"""What the two ends of the ranges in pyproject.toml are, and whether tests pass there.

`uv`, which Flower brings, resolves and installs: `lowest-direct` takes the lowest version that each of our own
requirements allows, and the newest of what these need in turn; `highest` what a new environment gets today.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fedpeft.errors import RunError

ROOT = Path(__file__).parent.parent.parent
ENDS = {"lowest": "lowest-direct", "newest": "highest"}
EXTRAS = ("test", "serve", "quantized", "frames", "tune")
"""Beside the core, what the tests need."""

BESIDE = ("hypothesis", "rouge-score", "seqeval")
"""What only the tests of the checkout need, or there are no wheels of, in its newest version."""

TESTS = (
    *("tests/unit/test_parts.py", "tests/runs/test_simulate.py", "tests/unit/deployment/test_wire.py"),
    *(f"tests/{tier}/test_api.py" for tier in ("unit", "runs")),
    *(f"tests/{tier}/{package}" for package in ("peft", "communication", "models") for tier in ("unit", "runs")),
)
"""Those that meet the libraries: models, adapters, codecs, runs, the wire. The whole suite takes hours for each end."""


@dataclass(frozen=True)
class VersionEnd:
    """What came of one end.

    Attributes:
        end: "lowest" or "newest".
        python: of the environment.
        versions: of our own requirements.
        said: the last line of the tests; empty: they were not run.
    """

    end: str
    python: str
    versions: Mapping[str, str]
    said: str = ""


def list_requirements() -> list[str]:
    """Names of the core's own requirements."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [canonicalize_name(Requirement(text).name) for text in project["dependencies"]]


def resolve_end(end: str, python: str) -> str:
    """The requirements file of one end.

    Raises:
        RunError: there is none: the ranges contradict each other, or there is no uv.
    """
    command = ["pip", "compile", "--quiet", "--no-annotate", "--no-header", "--only-binary", ":all:"]
    command += ["--resolution", ENDS[end], "--python-version", python]
    for extra in EXTRAS:
        command += ["--extra", extra]
    return run_uv([*command, "pyproject.toml"], f"the {end} versions can't be resolved")


def run_uv(words: Sequence[str], failure: str) -> str:
    """What uv says.

    Raises:
        RunError: it fails, or is not there.
    """
    done = subprocess.run([sys.executable, "-m", "uv", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise RunError(f"{failure}: {' '.join(said)[:600] or 'uv says nothing'}")
    return done.stdout


def parse_versions(requirements: str) -> dict[str, str]:
    """Name and version of each line."""
    found = re.findall(r"^([\w.-]+)(?:\[[^\]]*\])?==(\S+)", requirements, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def try_end(end: str, python: str, folder: Path, tests: Sequence[str] = TESTS) -> VersionEnd:
    """Install one end into an environment in `folder`, and run the tests there.

    Raises:
        RunError: it can't be resolved or installed.
    """
    requirements = resolve_end(end, python)
    environment, file = folder / end, folder / f"{end}.txt"
    file.write_text(requirements, encoding="utf-8")
    failure = f"the {end} versions can't be installed"
    run_uv(["venv", "--quiet", "--clear", "--python", python, str(environment)], failure)
    interpreter = environment / "bin" / "python"
    run_uv(["pip", "install", "--quiet", "--python", str(interpreter), "-r", str(file), *BESIDE], failure)
    run_uv(["pip", "install", "--quiet", "--python", str(interpreter), "--no-deps", str(ROOT)], failure)
    done = subprocess.run(
        [interpreter, "-m", "pytest", "-m", "not slow and not long", *tests], cwd=ROOT, capture_output=True, text=True
    )
    return VersionEnd(
        end, python, select_own_versions(requirements), get_last_words(done.stdout, done.stderr, done.returncode)
    )


def get_last_words(stdout: str, stderr: str, code: int) -> str:
    """What pytest says at its end; where it doesn't get as far as a test, an error and what is written beside it."""
    said = [line.strip("= ") for line in stdout.splitlines() if line.strip()]
    if code in (0, 1) and said:
        return said[-1]
    beside = [line.strip() for line in (stderr + "\n" + stdout).splitlines() if line.strip()]
    return f"error: exit code {code}: {' '.join(beside)[-400:]}".strip(": ")


def select_own_versions(requirements: str) -> dict[str, str]:
    """The versions of our own requirements."""
    versions = parse_versions(requirements)
    return {name: versions[name] for name in list_requirements() if name in versions}
