"""What a run was asked of trust, in lines of a model card, of the console's summary, and of a report's table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HALF = 0.5
"""Share of the rows that are answered, where a line tells of a model that abstains."""

CAUSAL = ("as it is", "without the leading direction", "shrunk to the same norm")
"""What the causal check compares."""


def trust_lines(summary: Mapping[str, Any]) -> dict[str, str]:
    """Of summary.json, by what a line is called; empty: nothing was asked."""
    trust = summary.get("trust") or {}
    lines: dict[str, str] = {}
    for whose, name in (("test", "test rows"), ("clients", "clients' held-out rows")):
        if found := (trust.get("calibration") or {}).get(whose):
            lines |= _calibration(found["before"], found["after"], name)
    lines |= _raters((trust.get("calibration") or {}).get("raters") or {})
    lines |= _laplace(trust.get("laplace") or {})
    lines |= _ensemble(trust.get("ensemble") or {})
    lines |= _robustness(trust.get("robustness") or {})
    lines |= _clones(trust.get("clones") or {})
    lines |= _disagreement(trust.get("disagreement") or {})
    return lines | _energy(trust.get("energy") or {})


def _calibration(before: Mapping[str, Any], after: Mapping[str, Any], rows: str) -> dict[str, str]:
    """Before and after the temperature."""
    pairs = {"class-wise calibration error": "classwise", "Brier score": "brier"}
    lines = {f"{name}, {rows}": f"{before[key]:.4f}; {after[key]:.4f} calibrated" for name, key in pairs.items()}
    answered = zip(after["coverage"], after["risk"], strict=True)
    risk = next((risk for coverage, risk in answered if coverage >= HALF), None)
    return lines if risk is None else lines | {f"wrong answers, surest half of the {rows}": f"{risk:.4f}"}


def _raters(found: Mapping[str, Any]) -> dict[str, str]:
    """What people who have rated the test rows say to what the model says of itself."""
    if not found:
        return {}
    error, ranks = found["share_error"], found["entropy"]
    lines = {"error against the share of raters' votes": f"{error['before']:.4f}; {error['after']:.4f} calibrated"}
    return lines | ({} if ranks is None else {"rank correlation of entropy and raters' spread": f"{ranks:.3f}"})


def _laplace(found: Mapping[str, Any]) -> dict[str, str]:
    if not found:
        return {}
    before, after = found["map"], found["laplace"]
    return {
        f"Laplace-LoRA, {before['rows']} test rows: error": f"{before['error']:.4f} -> {after['error']:.4f}",
        "Laplace-LoRA: loss (nats)": f"{before['loss']:.4f} -> {after['loss']:.4f}",
    }


def _ensemble(found: Mapping[str, Any]) -> dict[str, str]:
    if not found:
        return {}
    last, together = found["last"], found["together"]
    names = {"error": "calibration error", "loss": "loss (nats)", "accuracy": "accuracy"}
    return {
        f"the last {len(found['rounds'])} states together: {name}": f"{last[key]:.4f} -> {together[key]:.4f}"
        for key, name in names.items()
    }


def _robustness(found: Mapping[str, Any]) -> dict[str, str]:
    """Accuracy as the rows are, and under the strongest of each kind of change, the worst draws."""
    clean = found.get("clean")
    return {
        f"{kind} at {points[-1]['strength']:g}, worst draws": f"{clean['accuracy']:.4f} -> {points[-1]['worst']:.4f}"
        for kind, points in found.items()
        if clean and isinstance(points, list)
    }


def _clones(found: Mapping[str, Any]) -> dict[str, str]:
    if not found:
        return {}
    told = "; ".join(f"{name} {found[name]['first']:.4f}" for name in ("result", "frozen", "words"))
    return {f"clones of {found['rows']} functions, ranked first": told}


def _disagreement(found: Mapping[str, Any]) -> dict[str, str]:
    lines = {}
    if found.get("cancelled") is not None:
        lines["share of the updates that cancels, last round"] = f"{found['cancelled']:.3f}"
    for line in found.get("advice") or []:
        lines["clients"] = f"{lines['clients']}; {line}" if "clients" in lines else line
    if causal := found.get("causal"):
        loss = [causal[name]["loss"] for name in CAUSAL]
        lines["validation loss; without leading directions; shrunk alike"] = "; ".join(f"{x:.4f}" for x in loss)
    return lines


def _energy(found: Mapping[str, Any]) -> dict[str, str]:
    if not found:
        return {}
    grams = "" if found.get("grams") is None else f", {found['grams']:.3g} g of CO2"
    lines = {"energy of the clients": f"{found['joules'] / 1e3:.3g} kJ{grams}"}
    if found.get("dropped"):
        lines["turns lost to empty batteries"] = str(found["dropped"])
    if found.get("measured") is not None:
        lines["energy of this machine in the rounds"] = f"{found['measured'] / 1e3:.3g} kJ"
    return lines
