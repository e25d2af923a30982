"""The end of a run that never uses the test set, such as a trial of a search: trained, saved, scored on validation."""

from __future__ import annotations

import math
from dataclasses import replace

from fedpeft.reporting.final_score import FinalScore, save
from fedpeft.reporting.observer import compute_perplexity
from fedpeft.reporting.records import Records
from fedpeft.reporting.summary import OWN_VALIDATION_ROWS, VALIDATION_ROWS, Costs, Quality, Summary
from fedpeft.rounds.best_state import summarize_validation
from fedpeft.rounds.evaluation import OwnRows
from fedpeft.simulation.simulation import Simulation


def run_trial(simulation: Simulation, records: Records) -> Summary:
    """Train, save and score the adapter on the validation set, without the measurements that use the test set.

    Accuracy and loss are NaN if there is no validation set.
    """
    setup = simulation.setup
    server = simulation.server(records)
    progress = simulation.train(server)
    kept, residual = progress.result
    save(setup, kept, simulation.folder, residual)
    own = server.evaluate_own_rows(progress) if setup.personal else None
    simulation.close()
    score = _score_validation_rows(simulation)
    return Summary(
        quality=replace(
            _build_quality(setup.task.metric, own, score, progress.kept_round), **summarize_validation(progress.best)
        ),
        costs=Costs.of(setup, progress, simulation.sampler.size, simulation.protection, simulation.fixed),
        partition=simulation.statistics.to_dict(),
        sampled=simulation.rows.dataset.sampled,
        hooks=server.sections(progress),
        ended_early=server.early_end or None,
    )


def _score_validation_rows(simulation: Simulation) -> FinalScore | None:
    """Return the saved adapter's score on the validation set; None: it is empty."""
    scorer = simulation.scorer
    if not len(scorer.held):
        return None
    name = "scoring the saved adapter on the validation set (fp32)"
    return replace(scorer, test=scorer.held).score(simulation.folder, name)


def _build_quality(metric: str, own: OwnRows | None, score: FinalScore | None, kept_round: int) -> Quality:
    """Return the quality of clients' own models on their examples, if they have any; otherwise of the one model."""
    of_all = (score.accuracy, score.loss) if score else (math.nan, math.nan)
    accuracy, loss = (own.accuracy, own.loss) if own else of_all
    return Quality(
        metric=metric,
        accuracy=accuracy,
        accuracy_of=OWN_VALIDATION_ROWS if own else VALIDATION_ROWS,
        worst_accuracy=own.worst_accuracy if own else None,
        loss=loss,
        perplexity=compute_perplexity(loss) if metric == "perplexity" else None,
        kept_round=kept_round,
        temperature=score.temperature if score else None,
    )
