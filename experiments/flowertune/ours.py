"""fedpeft's side: the same configuration with `fedpeft flowertune`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from experiments.flowertune.loads import count_loads
from experiments.flowertune.settings import Settings

PROJECT = """
[tool.flwr.app.config]
model.name = "{model}"
model.quantization = 0
model.gradient-checkpointing = false
model.lora.peft-lora-r = {rank}
model.lora.peft-lora-alpha = {alpha}
model.lora.target-modules = "q_proj,v_proj"
train.save-every-round = {rounds}
train.learning-rate-max = {learning_rate}
train.learning-rate-min = {least}
train.seq-length = {tokens}
train.training-arguments.per-device-train-batch-size = {batch}
train.training-arguments.max-steps = {steps}
strategy.fraction-train = {fraction}
num-server-rounds = {rounds}

[tool.flwr.app.config.static]
dataset.name = "flwrlabs/alpaca-gpt4"
"""


def run(settings: Settings, seed: int, rows: Path, test: Path, folder: Path) -> dict[str, Any]:
    """Run fedpeft, and return its traffic, loads and trained examples; the adapter is in `folder`/peft."""
    from fedpeft.commands.flowertune import main

    project = folder / "project"
    project.mkdir()
    known = vars(settings) | {
        "alpha": 2 * settings.rank,
        "least": settings.learning_rate / 50,
        "fraction": 2 / settings.clients,
    }
    (project / "pyproject.toml").write_text(PROJECT.format(**known), encoding="utf-8")
    words = [str(project), "--data", str(rows), "--test", str(test), "--clients", str(settings.clients)]
    words += ["--codec", settings.codec, "--workers", str(settings.workers), "--seed", str(seed), "--dtype", "bf16"]
    noted = count_loads(folder)
    if main([*words, "--output", str(folder / "run")]) != 0:
        raise RuntimeError("the run has failed")
    loads = noted.read_text(encoding="ascii").split()
    shutil.copytree(folder / "run" / f"peft_{settings.rounds}", folder / "peft")
    traffic = json.loads((folder / "run" / "communication.json").read_text(encoding="utf-8"))
    summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
    return {
        "worker_loads": loads.count("worker"),
        "server_loads": loads.count("server"),
        "traffic": traffic["bytes"],
        "distinct_rows": summary["distinct_rows"],
    }
