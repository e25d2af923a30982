"""Made-up results, for the tests of tables, figures and pages."""

import json
from pathlib import Path

import numpy as np

from fedpeft.models.calibration import calibrate
from fedpeft.study.results import QUANTILES, Result, ResultsFile, pack
from fedpeft.study.sections import Section
from fedpeft.wiring.config import RunConfig

ROWS = 400


def made_result(
    point: dict[str, str], seed: int, skill: float, megabytes: float, epsilon: float | None = None
) -> Result:
    """Return an artificial run whose accuracy rises to `skill`; equal seeds share the luck of their test examples."""
    generator = np.random.default_rng(seed)
    luck = generator.random(ROWS)
    correct = (luck < skill).astype(np.float64)
    confidence = np.clip(skill + 0.3 * (generator.random(ROWS) - 0.5), 0, 1)
    rounds = []
    for round_number in range(6):
        share = 0 if round_number == 0 else megabytes * 1e6 / 10
        accuracy = skill - 0.3 * 0.5**round_number + 0.005 * generator.standard_normal()
        line = {"round": round_number, "clients": 5, "accuracy": accuracy, "loss": 2 - accuracy, "train_loss": 1.0}
        rounds.append({**line, "uplink_bytes": int(share), "downlink_bytes": int(share), "seconds": 2.0})
    settings = {k: v for k, v in point.items() if k in RunConfig.__dataclass_fields__}
    return Result(
        config={**json.loads(json.dumps(RunConfig().__dict__)), **settings, "seed": seed},
        status="finished",
        seed=seed,
        study="made up",
        preset="",
        point=point,
        summary={
            "metric": "accuracy",
            "accuracy": float(correct.mean()),
            "loss": 1.0 - skill,
            "baseline_accuracy": 0.5,
            "uplink_bytes": int(megabytes * 5e5),
            "downlink_bytes": int(megabytes * 5e5),
            "uplink_bytes_per_parameter": 4.0,
            "seconds": 14.0 + seed,
            "peak_memory_bytes": int(5e8 + 1e6 * seed),
            "epsilon": epsilon,
            "hardware": {"cpu": "a processor", "workers": 1, "system": "a system"},
        },
        rounds=tuple(rounds),
        local_steps=100,
        trained_rows=800,
        correct=pack(correct),
        calibration=calibrate(confidence, correct).to_dict(),
        client_accuracy={
            "clients": 20,
            "quantiles": list(np.linspace(skill - 0.2, skill + 0.1, len(QUANTILES))),
            "worst_tenth": skill - 0.19,
        },
    )


METHODS = {
    "fp32": (0.70, 8.0),
    "bf16": (0.70, 4.0),
    "quantize(bits=4)": (0.66, 1.0),
    "topk(fraction=0.1)": (0.60, 2.0),
}


def made_study(seeds: int = 5, partitions: tuple[str, ...] = ("iid", "dirichlet(alpha=0.3)")) -> list[Result]:
    results = []
    for partition in partitions:
        for codec, (skill, megabytes) in METHODS.items():
            skill -= 0.08 if partition != "iid" else 0
            point = {"codec": codec, "partition": partition}
            results += [made_result(point, seed, skill, megabytes, 8.0 / megabytes) for seed in range(seeds)]
    point = {"codec": "sign", "partition": "iid"}
    failed = Result(config={"codec": "sign"}, status="failed", seed=0, study="made up", point=point, reason="no luck")
    return [*results, failed]


def write_study(folder: Path, results: list[Result]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = ResultsFile(folder / "results.jsonl")
    for result in results:
        file.append(result)
    return folder


def section(results: list[Result]) -> Section:
    return Section("made up", "a question", results, {"codec": "fp32"})
