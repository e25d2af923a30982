"""What a configuration makes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def imported():
    """Return the modules that a server and a client import before they receive settings."""
    code = (
        "import json, sys, fedpeft.deployment.server.serving, fedpeft.join, fedpeft.clients.client; "
        "print(json.dumps(list(sys.modules)))"
    )
    root = Path(__file__).parents[3]
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=300
    )
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.medium
def test_the_production_path_knows_no_hostile_clients(imported):
    """A server and a client import no attack, and nothing of simulations."""
    assert [name for name in imported if "fedpeft" in name and ("attacks" in name or "simulation" in name)] == []


@pytest.mark.medium
def test_whoever_asks_for_help_waits_for_no_library_of_models(imported):
    """They take as long to import as all else."""
    assert not {"transformers.modeling_utils", "peft", "bitsandbytes", "torchmetrics"} & set(imported)
