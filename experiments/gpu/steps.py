"""All steps of the GPU measurements, the most informative first."""

from __future__ import annotations

import importlib.util
from functools import partial

from experiments.gpu import federations, measures
from experiments.gpu.kit import Kit, Step
from experiments.gpu.shapes import LLAMA_1B, LLAMA_7B, MINILM, SMOLLM2, Shape
from experiments.gpu.training import BATCHED, SEQUENTIAL
from fedpeft.machine.hardware import get_free_memory

PARITY, BITS = "Parity with the CPU", "Determinism and resuming"
ROUND, PLAINLY, CURVE = "A training round", "Against a plain loop", "Ratio over tokens of a client's step"
TOGETHER, REAL, RAY, CLIENTS = "Clients in a pass", "Real rows", "Ray", "Real clients"

ROUNDS: tuple[tuple[Shape, str, str, int, int, int, int, float], ...] = (
    (MINILM, "bf16", BATCHED, 10, 8, 4, 128, 0),
    (MINILM, "bf16", SEQUENTIAL, 10, 8, 4, 128, 0),
    (SMOLLM2, "bf16", BATCHED, 8, 4, 4, 256, 0),
    (SMOLLM2, "bf16", SEQUENTIAL, 8, 4, 4, 256, 0),
    (LLAMA_1B, "bf16", BATCHED, 4, 2, 4, 512, 10),
    (LLAMA_1B, "bf16", SEQUENTIAL, 4, 2, 4, 512, 8),
    (LLAMA_7B, "nf4", SEQUENTIAL, 2, 2, 4, 512, 14),
    (LLAMA_7B, "nf4", BATCHED, 2, 2, 4, 512, 18),
    (LLAMA_7B, "bf16", SEQUENTIAL, 2, 2, 4, 512, 24),
    (LLAMA_7B, "bf16", BATCHED, 2, 2, 4, 512, 30),
)
"""Model, base, executor, clients, their steps, batch, tokens, and the least memory in GB."""


def list_steps() -> list[Step]:
    """Return all steps in order."""
    return [
        *_list_parity_steps(),
        *_list_bit_steps(),
        *_list_round_steps(),
        *_list_plain_steps(),
        *_list_curve_steps(),
        *_list_together_steps(),
        *_list_federation_steps(),
    ]


def _list_parity_steps() -> list[Step]:
    return [
        Step(
            f"parity {shape.name} {precision}",
            PARITY,
            90,
            partial(measures.measure_parity, shape=shape, precision=precision),
            needs=("bitsandbytes",) if precision == "nf4" else (),
        )
        for shape in (MINILM, SMOLLM2)
        for precision in ("fp32", "bf16", "int8", "nf4")
    ]


def _list_bit_steps() -> list[Step]:
    cases = ((MINILM, "bf16", BATCHED), (SMOLLM2, "bf16", BATCHED), (SMOLLM2, "nf4", SEQUENTIAL))
    twice = [
        Step(
            f"twice {shape.name} {precision} {way}",
            BITS,
            60,
            partial(measures.measure_determinism, shape=shape, precision=precision, name=way),
            needs=("bitsandbytes",) if precision == "nf4" else (),
        )
        for shape, precision, way in cases
    ]
    return [*twice, Step("resume", BITS, 150, federations.resume)]


def _list_round_steps() -> list[Step]:
    return [
        Step(
            f"round {shape.name} {precision} {way}",
            ROUND,
            90,
            partial(
                measures.measure_round_cost,
                shape=shape,
                precision=precision,
                name=way,
                clients=clients,
                steps=steps,
                batch=batch,
                tokens=tokens,
            ),
            needs=("bitsandbytes",) if precision == "nf4" else (),
            gigabytes=gigabytes,
        )
        for shape, precision, way, clients, steps, batch, tokens, gigabytes in ROUNDS
    ]


def _list_plain_steps() -> list[Step]:
    cases = [(MINILM, precision, batch) for precision in ("fp32", "bf16") for batch in (1, 4, 16)]
    return [
        Step(
            f"plain {shape.name} {precision} {batch}",
            PLAINLY,
            90,
            partial(measures.compare_with_plain, shape=shape, precision=precision, batch=batch, tokens=128),
        )
        for shape, precision, batch in [*cases, (SMOLLM2, "bf16", 1), (SMOLLM2, "bf16", 4)]
    ]


def _list_curve_steps() -> list[Step]:
    return [
        Step(f"curve {shape.name} {tokens}", CURVE, 60, partial(measures.measure_ratio, shape=shape, per_step=tokens))
        for shape, most in ((MINILM, 16_384), (SMOLLM2, 4_096))
        for tokens in (2**power for power in range(5, most.bit_length()))
    ]


def _list_together_steps() -> list[Step]:
    return [
        Step(
            f"together {shape.name} {count}",
            TOGETHER,
            60,
            partial(measures.measure_together, shape=shape, clients=count),
        )
        for shape, most in ((MINILM, 128), (SMOLLM2, 32))
        for count in (2**power for power in range(most.bit_length()))
    ]


def _list_federation_steps() -> list[Step]:
    return [
        Step("accuracy", REAL, 180, federations.measure_accuracy, assets=True),
        Step("ray", RAY, 150, federations.measure_ray, needs=("ray",)),
        Step("real clients nf4", CLIENTS, 240, federations.run_real_clients, needs=("bitsandbytes",)),
    ]


def explain_omission(step: Step, kit: Kit) -> str:
    """Return the reason why a step can't run here; empty if it can."""
    if step.assets and kit.assets is None:
        return "needs real weights and rows: --assets FOLDER, which --collect fills"
    missing = [name for name in step.needs if importlib.util.find_spec(name) is None]
    if missing:
        return f"needs the package {missing[0]}"
    free = get_free_memory(kit.device) / 1e9
    if free < step.gigabytes and not kit.tiny:
        return f"needs {step.gigabytes:g} GB on {kit.device}, which has {free:.1f} free"
    return ""
