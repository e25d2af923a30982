"""Size, error and speed of codecs on adapter updates.

    python -m experiments.codecs                         synthetic updates with the spectrum of real ones
    python -m experiments.codecs --updates updates.pt    real updates, from `python -m experiments.codecs.updates`
    python -m experiments.codecs "topk | sign | rans"    other codecs

Columns:

- bytes of the whole payload per parameter
- ratio of the fp32 size to this size
- order-0 entropy of the symbols in bytes per parameter, which an ideal coder with free tables would reach
- relative error of the update, norm(x - x') / norm(x)
- relative error of its effect on the adapted weights, without and with importance weights
- error of the mean of the decoded updates after sending the same update ten times with error feedback and no gain
- MB of fp32 per second, encoding and decoding, by processor time on one thread
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from experiments import exit_on_error
from fedpeft.communication.bit_allocation import compute_sensitivity
from fedpeft.communication.codec import Codec, parse_codec
from fedpeft.communication.decoding import decode
from fedpeft.communication.entropy import compute_entropy
from fedpeft.communication.error_feedback import ErrorFeedback
from fedpeft.errors import RunError
from fedpeft.machine.memory import keep_freed
from fedpeft.parts.families import PRESETS
from fedpeft.peft.adapter import AdapterShape, Layout, State, TensorSpec

UNIFORM_AND_ADAPTIVE = [
    *("quantize(bits=2) | pack", "quantize(step=1.08) | rans", "adaptive(bits=2.0, per=tensor) | rans"),
    *("adaptive(bits=2.0) | rans", "widths(bits=2.0) | pack", "lowrank(share=1.0) | widths(bits=2.0) | pack"),
    *("sign", "adaptive(bits=1.0) | rans", "widths(bits=1.0) | pack", "topk(fraction=0.15) | sign | rans"),
    *("topk(fraction=0.05) | sign | rans", "lowrank(share=1.0) | adaptive(bits=2.0, rounding=dither) | rans"),
    *("adaptive(bits=0.99) | rans", "lowrank(share=0.5) | adaptive(bits=0.99) | rans"),
    *("adaptive(bits=0.312) | rans", "lowrank(share=0.25) | adaptive(bits=0.312) | rans"),
]


def create_synthetic(modules: int = 12, rank: int = 8, width: int = 384) -> dict[str, State]:
    """Create an update whose singular values decay like real ones (0.30, 0.17, 0.13, ..., measured on MiniLM)."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.tensor([0.30, 0.172, 0.129, 0.11, 0.09, 0.077, 0.067, 0.055])[:rank]
    states: dict[str, State] = {"received": {}, "trained": {}, "delta": {}}
    for i in range(modules):
        for name, shape in ((f"{i}.lora_A.weight", (rank, width)), (f"{i}.lora_B.weight", (width, rank))):
            left = torch.linalg.qr(torch.randn(shape[0], rank, generator=generator)).Q
            right = torch.linalg.qr(torch.randn(shape[1], rank, generator=generator)).Q
            states["received"][name] = torch.randn(shape, generator=generator) * 0.03
            states["delta"][name] = (left * spectrum) @ right.T
            states["trained"][name] = states["received"][name] + states["delta"][name]
    return states


def compute_norm(state: State) -> float:
    """Return the Euclidean norm over all tensors."""
    return math.sqrt(sum(float(t.double().square().sum()) for t in state.values()))


def subtract(a: State, b: State) -> State:
    """Return the difference of two states."""
    return {name: a[name] - b[name] for name in a}


def multiply_factors(state: State) -> State:
    """Return the product B A of each adapted layer."""
    return {n: state[n.replace("lora_A", "lora_B")] @ state[n] for n in state if "lora_A" in n}


def create_layout(state: State) -> Layout:
    """Create the layout of LoRA factors; their alpha has no effect here."""
    specs = (
        TensorSpec(n, tuple(t.shape), "lora_A" if "lora_A" in n else "lora_B", n.split(".lora_")[0])
        for n, t in state.items()
    )
    return Layout(tuple(specs), AdapterShape(next(iter(state.values())).shape[0], 1.0))


def compute_effect_error(update: dict[str, State], back: State) -> float:
    """Return the relative error of the change of B A."""
    received, trained = update["received"], multiply_factors(update["trained"])
    lost = subtract(trained, multiply_factors({name: received[name] + back[name] for name in back}))
    return compute_norm(lost) / compute_norm(subtract(trained, multiply_factors(received)))


def measure_seconds(action: object, times: int = 5) -> float:
    """Return the least processor time of a call."""
    spent = []
    for _ in range(times):
        start = time.process_time()
        action()  # type: ignore[operator]
        spent.append(time.process_time() - start)
    return min(spent)


def measure(codec: Codec, update: dict[str, State]) -> dict[str, float]:
    """Measure one row of the table."""
    delta = update["delta"]
    shapes = {name: tuple(tensor.shape) for name, tensor in delta.items()}
    count = sum(tensor.numel() for tensor in delta.values())
    payload = codec.encode(delta, seed=1)
    back = decode(payload, shapes)
    symbols, _ = codec.create_symbols(delta, seed=1)
    entropy = sum(compute_entropy(np.bincount(s.values)) for s in symbols if len(s.values)) / 8 / count
    weighted = decode(
        codec.encode(delta, seed=1, weights=compute_sensitivity(update["trained"], create_layout(delta))), shapes
    )
    feedback, memory = ErrorFeedback(codec.remove_gain()), None
    total = {name: torch.zeros_like(tensor) for name, tensor in delta.items()}
    for turn in range(10):
        sent, memory = feedback.encode(delta, memory, seed=turn)
        total = {name: total[name] + tensor / 10 for name, tensor in decode(sent, shapes).items()}
    return {
        "bytes_per_parameter": len(payload) / count,
        "ratio": 4 * count / len(payload),
        "entropy": entropy,
        "error": compute_norm(subtract(delta, back)) / compute_norm(delta),
        "effect_error": compute_effect_error(update, back),
        "weighted_effect_error": compute_effect_error(update, weighted),
        "feedback_error": compute_norm(subtract(delta, total)) / compute_norm(delta),
        "encode_mb_s": 4e-6 * count / measure_seconds(lambda: codec.encode(delta, seed=1)),
        "decode_mb_s": 4e-6 * count / measure_seconds(lambda: decode(payload, shapes)),
    }


def measure_all(texts: list[str], updates: dict[str, dict[str, State]]) -> Iterator[dict[str, object]]:
    """Yield all rows of the table."""
    for name, update in updates.items():
        for text in texts:
            yield {"update": name, "codec": text, **measure(parse_codec(text), update)}


FORMATS = {
    "update": "{}",
    "codec": "{}",
    "bytes_per_parameter": "{:.4f}",
    "ratio": "{:.1f}x",
    "entropy": "{:.4f}",
    "error": "{:.3f}",
    "effect_error": "{:.3f}",
    "weighted_effect_error": "{:.3f}",
    "feedback_error": "{:.3f}",
    "encode_mb_s": "{:.0f}",
    "decode_mb_s": "{:.0f}",
}


def format_line(row: dict[str, object]) -> str:
    """Format a row of the table."""
    cells = (
        form.format(str(row[key]).replace("|", "\\|") if form == "{}" else row[key]) for key, form in FORMATS.items()
    )
    return f"| {' | '.join(cells)} |"


def load_updates(file: Path) -> dict[str, dict[str, State]]:
    """Load the updates in a file.

    Raises:
        RunError: the file can't be read.
    """
    try:
        found: dict[str, dict[str, State]] = torch.load(file, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise RunError(f"{file} holds no updates of experiments.codecs.updates: {error}") from None
    return found


def main() -> None:
    """Measure the codecs and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("codecs", nargs="*", help="codecs to measure; default: all presets and some others")
    parser.add_argument(
        "--modules", type=int, default=12, help="modules of the synthetic update, of 6,144 entries each; 12"
    )
    parser.add_argument("--updates", type=Path, help="file written by experiments.codecs.updates")
    parser.add_argument("--output", type=Path, help="file to write rows to, as JSON lines")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed()  # workers and clients do the same
    texts = arguments.codecs or [*PRESETS, *UNIFORM_AND_ADAPTIVE]
    updates = (
        load_updates(arguments.updates) if arguments.updates else {"synthetic": create_synthetic(arguments.modules)}
    )
    print(
        "| update | codec | B/parameter | smaller | entropy | error | on dW | weighted | with EF | MB/s in | MB/s out |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    lines = []
    for row in measure_all(texts, updates):
        lines.append(json.dumps(row))
        print(format_line(row), flush=True)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    with exit_on_error():
        main()
