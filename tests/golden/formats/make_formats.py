"""How the fixtures of the frozen formats were made, by version 0.3.0.

    python tests/golden/formats/make_formats.py FOLDER     FOLDER: for the runs, until they end

    run/, private_run/    run folders that were interrupted after round 1, and in expected.json how they end
    wire/                 each kind of message as `fedpeft.v2` parts, a record of a round, and a server's settings
    plugin.py             a plugin with a strategy, a hook and a measurement

Every later version reads these files. So existing files are never made anew; this script refuses to.
"""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import fedpeft
from fedpeft.communication.messages import Instruction, Report
from fedpeft.deployment.client.shared_settings import format_client_settings
from fedpeft.deployment.transcript.round_record import RoundRecord, TaskRecord
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.deployment.wire.channel import WIRE
from fedpeft.deployment.wire.parcel import split_into_parts
from fedpeft.wiring.config import RunConfig

HERE = Path(__file__).parent
COMMON = {
    "dataset": "tiny", "clients": 3, "cohort": "all", "rounds": 3, "tokens": 16, "dtype": "fp64", "workers": 1,
    "local_work": "steps(count=2)", "measure": "validation(every=1, keep=last)", "peft": "lora(rank=2, layers=1)",
    "seed": 3,
}  # fmt: skip
RUNS = {
    "run": {"codec": "ef14 | adaptive(bits=2.0) | rans", "drift": "scaffold", "server_optimizer": "momentum",
            "optimizer": "sgd"},
    "private_run": {"privacy": "user_dp(noise_multiplier=0.5, clip=0.1)", "optimizer": "sgd"},
}  # fmt: skip
"""Settings of the interrupted runs, over `COMMON`: states of clients and of the server; a ledger and its key."""

KEYS = ("accuracy", "loss", "kept_round", "uplink_bytes", "downlink_bytes", "epsilon")
"""Keys of summary.json that are compared."""

LEFT_OUT = (".lock", "rounds.svg", "*-journal")
"""Files of a run that no later version needs."""

MESSAGES: dict[str, Instruction | Report] = {
    "prepare": Instruction("prepare", 0, 2, b"start"),
    "train": Instruction(
        "train", 3, 2, bytes(range(48)), 0.002, rank=4, alpha=16.0, trained=(0, 2), acknowledged=2, private=(1,),
        steps=5, base=1, correction=b"variates", bits=2.5, base_precision="nf4", adapter_precision="bf16",
        residual=b"residual", told=b"told", attempt=1,
    ),
    "evaluate": Instruction("evaluate", 3, 2, b"state", acknowledged=3, asks="calibration"),
    "sum": Instruction("sum", 3, 2, b"", step=2, said=b"keys"),
    "report": Report(
        2, 3, bytes(range(48)), 117, 30, 0.6931, 1.25, correction=b"variates", charged=4, used=117, joules=12.5
    ),
    "evaluation": Report(2, 3, b"", 13, loss=0.4, seconds=0.25, correct=9.0, count=13.0),
    "failure": Report(2, 3, b"", error="FP7004 the budget of this client allows no further release", spent=True),
}  # fmt: skip
"""A message of each kind; each field of both classes has a value in one of them, but for those that do not travel."""

RECORD = RoundRecord(
    "golden", 0, "", "train", 1, 3, "a" * 64, {"4 16.0": "b" * 64}, "c" * 64, "", 1_796_083_200, asks=""
)
STATEMENT = TaskRecord(
    "golden", "edge-1", "d" * 64, "e" * 64, 1_796_083_200,
    {"acknowledged": 0, "adapter_precision": "fp32", "alpha": 16.0, "attempt": 0, "base_precision": "", "bits": 0.0,
     "client": 2, "rank": 4, "steps": 0},
)  # fmt: skip
REGISTRATION = v2.Registration(
    run="golden", rows=117, rank=4, precision="bf16", hardware="a processor",
    terms=v2.PrivacyTerms(noise=1.5, rate=0.1, releases=30, dp_delta=0.001, epsilon=8.0, start=2.0), records=2,
)  # fmt: skip
DESCRIPTION = v2.Description(
    run="golden", software="0.3.0", config=format_client_settings(RunConfig(clients=3, model="tiny", peft="lora")),
    labels=["bad", "good"], task="classification", text_column="text", label_column="label", tokenizer_hash="f" * 64,
    weights_hash="0" * 64, tokens=128, held_out=0.2,
)  # fmt: skip
INTRODUCTION = v2.Introduction(software="0.3.0", wire=WIRE)


def encode_parts(content: Instruction | Report) -> bytes:
    """Return the parts of a message, each after its length in four bytes."""
    parts = [part.SerializeToString(deterministic=True) for part in split_into_parts("round 3", content)]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def decode_parts(content: bytes) -> list[v2.Part]:
    """Return the parts that `encode_parts` has written."""
    parts = []
    while content:
        size = int.from_bytes(content[:4], "big")
        parts.append(v2.Part.FromString(content[4 : 4 + size]))
        content = content[4 + size :]
    return parts


def make_wire(folder: Path) -> None:
    """Write a file for each message."""
    folder.mkdir()
    for name, content in MESSAGES.items():
        (folder / f"{name}.parts").write_bytes(encode_parts(content))
    for name, message in {
        "registration": REGISTRATION,
        "description": DESCRIPTION,
        "introduction": INTRODUCTION,
    }.items():
        (folder / f"{name}.bin").write_bytes(message.SerializeToString(deterministic=True))
    (folder / "record.json").write_bytes(RECORD.to_bytes())
    (folder / "statement.json").write_bytes(STATEMENT.to_bytes())


class InterruptError(Exception):
    """The end of a run after its first round."""


def interrupt(_: object) -> None:
    """End the run."""
    raise InterruptError


def make_run(name: str, work: Path) -> dict[str, object]:
    """Write the folder of an interrupted run, and return how it ends."""
    settings = COMMON | RUNS[name] | {"progress": False}
    with suppress(InterruptError):
        fedpeft.run_simulation(**settings, output=work / name, on_round=interrupt)
    shutil.copytree(work / name, HERE / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
    summary = fedpeft.run_simulation(resume=work / name, progress=False).summary
    return {key: summary[key] for key in KEYS}


if __name__ == "__main__":
    if (HERE / "wire").exists():
        raise SystemExit("the fixtures exist and must stay as they are")
    make_wire(HERE / "wire")
    work = Path(sys.argv[1])
    ends = {name: make_run(name, work) for name in RUNS}
    (HERE / "expected.json").write_text(json.dumps(ends, indent=1) + "\n", encoding="utf-8")
