"""The features of the round loop, in the one order in which the loop calls them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedpeft.answers.exam import Exam, Said
from fedpeft.peft.adapter import State
from fedpeft.privacy.engine import PrivacyEngine
from fedpeft.run.observer import Observer, validating
from fedpeft.run.setup import Setup
from fedpeft.server import (
    disagreement,
    ensemble,
    evaluation,
    exactness,
    examiner,
    keep_best,
    private_rounds,
    safeguard,
    tasks,
    user_hook,
)
from fedpeft.server.collectors import choose_collector
from fedpeft.server.energy import EnergyBook, EnergyHook
from fedpeft.server.exchange import Exchange
from fedpeft.server.hooks import RoundHook
from fedpeft.server.progress import RunStore


@dataclass(frozen=True)
class ServerModel:
    """What the server can do with a global state itself; None: it lacks the examples, or the run does not need it.

    Attributes:
        evaluate: returns the metrics on validation examples.
        validation_loss: returns the loss by which the safeguard judges steps.
        score_task: scores one of several tasks.
        exam: the questions of `--measure evaluate`.
        answer: answers the questions.
    """

    evaluate: evaluation.Evaluate | None = None
    validation_loss: safeguard.ValidationLoss | None = None
    score_task: tasks.Score | None = None
    exam: Exam | None = None
    answer: Callable[[Exam, State, int], list[Said]] | None = None


def attach_features(
    setup: Setup,
    transport: Exchange,
    store: RunStore,
    observer: Observer,
    model: ServerModel,
    privacy: PrivacyEngine | None = None,
    book: EnergyBook | None = None,
) -> tuple[RoundHook, ...]:
    """Return the hooks of a run.

    The order matters: privacy replaces the aggregator that exactness and disagreement wrap; a buffered collector picks
    idle clients before privacy charges them, and energy leaves out clients after the charge; a step is undone before
    a sum adapts its reach, a task ends, or the state is evaluated and kept. Hooks of a user's own come last, after
    privacy has removed what a run does not disclose.
    """
    say = observer.say
    validation_loss = validating(observer, model.validation_loss)
    offered = (
        exactness.attach(setup),
        disagreement.attach(setup),
        safeguard.attach(setup, store, validation_loss, say),
        choose_collector(setup)(setup, transport, store, observer, privacy),
        private_rounds.attach(setup, privacy, transport, say),
        None if book is None else EnergyHook(book, store.records),
        tasks.attach(setup, transport, model.score_task, say),
        evaluation.EvaluationHook(setup, transport, validating(observer, model.evaluate), say),
        keep_best.attach(setup),
        examiner.attach(setup, model.exam, model.answer, say),
        ensemble.attach(setup, store),
        *user_hook.attach(setup),
    )
    return tuple(hook for hook in offered if hook is not None)


def check_features(setup: Setup) -> None:
    """Refuse a run that one of its features does not suit.

    Raises:
        ConfigError, PrivacyError: from the feature.
    """
    for hook in setup.hooks:
        user_hook.check_user_hook(hook, setup)
