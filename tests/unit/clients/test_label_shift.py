"""The correction of label shift: what it makes of one-class clients, of equal ones, and of a client's optimum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fedpeft.clients.drift import SHARES
from fedpeft.clients.executor import Job
from fedpeft.clients.label_shift import (
    check_counts,
    compute_chance_skew,
    compute_class_shares,
    compute_offsets,
    find_label_skew,
    label_skew,
)
from fedpeft.clients.pool import Worker
from rich.console import Console
from torch.nn import functional

from fedpeft.aggregation.head_start import convert_to_summands
from fedpeft.communication.messages import Instruction
from fedpeft.data.rows import load_dataset
from fedpeft.errors import ConfigError, PayloadError, PrivacyError
from fedpeft.parts.families import HEADS, PARTITIONS
from fedpeft.peft.adapter import AdapterShape
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.refusals import pattern_of, refuses
from tests.unit.clients.test_executors import build, jobs

TINY = {"dataset": "tiny", "tokens": 32, "clients": 4, "cohort": "all", "rounds": 2, "workers": 1, "seed": 3,
        "dtype": "fp32", "local_work": "steps(2)", "peft": "lora(rank=4, layers=1)",
        "drift": "label_shift"}  # fmt: skip
QUIET = ConsoleObserver(Console(quiet=True))


def test_bayes_rule_holds_for_made_distributions():
    """p(y | x) among all rows, shifted by a client's offsets, is p(y | x) among the client's rows."""
    random = torch.Generator().manual_seed(0)
    likelihood = torch.rand(5, 7, generator=random)  # p(x | y): 5 classes, 7 values of x
    likelihood /= likelihood.sum(1, keepdim=True)
    labels = torch.tensor([0, 0, 0, 1, 3, 3])
    shares = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1])
    own = torch.bincount(labels, minlength=5) / 6
    everywhere = (shares[:, None] * likelihood / (shares[:, None] * likelihood).sum(0)).log()
    here = own[:, None] * likelihood / (own[:, None] * likelihood).sum(0)
    assert torch.allclose((everywhere + compute_offsets(labels, shares)[:, None]).softmax(0), here, atol=1e-6)


def test_equal_shares_change_nothing_and_absent_classes_are_out_of_the_loss():
    labels = torch.tensor([0, 1, 2, 2])
    assert torch.allclose(compute_offsets(labels, torch.tensor([0.25, 0.25, 0.5])), torch.zeros(3), atol=1e-6)
    only = compute_offsets(torch.tensor([1, 1]), torch.tensor([0.25, 0.25, 0.5]))
    logits = torch.randn(4, 3, requires_grad=True)
    loss = functional.cross_entropy(logits + only, torch.ones(4, dtype=torch.long))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not logits.grad.any(), "exactly zero: what AdamW divides by its own length must not be rounding"


@pytest.mark.parametrize("shares", [[0.5, 0.5, 0.0], [0.5, 0.6, 0.1], [0.5, 0.5, float("nan")], [-0.5, 0.5, 1.0]])
def test_a_server_whose_shares_make_no_sense_is_refused(shares):
    with refuses("FP6010"):
        compute_offsets(torch.tensor([0]), torch.tensor(shares))


def test_every_head_of_all_that_rows_tell_knows_how_many_rows_a_class_has():
    features, labels = torch.randn(40, 6), torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(1))
    labels[labels == 1] = 0
    for name in HEADS.names:
        head = HEADS.build(name)
        if head.exchanges and not head.bounded:
            counts = head.class_counts(convert_to_summands(head, head.statistics(features, labels, 3)))
            assert torch.equal(counts.round().long(), torch.bincount(labels, minlength=3)), name
            compact = head.compact()
            total = convert_to_summands(compact, compact.statistics(features, labels, 3))
            assert torch.allclose(compact.class_counts(total).double(), counts.double(), atol=1e-3), name
    assert torch.allclose(compute_class_shares(torch.tensor([3.0, 0.0, 6.0])), torch.tensor([0.3, 0.1, 0.6]))


def test_label_skew_is_that_of_the_partition():
    counts = [torch.tensor([4.0, 0.0]), torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0])]
    of_all = torch.tensor([5.0, 3.0]) / 8
    assert label_skew(counts) == pytest.approx(float(3 / 8 + 5 / 8 + (of_all - 0.5).abs().sum() / 2) / 3)
    data = load_dataset("tiny")
    split = PARTITIONS.build("dirichlet(alpha=0.1)").split(data.train, 6, 0)
    own = [torch.bincount(torch.from_numpy(data.train.labels[split.shard(k)]), minlength=4) for k in range(6)]
    assert label_skew(own) == pytest.approx(split.statistics(data.train.labels).label_distance)


@pytest.mark.parametrize(("classes", "rows"), [(5, 2), (10, 4), (20, 8), (3, 300)])
def test_clients_of_few_rows_lie_apart_by_chance(classes, rows):
    draws = torch.randint(0, classes, (400, rows), generator=torch.Generator().manual_seed(classes))
    counts = [torch.bincount(own, minlength=classes).double() for own in draws]
    assert label_skew(counts) == pytest.approx(compute_chance_skew(counts), rel=0.06)
    assert find_label_skew(counts, 0.0 if rows == 300 else 0.55) is None


def test_it_acts_where_classes_lie_apart_and_clients_have_something_left_to_learn_from():
    two = [torch.tensor([50.0, 50.0, 0, 0, 0, 0]).roll(2 * (k % 3)) for k in range(6)]
    one = [torch.tensor([100.0, 0, 0, 0, 0, 0]).roll(k) for k in range(6)]
    assert find_label_skew(two, 0.55) == pytest.approx(2 / 3)
    assert find_label_skew(two, 0.7) is None
    assert find_label_skew(one, 0.55) is None, "whose loss would be 0, and their updates with it"
    assert find_label_skew([*one[:2], *two[:4]], 0.55) is not None
    assert find_label_skew([torch.zeros(6)], 0.0) is None


@pytest.mark.parametrize("counts", [[9e7, 1.0, 1.0], [90.0, 90.0, 90.0], [-200.0, 200.0, 100.0]])
def test_class_counts_that_no_client_has_are_refused(counts):
    with refuses("FP6009", "100"):
        check_counts(torch.tensor(counts), 100)
    check_counts(torch.tensor([60.0, 39.0, -0.5]), 100)


# -------------------------------------------------------------------------------------------------------- executors


def shifted(tiny, made: list[Job]) -> list[Job]:
    labels = torch.from_numpy(np.asarray(tiny[1].batch(np.arange(200))["labels"]))
    shares = compute_class_shares(torch.bincount(labels, minlength=tiny[3]))
    return [replace(job, offsets=compute_offsets(labels[torch.from_numpy(job.rows)], shares)) for job in made]


@pytest.mark.parametrize("forms", [None, [AdapterShape(r, 4.0 * r) for r in (2, 4, 1, 4, 2, 4)]])
def test_executors_agree(tiny, forms):
    sequential, batched, layout, start = build(tiny, "lora(rank=4)", "fp64")
    plain = jobs(layout, start, forms=forms)
    made = shifted(tiny, plain)
    one, other = list(sequential.train(made)), list(batched.train(made))
    for a, b in zip(one, other, strict=True):
        assert all(torch.allclose(a.state[n], b.state[n], rtol=1e-7, atol=1e-9) for n in a.state)
        assert a.loss == pytest.approx(b.loss, rel=1e-7)
    without = list(batched.train(plain))
    assert any(not torch.equal(a.state[n], b.state[n]) for a, b in zip(other, without, strict=True) for n in a.state)


@pytest.mark.parametrize("executor", [0, 1])
def test_a_client_with_one_class_does_not_move_the_model(tiny, executor):
    made = build(tiny, "lora(rank=4)", "fp32")
    layout, start = made[2:]
    labels = np.asarray(tiny[1].batch(np.arange(200))["labels"])
    one_class = np.flatnonzero(labels == labels[0])[:20]
    plain = jobs(layout, start, shards=[one_class])
    moved = next(iter(made[executor].train(plain)))
    assert max(float((moved.state[n] - start[n]).abs().max()) for n in start) > 1e-3, "AdamW's steps are rate-sized"
    still = next(iter(made[executor].train(shifted(tiny, plain))))
    assert still.loss == 0
    assert all(torch.equal(still.state[n], start[n]) for n in start)


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"head": "zero", "privacy": "dp_sgd(noise_multiplier=1)"}, PrivacyError, ("FP7003",)),
        ({"dataset": "tiny_lm", "partition": "iid", "head": "zero"}, PayloadError, ("FP6003",)),
        ({}, PayloadError, ("FP6010",)),
    ],
)
def test_clients_refuse_shares_that_a_server_should_not_send(tmp_path, more, error, words):
    simulation = Simulation(RunConfig(**{**TINY, "drift": "", **more}), tmp_path, QUIET)
    codec = simulation.setup.lossless
    shares = codec.encode({SHARES: torch.ones(max(2, simulation.setup.facts.classes))})
    asked = Instruction("train", 1, 0, codec.encode(simulation.setup.start), learning_rate=1e-3, told=shares)
    with pytest.raises(error, match=pattern_of(*words)):
        simulation.workers.pool.submit(Worker.handle, [asked]).result()


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"head": "zero"}, ConfigError, ("FP1342",)),
        ({"dataset": "tiny_lm", "partition": "iid"}, ConfigError, ("FP1341", "causal_lm")),
        ({"head": "zero", "privacy": "dp_sgd(noise_multiplier=1)"}, PrivacyError, ("FP7111",)),
        ({"drift": "label_shift(least=0.3)", "privacy": "secure_sum"}, PrivacyError, ("FP7115",)),
    ],
)
def test_what_can_not_be_corrected_is_refused(tmp_path, more, error, words):
    with pytest.raises(error, match=pattern_of(*words)):
        Simulation(RunConfig(**{**TINY, **more}), tmp_path, QUIET)
