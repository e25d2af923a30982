"""The baseline without others' examples: the same adapter, trained by single clients alone.

A client alone has the run's start and settings, and trains on its own examples in every round, at that round's learning
rate. That is more work than in the federation, which asks it now and then. If the safeguard has lowered the rates by
the end of the run, the client alone uses the lowered rates from the start: a harmful rate would make a weak baseline.

It trains the tensors that the strategy has it train in that round, with LoRA factors at its own rank. Its model is
saved and scored as an adapter of the global rank. If the run's head starts from sums over all clients, its head starts
from its own. It does not train on the examples that the run holds out.

It is scored as the run is: on the test set or, if clients have their own models, on its held-out examples. If the run
keeps its best state on the validation set, so does a client alone.
"""

from __future__ import annotations

import numpy as np

from fedpeft.aggregation.abilities import choose_ranks
from fedpeft.aggregation.factors import place_ranks
from fedpeft.aggregation.head_start import convert_to_summands
from fedpeft.aggregation.owned_ranks import get_held_form
from fedpeft.clients.executor import Job
from fedpeft.clients.pool import Worker, get_result
from fedpeft.clients.rule_half import add_rule_corrections
from fedpeft.communication.decoding import decode
from fedpeft.communication.downlink import create_start
from fedpeft.communication.messages import Instruction
from fedpeft.peft.adapter import AdapterShape, Layout, State
from fedpeft.reporting.final_score import save
from fedpeft.rounds.best_state import BestState
from fedpeft.simulation.simulation import Simulation

FOLDER = "alone"
"""Folder, in the run's own, of the adapters of clients alone."""


def choose_clients(sizes: np.ndarray, count: int) -> list[int]:
    """Return `count` clients, or all, evenly spaced from the one with the fewest examples to the one with the most."""
    order = np.argsort(sizes, kind="stable")
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [int(order[place]) for place in places]


def start_alone(simulation: Simulation, client: int) -> State:
    """Return the run's start, with the head that the client's own examples give."""
    setup, state = simulation.setup, dict(simulation.setup.start)
    if not (setup.head.exchanges and "head.weight" in state):
        return state
    asked = Instruction("prepare", 0, client, b"", base_precision=setup.profiles[client].base)
    [report] = get_result(simulation.workers.pool.submit(Worker.handle, [asked]))
    classes, width = state["head.weight"].shape
    statistics = decode(report.payload, setup.head.shapes(width, classes, report.rows))
    sums = {name: tensor.double() for name, tensor in convert_to_summands(setup.head, statistics).items()}
    head = setup.head.solve(sums, width, classes)
    return state | {name: tensor.to(state[name].dtype) for name, tensor in head.items()}


def train_one_alone(simulation: Simulation, client: int) -> State:
    """Train a client alone, and return its state in the shape of the global adapter."""
    setup, config = simulation.setup, simulation.config
    rows = simulation.select_training_rows(client)
    steps = setup.profiles[client].steps
    training = setup.training.replace_steps(steps)
    rule, asked = setup.strategy, setup.profiles[client].form
    held = get_held_form(rule, setup.layout, asked)
    form = held if setup.layout.pairs else setup.layout.form  # a shorter prompt has no equal of the global length
    layout = setup.layout.replace_form(form)
    state = start_alone(simulation, client)
    state = state if form == setup.layout.form else create_start(rule, state, setup.layout, form)
    progress = simulation.checkpoints.load()
    lowered = progress.standing.rate if progress else 1.0
    simulation.observer.phase(f"client {client} alone", config.rounds)
    best = _measure_state(simulation, 0, state, form) if setup.training_control.keep_best else None
    for round_number in range(1, config.rounds + 1):
        job = Job(
            client=client,
            round=round_number,
            seed=config.seed,
            rows=rows,
            received=state,
            trained=rule.list_trained(setup.layout, round_number),
            training=training,
            learning_rate=setup.schedule.get_rate(round_number) * lowered,
            form=form,
            walked=(round_number - 1) * training.steps_for(len(rows)) if training.walks else None,
        )
        ranks = choose_ranks(rule, setup.layout, asked, config.seed, round_number, client) if held != asked else ()
        job = add_rule_corrections(job, rule, layout, ranks)
        state = state | get_result(simulation.workers.pool.submit(Worker.train, job)).state
        simulation.observer.advance(1)
        if best is not None and (round_number == config.rounds or round_number % setup.measured.validation.every == 0):
            best = best.after(_measure_state(simulation, round_number, state, form), setup.task.metric == "accuracy")
    return best.adapter if best is not None else expand_to_global(state, setup.layout, form)


def _measure_state(simulation: Simulation, round_number: int, state: State, form: AdapterShape | None) -> BestState:
    """Evaluate a client's state on the validation set, in the shape of the global adapter."""
    whole = expand_to_global(state, simulation.setup.layout, form)
    return BestState(round_number, simulation.workers.evaluate(whole, 0), whole, {})


def expand_to_global(state: State, layout: Layout, form: AdapterShape | None) -> State:
    """Return LoRA factors of a `form` in the shape of `layout`, with the same effective weights.

    Missing ranks become zeros, and B becomes (s_k / s) B.
    """
    if form is None or layout.form is None or form == layout.form:
        return state
    unit = form.scale / layout.form.scale
    scaled = {pair.B: state[pair.B] * unit for pair in layout.pairs}
    return place_ranks(state | scaled, layout, ())


def train_alone(simulation: Simulation, clients: int) -> dict[int, float | None]:
    """Train some clients alone, save their adapters, and return by client the accuracy on its held-out examples.

    If the run is scored on the test set, the accuracies are None, and `score_of_alone` computes them.
    """
    found: dict[int, float | None] = {}
    for client in choose_clients(np.asarray(simulation.rows.partition.sizes), clients):
        state = train_one_alone(simulation, client)
        folder = simulation.folder / FOLDER / str(client)
        folder.mkdir(parents=True, exist_ok=True)
        save(simulation.setup, state, folder)
        found[client] = None
        if simulation.setup.personal and len(apart := simulation.divide_rows(client)[1]):
            found[client] = simulation.workers.score(state, 0, apart).accuracy
    return found


def score_of_alone(simulation: Simulation, found: dict[int, float | None]) -> float | None:
    """Return the mean accuracy of clients alone; None: none has trained alone, or has examples to be scored on."""
    if simulation.setup.personal:
        scores = [accuracy for accuracy in found.values() if accuracy is not None]
    else:
        folders = {client: simulation.folder / FOLDER / str(client) for client in found}
        score = simulation.scorer.score
        scores = [score(f, f"scoring client {k} alone on the test set (fp32)").accuracy for k, f in folders.items()]
    return float(np.mean(scores)) if scores else None
