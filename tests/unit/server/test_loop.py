"""The order of events in the round loop: three fake clients, a tiny adapter, and no model.

Each test drives the real server over a grid in memory and writes down what happens, in order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message

from fedpeft.communication.codec import parse_codec
from fedpeft.communication.flower_grid import OwnGrid, node_of
from fedpeft.communication.messages import Report, instruction_of, to_record
from fedpeft.config import RunConfig
from fedpeft.models.task import TASKS
from fedpeft.peft.adapter import Layout, TensorSpec
from fedpeft.peft.family import PEFT_METHODS
from fedpeft.privacy.engine import PrivacyEngine
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.ledger import Ledger
from fedpeft.run.facts import DataFacts
from fedpeft.run.observer import Metrics
from fedpeft.run.profiles import Profile
from fedpeft.run.records import Records
from fedpeft.run.setup import Setup, chosen_parts
from fedpeft.server.progress import Checkpoints, RunStore
from fedpeft.server.rounds import Server

CLIENTS = 3
ROUNDS = 2
LAYOUT = Layout((TensorSpec("head.weight", (2, 3), "head", "head"),))
PLAIN = {"head": "zero", "drift": "", "safeguard": "none", "cohort": "all", "dtype": "fp32", "optimizer": "adamw"}


def make_setup(**settings) -> Setup:
    """Return a setup without a model: what the loop reads of it does not need one."""
    config = RunConfig(**{**PLAIN, "clients": CLIENTS, "rounds": ROUNDS, **settings})
    return Setup(
        **vars(chosen_parts(config)),
        config=config,
        facts=DataFacts("text", "classification", ("one", "two"), "tiny", CLIENTS, judged=True),
        task=TASKS.build("classification"),
        model_directory=Path(),
        peft="lora",
        method=PEFT_METHODS.build("lora"),
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
    return PrivacyEngine(setup.mechanism, exposure, folder, "run", 0)


class Clients(OwnGrid):
    """Clients in memory: each update moves every entry by a tenth."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events, self.replies = events, []

    def get_node_ids(self):
        return [node_of(client) for client in range(CLIENTS)]

    def push_messages(self, messages):
        pushed = list(messages)
        names = [self._stamp(message) for message in pushed]
        for message in pushed:
            asked = instruction_of(message)
            self.events.append(f"send {asked.kind}")
            update = parse_codec("fp32").encode({"head.weight": torch.full((2, 3), 0.1)})
            report = Report(asked.client, asked.round, update, rows=4, steps=1, loss=1.0, correct=1, count=2)
            self.replies.append(Message(to_record(report), reply_to=message))
        return names

    def pull_messages(self, message_ids):
        replies, self.replies = self.replies, []
        return replies


class Watcher:
    """An observer that writes down the rounds and sentences that it is told."""

    def __init__(self, events: list[str]) -> None:
        self.events, self.sentences = events, []

    def started(self, rounds, done):
        pass

    def client_done(self, phase, done, total):
        pass

    def doing(self, part=""):
        pass

    def say(self, text):
        self.sentences.append(text)

    def round_done(self, result):
        self.events.append("told")


class Draw:
    """A sampler that draws all clients."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def draw(self, seed, round):
        self.events.append("draw")
        return list(range(CLIENTS))


@pytest.fixture
def events(monkeypatch) -> list[str]:
    """What happens, in order: charges, checkpoints and lines of records, and what the fakes above write down."""
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


def make_server(folder: Path, events: list[str], losses=(), private=False, evaluates=True, **settings) -> Server:
    """Return a server of three clients; `losses` are those on the validation rows, evaluation by evaluation."""
    setup, scripted = make_setup(**settings), iter(losses)

    def announce(release):
        events.append("announce")
        return ""

    def evaluate(state, version):
        events.append("evaluate")
        return Metrics(next(scripted, 1.0), 0.5)

    folder.mkdir(exist_ok=True)
    return Server(
        setup=setup,
        grid=Clients(events),
        sampler=Draw(events),
        store=RunStore.of(Records(folder)),
        observer=Watcher(events),
        evaluate=evaluate if evaluates else None,
        fixed={},
        privacy=protect(setup, folder) if private else None,
        remote=True,
        announce=announce,
    )


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
    assert server.observer.sentences == ["nothing was gained in 1 evaluations: the run ends here"]


def test_a_resumed_run_whose_patience_is_over_draws_nothing_either(tmp_path, events):
    settings = {"rounds": 3, "measure": "validation(every=1, keep=best, patience=1)"}
    make_server(tmp_path, events, losses=[1.0, 2.0, 3.0], **settings).run()
    events.clear()
    make_server(tmp_path, events, **settings).run()
    assert "draw" not in events
    assert not [event for event in events if event.startswith("send")]


def test_an_undone_step_is_evaluated_as_the_state_before_it(tmp_path, events):
    """The safeguard judges before the evaluation: what is measured and kept is the state that goes on."""
    server, judged = make_server(tmp_path, events, safeguard="undo", rounds=1, **LAST), []
    losses = iter([1.0, 9.0])
    server.validation_loss = lambda state, version: next(losses)
    server.evaluation = type(server.evaluation)(
        server.setup, server.clients, lambda state, version: judged.append(state) or Metrics(1.0, 0.5), print
    )
    state = server.run()
    assert float(state.adapter["head.weight"].abs().sum()) == 0
    assert [float(state["head.weight"].abs().sum()) for state in judged] == [0]


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
    for number, fingerprint, _ in server.privacy.ledger.charged():
        charged.append((number, fingerprint, counts.get(number, 0)))
        counts[number] = counts.get(number, 0) + 1
    return charged
