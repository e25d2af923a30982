"""The finished adapter: it is written to disk, and scored from the written files."""

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
from fedpeft.machine.threads import use_faster_threads
from fedpeft.models import scoring
from fedpeft.models.abilities import ComparesExamples
from fedpeft.models.base_model import get_origin
from fedpeft.models.calibration import calibrate, fit_temperature
from fedpeft.models.dtypes import DTYPES
from fedpeft.models.frozen_blocks import cut_below, start_from_store
from fedpeft.models.pooled_rows import PooledRows, create_pass_through
from fedpeft.models.quantized_base import quantize
from fedpeft.models.ranking import PairSides
from fedpeft.models.shared_tiles import fetch_missing_tiles, offer
from fedpeft.models.task import FederatedModel
from fedpeft.peft import saved_adapter
from fedpeft.peft.abilities import FitsWhenFinished, SavedAsLora, SavedAsOther
from fedpeft.peft.adapter import State
from fedpeft.reporting.observer import RunObserver
from fedpeft.reporting.target_lines import describe_undefined
from fedpeft.trust.question import Question
from fedpeft.wiring.activation_cache import is_pooled
from fedpeft.wiring.setup import Setup

ROOM = 6
"""Bytes that scoring takes for each of a model's parameters: fp32, and the needs of a pass."""


def save(setup: Setup, state: State, folder: Path, residual: State | None = None) -> None:
    """Write the finished adapter (or model), with what exact rules have added to the base, by module."""
    reference, method = setup.model(), setup.method
    changes = method.changes(reference, state) if isinstance(method, SavedAsLora) else None
    if residual:
        effective = {p.module: effective_weight(p, state, get_lora_form(setup.layout)) for p in setup.layout.pairs}
        changes = saved_adapter.add_residual(effective, residual)
    if isinstance(method, SavedAsOther):
        state, method = method.as_saved(reference, state), setup.saved_method
    own = setup.saved_peft if not (changes or method.in_peft or method.whole_model) else None
    name = get_origin(setup.model_name).name
    saved_adapter.save(folder, reference, state, setup.facts.label_names, changes, own, name)


Asks = Callable[[float], Sequence[Question]]
"""Returns questions about a model, given its temperature."""


@dataclass(frozen=True)
class FinalScore:
    """The scores of the finished model on the test examples.

    Attributes:
        accuracy: over all examples.
        loss: over all examples, nats per prediction.
        scores: scores of each example.
        temperature: the divisor of the logits that calibrates them.
        answers: answers to the questions, which are sums over the test examples, in the order of the questions.
        measures: the task's measures of all examples together (`Task.measures`); empty: it has none.
        sides: both sides of pairs, in the order of the examples; None: the examples are not pairs.
    """

    accuracy: float
    loss: float
    scores: scoring.Scores
    temperature: float = 1.0
    answers: tuple[State, ...] = ()
    sides: PairSides | None = None
    measures: Mapping[str, Any] = field(default_factory=dict)


def compute_calibration(score: FinalScore) -> dict[str, Any]:
    """Return the expected calibration error on the test examples, before and after temperature scaling.

    The result is empty for language models.
    """
    scores = score.scores
    if not scores.confidence.any():
        return {}
    before, after = (calibrate(c, scores.correct).error for c in (scores.confidence, scores.scaled))
    return {"calibration_error": before, "calibration_error_scaled": after, "temperature": score.temperature}


def note_undefined(targets: Mapping[str, Any] | None, observer: RunObserver) -> Mapping[str, Any] | None:
    """Return the measures unchanged, and report those that are not numbers to the observer."""
    if note := describe_undefined(targets):
        observer.say(f"[bold]note[/]    {escape(note)}")
    return targets


@dataclass(frozen=True, eq=False)
class Scorer:
    """A scorer of saved files, in this process: on the run's GPU if the base fits in fp32, else on the CPU.

    The workers should have ended: their memory is not needed any more.

    Attributes:
        setup: the setup of the run.
        work: the work plan of the run.
        test: test examples.
        held: examples that the temperature is fitted on, if they may decide (`TrainingControl.fits`).
        threads: largest number of threads of torch.
        observer: receives the progress.
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
        """Score the files in `folder` once on the test examples, in fixed batches.

        Args:
            folder: the folder of the files.
            name: name of the phase.
            base_precision: precision of the base that the files are loaded on; everything else is fp32 (bf16 on a bf16
                base).
            temperature: the known temperature; None: fitted on the validation set, or 1 if that may not decide.
            asks: returns questions about the test examples, given the temperature.
        """
        setup, method = self.setup, self.setup.method
        self.observer.enter(f"{name}: loading it")
        work = dataclasses.replace(
            self.work.set_precision(base_precision), device=self._device, method=setup.saved_method
        )
        torch.set_num_threads(self.threads)
        base = setup.task.base(setup.model_directory, DTYPES.get(base_precision, torch.float32)).to(work.device)
        quantize(base, work.precision or method.base_precision)
        setup.saved_method.read(base)
        base, test, held = self._load_model_and_rows(base, work, name)
        model = saved_adapter.load(folder, setup.task, base, setup.facts.classes).to(work.device)
        del base
        fits = setup.training_control.fits
        if fits and isinstance(method, FitsWhenFinished) and (fitted := method.fit_when_finished(model, held)):
            saved_adapter.add(folder, fitted)
        divisor = self._fit_temperature(model, held, name) if temperature is None else temperature
        questions = asks(divisor)
        answers = [Fold() for _ in questions]
        batches = scoring.score_batches(test)
        self.observer.phase(name, 1 if isinstance(setup.task, ComparesExamples) else len(batches))
        if isinstance(setup.task, ComparesExamples):
            scores, sides = scoring.score_together(model, setup.task, test)
            return FinalScore(float(scores.correct.mean()), float(scores.loss.mean()), scores, sides=sides)
        outputs = np.zeros((len(test), setup.facts.classes if setup.task.targets else 0))
        columns = {f.name: np.zeros(len(test)) for f in dataclasses.fields(scoring.Scores)}
        for rows in use_faster_threads(batches, self.threads):
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
        """The device of the run's workers, if this machine has it and it has room; else the CPU."""
        device = self.work.device
        if device.startswith("cuda") and not list_accelerators():
            return "cpu"
        return device if get_free_memory(device) >= ROOM * self.setup.parameters else "cpu"

    def _load_model_and_rows(self, base: nn.Module, work: WorkPlan, name: str) -> tuple[nn.Module, Examples, Examples]:
        """Return the parts of the score: a base, test examples and validation examples.

        They begin at the lowest adapted block if the frozen part below it is reused and the disk has room for it.
        """
        setup = self.setup
        keys = [setup.tokenize_rows(rows, setup.tokens) for rows in (self.test, self.held)]
        test, held = map(load_cached_examples, keys)
        once = not setup.task.targets  # nothing else is made of a language model's test rows
        pooled, depth = is_pooled(setup), setup.frozen_blocks
        if once or work.precision or setup.method.base_precision or not (pooled or depth):
            return base, test, held
        stores = [work.store(key, 0 if pooled else depth) for key in keys]
        try:
            missing = [(store, tile) for store in stores for tile in fetch_missing_tiles(store)]
        except AssetError:
            return base, test, held
        if missing:
            self.observer.phase(f"{name}: frozen layers (kept for later runs)", len(missing))
        for store, tile in use_faster_threads(missing, self.threads):
            store.fill(tile, base)
            offer(store, [tile])
            self.observer.advance()
        of_test, of_held = stores
        if pooled:
            return create_pass_through(base), PooledRows(of_test), PooledRows(of_held)
        return cut_below(base, depth), start_from_store(test, of_test), start_from_store(held, of_held)

    def _fit_temperature(self, model: FederatedModel, held: Examples, name: str) -> float:
        """Return the divisor of the logits that fits the validation set.

        It is 1 without classes, or if the validation set may not decide.
        """
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
        self.observer.enter(f"{name}: its temperature, on the validation examples", len(batches))
        with torch.inference_mode():
            for index in use_faster_threads(batches, self.threads):
                logits[index] = model(scoring.move_batch(held.batch(index), model)).double().cpu().numpy()
                self.observer.advance()
        return fit_temperature(logits, labels)
