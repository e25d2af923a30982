"""Questions under masks: the server learns what clients' answers add up to, and no answer."""

import dataclasses

import pytest
import torch
from rich.console import Console

from fedpeft.privacy.secure_sum.integers import LARGEST_NUMBER, UNIT
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.records import Records
from fedpeft.rounds.calibration import calibrate_on_clients
from fedpeft.rounds.exchange import Transport
from fedpeft.simulation.simulation import Simulation
from fedpeft.trust.question import WORST_LOSS, Question
from fedpeft.trust.questions.class_sums import ClassSums
from fedpeft.trust.questions.likelihoods import Likelihoods
from fedpeft.trust.questions.reliability import Reliability
from fedpeft.wiring.config import RunConfig
from tests.here import Federation
from tests.refusals import refuses

TINY = {"dataset": "tiny", "tokens": 16, "clients": 4, "cohort": 3, "rounds": 1, "workers": 1, "seed": 3,
        "head": "zero", "local_work": "steps(1)", "peft": "lora(rank=2, layers=1)", "dtype": "fp32",
        "measure": "validation(every=100) + calibration(rows=clients)", "safeguard": "none",
        "privacy": "secure_sum(threshold=0.5)"}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked")
    simulation = Simulation(RunConfig(**TINY), folder, ConsoleObserver(Console(quiet=True)))
    server = simulation.server(Records(folder))
    return simulation, server, simulation.train(server)


def pooled(simulation, progress, question):
    """Return the answer on all held-out examples together, and each client's answer."""
    side = simulation.workers.pool._local.clients
    answers = []
    for client in range(TINY["clients"]):
        _, rows = side.choose_rows(client, 1)
        answers.append(
            question.answer(side.bench.executor.compute_logits(progress.adapter, rows), side.bench.get_labels(rows))
        )
    return {name: sum(answer[name] for answer in answers) for name in answers[0]}, answers


@pytest.mark.parametrize("question", [Likelihoods(), Reliability(temperature=1.3)])
def test_the_sums_are_those_without_masks_to_the_grid(finished, question):
    simulation, server, progress = finished
    found = server.create_questions(progress).ask(question)
    without, answers = pooled(simulation, progress, question)
    assert found.clients == sum(bool(answer["rows"]) for answer in answers)
    assert found.uplink_bytes > 0
    for name, tensor in without.items():
        torch.testing.assert_close(found.total[name], tensor, rtol=0, atol=TINY["clients"] * UNIT / 2 + 1e-9)


def test_nothing_of_a_single_client_arrives(finished, monkeypatch):
    """What the third step brings is as if drawn at random, and no client's own sums."""
    _, server, progress = finished
    question, seen = Likelihoods(), []
    real = Transport.send_in_order

    def in_order(exchange, instructions, total, phase, *early):
        asked = {i.client: i for i in instructions}
        for report in real(exchange, list(asked.values()), total, phase, *early):
            seen.append((asked[report.client], report))
            yield report

    monkeypatch.setattr(Transport, "send_in_order", in_order)
    server.create_questions(progress).ask(question)
    vectors = [report for instruction, report in seen if instruction.asks]
    assert len(vectors) == TINY["clients"]
    assert {(r.rows, r.loss, r.steps, r.correct, r.count) for _, r in seen} == {(0, 0.0, 0, 0.0, 0.0)}
    for one in vectors:
        bytes_seen = [one.payload.count(bytes([b])) for b in range(256)]
        assert max(bytes_seen) < 0.05 * len(one.payload), "masked integers look uniform; plain ones are mostly zeros"


def test_calibration_comes_of_it(finished):
    _, server, progress = finished
    found = calibrate_on_clients(server.create_questions(progress), 15)
    assert found["clients"] == TINY["clients"]
    assert found["after"]["loss"] <= found["before"]["loss"] + 1e-6


def test_what_has_no_sum_ends_in_one_sentence(finished, monkeypatch):
    _, server, progress = finished
    questions = server.create_questions(progress)
    with refuses("FP5205", "likelihoods"):
        questions.ask(Likelihoods(), cohort=[0, 1])
    with refuses("FP5205", "no sum of clients' answers to class_sums"):
        questions.ask(ClassSums(width=8))
    with monkeypatch.context() as patch:
        patch.setattr(Question, "answer", lambda self, logits, labels: {"rows": torch.full((1,), LARGEST_NUMBER)})
        with refuses("FP5205"):
            questions.ask(Likelihoods())
    assert LARGEST_NUMBER > 100 * WORST_LOSS


def test_a_client_says_nothing_without_masks(finished):
    simulation, server, progress = finished
    question = Likelihoods()
    side = simulation.workers.pool._local.clients
    (instruction, *_) = server.create_questions(progress)._create_instructions(question, [0], 1)
    with refuses("FP7002", "without masks"):
        side.handle([instruction])
    side.reports.masking.identity = object()
    try:
        with refuses("FP7001"):
            side.handle([dataclasses.replace(instruction, step=3)])
    finally:
        side.reports.masking.identity = None


@pytest.mark.fast
def test_real_clients_and_noisy_sums_are_refused(tmp_path):
    observer = ConsoleObserver(Console(quiet=True))
    measure = "validation(every=100) + calibration(rows=clients)"
    with refuses("FP7023"):
        Federation(tmp_path, observer, measure=measure, privacy="secure_sum", clients=3)
    noisy = {**TINY, "privacy": "distributed_dp(epsilon=8, raw_metrics=True)"}
    with refuses("FP7093"):
        Simulation(RunConfig(**noisy), tmp_path, observer)
