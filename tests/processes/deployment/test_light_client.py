"""A client needs no package but the base dependencies: the extras are for servers and simulations."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fedpeft
from fedpeft.machine.startup import COMMAND_EXTRAS
from tests.hiding import EXTRAS, PROJECT, find_dependencies, hide, list_other_modules

CHECKOUT = str(Path(fedpeft.__file__).parent.parent)
pytestmark = pytest.mark.slow


@pytest.fixture
def light(tmp_path_factory):
    """Return the environment of a Python with the base dependencies alone."""
    others = list_other_modules(find_dependencies(PROJECT["dependencies"]))
    assert {"flwr", "sklearn", "matplotlib", "torchmetrics", "uvicorn", "grpc_health", "pytest"} <= others
    assert not {"torch", "transformers", "peft", "grpc", "cryptography", "scipy", "PIL"} & others
    return hide(tmp_path_factory.mktemp("light") / "hiding", others, CHECKOUT)


def run(variables, *words):
    environment = os.environ | {"COLUMNS": "300"} | variables
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment)


def test_what_is_hidden_cannot_be_imported(light):
    done = run(light, "-c", "import importlib.util, torch; assert not importlib.util.find_spec('flwr'); import sklearn")
    assert "No module named 'sklearn'" in done.stderr


@pytest.mark.parametrize(
    "settings",
    [{"codec": "adaptive(bits=0.99) | rans", "strategy": "fedlease", "peft": "expert_lora", "downlink": "fp32"},
     {"privacy": "local_dp(noise_multiplier=1)", "dtype": "fp32", "head": "zero"}],
    ids=["codec", "privacy"],
)  # fmt: skip
def test_a_light_client_takes_part_to_the_end(fleet, light, settings):
    made = fleet(**settings)
    server = made.serve()
    light_client, *clients = made.join("a", variables=light), made.join("b"), made.join("c")
    assert made.end(light_client) == 0, made.logs()
    assert [made.end(p) for p in (server, *clients)] == [0, 0, 0], made.logs()
    assert (made.folder / "run" / "adapter" / "head.safetensors").is_file()
    assert "failed" not in made.log("a")


@pytest.mark.parametrize("command", ["join", "certs", "transcript", "predict", "export", "check", "init", "completion"])
def test_help_needs_no_extra(light, command):
    done = run(light, "-m", "fedpeft", command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"fedpeft {command}" in done.stdout


@pytest.mark.parametrize("command", sorted(COMMAND_EXTRAS))
def test_a_command_that_needs_an_extra_names_it_in_one_sentence(light, command):
    done = run(light, "-m", "fedpeft", command)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {command} needs more packages than a client; install them with: "
        f"pip install 'fedpeft[{COMMAND_EXTRAS[command]}]'"
    ]


SENTENCE = "FP2008 {} needs the package flwr; install it with: pip install 'fedpeft[simulate]'"


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("fedpeft.run_simulation(dataset='tiny', progress=False)", "a simulation"),
        ("fedpeft.run_study('study.toml')", "a study"),
        ("fedpeft.Run(pathlib.Path('run'), fedpeft.RunConfig(), {}).evaluate()", "an evaluation"),
    ],
    ids=["simulation", "study", "evaluation"],
)
def test_from_python_a_missing_extra_is_one_sentence(light, code, what):
    done = run(light, "-c", f"import fedpeft, pathlib; {code}")
    assert done.stderr.splitlines()[-1].endswith(SENTENCE.format(what))


def test_a_clients_own_adapter_names_the_extra_that_it_needs(light, tmp_path):
    done = run(light, "-m", "fedpeft", "export", str(tmp_path), "--client", "1", "--output", str(tmp_path / "own"))
    assert (done.returncode, done.stderr.strip()) == (2, "error: " + SENTENCE.format("a client's own adapter"))


def test_every_extra_is_found_by_a_module_of_its_own():
    from fedpeft.machine.startup import EXTRA_MODULES

    assert {"simulate", "server"} == set(EXTRA_MODULES) == set(COMMAND_EXTRAS.values())
    assert "flwr" in find_dependencies(EXTRAS["simulate"])
    assert "grpcio-health-checking" in find_dependencies(EXTRAS["server"])
