"""What a configuration makes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedpeft.config import RunConfig
from fedpeft.run.facts import DataFacts
from fedpeft.run.setup import Setup
from fedpeft.run.suited import settled
from fedpeft.simulate import main

FACTS = DataFacts("text", "classification", ("a", "b"), "tiny", clients=3)


@pytest.mark.parametrize(("fast", "dtype"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_settled_where_a_run_is_set_up(monkeypatch, fast, dtype):
    """A description is the same on every machine; what is set up names the precision, and keeps it elsewhere."""
    monkeypatch.setattr("fedpeft.run.suited.accelerators", list)
    monkeypatch.setattr("fedpeft.run.suited.fast_bf16", lambda device: fast)
    assert RunConfig().dtype == "auto"
    assert 'dtype = "auto"' in RunConfig().to_toml()
    assert settled(RunConfig()).dtype == dtype
    assert settled(RunConfig(dtype="fp64")).dtype == "fp64"
    setup = Setup.of(RunConfig(peft="lora(rank=2, layers=1)", head="zero"), FACTS)
    assert setup.config.dtype == dtype
    assert setup.config == settled(RunConfig(peft="lora(rank=2, layers=1)", head="zero", drift=""))


@pytest.mark.parametrize(
    ("dataset", "given", "partition"),
    [
        ("reviews", "auto", "grouped"),
        ("sample(of='reviews(margin=1.0)', rows=500)", "auto", "grouped"),
        ("tiny", "auto", "dirichlet(alpha=0.5)"),
        ("reviews", "iid", "iid"),
    ],
)
def test_a_partition_that_is_not_given_is_the_data_set_s_own(dataset, given, partition):
    assert settled(RunConfig(dataset=dataset, partition=given)).partition == partition


def test_a_run_s_folder_names_precision_and_partition(monkeypatch, tmp_path):
    monkeypatch.setattr("fedpeft.run.suited.fast_bf16", lambda device: False)
    monkeypatch.setattr("fedpeft.run.suited.accelerators", list)
    words = ["--dataset=tiny", "--clients=4", "--cohort=2", "--rounds=1", "--workers=1", "--local-work=steps(1)"]
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    written = (tmp_path / "run" / "config.toml").read_text()
    assert 'dtype = "fp32"' in written
    assert 'partition = "dirichlet(alpha=0.5)"' in written


def test_a_setup_knows_nothing_of_where_clients_are():
    """Its parts, its layout, its start: the same for a simulation, a server and a client."""
    config = RunConfig(dtype="fp32", peft="lora(rank=2, layers=1)", head="zero", seed=3)
    one, other = (Setup.of(config, FACTS) for _ in range(2))
    assert one.layout == other.layout
    assert one.start.keys() == set(one.layout.names)
    assert all((one.start[name] == other.start[name]).all() for name in one.start)
    assert one.clients == 3
    assert len(one.profiles) == 3


@pytest.fixture(scope="module")
def imported():
    """What a server and a client have imported before they are told anything."""
    code = "import json, sys, fedpeft.serve, fedpeft.join, fedpeft.clients.client; print(json.dumps(list(sys.modules)))"
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=300
    )
    return json.loads(run.stdout.splitlines()[-1])


def test_the_production_path_knows_no_hostile_clients(imported):
    """A server and a client import no attack, and nothing of simulations."""
    assert [name for name in imported if "fedpeft" in name and ("attacks" in name or "simulation" in name)] == []


def test_whoever_asks_for_help_waits_for_no_library_of_models(imported):
    """They take as long to import as all else."""
    assert not {"transformers.modeling_utils", "peft", "bitsandbytes", "torchmetrics"} & set(imported)
