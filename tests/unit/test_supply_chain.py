"""What fedpeft runs on: the lock covers what pyproject.toml asks for, and the list of packages what is installed."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fedpeft.models.pretrained.smollm2 import TESTED

ROOT = Path(__file__).parent.parent.parent
LOCK_FILE = ROOT / "requirements.lock"
LOCK = LOCK_FILE.read_text(encoding="utf-8").splitlines() if LOCK_FILE.exists() else ["not made yet"]
LINE = re.compile(r"([a-z0-9.-]+)==([^ ]+) --hash=sha256:[0-9a-f]{64}")
CORE = runpy.run_path(str(ROOT / ".ci" / "lock.py"))["read_dependencies"]()


def locked():
    found = [LINE.fullmatch(line) for line in LOCK[1:]]
    assert all(found), "a line is no name, version and hash"
    return {canonicalize_name(match[1]): match[2] for match in found}


def test_the_lock_covers_the_core_and_says_nothing_of_where_files_were_found():
    assert LOCK[0].startswith("# Made by python .ci/lock.py for ")
    versions = locked()
    assert {"torch", "flwr", "grpcio-health-checking", "prometheus-client"} <= {Requirement(text).name for text in CORE}
    assert len(versions) == len(LOCK) - 1 > len(CORE)
    for requirement in map(Requirement, CORE):
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{name} is not locked: run python .ci/lock.py"
        assert requirement.specifier.contains(versions[name]), f"{name} is locked outside its range: run .ci/lock.py"
    assert not re.search("https?:|://|index|@", "\n".join(LOCK))
    assert all("+" not in found for found in versions.values()), "a local build is found nowhere else"


def report(**download):
    item = {"metadata": {"name": "Some_Thing", "version": "1.0"}, "download_info": {"url": "https://x/y", **download}}
    told = {"sys_platform": "linux", "platform_machine": "x86_64", "python_version": "3.11"}
    return {"environment": told, "install": [item]}


def test_a_lock_is_names_versions_and_hashes_of_pip_s_report():
    format_lock = runpy.run_path(str(ROOT / ".ci" / "lock.py"))["format_lock"]
    head, line = format_lock(report(archive_info={"hashes": {"sha256": "a" * 64}})).splitlines()
    assert "linux x86_64, Python 3.11" in head
    assert line == f"some-thing==1.0 --hash=sha256:{'a' * 64}"
    with pytest.raises(SystemExit, match=r"some-thing 1.0 comes without a SHA-256"):
        format_lock(report())


def test_the_remedy_for_smollm2_names_the_locked_version():
    assert locked()["transformers"] == TESTED
