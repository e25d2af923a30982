"""The two ends of the version ranges in pyproject.toml, and the tests at each end.

`uv`, which Flower installs, resolves and installs. `lowest-direct` takes the lowest allowed version of each direct
requirement, and the newest of their own requirements. `highest` takes what a new environment gets today.
"""

from __future__ import annotations

import re
import site
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
EXTRAS = ("server", "test", "serve", "quantized", "frames", "tune")
"""Extras that the tests need beside the core."""

BESIDE = ("hypothesis", "rouge-score", "seqeval")
"""Packages in their newest version: only the checkout's tests need them, or they have no wheels."""

TESTS = (
    *("tests/unit/test_parts.py", "tests/runs/test_simulate.py", "tests/unit/deployment/test_wire.py"),
    *(f"tests/{tier}/test_api.py" for tier in ("unit", "runs")),
    *(f"tests/{tier}/{package}" for package in ("peft", "communication", "models") for tier in ("unit", "runs")),
)
"""Tests that use the libraries: models, adapters, codecs, runs, the wire. The whole suite takes hours for each end."""


@dataclass(frozen=True)
class VersionEnd:
    """The result of one end.

    Attributes:
        end: "lowest", "newest" or "pinned".
        python: Python version of the environment.
        versions: versions of the direct requirements.
        said: the last line of the tests; empty if they did not run.
    """

    end: str
    python: str
    versions: Mapping[str, str]
    said: str = ""


def list_requirements() -> list[str]:
    """Return the names of the direct requirements of clients, simulations and servers."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *extras["simulate"], *extras["server"]]
    names = dict.fromkeys(canonicalize_name(Requirement(text).name) for text in texts)
    return [name for name in names if name != project["name"]]


def resolve_end(end: str, python: str) -> str:
    """Return the text of one end's requirements file.

    Raises:
        RunError: the ranges contradict each other, or uv is missing.
    """
    command = ["pip", "compile", "--quiet", "--no-annotate", "--no-header", "--only-binary", ":all:"]
    command += ["--resolution", ENDS[end], "--python-version", python]
    for extra in EXTRAS:
        command += ["--extra", extra]
    return run_uv([*command, "pyproject.toml"], f"the {end} versions can't be resolved")


def run_uv(words: Sequence[str], failure: str) -> str:
    """Run uv and return its output.

    Raises:
        RunError: uv fails or is missing.
    """
    done = subprocess.run([sys.executable, "-m", "uv", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise RunError(f"{failure}: {' '.join(said)[:600] or 'uv says nothing'}")
    return done.stdout


def parse_versions(requirements: str) -> dict[str, str]:
    """Return the versions in a requirements file, by name."""
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
    return VersionEnd(end, python, select_own_versions(requirements), run_tests(interpreter, tests))


def try_pins(pins: Sequence[str], folder: Path, tests: Sequence[str] = TESTS) -> VersionEnd:
    """Install single packages over this environment, such as `peft==0.19.0`, and run the tests there.

    All other packages are those of this environment, unless the pinned ones need other versions.

    Raises:
        RunError: they can't be installed.
    """
    environment = folder / "pinned"
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
    interpreter = environment / "bin" / "python"
    python = "{}.{}".format(*sys.version_info)
    here = environment / "lib" / f"python{python}" / "site-packages"
    (here / "beneath.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")
    command = [interpreter, "-m", "pip", "install", "--quiet", "--no-compile", *pins]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"{' '.join(pins)} can't be installed: {' '.join(done.stderr.split())[:600]}")
    versions = {name: version for name, _, version in (pin.partition("==") for pin in pins)}
    return VersionEnd("pinned", python, versions, run_tests(interpreter, tests))


def run_tests(interpreter: Path, tests: Sequence[str]) -> str:
    """Run tests with an environment's Python, and return their last line."""
    command = [interpreter, "-m", "pytest", "-m", "not slow and not long", *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return get_last_words(done.stdout, done.stderr, done.returncode)


def get_last_words(stdout: str, stderr: str, code: int) -> str:
    """Return pytest's last line; if it ran no test, an error with its output."""
    said = [line.strip("= ") for line in stdout.splitlines() if line.strip()]
    if code in (0, 1) and said:
        return said[-1]
    beside = [line.strip() for line in (stderr + "\n" + stdout).splitlines() if line.strip()]
    return f"error: exit code {code}: {' '.join(beside)[-400:]}".strip(": ")


def select_own_versions(requirements: str) -> dict[str, str]:
    """Return the versions of the direct requirements."""
    versions = parse_versions(requirements)
    return {name: versions[name] for name in list_requirements() if name in versions}
