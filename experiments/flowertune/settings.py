"""What both sides are given, and what is found of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What both sides run; the template's own are 20 clients, 200 rounds of 2, 10 steps of 16 rows, rank 32."""

    model: str = "smollm2"
    """the base"""
    rows: int = 2000
    """training rows"""
    test_rows: int = 100
    """held-out rows, of which the loss is taken"""
    asked: int = 40
    """of them, rows that are answered, for exact match"""
    clients: int = 4
    """SuperNodes"""
    rounds: int = 12
    """of two clients each"""
    steps: int = 5
    """local steps of a round"""
    batch: int = 4
    """rows of a step"""
    tokens: int = 96
    """of a row, at most"""
    rank: int = 32
    """of LoRA, in q_proj and v_proj of all blocks"""
    learning_rate: float = 1e-3
    """of the first round; annealed to a fiftieth"""
    workers: int = 2
    """processes on either side, one thread each"""
    ray: bool = True
    """the template in Flower's simulation; without it clients one by one, whose time and memory are not those"""
    codec: str = "small"
    """of our side"""
    seeds: int = 1
    """runs of either side"""


@dataclass(frozen=True)
class SideResult:
    """What a side has come to; `traffic` in bytes, as FlowerTune's tracker counts them."""

    side: str
    seed: int
    worker_loads: int
    server_loads: int
    traffic: int
    distinct_rows: int
    peak_memory_mb: float
    seconds: float
    processor_seconds: float
    loss: float
    exact_match: float
