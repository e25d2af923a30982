"""How much of a round do encoding and decoding take? Measured inside real rounds of the default run.

    python -m experiments.codecs.share [--rounds 3] [CODEC ...]

Everything runs in this process, with one worker, so each part can be timed directly. Clients decode the model
(`arrival`) and encode their update. The server encodes the model, which includes decoding it again, and decodes
updates. The first round is left out, since it initializes libraries. "Share" is all four parts over the round's time
without evaluation. With more workers, the clients' part shrinks as training does, but the server's part does not.
"Share, a client's own" therefore uses the mean time of a single client, as in a deployment whose clients train at the
same time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from experiments import exit_on_error
from fedpeft.communication.downlink import Arrivals, Downlink
from fedpeft.communication.uplink import Uplink
from fedpeft.machine.terminal import Console
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.records import Records
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig

PARTS: dict[str, tuple[type, str]] = {
    "client, decode": (Arrivals, "of"),
    "client, encode": (Uplink, "encode"),
    "server, encode": (Downlink, "_package"),
    "server, decode": (Uplink, "receive"),
}


@contextmanager
def time_parts(spent: Counter[str]) -> Iterator[None]:
    """Add the seconds spent in each part to `spent` inside the context."""

    def clock(part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **given: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*arguments, **given)
            finally:
                spent[part] += time.perf_counter() - started  # type: ignore[assignment]

        return run

    plain = {part: getattr(owner, name) for part, (owner, name) in PARTS.items()}
    for part, (owner, name) in PARTS.items():
        setattr(owner, name, clock(part, plain[part]))
    try:
        yield
    finally:
        for part, (owner, name) in PARTS.items():
            setattr(owner, name, plain[part])


class Snapshots(Records):
    """Records that also keep the time spent until each line of rounds.jsonl, round 0 first."""

    def __init__(self, folder: Path, spent: Counter[str]) -> None:
        """Open the records of a folder, and hold the running totals."""
        super().__init__(folder)
        self.spent, self.at_round = spent, list[Counter[str]]()

    def append(self, name: str, *entries: dict[str, Any]) -> None:
        """Append JSON lines, and keep the totals after each round."""
        super().append(name, *entries)
        if name == "rounds.jsonl":
            self.at_round.append(Counter(self.spent))


def measure(codec: str, rounds: int) -> dict[str, float]:
    """Return the mean seconds of a round and of its parts, and the number of clients."""
    spent: Counter[str] = Counter()
    config = RunConfig(
        dataset="20newsgroups",
        peft="lora(layers=2)",
        codec=codec,
        rounds=rounds,
        workers=1,
        safeguard="none",
        measure=f"validation(every={rounds}, keep=last)",
    )
    with tempfile.TemporaryDirectory() as folder, time_parts(spent):
        simulation = Simulation(config, Path(folder), ConsoleObserver(Console(quiet=True)))
        records = Snapshots(Path(folder), spent)
        simulation.train(simulation.server(records))
        lines = [line for line in records.read("rounds.jsonl") if line["round"] > 1]
    first, last = records.at_round[1], records.at_round[-1]
    return {
        "round": sum(line["training_seconds"] for line in lines) / len(lines),
        "clients": sum(line["clients"] for line in lines) / len(lines),
        **{part: (last[part] - first[part]) / len(lines) for part in PARTS},
    }


def main() -> None:
    """Measure the codecs and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("codecs", nargs="*", default=["small", "tiny"], help="presets or codecs")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each run, at least 2")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| codec | round, s | {' | '.join(f'{part}, ms' for part in PARTS)} | share | share, a client's own |")
    print("|---|---|" + "---|" * (len(PARTS) + 2))
    for codec in arguments.codecs:
        found = measure(codec, arguments.rounds)
        parts = [found[part] for part in PARTS]
        clients, server = sum(parts[:2]), sum(parts[2:])
        alone = (found["round"] - server) / found["clients"]
        own = (clients / found["clients"] + server) / (alone + server)
        cells = [codec, f"{found['round']:.2f}", *(f"{1e3 * x:.1f}" for x in parts)]
        share = (clients + server) / found["round"]
        print(f"| {' | '.join(cells)} | {100 * share:.2f} % | {100 * own:.2f} % |", flush=True)


if __name__ == "__main__":
    with exit_on_error():
        main()
