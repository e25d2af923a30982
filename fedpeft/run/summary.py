"""What a run has come to and cost: the part of a summary that all runs have, and how it is shown."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fedpeft.run.console import duration, size, summary_table

if TYPE_CHECKING:
    from fedpeft.privacy.engine import Protection
    from fedpeft.run.final_score import FinalScore
    from fedpeft.run.setup import Setup
    from fedpeft.server.progress import Progress


def calibration_of(score: FinalScore) -> dict[str, Any]:
    """Expected calibration error on the test rows, as it is and after temperature scaling; empty for language."""
    from fedpeft.models.calibration import calibrate

    scores = score.scores
    if not scores.confidence.any():
        return {}
    before, after = (calibrate(c, scores.correct).error for c in (scores.confidence, scores.scaled))
    return {"calibration_error": before, "calibration_error_scaled": after, "temperature": score.temperature}


def costs(
    setup: Setup, progress: Progress, cohort: int, protection: Protection | None, fixed: Mapping[str, Any]
) -> dict[str, Any]:
    """What a run has cost, and on what: the part of the summary that is independent of where clients are."""
    counters = progress.counters
    parameters = counters.uplink_parameters
    update_bytes = counters.uplink_bytes - counters.prepare_bytes
    return {
        "task": setup.facts.task,
        "rounds": progress.round,
        "clients": setup.clients,
        "cohort": cohort,
        "parameters": setup.layout.numel,
        "uplink_bytes": counters.uplink_bytes,
        "downlink_bytes": counters.downlink_bytes,
        "prepare_bytes": counters.prepare_bytes,
        "base_bytes": counters.base_bytes,
        "rejected": counters.rejected,
        "rejected_by_client": None if protection else {str(k): n for k, n in progress.rejections.items()},
        "uplink_bytes_per_parameter": update_bytes / parameters if parameters else None,
        "epsilon": None,
        "dp_delta": None,
        **(protection.summary() if protection else {}),
        "seconds": None,
        "seconds_per_round": counters.round_seconds / max(1, progress.round),
        "peak_memory_bytes": None,
        "seed": setup.config.seed,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "flwr", "fedpeft")},
        "hardware": {
            "cpu": fixed["cpu"],
            "gpus": fixed["gpus"],
            "workers": fixed["workers"],
            "kernel": fixed["kernel"],
            "system": platform.platform(),
        },
    }


def distinct_rows(clients: Iterable[Mapping[str, Any]]) -> int | None:
    """Distinct rows that were trained on, all clients together, by the lines of clients.jsonl; None: nobody says."""
    used: dict[int, int] = {}
    for line in clients:
        if line.get("used") and not line.get("rejected"):
            used[line["client"]] = max(used.get(line["client"], 0), line["used"])
    return sum(used.values()) or None


def epsilon_line(summary: dict[str, Any]) -> str:
    """What a private run has spent."""
    return f"{summary['epsilon']:.2f} (median {summary['epsilon_median']:.2f}), delta {summary['dp_delta']:.2g}"


def _lost(summary: dict[str, Any]) -> list[tuple[str, Any]]:
    found = summary.get("forgetting")
    if not found:
        return []
    return [(f"second task, {found['dataset']}: {found['measure']}", f"{found['before']:.4f} -> {found['after']:.4f}")]


def show(summary: dict[str, Any], folder: Path, console: Console) -> None:
    """Print the numbers that matter."""
    rows: list[tuple[str, Any]] = []
    if summary["metric"] == "accuracy":
        of = "saved adapter, fp32" if summary["worst_accuracy"] is None else summary["accuracy_of"]
        rows.append((f"[bold]test accuracy[/] ({of})", f"[bold]{summary['accuracy']:.4f}[/]"))
        if summary["worst_accuracy"] is not None:
            rows.append(("worst tenth of the clients", f"{summary['worst_accuracy']:.4f}"))
            rows.append(("global adapter alone, test rows", f"{summary['shared_accuracy']:.4f}"))
        rows.append(("frozen base, linear probe", f"{summary['baseline_accuracy']:.4f}"))
        if summary.get("private_probe_accuracy") is not None:
            rows.append(("private probe: one release, no training", f"{summary['private_probe_accuracy']:.4f}"))
    else:
        rows.append(("[bold]test perplexity[/] (saved adapter, fp32)", f"[bold]{summary['perplexity']:.3f}[/]"))
    if summary["centralised_accuracy"] is not None:
        value = summary["centralised_accuracy"]
        if summary["metric"] != "accuracy":
            value = math.exp(summary["centralised_loss"])
        rows.append(("same adapter on the pooled data", f"{value:.4f}"))
    if summary["last_loss"] is not None and summary["kept_round"] != summary["rounds"]:
        value = summary["last_accuracy"] if summary["metric"] == "accuracy" else math.exp(summary["last_loss"])
        rows.append((f"kept: after round {summary['kept_round']}; after the last, {summary['rounds']}", f"{value:.4f}"))
    sent = summary["uplink_bytes_per_parameter"]
    rows += [
        ("test loss", f"{summary['loss']:.4f}"),
        *_lost(summary),
        ("uplink / downlink", f"{size(summary['uplink_bytes'])} / {size(summary['downlink_bytes'])}"),
        ("of it before round 1", size(summary["prepare_bytes"])),
        ("bytes per parameter and update", f"{sent:.3f}" if sent is not None else "no update was sent"),
        (
            "time since it was resumed" if summary["resumed"] else "time",
            f"{duration(summary['seconds'])}, {duration(summary['seconds_per_round'])} per round",
        ),
    ]
    if summary["rejected"]:
        of = summary["rejected_by_client"]
        rows.append(("updates left out", f"{summary['rejected']}{f', of {len(of)} clients' if of else ''}"))
    if summary.get("distinct_rows"):
        rows.append(("distinct rows trained on", f"{summary['distinct_rows']:,}"))
    if summary["dp_delta"] is not None:
        rows.insert(0, (f"[bold]epsilon[/] per {summary['privacy']['unit']}", f"[bold]{epsilon_line(summary)}[/]"))
    if "membership_auc" in summary:
        rows.append(("membership inference, area under the curve", f"{summary['membership_auc']:.3f}"))
    if "audit_epsilon" in summary:
        found = f"epsilon at least {summary['audit_epsilon']:.2f} of {summary['audit_claimed']:.2f} claimed"
        rows.append(("canary audit of its mechanism", found))
    if summary["peak_memory_bytes"]:
        rows.append(("peak memory, all processes", size(summary["peak_memory_bytes"])))
    rows.append(("files", str(folder)))
    console.print(summary_table("summary", rows))
