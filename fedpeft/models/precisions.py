"""Precisions in which a client can hold the frozen base model and the adapter."""

from __future__ import annotations

from typing import Final, Literal

BasePrecision = Literal["", "fp32", "bf16", "int8", "nf4"]
BASES: Final[tuple[BasePrecision, ...]] = ("", "fp32", "bf16", "int8", "nf4")
"""Precisions of the frozen base model; an empty text stands for the run's own."""

AdapterPrecision = Literal["fp32", "bf16"]
ADAPTERS: Final[tuple[AdapterPrecision, ...]] = ("fp32", "bf16")
"""Precisions of the adapter."""
