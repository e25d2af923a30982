"""The settings and the results of both sides."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """The settings of both sides. The template's own: 20 clients, 200 rounds of 2, 10 steps of 16 examples, rank 32."""

    model: str = "smollm2"
    """the base"""
    rows: int = 2000
    """training examples"""
    test_rows: int = 100
    """held-out examples for the loss"""
    asked: int = 40
    """held-out examples that are answered, for exact match"""
    clients: int = 4
    """SuperNodes"""
    rounds: int = 12
    """rounds of two clients each"""
    steps: int = 5
    """local steps of a round"""
    batch: int = 4
    """rows of a step"""
    tokens: int = 96
    """most tokens per example"""
    rank: int = 32
    """rank of LoRA, in q_proj and v_proj of all blocks"""
    learning_rate: float = 1e-3
    """learning rate of the first round; annealed to a fiftieth"""
    workers: int = 2
    """processes on either side, one thread each"""
    ray: bool = True
    """the template in Flower's simulation; without it clients one by one, whose time and memory are not those"""
    codec: str = "small"
    """codec of fedpeft's side"""
    seeds: int = 1
    """runs of either side"""


@dataclass(frozen=True)
class SideResult:
    """The results of one side; `traffic` is in bytes, as FlowerTune's tracker counts them."""

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
