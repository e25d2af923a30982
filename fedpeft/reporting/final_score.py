"""The finished adapter: written as others load it, and scored as it was written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from torch import nn

from fedpeft.aggregation.factors import compute_effective_weight as effective_weight
from fedpeft.aggregation.factors import get_lora_form
from fedpeft.aggregation.update import Fold
from fedpeft.clients.workbench import WorkPlan
from fedpeft.data.cached_rows import load_cached_examples
from fedpeft.data.examples import Examples
from fedpeft.data.rows import Rows
from fedpeft.errors import AssetError
from fedpeft.machine.hardware import get_free_memory, list_accelerators
from fedpeft.models import scoring
from fedpeft.models.base_model import get_origin
from fedpeft.models.calibration import calibrate, fit_temperature
from fedpeft.models.frozen_blocks import cut_below, start_from_store
from fedpeft.models.pooled_rows import PooledRows, create_pass_through
from fedpeft.models.quantized import quantize
from fedpeft.models.ranking import PairSides
from fedpeft.models.shared_tiles import fetch_missing_tiles, offer
from fedpeft.models.task import DTYPES, FederatedModel
from fedpeft.peft import saved_adapter
from fedpeft.peft.adapter import State
from fedpeft.peft.family import PEFT_METHODS
from fedpeft.reporting.observer import RunObserver
from fedpeft.reporting.target_lines import describe_undefined
from fedpeft.trust.question import Question
from fedpeft.wiring.activation_cache import is_pooled
from fedpeft.wiring.setup import Setup

ROOM = 6
"""Bytes for each of a model's parameters that scoring takes: fp32, and what a pass needs."""


def save(setup: Setup, state: State, folder: Path, residual: State | None = None) -> None:
    """Write the finished adapter (or model), with what exact rules have put into the base, by module."""
    reference = setup.model()
    changes = setup.method.changes(reference, state)
    if residual:
        effective = {p.module: effective_weight(p, state, get_lora_form(setup.layout)) for p in setup.layout.pairs}
        changes = saved_adapter.add_residual(effective, residual)
    state, method = setup.method.as_saved(reference, state), PEFT_METHODS.build(setup.saved_peft)
    own = setup.saved_peft if not (changes or method.in_peft or method.whole_model) else None
    name = get_origin(setup.model_name).name
    saved_adapter.save(folder, reference, state, setup.facts.label_names, changes, own, name)


Asks = Callable[[float], Sequence[Question]]
"""What is asked of a model whose temperature is known."""


@dataclass(frozen=True)
class FinalScore:
    """The finished model on the test rows.

    Attributes:
        accuracy, loss: of all rows; nats per prediction.
        scores: per row.
        temperature: what its logits are divided by to be calibrated.
        answers: to what was asked, sums over the test rows, in the order of the questions.
        measures: what the task tells of all rows together (`Task.measures`); empty: nothing.
        sides: of pairs, in the order of the rows; None: rows are no pairs.
    """

    accuracy: float
    loss: float
    scores: scoring.Scores
    temperature: float = 1.0
    answers: tuple[State, ...] = ()
    sides: PairSides | None = None
    measures: Mapping[str, Any] = field(default_factory=dict)


def compute_calibration(score: FinalScore) -> dict[str, Any]:
    """Expected calibration error on the test rows, as it is and after temperature scaling; empty for language."""
    scores = score.scores
    if not scores.confidence.any():
        return {}
    before, after = (calibrate(c, scores.correct).error for c in (scores.confidence, scores.scaled))
    return {"calibration_error": before, "calibration_error_scaled": after, "temperature": score.temperature}


def note_undefined(targets: Mapping[str, Any] | None, observer: RunObserver) -> Mapping[str, Any] | None:
    """What is measured of rows, as it is; the observer is told what of it is no number."""
    if note := describe_undefined(targets):
        observer.say(f"[bold]note[/]    {escape(note)}")
    return targets


@dataclass(frozen=True, eq=False)
class Scorer:
    """Scores saved files, in this process: on the run's GPU, if it has room for the base in fp32, or with all cores.

    The workers should have ended: their memory is not needed any more.

    Attributes:
        setup, work: of the run.
        test: rows that are scored.
        held: rows that the temperature is fitted on, where they may decide (`Steering.fits`).
        threads: of torch.
        observer: is told how long it goes on.
    """

    setup: Setup
    work: WorkPlan
    test: Rows
    held: Rows
    threads: int
    observer: RunObserver

    def score(
        self,
        folder: Path,
        name: str,
        base_precision: str = "fp32",
        *,
        temperature: float | None = None,
        asks: Asks = lambda _: (),
    ) -> FinalScore:
        """The test rows, scored once with the files in `folder`, in fixed batches; the phase is called `name`.

        Args:
            base_precision: of the base that the files are loaded on; they and all else are fp32 (bf16 on a bf16 base).
            temperature: that is known already; None: fitted on the validation rows, or 1 where they may not decide.
            asks: what is asked of the test rows, too.
        """
        setup = self.setup
        self.observer.enter(f"{name}: loading it")
        work = dataclasses.replace(
            self.work.set_precision(base_precision), device=self._device, method=setup.saved_peft
        )
        torch.set_num_threads(self.threads)
        base = setup.task.base(setup.model_directory, DTYPES.get(base_precision, torch.float32)).to(work.device)
        quantize(base, work.precision or setup.method.base_precision)
        PEFT_METHODS.build(setup.saved_peft).read(base)
        base, test, held = self._load_model_and_rows(base, work, name)
        model = saved_adapter.load(folder, setup.task, base, setup.facts.classes).to(work.device)
        del base
        if setup.training_control.fits and (fitted := setup.method.fit_when_finished(model, held)):
            saved_adapter.add(folder, fitted)
        divisor = self._fit_temperature(model, held, name) if temperature is None else temperature
        questions = asks(divisor)
        answers = [Fold() for _ in questions]
        batches = scoring.score_batches(test)
        self.observer.phase(name, 1 if setup.task.compares else len(batches))
        if setup.task.compares:
            scores, sides = scoring.score_together(model, setup.task, test)
            return FinalScore(float(scores.correct.mean()), float(scores.loss.mean()), scores, sides=sides)
        outputs = np.zeros((len(test), setup.facts.classes if setup.task.targets else 0))
        columns = {f.name: np.zeros(len(test)) for f in dataclasses.fields(scoring.Scores)}
        for rows in batches:
            batch = test.batch(rows)
            scores, said = scoring.score_batch(model, setup.task, batch, divisor)
            outputs[rows] = said
            for question, total in zip(questions, answers, strict=True):
                total.add(question.answer(scoring.compute_logits(model, batch), batch["labels"]), 1.0)
            for column, values in columns.items():
                values[rows] = getattr(scores, column)
            self.observer.advance()
        scores = scoring.Scores(**columns)
        count = scores.count.sum()
        accuracy, loss = float(scores.correct.sum() / count), float(scores.loss.sum() / count)
        measures = scoring.compute_measures(setup.task, outputs, self.test.labels, setup.facts.label_names)
        return FinalScore(accuracy, loss, scores, divisor, tuple(total.sums for total in answers), measures=measures)

    @property
    def _device(self) -> str:
        """That of the run's workers, if it is one of this machine and has room; else the CPU."""
        device = self.work.device
        if device.startswith("cuda") and not list_accelerators():
            return "cpu"
        return device if get_free_memory(device) >= ROOM * self.setup.parameters else "cpu"

    def _load_model_and_rows(self, base: nn.Module, work: WorkPlan, name: str) -> tuple[nn.Module, Examples, Examples]:
        """What the score runs on: a base, test rows and validation rows.

        They begin at the lowest adapted block where the frozen part below it is reused and the disk has room for it.
        """
        setup = self.setup
        keys = [setup.tokenize_rows(rows, setup.tokens) for rows in (self.test, self.held)]
        once = not setup.task.targets  # nothing else is made of a language model's test rows
        anew = once or bool(work.precision or setup.method.base_precision)
        depth, pooled = 0 if anew else setup.frozen_blocks, not anew and is_pooled(setup)
        if depth or pooled:
            stores = [work.store(key, 0 if pooled else depth) for key in keys]
            try:
                missing = [(store, tile) for store in stores for tile in fetch_missing_tiles(store)]
            except AssetError:
                depth, pooled = 0, False
        if not depth and not pooled:
            test, held = (load_cached_examples(key) for key in keys)
            return base, test, held
        if missing:
            self.observer.phase(f"{name}: frozen layers (kept for later runs)", len(missing))
        for store, tile in missing:
            store.fill(tile, base)
            offer(store, [tile])
            self.observer.advance()
        if pooled:
            of_test, of_held = stores
            return create_pass_through(base), PooledRows(of_test), PooledRows(of_held)
        test_rows, held_rows = (start_from_store(load_cached_examples(k), s) for k, s in zip(keys, stores, strict=True))
        return cut_below(base, depth), test_rows, held_rows

    def _fit_temperature(self, model: FederatedModel, held: Examples, name: str) -> float:
        """What logits are divided by to fit the validation rows; 1 without classes, or where these may not decide."""
        labels = self.held.labels
        if (
            labels is None
            or not len(held)
            or self.setup.task.targets != "classes"
            or not self.setup.training_control.fits
        ):
            return 1.0
        logits = np.zeros((len(held), self.setup.facts.classes))
        batches = scoring.score_batches(held)
        self.observer.enter(f"{name}: its temperature, on the validation rows", len(batches))
        with torch.inference_mode():
            for index in batches:
                logits[index] = model(scoring.move_batch(held.batch(index), model)).double().cpu().numpy()
                self.observer.advance()
        return fit_temperature(logits, labels)
