"""The features of the round loop, in the one order in which the loop calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedpeft.models.answers.exam import Exam, Said
from fedpeft.peft.adapter import State
from fedpeft.privacy.engine import PrivacyEngine
from fedpeft.reporting.observer import Observer, announce_validation
from fedpeft.rounds import evaluation, exactness, keep_best, private_rounds, safeguard, tasks, traffic_budget, user_hook
from fedpeft.rounds.collectors import choose_collector
from fedpeft.rounds.energy import EnergyHook, EnergyTracker
from fedpeft.rounds.exchange import Transport
from fedpeft.rounds.hooks import RoundHook
from fedpeft.rounds.progress import RunStore
from fedpeft.wiring.setup import Setup


@dataclass(frozen=True)
class ServerModel:
    """What the server can do with a global state itself; None: it lacks the examples, or the run does not need it.

    Attributes:
        evaluate: returns the metrics on validation examples.
        validation_loss: returns the loss by which the safeguard judges steps.
        score_task: scores one of several tasks.
        answer: answers questions by a global state on the base of a version.
        score_trigger: returns the success of an attack's trigger on a global state, 0 to 1; None: it can't be measured.
    """

    evaluate: evaluation.Evaluate | None = None
    validation_loss: safeguard.ValidationLoss | None = None
    score_task: tasks.Score | None = None
    answer: Callable[[Exam, State, int], list[Said]] | None = None
    score_trigger: Callable[[State, int], float | None] | None = None


@dataclass(frozen=True)
class RunParts:
    """What the hooks of a run attach to.

    Attributes:
        setup: the parts that the settings name.
        transport: how the server reaches its clients.
        store: the files of the run.
        observer: receives messages about the run.
        model: what the server can do with a global state itself.
        begun: what the measurements loaded before training, by name.
        privacy: the mechanism with its ledger; None: the run has none.
        book: the energy and batteries of the clients; None: nothing needs them.
    """

    setup: Setup
    transport: Transport
    store: RunStore
    observer: Observer
    model: ServerModel
    begun: Mapping[str, Any] = field(default_factory=dict)
    privacy: PrivacyEngine | None = None
    book: EnergyTracker | None = None


def attach_features(run: RunParts) -> tuple[RoundHook, ...]:
    """Return the hooks of a run.

    The order matters:

    - Privacy replaces the aggregator that exactness wraps.
    - A buffered collector picks idle clients, and the traffic budget leaves clients out, before privacy charges them.
      Energy leaves clients out after the charge.
    - A step is undone before a sum adapts its reach, a task ends, or the state is evaluated and kept.
    - A user's own hooks come last, after privacy has removed what a run does not disclose.
    """
    setup, transport, store, observer, model = run.setup, run.transport, run.store, run.observer, run.model
    say = observer.say
    validation_loss = announce_validation(observer, model.validation_loss)
    offered = (
        exactness.attach(setup),
        safeguard.attach(setup, store, validation_loss, say),
        choose_collector(setup)(setup, transport, store, observer),
        traffic_budget.attach(setup, transport, say),
        private_rounds.attach(setup, run.privacy, transport, say),
        None if run.book is None else EnergyHook(run.book, store.records),
        tasks.attach(setup, transport, model.score_task, say),
        evaluation.EvaluationHook(setup, transport, announce_validation(observer, model.evaluate), say),
        keep_best.attach(setup),
        *(part.attach(run) for part in setup.measured.parts),
        *user_hook.attach(setup),
    )
    return tuple(hook for hook in offered if hook is not None)


def check_features(setup: Setup) -> None:
    """Refuse a run that one of its features can't serve.

    Raises:
        ConfigError, PrivacyError: from the feature.
    """
    traffic_budget.check(setup)
    for hook in setup.hooks:
        user_hook.check_user_hook(hook, setup)
