"""The reference without federation: the same adapter trained on all clients' rows together, from the same start.

Its work is cut into as many pieces as the federation has rounds, each of as many rows, so that the learning rate falls
as it does there. A rate that suits a few dozen local steps, whose average over a cohort calms the noise, can be too
high for hundreds of steps in a row (at 4e-3 on 20 Newsgroups it diverges). So several rates are tried side by side, and
the one with the least validation loss is the reference: nothing is won by a weak one. Where all diverge, as they may
where the run itself has lowered its rate, lower ones are tried; where all of those do, too, it is the start.

Rows that clients hold out are not in the pool, and no part of the work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from fedpeft import seeds
from fedpeft.aggregation.abilities import Buffered
from fedpeft.clients.executor import Job
from fedpeft.clients.pool import Worker, get_result
from fedpeft.peft.adapter import State
from fedpeft.reporting.final_score import FinalScore, save
from fedpeft.rounds.progress import ServerState
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.setup import Setup

POOLED = "centralised"
"""Folder, in a run's own, of the adapter of the pooled rows."""

RATES = (1.0, 0.5, 0.25)
"""What is tried, in units of the run's own learning rate; where all diverge, an eighth of each, and so on."""

TIMES = 4
"""How often rates are tried."""

Step = Callable[[Mapping[float, State], int], dict[float, State]]
"""The states by rate after one more piece of work, counted from 1."""


def find_best_pooled(
    start: State, pieces: int, step: Step, loss: Callable[[State], float], advance: Callable[[], None]
) -> tuple[State, float]:
    """The best trained state, and its rate in units of the run's; the start and 0, where all have diverged.

    A try that after a quarter of the work is worse than the start has diverged, and ends there.

    Args:
        loss: on the validation rows.
        advance: called after each piece.
    """
    least, quarter = loss(start), max(1, pieces // 4) if pieces > 1 else 0
    states: dict[float, State] = {}
    for time in range(TIMES):
        states = dict.fromkeys((rate / 8**time for rate in RATES), start)
        for piece in range(1, quarter + 1):
            states = step(states, piece)
            if not time:
                advance()
        states = {rate: state for rate, state in states.items() if not quarter or loss(state) <= least}
        if states:
            break
    else:
        return start, 0.0
    for piece in range(quarter + 1, pieces + 1):
        states = step(states, piece)
        advance()
    losses = {rate: loss(state) for rate, state in states.items()}
    rate = min((rate for rate in losses if math.isfinite(losses[rate])), key=losses.__getitem__, default=0.0)
    return states.get(rate, start), rate


def train_on_pooled_rows(simulation: Simulation, start: State) -> tuple[State, float]:
    """The same adapter trained on the pooled rows: same `start`, passes and batch size as of a cohort a round.

    Returns it, and its learning rate.
    """
    setup, workers, config = simulation.setup, simulation.workers, simulation.config
    cohort, shared = simulation.sampler.size, np.ones(len(simulation.rows.train), dtype=bool)
    seen = []
    for client in range(setup.clients):
        rows, apart = simulation.divide_rows(client)
        seen.append(_count_rows_per_round(setup, client, len(rows)))
        shared[apart] = False
    pooled = np.flatnonzero(shared)
    rule = setup.strategy
    heard = min(cohort, rule.get_buffer_size()) if isinstance(rule, Buffered) else cohort  # clients of one step
    piece = max(1, round(sum(seen) / setup.clients * heard))
    shuffled = np.concatenate(
        [
            seeds.create_generator(config.seed, "centralised", i).permutation(pooled)
            for i in range(-(-piece * config.rounds // len(pooled)))
        ]
    )
    training = setup.training.set_passes(1.0)

    def step(states: Mapping[float, State], number: int) -> dict[float, State]:
        jobs = {
            rate: Job(
                client=setup.clients,
                round=number,
                seed=config.seed,
                rows=shuffled[(number - 1) * piece : number * piece],
                received=received,
                trained=frozenset(setup.layout.names),
                training=training,
                learning_rate=rate * setup.schedule.get_rate(number),
                form=setup.layout.form,
            )
            for rate, received in states.items()
        }
        calls = {rate: workers.pool.submit(Worker.train, job) for rate, job in jobs.items()}
        return {rate: states[rate] | get_result(call).state for rate, call in calls.items()}

    observer = workers.observer
    observer.phase("the same adapter on the pooled data", config.rounds)
    best, rate = find_best_pooled(
        start, config.rounds, step, lambda found: workers.evaluate(found, 0).loss, observer.advance
    )
    return best, rate * config.learning_rate


def _count_rows_per_round(setup: Setup, client: int, rows: int) -> float:
    """How many of its `rows` a client's local steps of one round see, repeated ones counted again."""
    batch = setup.training.batch_size
    steps: int = setup.profiles[client].steps or setup.training.steps_for(rows)
    return float(steps * rows / -(-rows // batch))


def train_pooled_adapter(simulation: Simulation, progress: ServerState) -> float:
    """Train on the pooled rows, save the adapter, and return the learning rate that was best."""
    state, rate = train_on_pooled_rows(simulation, progress.started)
    (simulation.folder / POOLED).mkdir(exist_ok=True)
    save(simulation.setup, state, simulation.folder / POOLED)
    return rate


def score_of_pooled(simulation: Simulation) -> FinalScore:
    """That adapter's, on the test rows."""
    return simulation.scorer.score(simulation.folder / POOLED, "scoring the adapter of the pooled data (fp32)")
