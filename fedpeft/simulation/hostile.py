"""Hostile clients of a simulation: they run the real client code, but spoil their examples or their updates."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from fedpeft.clients.attack import Attack, ChangesLabels, ClaimsRows, PlantsTrigger
from fedpeft.clients.client import ClientPlan, ClientSide
from fedpeft.clients.stages import ClientStage, TrainedRound
from fedpeft.clients.workbench import Workbench
from fedpeft.data.rows import Rows, join_rows
from fedpeft.errors import ConfigError
from fedpeft.machine import seeds
from fedpeft.parts import format_part, name_of
from fedpeft.peft.adapter import Layout, State
from fedpeft.simulation.rows import SimulatedRows


def compute_attacked_labels(attack: Attack, rows: SimulatedRows, seed: int) -> NDArray[np.int64] | None:
    """Return all labels, with those of hostile clients as the attack changes them; None: it changes none.

    Raises:
        ConfigError: the attack needs labels that the dataset lacks.
    """
    if not isinstance(attack, ChangesLabels):
        return None
    _check_examples(attack, rows)
    assert rows.all.labels is not None
    labels: NDArray[np.int64] = rows.all.labels.copy()
    for client in attack.attackers(len(rows.partition), seed):
        shard = rows.partition.shard(client)
        labels[shard] = _check_labels(attack, attack.relabel(labels[shard], rows.dataset.classes), len(shard), rows)
    return labels


def plant_triggers(attack: Attack | None, rows: SimulatedRows, seed: int) -> tuple[Rows, NDArray[np.int64]]:
    """Return all examples as the workers read them, and the indices of those that show whether a trigger works.

    Some examples of hostile clients carry the trigger and the target class. Behind all examples follow copies of the
    validation examples of other classes, with both, so that the accuracy on them is the attack's success. An attack
    without a trigger changes nothing, and there are no such copies.

    Raises:
        ConfigError: the dataset has no such class, clients share their examples, or the attack also changes labels.
    """
    everything = rows.all
    if not isinstance(attack, PlantsTrigger):
        return everything, np.zeros(0, np.int64)
    if isinstance(attack, ChangesLabels):
        raise ConfigError(
            f"FP1530 {format_part(attack)} has the methods relabel and plant, which both set labels; define one of them"
        )
    _check_examples(attack, rows)
    target, classes, labels = attack.target, rows.dataset.classes, everything.labels
    assert labels is not None
    if target >= classes:
        raise ConfigError(
            f"FP1525 {format_part(attack)} names the class {target}, and {rows.dataset.name} has 0 to {classes - 1}; "
            "set target to one of them"
        )
    poisoned = [np.zeros(0, np.int64)]
    for client in sorted(attack.attackers(len(rows.partition), seed)):
        shard = rows.partition.shard(client)
        others = shard[labels[shard] != target]
        drawn = seeds.create_generator(seed, "trigger", client).permutation(len(others))
        poisoned.append(others[drawn[: round(attack.share * len(others))]])
    held = rows.validation[labels[rows.validation] != target]
    chosen = np.concatenate([*poisoned, held])
    marked = Rows(attack.plant(everything.take(chosen).inputs), np.full(len(chosen), target, labels.dtype))
    first, count = len(everything), len(chosen) - len(held)
    order = np.arange(first + len(held))
    order[chosen[:count]] = first + np.arange(count)
    order[first:] += count
    return join_rows(Rows(everything.inputs, labels), marked).take(order), np.arange(first, len(order))


def _check_examples(attack: Attack, rows: SimulatedRows) -> None:
    """Refuse examples whose classes attackers can't change.

    Raises:
        ConfigError: the examples have no classes, clients share them, or clients compare the classes of a task.
    """
    text = format_part(attack)
    if rows.all.labels is None or rows.all.targets != "classes" or not rows.dataset.classes:
        raise ConfigError(f"FP1412 {text} changes classes, and {rows.dataset.name} has none; use sign_flip")
    if rows.partition.resampled:
        raise ConfigError(f"FP1413 {text} changes labels, which clients share under resample; use sign_flip")
    if rows.dataset.tasks is not None and rows.dataset.tasks.compete != "all":
        raise ConfigError(
            f"FP1414 {text} takes labels of any class, and clients compare those of their task; use tasks(..., "
            "compete=all), or sign_flip"
        )


def _check_labels(attack: Attack, made: NDArray[np.int64], count: int, rows: SimulatedRows) -> NDArray[np.int64]:
    """Return the `count` labels that an attack, possibly a plugin's, has made.

    Raises:
        ConfigError: they are not one legal class for each example.
    """
    classes = rows.dataset.classes
    told = made.ravel()
    fits = made.shape == (count,) and (made.dtype.kind in "iu" or not count)
    if fits:
        told = np.unique(made[(made < 0) | (made >= classes)])
    if not fits or len(told):
        raise ConfigError(
            f"FP1415 the attack {name_of(type(attack))} turned {count} labels into an array of shape "
            f"{made.shape} and type {made.dtype}, with {told[:3].tolist()!s:.80}; its relabel() must return a "
            f"class from 0 to {classes - 1} for each"
        )
    return made


@dataclass(frozen=True)
class HostilePlan(ClientPlan):
    """A plan of clients, some of whom carry out an `attack`."""

    attack: Attack | None = None

    @classmethod
    def from_plan(cls, plan: ClientPlan, attack: Attack, layout: Layout) -> HostilePlan:
        """Return the plan with hostile clients; `layout` describes the tensors that they train.

        Raises:
            ConfigError: the attack needs factors, and the adapter has none.
        """
        if attack.needs_factors and not layout.pairs:
            raise ConfigError(
                f"FP1416 {format_part(attack)} changes LoRA's factors, but this run trains none; use --peft lora"
            )
        return cls(**{field.name: getattr(plan, field.name) for field in fields(plan)}, attack=attack)

    def create_side(self, bench: Workbench) -> ClientSide:
        """Return the clients that one worker speaks for."""
        assert self.attack is not None
        return ClientSide(bench, self, [AttackStage(self.attack, len(self.partition), bench.plan.seed)])


class AttackStage(ClientStage):
    """Makes the attackers among `clients` clients spoil their updates, and claim other example counts."""

    def __init__(self, attack: Attack, clients: int, seed: int) -> None:
        """Draw the attackers from the run's `seed`."""
        self.attack = attack
        self.attackers = attack.attackers(clients, seed)

    def finish(self, client_round: TrainedRound) -> TrainedRound:
        """Return the round as an attacker reports it."""
        job, result = client_round.job, client_round.result
        if job.client not in self.attackers:
            return client_round

        def spoil(update: State) -> State:
            draws = seeds.create_torch_generator(job.seed, "attack", job.round, job.client)
            spoilt: State = self.attack.update(update, job.received, client_round.layout, draws)
            return spoilt

        if isinstance(self.attack, ClaimsRows):
            result = replace(result, rows=self.attack.rows(result.rows))
        return replace(client_round, result=result, hand_in=spoil)
