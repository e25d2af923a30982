"""The baseline without federation: the same adapter trained on all clients' examples together, from the same start.

Its work is cut into as many pieces as the federation has rounds, each with as many examples, so that the learning rate
falls as it does there. A rate that suits a few dozen local steps, whose average over a cohort calms the noise, can be
too high for hundreds of steps in a row (at 4e-3 on 20 Newsgroups it diverges). So several rates are tried side by side,
and the one with the least validation loss is the baseline: beating a weak one proves nothing. If all diverge, as they
may if the run itself has lowered its rate, lower ones are tried. If all of those diverge, too, the baseline is the
start.

Examples that clients hold out are not in the pool and do not count as work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from fedpeft.aggregation.abilities import Buffered
from fedpeft.clients.executor import Job
from fedpeft.clients.pool import Worker, get_result
from fedpeft.machine import seeds
from fedpeft.peft.adapter import State
from fedpeft.reporting.final_score import FinalScore, save
from fedpeft.rounds.progress import ServerState
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.setup import Setup

POOLED = "centralised"
"""Folder, in a run's own, of the pooled adapter."""

RATES = (1.0, 0.5, 0.25)
"""Learning rates to try, in units of the run's own; if all diverge, an eighth of each, and so on."""

TIMES = 4
"""How many times rates are tried."""

Step = Callable[[Mapping[float, State], int], dict[float, State]]
"""Returns the states by rate after one more piece of work, counted from 1."""


def find_best_pooled(
    start: State, pieces: int, step: Step, loss: Callable[[State], float], advance: Callable[[], None]
) -> tuple[State, float]:
    """Return the best trained state, and its rate in units of the run's; the start and 0 if all have diverged.

    A try whose loss after a quarter of the work is above the start's has diverged, and ends there.

    Args:
        start: the state that all tries begin with.
        pieces: number of pieces of work.
        step: does one more piece of work at each rate.
        loss: returns the loss on the validation set.
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
    """Train the same adapter on the pooled examples, and return it with its learning rate.

    It has the same `start`, and the passes and batch size of one cohort a round.
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
    """Return how many of its `rows` a client's local steps of one round use; repeated ones count again."""
    batch = setup.training.batch_size
    steps: int = setup.profiles[client].steps or setup.training.steps_for(rows)
    return float(steps * rows / -(-rows // batch))


def train_pooled_adapter(simulation: Simulation, progress: ServerState) -> float:
    """Train on the pooled examples, save the adapter, and return its learning rate, the best one."""
    state, rate = train_on_pooled_rows(simulation, progress.started)
    (simulation.folder / POOLED).mkdir(exist_ok=True)
    save(simulation.setup, state, simulation.folder / POOLED)
    return rate


def score_of_pooled(simulation: Simulation) -> FinalScore:
    """Return the pooled adapter's score on the test set."""
    return simulation.scorer.score(simulation.folder / POOLED, "scoring the adapter of the pooled data (fp32)")
