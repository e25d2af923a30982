"""How the golden payloads `v1-*.payload` were made, with what they decode to beside them.

    python tests/golden/make_payloads.py NAME CODEC     for example: lowrank "lowrank | adaptive | rans"

With a NAME that ends in -weighted, tensor i (0, 1, ...) has the weight 2^-i.

A payload in this folder is a promise: every later release decodes it to the same bits. So existing files are never made
anew; this script refuses to.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from fedpeft.communication.codec import parse_codec
from fedpeft.communication.decoding import decode

SHAPES = {"q.lora_A": (4, 48), "q.lora_B": (32, 4), "head.bias": (5,), "head.weight": (5, 16), "scale": ()}


def values(seed: int) -> dict[str, torch.Tensor]:
    """Return a state from integer arithmetic alone, the same on every machine and release."""
    state, start = {}, 1 + 1000003 * seed
    for name, shape in SHAPES.items():
        count = int(np.prod(shape, dtype=int))
        i = np.arange(start, start + count, dtype=np.uint64)
        mixed = (i * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
        state[name] = torch.from_numpy((mixed.astype(np.float32) / 2**23 - 1) * np.float32(0.01)).reshape(shape)
        start += count
    state["head.bias"] = state["head.bias"].bfloat16()
    return state


REFERENCES = {7: values(1)}

if __name__ == "__main__":
    name, text = sys.argv[1:]
    path = Path(__file__).parent / f"v1-{name}.payload"
    if path.exists():
        raise SystemExit(f"{path.name} exists and must stay as it is")
    weights = {n: torch.full(shape, 0.5**i) for i, (n, shape) in enumerate(SHAPES.items())}
    payload = parse_codec(text).encode(
        values(0),
        seed=20261124,
        reference=(7, REFERENCES[7]),
        weights=weights if name.endswith("-weighted") else None,
    )
    path.write_bytes(payload)
    save_file(decode(payload, SHAPES, references=REFERENCES), path.with_suffix(".safetensors"))
