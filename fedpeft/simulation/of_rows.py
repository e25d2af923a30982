"""Entries of summary.json that depend on the task type.

They cover classes, numbers, several labels per example, continual learning, token labels, captions, patch labels,
clips, and questions in a template.
"""

from __future__ import annotations

from typing import Any

from fedpeft.reporting.final_score import FinalScore, note_undefined
from fedpeft.reporting.records import Records
from fedpeft.reporting.task_matrix import measure_tasks
from fedpeft.simulation.captions import measure_captions
from fedpeft.simulation.clip_scores import measure_clips
from fedpeft.simulation.patch_scores import measure_patches
from fedpeft.simulation.probe import ProbeResult
from fedpeft.simulation.simulation import Simulation
from fedpeft.simulation.span_scores import measure_spans


def measure_rows(
    simulation: Simulation, score: FinalScore, probe: ProbeResult | None, records: Records
) -> dict[str, Any]:
    """Return these entries; None if one does not apply. `score` is the saved adapter's on the test set."""
    targets = None
    if score.measures:
        targets = {**score.measures, "probe": probe.measures if probe else None}
    return {
        "template": simulation.setup.facts.template,
        "tasks": measure_tasks(
            simulation.setup.facts.tasks, simulation.rows.dataset.test, simulation.folder, score.scores, records
        ),
        "targets": note_undefined(targets, simulation.observer),
        "spans": measure_spans(simulation),
        "captions": measure_captions(simulation, records),
        "patches": measure_patches(simulation),
        "clips": measure_clips(simulation),
    }
