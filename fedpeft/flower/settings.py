"""A Flower app's run config as a configuration of fedpeft; both halves of the app read it the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fedpeft.errors import ConfigError
from fedpeft.parts.families import PEFT_METHODS, strategies
from fedpeft.wiring.config import RunConfig, build_config

OWN_KEYS = ("output", "nodes")
"""Keys of the run config that are not settings of a run: its folder, and how many nodes to wait for."""


def read_config(run_config: Mapping[str, Any]) -> RunConfig:
    """Return the configuration; keys are RunConfig's, with dashes or underscores. The dtype `auto` is fp32 here.

    Raises:
        ConfigError: an unknown key, a value out of range, or what can't be done inside Flower.
    """
    given = {key.replace("-", "_"): value for key, value in run_config.items() if key not in OWN_KEYS}
    kinds = {field.name: str(field.type) for field in fields(RunConfig)}
    typed = {k: float(v) if kinds.get(k) == "float" and isinstance(v, int) else v for k, v in given.items()}
    if typed.get("dtype", "auto") == "auto":  # otherwise each process of the app would choose by its own hardware
        typed["dtype"] = "fp32"
    config = build_config(typed, "the app's run config")
    strategy = strategies.build(config.strategy)
    if strategy.fills_base:
        raise ConfigError(
            f"FP1178 {config.strategy} puts a residual into the clients' base, which Flower's short-lived "
            "client processes do not keep; use fedit or flexlora, or fedpeft serve"
        )
    if config.peft != "auto" and (needs := PEFT_METHODS.build(config.peft).own_machine):
        raise ConfigError(
            f"FP1179 {config.peft} {needs}, and Flower's nodes run on other machines; use fedpeft simulate"
        )
    if config.privacy:
        raise ConfigError(
            "FP1180 privacy needs a ledger and a key that stay with each client, and Flower's nodes start a "
            "new process for each message; leave privacy out of the run config, or use fedpeft serve"
        )
    return config


def read_nodes(run_config: Mapping[str, Any]) -> int:
    """Return the number of nodes that a run waits for.

    Raises:
        ConfigError: it is not a whole number, or less than 1.
    """
    nodes = run_config["nodes"]
    if not isinstance(nodes, int) or isinstance(nodes, bool) or nodes < 1:
        raise ConfigError(
            f"FP1181 nodes={nodes!r} of the run config must be a whole number of at least 1: nodes play the clients"
        )
    return nodes
