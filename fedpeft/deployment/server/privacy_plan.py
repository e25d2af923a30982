"""The cost of a private federation of real clients, as far as its server can compute it, and the training plan.

Clients that protect their number of examples do not report it. The operator states a rough public number
(`client_rows`, or `rows` of distributed_dp). The plan is the one that a simulation of such clients makes. It decides
nothing about protection: each client takes the noise that its own examples need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedpeft.deployment.options import MOST_CLIENT_ROWS, EdgeOptions
from fedpeft.errors import ConfigError
from fedpeft.parts import format_part
from fedpeft.privacy.abilities import is_whitened
from fedpeft.privacy.client_protection import plan_participations
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.secure_sum.contribution import count_tensor_entries
from fedpeft.privacy.spending import describe_spending
from fedpeft.privacy.sum_mechanism import SumMechanism
from fedpeft.privacy.training_plans import PlansTraining
from fedpeft.rounds.sampling import Population, create_population
from fedpeft.wiring.private_plan import can_plan, plan_training
from fedpeft.wiring.profiles import ProfileTable, compute_chances
from fedpeft.wiring.setup import Setup

UNPLANNED = (
    "training is not planned for the privacy budget, because the server has no number of examples: give a rough number "
    "per client with --client-rows"
)


def create_served_population(setup: Setup) -> Population:
    """Return what draws the cohorts of a served run."""
    size = setup.compute_cohort_size(setup.clients)
    return create_population(setup.clients, size, compute_chances(setup.profiles), setup.mechanism)


def count_known_rows(setup: Setup, client_rows: int, held_out: float) -> int:
    """Return the public mean number of examples that a client trains on, at least 1; 0: unknown.

    Args:
        setup: the parts of the run.
        client_rows: examples of a client, as the operator states them.
        held_out: share of them that it is scored on instead.

    Raises:
        ConfigError: the number is given twice, or without a budget, or exceeds what a client takes in a step.
    """
    mechanism = setup.mechanism
    if client_rows and mechanism is None:
        raise ConfigError(
            f"FP1141 --client-rows {client_rows} plans training under a privacy budget, and this run has none; leave "
            "it out, or give --privacy 'dp_sgd(epsilon=8)'"
        )
    rows = mechanism.public_rows if isinstance(mechanism, SumMechanism) else None
    if mechanism is None or rows is None:
        return client_rows and max(1, round(client_rows * (1 - held_out)))
    if client_rows:
        raise ConfigError(
            f"FP1142 --client-rows {client_rows} and {mechanism.name}(rows={rows}) both give the number of examples; "
            "leave --client-rows out"
        )
    of_one = max(1, round(rows / setup.clients))
    if of_one > MOST_CLIENT_ROWS:
        raise ConfigError(
            f"FP1143 {mechanism.name}(rows={rows}) means {of_one:,} examples for each of {setup.clients} "
            f"clients, but a client processes at most {MOST_CLIENT_ROWS:,} in a step; give a smaller rows= in "
            "--privacy, or more --clients"
        )
    return of_one


def compute_exposure(setup: Setup, rows: int) -> Exposure:
    """Return what the cost of a served run depends on.

    Args:
        setup: parts of a run with a mechanism.
        rows: number of a client's examples; 0: only the client itself has it.
    """
    config, mechanism, sampler = setup.config, setup.mechanism, create_served_population(setup)
    assert mechanism is not None
    ones = np.ones(setup.clients, np.int64)
    share = sampler.size / setup.clients
    summed_start = setup.has_private_start and isinstance(mechanism, SumMechanism)
    return Exposure(
        strategy=setup.strategy,
        method=setup.method,
        layout=setup.layout,
        rows=max(1, rows) * ones,
        steps=(setup.training.steps_for(rows) if rows else 1) * ones,
        participations=(plan_participations(config.rounds, share) if rows else config.rounds) * ones,
        batch_size=config.batch_size,
        rounds=config.rounds,
        cohort=sampler.size,
        even=len(set(sampler.weights)) <= 1,
        start=setup.has_private_start,
        start_entries=count_tensor_entries(setup.noised_shapes) if summed_start else 0,
        trained=setup.trained_entries,
        whitened=setup.whitened_directions if is_whitened(mechanism) else 0,
    )


def set_client_delta(setup: Setup) -> Setup:
    """Return the setup with the delta that clients accept, if their shares of one noise are planned together.

    With few clients the usual delta, a tenth of 1 / clients, is larger than the one that a client accepts. A client
    would count at its own delta. The planned noise then pays for fewer rounds, and the run would end before its last
    one.
    """
    mechanism = setup.mechanism
    if not isinstance(mechanism, SumMechanism) or mechanism.epsilon is None or mechanism.dp_delta is not None:
        return setup
    usual, accepted = mechanism.delta(compute_exposure(setup, 1)), EdgeOptions().max_delta
    if usual <= accepted:
        return setup
    stated = replace(mechanism, dp_delta=accepted)
    made = replace(setup, mechanism=stated, config=replace(setup.config, privacy=format_part(stated)))
    return _add_note(
        made,
        f"the budget counts at dp_delta {accepted:g}, the largest that clients accept by default, not at the "
        f"{usual:.2g} that is usual for {mechanism.units(compute_exposure(setup, 1))} {mechanism.privacy_unit}s",
    )


def plan_for_all(setup: Setup, rows: int, groups: Sequence[ProfileTable], head: str) -> Setup:
    """Return the setup with its mechanism's plan for clients with `rows` examples; its notes describe the plan.

    The share of the start is part of the plan, because a client with another number of examples would compute another
    one.

    Args:
        setup: the parts of the run, as the user set them.
        rows: examples that a client trains on; 0: unknown.
        groups: groups of clients that differ.
        head: the user's setting for the start of the head.

    Raises:
        FedpeftError: the settings would not protect clients with so many examples, or contradict the plan.
    """
    mechanism = setup.mechanism
    if mechanism is None or not mechanism.protects or mechanism.epsilon is None:
        return setup
    if not rows:
        planned_by_rows = can_plan(setup) and isinstance(mechanism, PlansTraining)
        return _add_note(setup, UNPLANNED) if planned_by_rows and mechanism.start != 1 else setup
    mechanism.check(compute_exposure(setup, rows))
    made = plan_training(setup, compute_exposure(setup, rows), groups, head)
    federation, taken = compute_exposure(made, rows), made.mechanism
    assert taken is not None
    if (noise := taken.start_noise(federation)) is None:
        return made
    shared = replace(taken, start=taken.start_share(federation))
    config = replace(made.config, privacy=format_part(shared))
    made = replace(made, mechanism=shared, config=config)
    each = taken.noises_updates  # otherwise the ledger reports it
    return (
        _add_note(made, f"for clients of {rows} examples {describe_spending(shared, federation, noise)}")
        if each
        else made
    )


def _add_note(setup: Setup, note: str) -> Setup:
    return replace(setup, notes=(*setup.notes, note))
