"""What fedpeft runs on: the lock covers what pyproject.toml asks for, and the list of packages what is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.unit.test_supply_chain import CORE, ROOT


@pytest.mark.medium
def test_the_list_of_packages_is_that_of_the_environment(tmp_path):
    target = tmp_path / "sbom.cdx.json"
    command = [sys.executable, str(ROOT / ".ci" / "sbom.py"), str(target)]
    subprocess.run(command, check=True, capture_output=True)
    made = json.loads(target.read_text())
    before = target.read_bytes()
    subprocess.run(command, check=True, capture_output=True)
    assert target.read_bytes() == before
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.6")
    assert made["metadata"]["component"]["name"] == "fedpeft"
    found = {c["name"]: c["version"] for c in made["components"]}
    for requirement in map(Requirement, CORE):
        name = canonicalize_name(requirement.name)
        assert found[name] == version(name)
    assert "pytest" not in found, "development tools are not what it runs on"
    references = {c["bom-ref"] for c in [*made["components"], made["metadata"]["component"]]}
    assert {d["ref"] for d in made["dependencies"]} == references
    assert {ref for d in made["dependencies"] for ref in d["dependsOn"]} <= references
    assert len(references) == len(made["components"]) + 1
    assert all(c["purl"].startswith("pkg:pypi/") for c in made["components"])
