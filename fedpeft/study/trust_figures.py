"""The figures of trust: calibration, abstention, robustness, disagreement and energy.

The colors are those of all figures and remain distinguishable to color-blind readers. The heat map goes from orange
through white to blue, and its numbers are in the run's summary.json. With more than `NAMED_CLIENTS` clients, the heat
map labels only some of them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedpeft.study.drawing import (
    BLUE,
    COLORS,
    GREY,
    OTHERS,
    choose_columns,
    choose_looks,
    draw_legend_below,
    draw_panels,
)
from fedpeft.study.results import Result
from fedpeft.study.sections import Method, Section

Drawn = tuple[str, str, str, str | None]
"""Name, title, note and SVG of a figure; the SVG is None if the figure has no content."""

COVERAGES = np.linspace(0.05, 1, 20)

NAMED_CLIENTS = 30
"""Most clients whose ids are all shown below the heat map."""

SHOWN_MODULES = 60
"""Most rows of the heat map; the layers after these are left out."""

KINDS = {"train": "training", "idle": "waiting", "up": "traffic up", "down": "traffic down"}


def get_trust(run: Result, name: str) -> Mapping[str, Any]:
    """Return section `name` of a run's trust measurements; empty if it was not measured."""
    return ((run.summary or {}).get("trust") or {}).get(name) or {}


def get_calibration(run: Result) -> Mapping[str, Any]:
    """Return the calibration on test examples, or else on clients' examples; empty if not measured."""
    calibration = get_trust(run, "calibration")
    return calibration.get("test") or calibration.get("clients") or {}


# ---------------------------------------------------------------------------------------------------------- calibration


def draw_reliability(section: Section, run: Result) -> str | None:
    """Draw accuracy against confidence in bins, before and after dividing the logits by the temperature."""
    calibration = get_calibration(run)
    if not calibration:
        return None
    out = io.StringIO()
    names = {"before": "as it is", "after": "calibrated"}
    with draw_panels(2, 2, out, f"{section.title}/trust-reliability", share=True) as (_, axes):
        for axis, (key, name), color in zip(axes, names.items(), COLORS, strict=False):
            bins = np.array(calibration[key]["bins"])
            bins = bins[bins[:, 0] > 0]
            axis.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle="--")
            axis.vlines(100 * bins[:, 1], 100 * bins[:, 1], 100 * bins[:, 2], color=color, alpha=0.45)
            size = 8 + 250 * bins[:, 0] / bins[:, 0].sum()
            axis.scatter(100 * bins[:, 1], 100 * bins[:, 2], s=size, color=color, clip_on=False, zorder=3)
            error, classwise = 100 * calibration[key]["error"], 100 * calibration[key]["classwise"]
            axis.set_title(f"{name}: error {error:.1f} %, class-wise {classwise:.1f} %")
            axis.set_xlabel("confidence (%)")
            axis.set(xlim=(0, 100), ylim=(0, 100))
        axes[0].set_ylabel("accuracy (%)")
    return out.getvalue()


def draw_risk_coverage(section: Section) -> str | None:
    """Draw the share of wrong answers against the share of answered examples, as the mean over seeds."""
    methods = [m for m in section.shown if any(get_calibration(run) for run in m.runs.values())]
    if not methods:
        return None
    out, style = io.StringIO(), choose_looks(section)
    with draw_panels(1, 1, out, f"{section.title}/trust-coverage") as (figure, axes):
        for method in methods:
            look = style[method.name]
            lines = [
                _interpolate_risks(get_calibration(run)["after"])
                for run in method.runs.values()
                if get_calibration(run)
            ]
            axes[0].plot(
                100 * COVERAGES,
                100 * np.mean(lines, axis=0),
                color=look.color,
                linestyle=look.line,
                label=method.label if look.named else OTHERS,
                zorder=look.order,
            )
        axes[0].set_xlabel("answered examples, most confident first (%)")
        axes[0].set_ylabel("wrong answers (%)")
        axes[0].set_ylim(bottom=0)
        draw_legend_below(figure, axes)
    return out.getvalue()


def _interpolate_risks(curve: Mapping[str, Any]) -> np.ndarray:
    risks: np.ndarray = np.interp(COVERAGES, curve["coverage"], curve["risk"])
    return risks


# ----------------------------------------------------------------------------------------------------------- robustness


def draw_robustness(section: Section) -> str | None:
    """Draw accuracy against strength for each type of corruption: the mean of the draws, and dotted the worst."""
    methods = [m for m in section.shown if any(get_trust(run, "robustness") for run in m.runs.values())]
    kinds = list(dict.fromkeys(kind for m in methods for kind in _list_kinds(m)))
    if not kinds:
        return None
    out, style, columns = io.StringIO(), choose_looks(section), choose_columns(len(kinds), 4)
    with draw_panels(len(kinds), columns, out, f"{section.title}/trust-robustness", share=True) as (figure, axes):
        for axis, kind in zip(axes, kinds, strict=True):
            axis.set_title(kind)
            for method in methods:
                look = style[method.name]
                name = method.label if look.named else OTHERS
                for key, line, label in (("accuracy", look.line, name), ("worst", ":", None)):
                    xs, ys = _compute_curve(method, kind, key)
                    axis.plot(xs, ys, color=look.color, linestyle=line, marker=look.marker, markersize=4, label=label)
            axis.set_xlabel("strength")
        for axis in axes[::columns]:
            axis.set_ylabel("accuracy (%)")
            axis.set_ylim(bottom=0)
        draw_legend_below(figure, axes)
    return out.getvalue()


def _list_kinds(method: Method) -> list[str]:
    measurements = [get_trust(run, "robustness") for run in method.runs.values()]
    return [name for one in measurements for name, points in one.items() if isinstance(points, list)]


def _compute_curve(method: Method, kind: str, key: str) -> tuple[list[float], list[float]]:
    """Return strengths and mean accuracies over seeds, from clean examples to the strongest corruption."""
    runs = [measured for run in method.runs.values() if (measured := get_trust(run, "robustness")) and kind in measured]
    if not runs:
        return [], []
    xs = [0.0, *(point["strength"] for point in runs[0][kind])]
    ys = [[measured["clean"][key], *(point[key] for point in measured[kind])] for measured in runs]
    return xs, [100 * float(y) for y in np.mean(ys, axis=0)]


# --------------------------------------------------------------------------------------------------------- disagreement


def draw_heat_map(section: Section, run: Result) -> str | None:
    """Draw the cosine of each client's update with the mean update, layer by layer."""
    agreement = get_trust(run, "disagreement").get("agreement")
    if not agreement:
        return None
    modules = list(agreement)[:SHOWN_MODULES]
    clients = get_trust(run, "disagreement")["clients"]
    values = np.array([agreement[module] for module in modules])
    out, height = io.StringIO(), max(2.4, 0.8 + 0.17 * len(modules))
    with draw_panels(1, 1, out, f"{section.title}/trust-heat", height=height) as (figure, axes):
        axis = axes[0]
        drawn = axis.pcolormesh(values, cmap="PuOr", vmin=-1, vmax=1, edgecolors="none")
        axis.set(xlim=(0, len(clients)), ylim=(len(modules), 0))
        axis.grid(visible=False)
        axis.set_yticks(np.arange(len(modules)) + 0.5, [shorten_name(module) for module in modules], fontsize=7)
        step = max(1, -(-len(clients) // NAMED_CLIENTS))
        axis.set_xticks(np.arange(0, len(clients), step) + 0.5, [str(k) for k in clients[::step]], fontsize=7)
        axis.set_xlabel(f"client (id), of round {get_trust(run, 'disagreement')['round']}")
        figure.colorbar(drawn, ax=axis, label="cosine with the mean")
    return out.getvalue()


def shorten_name(module: str) -> str:
    """Return a layer's name, shortened to its last 39 characters if it is longer than 40."""
    return module if len(module) <= 40 else "…" + module[-39:]


def draw_places(section: Section, run: Result) -> str | None:
    """Draw clients as points that are close if their updates agree; a color and a marker per group."""
    disagreement = get_trust(run, "disagreement")
    if not disagreement.get("places"):
        return None
    where = dict(zip(disagreement["clients"], disagreement["places"], strict=True))
    out, markers = io.StringIO(), "os^DvP"
    with draw_panels(1, 1, out, f"{section.title}/trust-places") as (figure, axes):
        for i, group in enumerate(disagreement["groups"]):
            positions = np.array([where[k] for k in group])
            name = "clients" if len(disagreement["groups"]) == 1 else f"group {i + 1}"
            axes[0].scatter(
                positions[:, 0], positions[:, 1], color=COLORS[i % 6], marker=markers[i % 6], s=22, label=name
            )
        if disagreement["opposed"]:
            positions = np.array([where[k] for k in disagreement["opposed"]])
            axes[0].scatter(
                positions[:, 0], positions[:, 1], color=COLORS[-1], marker="x", s=36, label="against all others"
            )
        if len(where) <= NAMED_CLIENTS:
            for client, (x, y) in where.items():
                axes[0].annotate(str(client), (x, y), (4, 3), textcoords="offset points", fontsize=7)
        axes[0].set_aspect("equal", adjustable="datalim")
        draw_legend_below(figure, axes)
    return out.getvalue()


# --------------------------------------------------------------------------------------------------------------- energy


def draw_energy(section: Section, run: Result) -> str | None:
    """Draw joules by type, by round and by client."""
    energy = get_trust(run, "energy")
    if not energy:
        return None
    out = io.StringIO()
    with draw_panels(3, 3, out, f"{section.title}/trust-energy") as (_, axes):
        axes[0].barh(list(KINDS.values()), [energy[kind] / 1e3 for kind in KINDS], color=BLUE)
        axes[0].invert_yaxis()
        axes[0].set_xlabel("energy (kJ)")
        axes[1].bar(range(1, len(energy["rounds"]) + 1), np.array(energy["rounds"]) / 1e3, color=BLUE, width=0.9)
        axes[1].set_xlabel("round")
        axes[1].set_ylabel("energy (kJ)")
        each = np.sort(np.array(list(energy["clients"].values())))[::-1] / 1e3
        axes[2].bar(range(1, len(each) + 1), each, color=BLUE, width=0.9)
        axes[2].set_xlabel("clients, by their energy")
        axes[2].set_ylabel("energy (kJ)")
    return out.getvalue()


# ---------------------------------------------------------------------------------------------------------- all of them

COVERAGE_NOTE = (
    "The model abstains below a threshold of its calibrated confidence. The fewer examples it answers, the fewer "
    "answers should be wrong."
)

ROBUSTNESS_NOTE = (
    "Corrupted test examples (fedpeft.trust.corruption), and embeddings moved along the gradient. Dotted: an example "
    "counts as right if it is right in all draws."
)


def draw_trust_figures(section: Section) -> list[Drawn]:
    """Return the figures that compare methods, and for a single run all figures of trust."""
    compared: Sequence[Drawn] = (
        ("coverage", "Trust: answers left out", COVERAGE_NOTE, draw_risk_coverage(section)),
        ("robustness", "Trust: changed rows", ROBUSTNESS_NOTE, draw_robustness(section)),
    )
    run = section.single_run
    if run is None:
        return list(compared)
    advice = " ".join(get_trust(run, "disagreement").get("advice") or ["No problem was found."])
    return [
        (
            "trust_reliability",
            "Trust: reliability before and after",
            f"Logits divided by {get_trust(run, 'calibration').get('temperature') or 1:.3g}. On the dashed "
            "line, confidence equals accuracy. A marker's area is the share of the examples.",
            draw_reliability(section, run),
        ),
        *compared,
        (
            "disagreement",
            "Trust: disagreement by layer and client",
            "Cosine of each client's update of a layer with the mean of all clients' updates: 1 agrees, -1 opposes.",
            draw_heat_map(section, run),
        ),
        (
            "places",
            "Trust: a map of the clients",
            "Clients whose updates agree are near each other (classical scaling of 1 - cosine; the axes have no "
            f"meaning of their own). {advice}",
            draw_places(section, run),
        ),
        (
            "energy",
            "Trust: energy",
            "The clients' energy, predicted from declared watts, or measured if clients report it.",
            draw_energy(section, run),
        ),
    ]
