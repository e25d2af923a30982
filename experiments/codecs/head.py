"""How coarsely may clients send the statistics for the ridge head? Bytes against the head's accuracy, no training.

    python -m experiments.codecs.head [--seeds 3]

Uses the frozen features of the default run (20 Newsgroups, 100 clients), computed once and cached; each seed has its
own partition. Each row sends every client's statistics through a codec, sums the decoded statistics and solves the
head. The head is scored on the 1,000 validation examples: accuracy, cross-entropy, and the number of examples with the
same prediction as the exact head. Values are means over the seeds; bytes are those of the real payloads.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from experiments import exit_on_error
from fedpeft.aggregation.head_start import convert_to_summands
from fedpeft.aggregation.heads.ridge import Ridge
from fedpeft.aggregation.update import Fold
from fedpeft.communication.codec import parse_codec
from fedpeft.communication.decoding import decode
from fedpeft.machine.terminal import Console
from fedpeft.peft.adapter import State
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig

MOMENTS = ("fp32", "bf16", "quantize(bits=8, rounding=dither) | rans", "quantize(bits=6, rounding=dither) | rans")
FACTORS = (
    "quantize(bits=6, rounding=dither) | rans",
    *(f"adaptive(bits={bits}, per=row) | rans" for bits in (3.0, 2.0, 1.5, 1.0, 0.7, 0.5)),
    "adaptive(bits=2.0, per=row, rounding=dither) | rans",
    "adaptive(bits=2.0) | rans",
)


@dataclass(frozen=True)
class Federation:
    """Frozen features (examples, width), labels (examples,), the clients' shards, and the validation examples."""

    features: Tensor
    labels: Tensor
    shards: Sequence[np.ndarray]
    validation: np.ndarray
    classes: int


def load_federation(seed: int) -> Federation:
    """Load 20 Newsgroups with the default settings."""
    with tempfile.TemporaryDirectory() as folder:
        simulation = Simulation(
            RunConfig(dataset="20newsgroups", seed=seed), Path(folder), ConsoleObserver(Console(quiet=True))
        )
        work = simulation.workers.work
        simulation.workers.freeze(work.data_key, work.depth, "frozen features")
        labels = simulation.rows.all.labels
        assert labels is not None
        features = work.store(work.data_key, work.depth).read_features(np.arange(len(labels)))
        shards = [simulation.rows.partition.shard(k) for k in range(simulation.clients)]
        simulation.close()
    return Federation(features, torch.from_numpy(labels).long(), shards, simulation.rows.validation, work.classes)


def compute_statistics(data: Federation, head: Ridge) -> list[State]:
    """Return each client's statistics before encoding."""
    return [head.statistics(data.features[rows], data.labels[rows], data.classes) for rows in data.shards]


def solve_head(
    data: Federation, head: Ridge, made: Sequence[State], text: str, share: float = 1.0
) -> tuple[int, Tensor]:
    """Return the bytes sent and the logits (examples, classes) of the validation examples.

    Only the first `share` of the clients send.
    """
    codec, width = parse_codec(text), data.features.shape[1]
    total, size = Fold(), 0
    for client, sent in enumerate(made[: round(share * len(made))]):
        payload = codec.encode(sent, seed=client, weights=head.importance(sent))
        size += len(payload)
        arrived = decode(payload, head.shapes(width, data.classes, len(data.shards[client])))
        total.add(convert_to_summands(head, arrived), 1.0)
    found = head.solve(total.sums, width, data.classes)
    x = data.features[data.validation].double()
    return size, x @ found["head.weight"].T.double() + found["head.bias"].double()


def measure_all(data: Federation) -> Iterator[tuple[str, str, tuple[float, ...]]]:
    """Yield what is sent, the codec, and megabytes, accuracy, cross-entropy and agreement."""
    labels = data.labels[data.validation]
    moments, factor = Ridge(), Ridge(send="factor")
    rows = [(moments, "moments", text, 1.0) for text in MOMENTS]
    rows += [(factor, "factor", text, 1.0) for text in FACTORS]
    rows += [(factor, f"factor, {share:.0%} of the clients", Ridge().codec(""), share) for share in (0.5, 0.25)]
    made = {head.send: compute_statistics(data, head) for head in (moments, factor)}
    exact: Tensor | None = None
    for head, name, text, share in rows:
        size, logits = solve_head(data, head, made[head.send], text, share)
        predicted = logits.argmax(1)
        exact = predicted if exact is None else exact
        accuracy, agreement = ((predicted == other).double().mean() for other in (labels, exact))
        yield (
            name,
            text,
            (size / 1e6, float(accuracy), float(functional.cross_entropy(logits, labels)), float(agreement)),
        )


def main() -> None:
    """Measure the codecs and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, each with its own partition")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for seed in range(arguments.seeds):
        for name, text, numbers in measure_all(load_federation(seed)):
            found.setdefault((name, text), []).append(numbers)
    print("| sent | codec | MB | accuracy | cross-entropy | agreement |\n|---|---|---|---|---|---|")
    for (name, text), rows in found.items():
        size, accuracy, loss, agreement = np.mean(rows, axis=0)
        escaped = text.replace("|", "\\|")
        print(f"| {name} | {escaped} | {size:.2f} | {accuracy:.4f} | {loss:.4f} | {agreement:.3f} |")


if __name__ == "__main__":
    with exit_on_error():
        main()
