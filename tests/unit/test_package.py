"""The package's metadata: complete, and what it claims holds."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fedpeft
from tests.hiding import EXTRAS, PROJECT, find_dependencies

ROOT = Path(__file__).parent.parent.parent


def test_the_metadata_is_complete():
    assert {"description", "readme", "license", "authors", "requires-python", "keywords", "classifiers"} <= set(PROJECT)
    assert PROJECT["version"] == fedpeft.__version__
    pythons = {c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)}
    assert pythons == {"3.11", "3.13"}, "those that tests have run on"


def test_the_files_of_the_sdist_exist():
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert [name for name in targets["sdist"]["only-include"] if not (ROOT / name).exists()] == []


def test_a_client_has_none_of_the_packages_of_the_extras():
    client = find_dependencies(PROJECT["dependencies"])
    others = {canonicalize_name(Requirement(text).name) for extra in ("simulate", "server", "ray", "tune", "test")
              for text in EXTRAS[extra]} - {"fedpeft"}  # fmt: skip
    assert {"flwr", "matplotlib", "scikit-learn", "torchmetrics", "grpcio-health-checking"} <= others
    assert client & others == set()


def list_imports(file):
    """Return the modules that a file imports while it is loaded."""
    waiting, found = [ast.parse(file.read_text(encoding="utf-8"))], []
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not (
                isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            ):
                waiting.append(node)
    return found


def find_file(module):
    """Return the file of a module of fedpeft; None: the name is not a module."""
    path = ROOT / re.sub(r"^fedpeft/(?=strategies|clients)", "", module.replace(".", "/"))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def test_no_import_of_a_client_leads_to_the_packages_of_the_extras():
    """`tests/processes/deployment/test_light_client.py` shows the same of a client at work."""
    waiting = dict.fromkeys(
        ["fedpeft.join", "fedpeft.deployment.client.joining", "fedpeft.clients.preload"], "a client"
    )
    seen, wrong = {}, {}
    others = {"flwr", "grpc_health", "matplotlib", "sklearn", "starlette", "torchmetrics", "uvicorn"}
    while waiting:
        module, importer = waiting.popitem()
        seen[module] = importer
        if module.partition(".")[0] in others:
            wrong[module] = importer
        if module.startswith("fedpeft") and (file := find_file(module)):
            waiting |= {name: module for name in list_imports(file) if name not in seen}
    assert wrong == {}
    assert {"fedpeft.wiring.setup", "grpc", "torch", "scipy.linalg"} <= set(seen)


@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - {"dev", "docs"}))
def test_the_extra_dev_has_every_extra_that_tests_use(extra):
    without = {"cloud", "energy", "track", "all"}  # services and cards that no test has
    assert extra in without or find_dependencies(EXTRAS[extra]) <= find_dependencies(EXTRAS["dev"])
