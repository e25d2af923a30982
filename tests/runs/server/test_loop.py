"""The order of events in the round loop: three fake clients, a tiny adapter, and no model.

Each test drives the real server over a grid in memory and writes down what happens, in order.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message

from fedpeft.communication.codec import parse_codec
from fedpeft.communication.flower_grid import OwnGrid, get_node_id
from fedpeft.communication.flower_messages import read_instruction, write_record
from fedpeft.communication.messages import Report
from fedpeft.communication.round_plan import RoundPlan
from fedpeft.parts.families import PEFT_METHODS, TASKS
from fedpeft.peft.adapter import Layout, TensorSpec
from fedpeft.privacy.engine import PrivacyEngine, make_engine
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.ledger import Ledger
from fedpeft.reporting.observer import Metrics
from fedpeft.reporting.records import Records
from fedpeft.rounds.dispatch import Broadcast
from fedpeft.rounds.energy import EnergyTracker
from fedpeft.rounds.exchange import Transport
from fedpeft.rounds.features import RunParts, ServerModel, attach_features
from fedpeft.rounds.hooks import EndOfRun, RoundHook
from fedpeft.rounds.preparation import prepare
from fedpeft.rounds.private_rounds import PrivacyHook
from fedpeft.rounds.progress import Checkpoints, RunStore, ServerState
from fedpeft.rounds.rounds import Server
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.dataset_info import DatasetInfo
from fedpeft.wiring.profiles import Profile
from fedpeft.wiring.run_spec import parse_run
from fedpeft.wiring.setup import Setup

pytestmark = pytest.mark.fast("the order of events in the round loop")

CLIENTS = 3
ROUNDS = 2
LAYOUT = Layout((TensorSpec("head.weight", (2, 3), "head", "head"),))
PLAIN = {"head": "zero", "drift": "", "safeguard": "none", "cohort": "all", "dtype": "fp32", "optimizer": "adamw"}


def make_setup(**settings) -> Setup:
    """Return a setup without a model: what the loop reads of it does not need one."""
    config = RunConfig(**{**PLAIN, "clients": CLIENTS, "rounds": ROUNDS, **settings})
    return Setup(
        **{**vars(parse_run(config)), "method": PEFT_METHODS.build("lora")},
        facts=DatasetInfo("text", "classification", ("one", "two"), "tiny", CLIENTS, judged=True),
        task=TASKS.build("classification"),
        model_directory=Path(),
        peft="lora",
        layout=LAYOUT,
        start={"head.weight": torch.zeros(2, 3)},
        profiles=[Profile(None)] * CLIENTS,
        factor_view=None,
        weight_changes=None,
        parameters=6,
        width=3,
        frozen_blocks=0,
        readable=128,
        notes=(),
        code={},
    )


def protect(setup: Setup, folder: Path) -> PrivacyEngine:
    """Return the privacy engine of a setup with a mechanism."""
    ones = np.ones(CLIENTS, np.int64)
    exposure = Exposure(
        setup.strategy, setup.method, LAYOUT, ones, ones, ones * ROUNDS, batch_size=4, rounds=ROUNDS, cohort=CLIENTS,
        even=True, trained=(6, 6),
    )  # fmt: skip
    return make_engine(setup.mechanism, exposure, folder, "run", 0)


class Clients(OwnGrid):
    """Clients in memory: each update moves every entry by a tenth."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events, self.replies = events, []

    def get_node_ids(self):
        return [get_node_id(client) for client in range(CLIENTS)]

    def push_messages(self, messages):
        pushed = list(messages)
        names = [self._stamp(message) for message in pushed]
        for message in pushed:
            asked = read_instruction(message)
            self.events.append(f"send {asked.kind}")
            update = parse_codec("fp32").encode({"head.weight": torch.full((2, 3), 0.1)})
            report = Report(asked.client, asked.round, update, rows=4, steps=1, loss=1.0, correct=1, count=2)
            self.replies.append(Message(write_record(report), reply_to=message))
        return names

    def pull_messages(self, message_ids):
        replies, self.replies = self.replies, []
        return replies


class Watcher:
    """An observer that writes down the rounds and sentences that it is told."""

    def __init__(self, events: list[str]) -> None:
        self.events, self.sentences = events, []

    def begin_rounds(self, rounds, done):
        pass

    def client_done(self, phase, done, total):
        pass

    def begin_part(self, part=""):
        pass

    def say(self, text):
        self.sentences.append(text)

    def round_done(self, result):
        self.events.append("told")


class Draw:
    """A sampler that draws all clients."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def draw(self, seed, round_number):
        self.events.append("draw")
        return list(range(CLIENTS))


@pytest.fixture
def events(monkeypatch) -> list[str]:
    """Return the list of events in order: charges, checkpoints, lines of records, and the fakes' notes."""
    seen: list[str] = []

    def watch(owner, name, event):
        real = getattr(owner, name)

        def watched(self, *given, **named):
            seen.append(event(*given))
            return real(self, *given, **named)

        monkeypatch.setattr(owner, name, watched)

    watch(Ledger, "charge", lambda *_: "charge")
    watch(Checkpoints, "save", lambda *_: "checkpoint")
    watch(Records, "append", lambda name, *_: name)
    return seen


def make_server(
    folder, events, losses=(), private=False, evaluates=True, validation_loss=None, book=None, more=(), **settings
) -> Server:
    """Return a server of three clients; `losses` are those of evaluations on validation examples, in order."""
    setup, scripted = make_setup(**settings), iter(losses)

    def announce(release):
        events.append("announce")
        return ""

    def evaluate(state, version):
        events.append("evaluate" if state["head.weight"].abs().sum() else "evaluate zeros")
        return Metrics(next(scripted, 1.0), 0.5)

    folder.mkdir(exist_ok=True)
    observer, store = Watcher(events), RunStore.from_records(Records(folder))
    transport = Transport(Clients(events), observer.client_done, remote=True, announce=announce)
    privacy = protect(setup, folder) if private else None
    model = ServerModel(evaluate if evaluates else None, validation_loss)
    hooks = [*attach_features(RunParts(setup, transport, store, observer, model, {}, privacy, book)), *more]
    start = partial(prepare, setup, transport, {}, privacy, observer.say)
    return Server(setup, transport, Draw(events), store, observer, hooks, start)


LAST = {"measure": "validation(every=1, keep=last)"}
USER_DP = {"privacy": "user_dp(noise_multiplier=1, test_noise=True)"}
TRAIN = ["send train"] * CLIENTS
COMMIT = ["checkpoint", "clients.jsonl", "rounds.jsonl", "told"]


def test_a_round_announces_before_it_sends_and_records_after_the_checkpoint(tmp_path, events):
    make_server(tmp_path, events, **LAST).run()
    assert events == ["checkpoint", *(["draw", "announce", *TRAIN, "evaluate", *COMMIT] * ROUNDS)]


def test_a_round_is_charged_after_the_draw_and_before_the_first_byte(tmp_path, events):
    make_server(tmp_path, events, private=True, **LAST, **USER_DP).run()
    assert events == ["checkpoint", *(["draw", "charge", "announce", *TRAIN, "evaluate", *COMMIT] * ROUNDS)]


def test_an_evaluation_by_clients_is_announced_before_a_byte_of_it(tmp_path, events):
    make_server(tmp_path, events, evaluates=False, rounds=1, **LAST).run()
    evaluation = ["announce", *["send evaluate"] * CLIENTS]
    assert events == ["checkpoint", "draw", "announce", *TRAIN, *evaluation, *COMMIT]


def test_a_run_whose_patience_is_over_draws_and_charges_nothing(tmp_path, events):
    measure = "validation(every=1, keep=best, patience=1)"
    server = make_server(tmp_path, events, losses=[1.0, 2.0, 3.0], rounds=3, measure=measure)
    server.run()
    assert events.count("draw") == 1
    assert events[-1] == "told", "nothing happens after the round that ends the run"
    assert server.observer.sentences[-1] == "no improvement in 1 evaluations: the run ends here"
    assert server.early_end == server.observer.sentences[-1]


def test_a_resumed_run_whose_patience_is_over_draws_nothing_either(tmp_path, events):
    settings = {"rounds": 3, "measure": "validation(every=1, keep=best, patience=1)"}
    make_server(tmp_path, events, losses=[1.0, 2.0, 3.0], **settings).run()
    events.clear()
    make_server(tmp_path, events, **settings).run()
    assert "draw" not in events
    assert not [event for event in events if event.startswith("send")]


def test_the_score_of_the_start_is_said_before_round_1(tmp_path, events):
    """Else nobody sees what later rounds are compared with, by the safeguard and by the choice of the best state."""
    server = make_server(tmp_path, events, losses=[1.25, 9.0], rounds=1, measure="validation(every=1, keep=best)")
    server.run()
    assert [text.split() for text in server.observer.sentences] == [
        ["start", "validation:", "loss", "1.250,", "accuracy", "0.500"]
    ]


def test_an_undone_step_is_evaluated_as_the_state_before_it(tmp_path, events):
    """The safeguard judges before the evaluation: what is measured and kept is the state that goes on."""
    losses = iter([1.0, 9.0])
    given = {"safeguard": "undo", "rounds": 1, **LAST}
    make_server(tmp_path, events, validation_loss=lambda *_: next(losses), **given).run()
    assert [event for event in events if event.startswith("evaluate")] == ["evaluate zeros"]


@pytest.mark.parametrize("died", ["before the checkpoint", "after the checkpoint"])
def test_a_kill_around_the_checkpoint_loses_nothing_and_charges_once(tmp_path, events, monkeypatch, died):
    real = Checkpoints.save

    def save(self, progress):
        if died == "after the checkpoint":
            real(self, progress)
        if progress.round == 2:
            raise KeyboardInterrupt
        real(self, progress)

    whole = make_server(tmp_path / "whole", events, private=True, **LAST, **USER_DP).run()
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        with pytest.raises(KeyboardInterrupt):
            make_server(tmp_path / "cut", events, private=True, **LAST, **USER_DP).run()
    server = make_server(tmp_path / "cut", events, private=True, **LAST, **USER_DP)
    again = server.run()
    assert torch.equal(again.adapter["head.weight"], whole.adapter["head.weight"])
    assert [line["round"] for line in server.store.records.read("rounds.jsonl")] == [1, 2]
    assert [(number, attempt) for number, _, attempt in _charges(server)] == [(1, 0), (2, 0)]


def _charges(server: Server) -> list[tuple[int, str, int]]:
    """Return round, fingerprint and attempt of each charge on the ledger."""
    charged, counts = [], {}
    (privacy,) = (hook for hook in server.hooks if isinstance(hook, PrivacyHook))
    for number, fingerprint, _ in privacy.engine.ledger.list_charges():
        charged.append((number, fingerprint, counts.get(number, 0)))
        counts[number] = counts.get(number, 0) + 1
    return charged


# --------------------------------------------------------------------------------------------------------------- hooks


class Recorder(RoundHook):
    """A hook that writes down when the loop calls it."""

    name = "recorder"

    def __init__(self, events, fingerprint="", ends_after=ROUNDS) -> None:
        self.events, self.print, self.ends_after = events, fingerprint, ends_after

    def open(self, state):
        self.events.append(f"open {state and state.hooks}")

    def get_checkpoint(self):
        return {"number": 7}

    def fingerprint(self):
        return self.print

    def ends(self, state):
        self.events.append("ends")
        return "enough" if state.round >= self.ends_after else ""

    def after_start(self, state, log):
        self.events.append("after_start")
        return state

    def before_round(self, state):
        self.events.append("before_round")
        return state

    def select(self, plan, state):
        self.events.append("select")
        return plan

    def aggregator(self, inner, plan, state):
        self.events.append("aggregator")
        return inner

    def note_report(self, report):
        self.events.append(f"reported {report.client}")

    def after_step(self, before, after, log):
        self.events.append("after_step")
        return after

    def measure(self, state, log):
        self.events.append("measure")
        log.lines["evaluations.jsonl"] = [{"loss": log.result.loss}]

    def before_commit(self, state):
        self.events.append("before_commit")
        return state


def test_the_loop_calls_each_method_of_a_hook_at_its_place(tmp_path, events):
    make_server(tmp_path, events, rounds=1, more=[Recorder(events)], **LAST).run()
    prepared = ["open None", "after_start", "before_commit", "checkpoint"]
    chosen = ["ends", "before_round", "draw", "select"]
    reported = [f"reported {client}" for client in range(CLIENTS)]
    trained = ["announce", "aggregator", *TRAIN, *reported, "evaluate", "after_step", "measure", "before_commit"]
    recorded = ["checkpoint", "clients.jsonl", "rounds.jsonl", "evaluations.jsonl", "told"]
    assert events == [*prepared, *chosen, *trained, *recorded]


def test_a_hook_ends_the_run_before_anything_is_drawn_or_charged(tmp_path, events):
    server = make_server(tmp_path, events, private=True, more=[Recorder(events, ends_after=1)], **LAST, **USER_DP)
    assert server.run().round == 1
    assert events[-2:] == ["told", "ends"]
    assert server.observer.sentences == ["enough"]


def test_a_hook_finds_what_it_saved_when_the_run_is_resumed(tmp_path, events):
    make_server(tmp_path, events, more=[Recorder(events, ends_after=1)], **LAST).run()
    events.clear()
    make_server(tmp_path, events, more=[Recorder(events)], **LAST).run()
    assert "open {'recorder': {'number': 7}}" in events


class Battery(RoundHook):
    """A hook that changes the state before each round, and then ends the run."""

    def before_round(self, state):
        return replace(state, losses=[9.0])

    def select(self, plan, state):
        raise EndOfRun("no more")


def test_a_run_that_ends_at_the_selection_keeps_the_state_before_the_round(tmp_path, events):
    server = make_server(tmp_path, events, more=[Battery()], **LAST)
    assert server.run().losses == [9.0]
    assert server.observer.sentences == ["no more"]


@pytest.mark.parametrize(("second", "attempts"), [("as before", [0]), ("changed", [0, 1])])
def test_a_hook_with_another_fingerprint_makes_a_new_attempt_with_a_new_charge(
    tmp_path, events, monkeypatch, second, attempts
):
    given = {"private": True, "rounds": 1, **LAST, **USER_DP}

    def kill(self, progress):
        if progress.round:
            raise KeyboardInterrupt
        real(self, progress)

    real = Checkpoints.save
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", kill)
        with pytest.raises(KeyboardInterrupt):
            make_server(tmp_path, events, more=[Recorder(events, "as before")], **given).run()
    server = make_server(tmp_path, events, more=[Recorder(events, second)], **given)
    server.run()
    assert [attempt for _, _, attempt in _charges(server)] == attempts


def test_privacy_charges_before_batteries_are_looked_at(tmp_path, events, monkeypatch):
    """Who drops out for its battery has been charged: the charge must not depend on it."""
    real = EnergyTracker.open
    monkeypatch.setattr(EnergyTracker, "open", lambda self, plan: events.append("batteries") or real(self, plan))
    book = EnergyTracker(make_setup(measure="energy(watts=6)"))
    make_server(tmp_path, events, private=True, book=book, rounds=1, **LAST, **USER_DP).run()
    assert [event for event in events if event in ("draw", "charge", "batteries")] == ["draw", "charge", "batteries"]


ORDER = (
    "ExactnessHook", "SafeguardHook", "OrderedCollector", "PrivacyHook", "EnergyHook", "EvaluationHook", "KeepBest",
    "EnsembleHook",
)  # fmt: skip


def test_features_have_one_order(tmp_path, events):
    measure = "validation(every=1, keep=best, public=True) + energy(watts=6) + ensemble(last=2)"
    book = EnergyTracker(make_setup(measure=measure, **USER_DP))
    given = {"private": True, "book": book, "validation_loss": lambda *_: 1.0, "safeguard": "undo(rate=1)"}
    server = make_server(tmp_path, events, measure=measure, **given, **USER_DP)
    assert tuple(type(hook).__name__ for hook in server.hooks) == ORDER


def test_privacy_replaces_the_aggregator_that_other_features_wrap(tmp_path, events):
    """Else the aggregation error of a private round would be measured on updates without noise."""
    server = make_server(tmp_path, events, private=True, **LAST, **USER_DP)
    state = server.run()
    assert type(server.aggregator(RoundPlan(1, [0, 1, 2]), state)).__module__ == "fedpeft.privacy.mechanisms.user_dp"


def test_a_plan_lowers_the_bits_of_all_updates():
    """The instruction of each client holds its bits; at the full share none is sent, as without a plan."""
    state = ServerState(round=0, adapter={"head.weight": torch.zeros(2, 3)}, rows={0: 1, 1: 9, 2: 1})
    for codec, share, bits in (("small", 1.0, {0.0}), ("small", 0.5, {0.495}), ("int8", 0.5, {4.0})):
        setup = make_setup(codec=codec)
        plan = RoundPlan(1, [0, 1, 2], bits_share=share)
        sent = Broadcast(setup, state, remote=False).create_sent_states(plan)
        assert {one.instruction.bits for one in sent} == bits
    by_rows = Broadcast(make_setup(codec="by_rows | adaptive(bits=2.0)"), state, remote=False)
    usual, halved = (
        [one.instruction.bits for one in by_rows.create_sent_states(RoundPlan(1, [0, 1, 2], bits_share=share))]
        for share in (1.0, 0.5)
    )
    assert halved == [bits / 2 for bits in usual]
    assert len(set(usual)) > 1, "the rule gives clients different bits"


@pytest.mark.parametrize("private", [True, False])
def test_hooks_plan_the_preparation_as_they_plan_a_round(tmp_path, events, monkeypatch, private):
    """Privacy charges it, and what is about rounds leaves it alone: batteries and traffic budgets."""
    digests = []

    def enter_start(self, digest):
        digests.append(digest)
        return RoundPlan(0, [0, 1], attempt=3, spent=(2,))

    monkeypatch.setattr(PrivacyEngine, "enter_start", enter_start)
    given = {"private": True, **USER_DP} if private else {"budget_megabytes": 1e-9}
    book = EnergyTracker(make_setup(measure="energy(watts=6)"))
    server = make_server(tmp_path, events, book=book, **LAST, **given)
    for hook in server.hooks:
        hook.open(None)
    plan = server.plan(RoundPlan(0, [0, 1, 2], kind="prepare"), ServerState(round=0, adapter=server.setup.start))
    assert (plan.cohort, plan.attempt, plan.spent) == (([0, 1], 3, (2,)) if private else ([0, 1, 2], 0, ()))
    assert plan.kind == "prepare"
    assert digests == ([plan.digest()] if private else [])
