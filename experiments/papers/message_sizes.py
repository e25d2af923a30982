"""Bytes of a whole Llama-3.2-1B as a message, with each codec, next to the sizes that NVFlare's documentation states.

    python -m experiments.papers.message_sizes               # measures the codecs that message_sizes.jsonl lacks
    python -m experiments.papers.message_sizes int8 small    # these codecs only; any text of a codec works
    python -m experiments.papers.message_sizes --small       # a small shape, for a quick try; nothing is recorded

Each number is a sum of lengths of encoded payloads, headers included. The tensors have the model's true names and
shapes, and random values from a normal distribution with a standard deviation of 0.02. A tensor of more than 2^24
numbers travels in parts. One payload of each shape is encoded, and its length counts as often as the shape occurs. That
is exact for codecs without entropy coding. With `rans`, lengths depend on the values, and random tensors of one shape
differ by less than 0.2 %. Memory stays below 2 GB.
"""

from __future__ import annotations

import json
import math
import resource
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from experiments import exit_on_error
from fedpeft.communication.codec import Codec, parse_codec
from fedpeft.machine.memory import keep_freed
from fedpeft.parts.families import PRESETS

RESULTS = Path(__file__).parent / "message_sizes.jsonl"

PART_ROWS = 8192
"""Rows of a tensor that one payload holds at most."""

SIGMA = 0.02
"""Standard deviation of the random values."""

MB = 2**20
"""The unit that NVFlare's table calls MB."""

CODECS = (*PRESETS, "nf4", "quantize(bits=8, block=4096)", "quantize(bits=8)", "quantize(bits=4)")
"""Codecs of the table: all presets, and those without entropy coding that are nearest to NVFlare's."""


@dataclass(frozen=True)
class Shape:
    """Shape of a Llama model.

    Attributes:
        width: hidden size.
        inner: width of the MLP.
        layers: number of layers.
        keys: width of keys and values.
        vocabulary: number of tokens.
    """

    width: int
    inner: int
    layers: int
    keys: int
    vocabulary: int

    def list_tensors(self) -> dict[str, tuple[int, ...]]:
        """Return all tensors' shapes by name, with the output layer apart from the embeddings."""
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.width)}
        for layer in range(self.layers):
            before = f"model.layers.{layer}."
            shapes |= {
                f"{before}self_attn.q_proj.weight": (self.width, self.width),
                f"{before}self_attn.k_proj.weight": (self.keys, self.width),
                f"{before}self_attn.v_proj.weight": (self.keys, self.width),
                f"{before}self_attn.o_proj.weight": (self.width, self.width),
                f"{before}mlp.gate_proj.weight": (self.inner, self.width),
                f"{before}mlp.up_proj.weight": (self.inner, self.width),
                f"{before}mlp.down_proj.weight": (self.width, self.inner),
                f"{before}input_layernorm.weight": (self.width,),
                f"{before}post_attention_layernorm.weight": (self.width,),
            }
        return shapes | {"model.norm.weight": (self.width,), "lm_head.weight": (self.vocabulary, self.width)}


LLAMA_1B = Shape(width=2048, inner=8192, layers=16, keys=512, vocabulary=128_256)
"""Llama-3.2-1B; NVFlare's fp32 size is that of a model whose output layer travels beside the embeddings."""

SMALL = Shape(width=64, inner=256, layers=2, keys=16, vocabulary=500)
"""For tests."""


@dataclass(frozen=True)
class Quoted:
    """A row of NVFlare's table "Message Size under Different Quantization Precisions".

    Attributes:
        precision: as the table names it.
        size, meta: MB of the values, and of the scales and tables beside them.
        share: their sum in percent of fp32.
    """

    precision: str
    size: float
    meta: float
    share: float


QUOTED = (
    Quoted("32-bit (fp32)", 5716.26, 0.00, 100.00),
    Quoted("16-bit (fp16, bf16)", 2858.13, 0.00, 50.00),
    Quoted("8-bit", 1429.06, 1.54, 25.03),
    Quoted("4-bit (fp4, nf4)", 714.53, 89.33, 14.06),
)
"""The whole table, read in the page "Message Quantization" of the documentation of NVIDIA/NVFlare."""

BLOCKS = {"8-bit": (4096, 256), "4-bit (fp4, nf4)": (64, 16)}
"""Numbers per scale in fp32, and entries of a table in fp32 for each tensor: bitsandbytes' blockwise formats."""


def compute_quoted(shape: Shape, row: Quoted) -> tuple[float, float]:
    """Compute what a row of NVFlare's table must state for a shape: MB of the values, and of scales and tables."""
    counts = [math.prod(tensor) for tensor in shape.list_tensors().values()]
    bits = int(row.precision.split("-")[0])
    values = sum(counts) * bits / 8 / MB
    if row.precision not in BLOCKS:
        return values, 0.0
    block, entries = BLOCKS[row.precision]
    return values, 4 * sum(math.ceil(count / block) + entries for count in counts) / MB


def count_payloads(shape: Shape) -> Counter[tuple[int, ...]]:
    """Return how many payloads of each shape a model needs; tensors travel in parts of at most `PART_ROWS` rows."""
    counts: Counter[tuple[int, ...]] = Counter()
    for rows, *others in shape.list_tensors().values():
        size = PART_ROWS if others else rows
        counts[min(size, rows), *others] += max(1, rows // size)
        if rows > size and rows % size:
            counts[rows % size, *others] += 1
    return counts


def encode_random(codec: Codec, size: tuple[int, ...], seed: int = 0) -> int:
    """Return the length of the payload of one random tensor."""
    generator = torch.Generator().manual_seed(seed)
    return len(codec.encode({"weight": torch.empty(size).normal_(0, SIGMA, generator=generator)}, seed=seed))


def measure(shape: Shape, text: str) -> dict[str, Any]:
    """Return the bytes of a model's payloads in a codec.

    Args:
        shape: the model's shape.
        text: a codec.

    Raises:
        ConfigError: the codec is unknown.
    """
    codec, payloads = parse_codec(text), count_payloads(shape)
    return {
        "codec": text,
        "steps": str(codec),
        "parameters": sum(math.prod(size) * times for size, times in payloads.items()),
        "payloads": payloads.total(),
        "bytes": sum(encode_random(codec, size) * times for size, times in payloads.items()),
    }


def format_quoted(shape: Shape) -> str:
    """Return NVFlare's rows next to the numbers computed from the shape, as a Markdown table."""
    lines = ["| NVFlare | MB stated | MB computed | scales stated | computed | of fp32 stated | computed |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    whole = compute_quoted(shape, QUOTED[0])[0]
    for row in QUOTED:
        values, meta = compute_quoted(shape, row)
        lines.append(
            f"| {row.precision} | {row.size:,.2f} | {values:,.2f} | {row.meta:.2f} | {meta:.2f} | "
            f"{row.share:.2f} % | {100 * (values + meta) / whole:.2f} % |"
        )
    return "\n".join(lines)


def format_measured(records: Sequence[dict[str, Any]]) -> str:
    """Return the measured sizes as a Markdown table."""
    lines = ["| codec | steps | MB | of fp32 | bytes |", "|---|---|---:|---:|---:|"]
    for record in records:
        share = 100 * record["bytes"] / (4 * record["parameters"])
        steps = record["steps"].replace("|", "\\|")
        about = "about " if "rans" in steps else ""
        lines.append(
            f"| `{record['codec']}` | `{steps}` | {record['bytes'] / MB:,.2f} | {share:.2f} % | "
            f"{about}{record['bytes']:,} |"
        )
    return "\n".join(lines)


def read_results(path: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the recorded codecs, in the order of `CODECS`."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = {record["codec"]: record for record in map(json.loads, lines)}
    return [records[codec] for codec in CODECS if codec in records]


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    codecs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """codecs; default: those of the table that have no result yet"""
    small: bool = False
    """a small shape, for a quick try; nothing is recorded"""


def main() -> None:
    """Measure, record and print."""
    settings = tyro.cli(Settings, prog="python -m experiments.papers.message_sizes")
    torch.set_num_threads(1)
    keep_freed()
    shape = SMALL if settings.small else LLAMA_1B
    done = [] if settings.small else read_results()
    recorded = {record["codec"] for record in done}
    records = []
    for codec in settings.codecs or [codec for codec in CODECS if codec not in recorded]:
        record = measure(shape, codec)
        records.append(record)
        if not settings.small and codec in CODECS and codec not in recorded:
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
    shown = records if settings.codecs or settings.small else read_results()
    print(f"{format_quoted(shape)}\n\n{format_measured(shown)}")
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9:.2f} GB")


if __name__ == "__main__":
    with exit_on_error():
        main()
