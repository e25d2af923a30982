"""What a run was asked of trust, in lines of a model card and of the summary on the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def trust_lines(summary: Mapping[str, Any]) -> dict[str, str]:
    """Of summary.json, by what a line is called; empty: nothing was asked."""
    trust = summary.get("trust") or {}
    lines: dict[str, str] = {}
    for whose, name in (("test", "test rows"), ("clients", "clients' held-out rows")):
        if found := (trust.get("calibration") or {}).get(whose):
            lines |= _calibration(found["before"], found["after"], name)
    return lines


def _calibration(before: Mapping[str, Any], after: Mapping[str, Any], rows: str) -> dict[str, str]:
    """Before and after the temperature."""
    pairs = {"class-wise calibration error": "classwise", "Brier score": "brier"}
    lines = {f"{name}, {rows}": f"{before[key]:.4f}; {after[key]:.4f} calibrated" for name, key in pairs.items()}
    half = next((r for c, r in zip(after["coverage"], after["risk"], strict=True) if c >= 0.5), None)
    if half is not None:
        lines[f"wrong answers, surest half of the {rows}"] = f"{half:.4f}"
    return lines
