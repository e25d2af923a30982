"""Runs over tasks one after the other: what clients train on, what is measured, and what a kill in between costs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from fedpeft.clients.label_shift import mask_other_classes
from fedpeft.strategies.fedit import FedIT
from rich.console import Console

from fedpeft.deployment.options import ServeOptions
from fedpeft.deployment.server.examples import ServersRows
from fedpeft.errors import ConfigError, FedpeftError, PrivacyError
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.task_measures import compute_transfer
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.checks.tasks import check_tasks
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run
from tests.refusals import pattern_of, refuses

DATA = "tasks('tiny(classes=6)', classes=2, late=1)"
TINY = {"dataset": DATA, "tokens": 32, "clients": 4, "cohort": "all", "rounds": 6, "workers": 1, "seed": 3,
        "dtype": "fp32", "local_work": "steps(2)", "peft": "lora(rank=2, layers=1)", "head": "zero",
        "learning_rate": 3e-3}  # fmt: skip


def simulation(folder: Path, **given: object) -> Simulation:
    return Simulation(RunConfig(**{**TINY, **given}), folder, ConsoleObserver(Console(quiet=True)))


def test_clients_train_on_the_task_that_they_are_at(tmp_path):
    made = simulation(tmp_path, strategy="o_lora")
    side = made.workers.clients.create_side(type("Bench", (), {"plan": made.workers.work})())
    train = made.rows.train
    for client in range(4):
        delay = made.setup.facts.tasks.schedule.draw_delay(client, 3)
        for round_number in range(1, 7):
            rows, held = side.choose_rows(client, round_number)
            expected = min(max(0, round_number - 1 - delay) // 2, 2)
            assert set(train.tasks[rows]) == {expected}
            assert not len(held)
            assert made.setup.strategy.choose_ranks(
                made.setup.layout, made.setup.profiles[0].form, 3, round_number, client
            ) == (
                2 * expected,
                2 * expected + 1,
            )
    rates = [made.setup.schedule.get_rate(round_number) for round_number in range(1, 7)]
    assert rates == [rates[0], rates[1]] * 3, "each task has a schedule of its own"
    assert rates[0] > rates[1]
    made.close()


def test_only_the_classes_of_a_task_compete():
    logits, labels = torch.randn(5, 6, requires_grad=True), torch.tensor([2, 3, 2, 2, 3])
    torch.nn.functional.cross_entropy(logits + mask_other_classes((2, 3), 6), labels).backward()
    assert not logits.grad[:, [0, 1, 4, 5]].any()
    own = logits.detach()[:, 2:4].clone().requires_grad_()
    torch.nn.functional.cross_entropy(own, labels - 2).backward()
    assert torch.allclose(logits.grad[:, 2:4], own.grad, atol=1e-7)
    assert mask_other_classes((), 6) is None


def test_transfer_by_hand():
    matrix = [[0.9, 0.1, 0.2], [0.5, 0.8, 0.4], [0.6, 0.7, 1.0]]
    found = compute_transfer(matrix, [0.3, 0.2, 0.1])
    assert found["average"] == pytest.approx((0.6 + 0.7 + 1.0) / 3)
    assert found["forgetting"] == pytest.approx(((0.9 - 0.6) + (0.8 - 0.7)) / 2)
    assert found["backward_transfer"] == pytest.approx(((0.6 - 0.9) + (0.7 - 0.8)) / 2)
    assert found["forward_transfer"] == pytest.approx(((0.1 - 0.2) + (0.4 - 0.1)) / 2)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"dataset": "tiny", "strategy": "o_lora"}, ConfigError, ("FP1295", "--dataset")),
        ({"strategy": "o_lora(tasks=2)"}, ConfigError, ("FP1296", "3")),
        ({"strategy": "o_lora", "ranks": "2*2,1*2"}, ConfigError, ("FP1027",)),
        ({"strategy": "fedper"}, ConfigError, ("FP1346",)),
        ({"safeguard": "undo"}, ConfigError, ("FP1392",)),
        ({"measure": "validation(keep=best)"}, ConfigError, ("FP1392",)),
        ({"drift": "label_shift", "head": "ridge"}, ConfigError, ("FP1347",)),
        ({"privacy": "dp_sgd(epsilon=8)"}, PrivacyError, ("FP7114",)),
        ({"privacy": "user_dp(epsilon=8)", "strategy": "prototypes"}, PrivacyError, ("FP7113",)),
        ({"strategy": "o_lora", "server_optimizer": "momentum"}, ConfigError, ("FP1349", "--server-optimizer")),
        ({"strategy": "o_lora", "drift": "scaffold", "optimizer": "sgd"}, ConfigError, ("FP1350", "--drift")),
        ({"strategy": "inf_lora", "peft": "lora_sb(rank=2, layers=1)"}, ConfigError, ("FP1026",)),
        ({"strategy": "o_lora", "peft": "prompt_tuning(length=4)"}, ConfigError, ("FP1026",)),
        ({"strategy": "o_lora", "downlink": "grid(bits=4) | rans"}, ConfigError, ("FP1330", "--downlink")),
        ({"attack": "label_flip"}, ConfigError, ("FP1414",)),
        ({"rounds": 2}, ConfigError, ("FP1110", "at least 3 rounds")),
        ({"partition": "natural"}, FedpeftError, ("FP3176", "FP3092")),
    ],
)
def test_what_does_not_go_with_tasks_is_refused_in_a_sentence(given, error, words, tmp_path):
    with pytest.raises(error, match=pattern_of(*words)):
        simulation(tmp_path, **given)


class AsksForLogits(FedIT):
    """A rule that asks for what only held-out examples can answer."""

    def choose_question(self, moment, layout):
        return "reliability" if moment == "train" else ""


def test_a_rule_may_not_ask_for_examples_that_no_client_holds_out(tmp_path):
    setup = simulation(tmp_path).setup
    with refuses("FP1991", "'reliability'"):
        check_tasks(dataclasses.replace(setup, strategy=AsksForLogits()))


@pytest.mark.parametrize(
    ("dataset", "options", "words"),
    [
        ("tasks('tiny(seed=1)', 'tiny(seed=2)', shared=True)", {}, ("FP1140",)),
        (DATA, {"held_out": 0.2}, ("FP1836", "0.2")),
        (DATA, {"labels": "a,b,c,d"}, ("FP1837", "--labels")),
        (DATA, {"eval_data": "mine.csv"}, ("FP1837", "--eval-data")),
        (f"sample(of={DATA!r}, rows=100)", {"labels": "a,b"}, ("FP1837", "--labels")),
    ],
)
def test_real_clients_are_refused_tasks_that_their_examples_do_not_tell(dataset, options, words):
    spec = parse_run(RunConfig(dataset=dataset))
    with refuses(*words):
        ServersRows.load(spec, ServeOptions(**options))
