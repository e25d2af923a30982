"""Captions of a run's test images: what the saved adapter generates, and how much of it is right.

`exact_match` and, if its library is installed, `rouge_l` are the metrics of answers (`fedpeft.models.answers.metrics`).
Captions of drawn scenes have one form. For them the measures include the share of right colors, shapes (two in each
caption) and relations. `form` is the share of captions that have this form at all; in all others everything counts as
wrong. By guessing, a quarter of colors and shapes and half of the relations are right.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fedpeft.data.cached_rows import load_cached_examples
from fedpeft.data.examples import DescribedRows
from fedpeft.data.scenes import parse_caption
from fedpeft.data.tokens import load_tokenizer
from fedpeft.errors import AssetError
from fedpeft.models.abilities import DescribesImages
from fedpeft.models.answers.captioning import caption_images
from fedpeft.models.answers.metric import parse_metrics
from fedpeft.models.quantized_base import quantize
from fedpeft.parts.families import METRICS
from fedpeft.peft import saved_adapter
from fedpeft.reporting.records import Records
from fedpeft.simulation.simulation import Simulation

SPARE = 4
"""Tokens that a caption may be longer than the longest right one."""


def compute_measures(said: Sequence[str], right: Sequence[str], metrics: Sequence[str]) -> dict[str, float]:
    """Return shares, 0 to 1, by name: the mean of each of the `metrics`, and of scenes' attributes."""
    pairs = list(zip(said, right, strict=True))
    found = {}
    for name in metrics:
        metric = METRICS.build(name)
        found[name] = statistics.fmean(metric.score(one, [other]) for one, other in pairs)
    wanted = [scene for scene in map(parse_caption, right) if scene is not None]
    if len(wanted) < len(right):
        return found
    shown = [parse_caption(one) for one in said]
    rows = [(a, b) for a, b in zip(shown, wanted, strict=True) if a is not None]
    colors, shapes = (
        sum((a.first[i] == b.first[i]) + (a.second[i] == b.second[i]) for a, b in rows) / (2 * len(said))
        for i in range(2)
    )
    relations = sum(a.relation == b.relation for a, b in rows) / len(said)
    return found | {"colour": colors, "shape": shapes, "relation": relations, "form": len(rows) / len(said)}


def measure_captions(simulation: Simulation, records: Records) -> dict[str, Any] | None:
    """Measure the saved adapter's captions of the test set in fp32, and write them to captions.jsonl.

    Returns:
        The measures, and the number of examples; None: examples have no captions.
    """
    setup, rows = simulation.setup, simulation.rows.dataset.test
    if not isinstance(setup.task, DescribesImages):
        return None
    names = ["exact_match", "rouge_l"]
    try:
        parse_metrics("rouge_l")
    except AssetError as error:
        simulation.observer.say(f"ROUGE-L is left out: {error}")
        names.remove("rouge_l")
    examples = load_cached_examples(setup.tokenize_rows(rows, setup.tokens))
    assert isinstance(examples, DescribedRows)
    base = setup.task.base(setup.model_directory, torch.float32)
    quantize(base, setup.method.base_precision)
    model = saved_adapter.load(simulation.folder, setup.task, base, setup.facts.classes)
    simulation.observer.phase("captions of the test images (fp32)", len(examples))
    said = caption_images(
        model,
        load_tokenizer(setup.model_directory),
        torch.from_numpy(np.array(examples.patches)),
        int(examples.texts.lengths.max()) + SPARE,
        simulation.observer.advance,
    )
    right = list(rows.texts or ())
    lines = [json.dumps({"said": a, "right": b}, ensure_ascii=False) for a, b in zip(said, right, strict=True)]
    records.write("captions.jsonl", "\n".join(lines) + "\n")
    return {"rows": len(said), **compute_measures(said, right, names)}
