"""The order in which a client's round passes through its features, and what may not happen before what."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from fedpeft.clients import rule_half
from fedpeft.clients.broadcast import BroadcastStage
from fedpeft.clients.client import ClientPlan, ClientSide
from fedpeft.clients.drift import Correction, Drift
from fedpeft.clients.drift_states import DriftStage
from fedpeft.clients.executor import Trained
from fedpeft.clients.local_training import LocalTraining
from fedpeft.clients.masking import Masking, MaskPlan
from fedpeft.clients.own_tensors import OwnTensorsStage
from fedpeft.clients.privacy import PrivacyStage
from fedpeft.clients.rule_half import StrategyStage
from fedpeft.clients.store import ClientStore
from fedpeft.clients.tasks import TaskStage
from fedpeft.clients.walk import WalkStage

from fedpeft.communication.codec import parse_codec
from fedpeft.communication.messages import Instruction, Report
from fedpeft.communication.uplink import parse_uplink
from fedpeft.data.partition import Partition
from fedpeft.data.task_sequence import ClientTasks, TaskSchedule, TaskSequence
from fedpeft.errors import PayloadError, RunError
from fedpeft.parts.families import ATTACKS, HEADS, LOCAL_WORK, MECHANISMS, SUMS, strategies
from fedpeft.peft.adapter import Layout, TensorSpec
from fedpeft.privacy.guard import ClientPrivacy
from fedpeft.simulation.hostile import AttackStage
from tests.refusals import refuses

LAYOUT = Layout((TensorSpec("head.weight", (2, 3), "head", "head"), TensorSpec("head.bias", (2,), "head", "head")))
SENT = {"head.weight": torch.full((2, 3), 0.5), "head.bias": torch.full((2,), 0.5)}
KEPT = torch.full((2,), 7.0)
EXAMPLES = 6
USER_DP = {"privacy": "user_dp(noise_multiplier=1)"}
TASKS = ClientTasks(TaskSequence(("one", "two"), ((0,), (1,)), TaskSchedule(2, every=1)), np.zeros(EXAMPLES, np.int64))


class Bench:
    """A workbench without a model: training adds one to each tensor, in two steps."""

    def __init__(self, events, executor) -> None:
        training = LocalTraining(2, LOCAL_WORK.build("steps(2)"))
        self.plan = SimpleNamespace(
            layout=LAYOUT, training=training, seed=0, classes=2, executor=executor, device="cpu", dtype="fp32"
        )
        self.events, self.executor = events, self
        self.examples = SimpleNamespace(lengths=np.full(EXAMPLES, 4))
        self.jobs = []

    def set_precision(self, base):
        return self

    def rebase(self, version):
        pass

    def train(self, jobs):
        self.events.append("train")
        self.jobs += jobs
        for job in jobs:
            state = {name: tensor + 1 for name, tensor in job.received.items() if name in job.trained}
            yield Trained(job.client, state, 0.5, 2, len(job.rows))


@pytest.fixture
def events(monkeypatch):
    """Trainings, stored states, and contributions to secure sums, in order."""
    seen = []
    real = ClientStore.stage

    def stage(self, client, round_number, state):
        seen.append("keep")
        real(self, client, round_number, state)

    def add(self, instruction, made):
        made(None)
        seen.append("send under masks")
        return Report(instruction.client, instruction.round, b"")

    monkeypatch.setattr(ClientStore, "stage", stage)
    monkeypatch.setattr(Masking, "add", add)
    return seen


def make_side(folder, events=(), executor="sequential", more=(), privacy="", **settings) -> ClientSide:
    """Return the clients of a worker without a model."""
    plan = ClientPlan(
        partition=Partition.from_shards([np.arange(EXAMPLES)]), uplink=parse_uplink("fp32"),
        downlink=parse_codec("fp32"), start={}, statistics=parse_codec("fp32"), lossless=parse_codec("fp32"),
        head=HEADS.build("zero"), strategy=strategies.build("fedit"), drift=Drift(), store=folder / "clients",
        privacy=ClientPrivacy(MECHANISMS.build(privacy), 0.0, folder / "key") if privacy else None,
    )  # fmt: skip
    return ClientSide(Bench(events, executor), replace(plan, **settings), more)


def ask(kind="train", **fields) -> Instruction:
    """Return an instruction to the only client."""
    return Instruction(kind, 1, 0, parse_codec("fp32").encode(SENT), learning_rate=0.1, **fields)


# ----------------------------------------------------------------------------------------------------------- the order

ORDER = (
    "AttackStage", "PrivacyStage", "TaskStage", "LabelShiftStage", "BroadcastStage", "OwnTensorsStage", "DriftStage",
    "WalkStage", "StrategyStage", "PersonalStage", "EncodedReports",
)  # fmt: skip


def names_of(side) -> tuple[str, ...]:
    return tuple(type(stage).__name__ for stage in side.stages)


def attack() -> AttackStage:
    return AttackStage(ATTACKS.build("row_count(fraction=1, factor=100)"), 1, 0)


def test_features_have_one_order(tmp_path):
    side = make_side(
        tmp_path, more=[attack()], privacy="user_dp(noise_multiplier=1)", strategy=strategies.build("ditto"), met=TASKS
    )
    assert names_of(side) == ORDER


def test_dp_sgd_protects_examples_and_does_not_walk(tmp_path):
    side = make_side(tmp_path, privacy="dp_sgd(noise_multiplier=1)")
    assert names_of(side)[:2] == ("PrivacyStage", "RowPrivacyStage")
    assert "WalkStage" not in names_of(side)


@dataclass(frozen=True)
class Probe(Correction):
    """A correction that keeps what local training has led to."""

    seen: ClassVar[list[float]] = []

    def after(self, job, result, server, own):
        self.seen.append(float(result.state["head.weight"].max()))
        return {}


class Prepared(type(strategies.build("fedit"))):
    """A strategy whose clients start from one more than they have."""

    def prepare_start(self, received, layout):
        return {name: tensor + 1 for name, tensor in received.items()}


def stage_of(side, cls):
    (stage,) = (stage for stage in side.stages if type(stage) is cls)
    return stage


def starts_from_what_stayed(side, patch):
    side.handle([ask(private=(1,), acknowledged=0)])
    side.store.stage(0, 1, {"private/head.bias": KEPT})
    side.handle([replace(ask(private=(1,)), round=2, acknowledged=1)])
    return torch.equal(side.bench.jobs[-1].received["head.bias"], KEPT)


def prepares_what_stayed(side, patch):
    stage_of(side, StrategyStage).strategy = Prepared()
    side.store.stage(0, 1, {"private/head.bias": KEPT})
    side.handle([replace(ask(private=(1,)), round=2, acknowledged=1)])
    return torch.equal(side.bench.jobs[-1].received["head.bias"], KEPT + 1)


def corrects_what_the_strategy_leaves(side, patch):
    patch.setattr(rule_half, "restrict_to_ranks", lambda job, result, *_: (job, replace(result, state=SENT)))
    stage_of(side, DriftStage).drift = Drift((Probe(),))
    side.handle([ask()])
    return Probe.seen[-1] == 0.5


def leaves_used_examples_out(side, patch):
    (report,) = side.handle([ask()])
    return report.used == 0


def claims_other_numbers(side, patch):
    (report,) = side.handle([ask()])
    return report.rows > 1


@pytest.mark.parametrize(
    ("first", "second", "holds", "settings"),
    [
        (BroadcastStage, OwnTensorsStage, starts_from_what_stayed, {}),
        (OwnTensorsStage, StrategyStage, prepares_what_stayed, {}),
        (DriftStage, StrategyStage, corrects_what_the_strategy_leaves, {}),
        (TaskStage, WalkStage, leaves_used_examples_out, {"met": TASKS}),
        (PrivacyStage, WalkStage, leaves_used_examples_out, USER_DP),
        (AttackStage, PrivacyStage, claims_other_numbers, {**USER_DP, "more": [attack()]}),
    ],
)  # fmt: skip
def test_each_constraint_of_the_order_is_one(tmp_path, monkeypatch, first, second, holds, settings):
    """The order gives what it is there for; with two stages swapped it does not."""
    with monkeypatch.context() as patch:
        assert holds(make_side(tmp_path / "kept", **settings, events=[]), patch)
    side = make_side(tmp_path / "swapped", **settings, events=[])
    places = {type(stage): i for i, stage in enumerate(side.stages)}
    stages = list(side.stages)
    one, other = places[first], places[second]
    assert one < other
    stages[one], stages[other] = stages[other], stages[one]
    side.stages = tuple(stages)
    with monkeypatch.context() as patch, contextlib.suppress(PayloadError):  # no adapter: a round can't begin
        assert not holds(side, patch)


# ------------------------------------------------------------------------------------------------- before what leaves


def test_a_state_is_kept_before_the_update_leaves(tmp_path, events):
    masks = MaskPlan(SUMS.build("secure_sum"), by_rows=False, clients=5)
    make_side(tmp_path, events, masks=masks).handle([ask(step=3)])
    assert events == ["train", "keep", "send under masks"]


def test_no_update_leaves_whose_state_can_not_be_kept(tmp_path, events, monkeypatch):
    def fail(*_):
        raise RunError("FP5001 the disk is full")

    monkeypatch.setattr(ClientStore, "stage", fail)
    with refuses("FP5001"):
        make_side(tmp_path, events).handle([ask()])


def test_a_refusal_comes_before_any_work(tmp_path, events):
    side = make_side(tmp_path, events)
    for asked, code in ((ask(step=3), "FP7002"), (ask("sum", step=1), "FP7002"), (ask("dance"), "FP6001")):
        with refuses(code):
            side.handle([asked])
    with refuses("FP6001"):
        side.handle([ask(), ask("evaluate")])
    with refuses("FP6004"):
        side.check(ask(correction=b"a state"))
    side.check(ask())
    assert events == [], "a check trains nothing and keeps nothing"


def test_an_answer_that_was_given_is_given_again_without_training(tmp_path, events, monkeypatch):
    before = Report(0, 1, b"as before")
    monkeypatch.setattr(Masking, "get_repeated_report", lambda self, instruction: before)
    side = make_side(tmp_path, events, masks=MaskPlan(SUMS.build("secure_sum"), by_rows=False, clients=5))
    assert side.handle([ask(step=3)]) == [before]
    assert events == []


def test_a_model_of_its_own_is_trained_in_a_second_pass_and_stays(tmp_path, events):
    side = make_side(tmp_path, events, strategy=strategies.build("ditto"))
    (report,) = side.handle([ask()])
    assert events == ["train", "train", "keep"]
    state = side.store.load(0, 1, tidy=False)
    assert torch.equal(state["personal/head.bias"], SENT["head.bias"] + 1)
    assert report.payload
    assert not any(name.startswith("personal") for name in side._begin(ask()).job.received)
