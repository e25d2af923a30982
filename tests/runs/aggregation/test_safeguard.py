"""What validation rows decide: which steps count, what is kept of a run, and when it ends."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from fedpeft.clients.drift import flatten_states
from fedpeft.clients.store import ClientStore, select_section
from rich.console import Console

from fedpeft.aggregation.safeguard import SafeguardState
from fedpeft.aggregation.safeguards.undo import Undo
from fedpeft.parts.families import SERVER_OPTIMIZERS
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.records import Records
from fedpeft.reporting.workers import Workers
from fedpeft.rounds.progress import Checkpoints
from fedpeft.simulate import main
from fedpeft.simulation.alone import train_one_alone
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.refusals import refuses

TINY = {"dataset": "tiny", "tokens": 32, "clients": 6, "cohort": 3, "rounds": 3, "workers": 1, "seed": 3,
        "dtype": "fp32", "local_work": "steps(2)", "peft": "lora(rank=4, layers=1)", "optimizer": "adamw",
        "learning_rate": 3e-3, "measure": "validation(every=1)"}  # fmt: skip
QUIET = ConsoleObserver(Console(quiet=True))


# ------------------------------------------------------------------------------------------------------- whole runs


class StopError(Exception):
    pass


def opened(folder, **given):
    folder.mkdir(parents=True, exist_ok=True)
    simulation = Simulation(RunConfig(**{**TINY, **given}), folder, QUIET)
    return simulation, simulation.server(Records(folder))


def undoing(monkeypatch, rounds, rate=1.0):
    """Make the safeguard undo these rounds, whatever the loss is."""
    seen = []

    def judge(_self, loss, standing):
        seen.append(loss)
        counts = len(seen) - 1 not in rounds
        return counts, SafeguardState(min(standing.lowest, loss), standing.rate * (1 if counts else rate))

    monkeypatch.setattr(Undo, "judge", judge)
    return seen


KINDS = {
    "server optimizer and a memory at both ends": {
        "server_optimizer": "adam(learning_rate=0.01)",
        "codec": "ef21 | topk(fraction=0.2)",
    },
    "a memory and a lossy downlink": {"codec": "ef14 | topk(fraction=0.2)", "downlink": "small"},
    "control variates": {"drift": "scaffold", "optimizer": "sgd", "learning_rate": 0.1},
    "a base that is filled": {"strategy": "flora", "ranks": "2*3,4*3"},
    "a base that is filled with the remainder": {"strategy": "fedex_lora", "ranks": "2*3,4*3"},
    "forms that change": {"strategy": "hetlora(decay=0.5)", "learning_rate": 0.1},
}


def snapshot(progress):
    tensors = {
        "adapter": progress.adapter,
        "residual": progress.residual.to_tensors(),
        "drift": flatten_states(progress.drift),
        "versions": progress.versions.to_tensors(),
    }
    tensors |= {f"memory {name}": state for name, state in progress.memory.items() if name != "m"}
    plain = {name: getattr(progress, name) for name in ("acknowledged", "held", "forms", "losses", "clip")}
    return {k: {n: t.clone() for n, t in s.items()} for k, s in tensors.items()}, {
        k: v.copy() if hasattr(v, "copy") else v for k, v in plain.items()
    }


def equal(one, other):
    (a, plain_a), (b, plain_b) = one, other
    return (
        plain_a == plain_b
        and a.keys() == b.keys()
        and all(a[k].keys() == b[k].keys() and all(torch.equal(a[k][n], b[k][n]) for n in a[k]) for k in a)
    )


@pytest.mark.parametrize("optimizer", [*SERVER_OPTIMIZERS.names, "averaged(of=adam)", "averaged(of=momentum)"])
def test_after_an_undone_round_steps_are_as_small_as_the_rate(optimizer, tmp_path, monkeypatch):
    simulation, server = opened(tmp_path / "run", server_optimizer=optimizer, rounds=4)
    undoing(monkeypatch, {3}, rate=1e-9)
    states = []

    def look(_self, _result):
        states.append(Checkpoints(tmp_path / "run" / "checkpoint").load().adapter)

    monkeypatch.setattr(ConsoleObserver, "round_done", look)
    simulation.train(server)
    simulation.close()
    lengths = [sum(float((b[n] - a[n]).square().sum()) for n in a) ** 0.5 for a, b in itertools.pairwise(states)]
    assert lengths[0] > 0
    assert lengths[1] == 0
    assert lengths[2] < 1e-5 * lengths[0]


@pytest.mark.parametrize("kind", KINDS)
def test_an_undone_round_leaves_nothing_behind(kind, tmp_path, monkeypatch):
    simulation, server = opened(tmp_path / "run", cohort="all", **KINDS[kind])
    losses = undoing(monkeypatch, {2})
    after, evaluated = [], []

    def look(_self, result):
        progress = Checkpoints(tmp_path / "run" / "checkpoint").load()
        after.append((result, snapshot(progress)))
        evaluated.append(simulation.workers.compute_validation_loss(progress.adapter, progress.residual.version))

    monkeypatch.setattr(ConsoleObserver, "round_done", look)
    progress = simulation.train(server)
    assert [result.undone for result, _ in after] == [False, True, False]
    assert equal(after[0][1], after[1][1]), "all but momentum"
    assert not equal(after[1][1], after[2][1]), "the run goes on"
    assert evaluated[1] == evaluated[0] == losses[1], "the clients' base is back, too"
    assert evaluated[2] == losses[3], "what was judged is what counts"
    if "ef21" in KINDS[kind].get("codec", ""):  # both ends still agree on what the client has sent
        own, copies = ClientStore(tmp_path / "run" / "clients"), ClientStore(tmp_path / "run" / "estimates")
        for client, round_number in progress.acknowledged.items():
            assert round_number == 3
            kept, copy = select_section(own.load(client, 3, False), "feedback"), copies.load(client, 3, False)
            assert all(torch.equal(kept[n], copy[n]) for n in copy)
    simulation.close()


@pytest.mark.parametrize("kind", ["server optimizer and a memory at both ends", "a base that is filled"])
def test_a_run_that_is_killed_after_an_undone_round_ends_as_one_that_was_not(kind, tmp_path, monkeypatch):
    given = {"rounds": 4, "measure": "validation(every=1, patience=4)", **KINDS[kind]}
    undoing(monkeypatch, {2}, rate=0.25)
    simulation, server = opened(tmp_path / "whole", **given)
    whole = simulation.train(server)
    kept = whole.result
    simulation.close()

    undoing(monkeypatch, {2}, rate=0.25)

    def stop(_self, result):
        if result.round == 2:
            raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(ConsoleObserver, "round_done", stop)
        simulation, server = opened(tmp_path / "cut", **given)
        with pytest.raises(StopError):
            simulation.train(server)
        simulation.close()
    simulation, server = opened(tmp_path / "cut", **given)
    cut = simulation.train(server)
    simulation.close()
    assert cut.standing == whole.standing
    assert cut.standing.rate == 0.25
    assert equal(snapshot(cut), snapshot(whole))
    for one, other in zip(kept, cut.result, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[n], other[n]) for n in one)
    lines = [
        [
            (line["round"], line["undone"], line["learning_rate"], line["loss"])
            for line in Records(f).read("rounds.jsonl")
        ]
        for f in (tmp_path / "whole", tmp_path / "cut")
    ]
    assert lines[0] == lines[1]
    assert [line[2] for line in lines[0][1:]] == pytest.approx([3e-3, 3e-3 * 3 / 4, 3e-3 / 8, 3e-3 / 16])


def test_an_asynchronous_run_goes_on_after_an_undone_step(tmp_path, monkeypatch):
    undoing(monkeypatch, {1, 2})
    simulation, server = opened(tmp_path / "run", strategy="fedbuff(buffer=2)", rounds=5)
    states = []
    monkeypatch.setattr(
        ConsoleObserver,
        "round_done",
        lambda _self, _result: states.append(Checkpoints(tmp_path / "run" / "checkpoint").load()),
    )
    started = simulation.train(server).started
    simulation.close()
    assert all(torch.equal(states[1].adapter[n], t) for n, t in started.items())
    assert not states[1].acknowledged
    assert any(not torch.equal(states[4].adapter[n], t) for n, t in started.items())


def test_updates_on_their_way_when_a_step_is_undone_do_not_lower_the_rate_once_more(tmp_path, monkeypatch):
    undoing(monkeypatch, {1, 2}, rate=0.25)
    simulation, server = opened(tmp_path / "run", strategy="fedbuff(buffer=1)", rounds=3)
    progress = simulation.train(server)
    simulation.close()
    lines = Records(tmp_path / "run").read("clients.jsonl")
    assert [line["staleness"] for line in lines][:2] == [0, 1], "who is heard second was asked before the first step"
    assert [line["undone"] for line in Records(tmp_path / "run").read("rounds.jsonl")][1:] == [True, True, False]
    assert progress.standing.rate == 0.25


def test_steps_that_go_on_doing_harm_lower_the_rate_again_once_those_asked_at_the_lower_one_are_heard(
    tmp_path, monkeypatch
):
    undoing(monkeypatch, set(range(1, 9)), rate=0.25)
    rates = []
    said = []
    monkeypatch.setattr(ConsoleObserver, "say", lambda _self, text: said.append(text))
    simulation, server = opened(tmp_path / "run", strategy="fedbuff(buffer=1)", rounds=8)
    monkeypatch.setattr(
        ConsoleObserver,
        "round_done",
        lambda _self, _result: rates.append(Checkpoints(tmp_path / "run" / "checkpoint").load().standing.rate),
    )
    simulation.train(server)
    simulation.close()
    undone = [text for text in said if "undone" in text and "in a row" not in text]
    assert len([text for text in said if "3 rounds in a row were undone" in text]) == 1
    assert ["from here on clients train at" in text for text in undone] == [n in (1, 4, 7) for n in range(1, 9)]
    assert all(line["staleness"] <= 2 for line in Records(tmp_path / "run").read("clients.jsonl"))
    assert rates == [0.25**n for n in (1, 1, 1, 2, 2, 2, 3, 3)]


def test_who_trains_alone_does_so_at_the_rate_that_the_safeguard_has_left(tmp_path, monkeypatch):
    undoing(monkeypatch, {2, 3}, rate=1e-6)
    simulation, server = opened(tmp_path / "run", head="zero", measure="validation(every=1, keep=last)")
    start = train_one_alone(simulation, 2)
    simulation.train(server)
    lowered = train_one_alone(simulation, 2)
    simulation.close()
    moved = [max(float((s[n] - simulation.setup.start[n]).abs().max()) for n in s) for s in (start, lowered)]
    assert moved[1] < 1e-9 < 1e-3 < moved[0]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_start_whose_loss_is_no_number_ends_the_run_in_a_sentence(loss, tmp_path, monkeypatch):
    monkeypatch.setattr(Workers, "compute_validation_loss", lambda _self, _state, _version: loss)
    for safeguard in ("auto", "none"):
        simulation, server = opened(tmp_path / safeguard, safeguard=safeguard, rounds=1)
        if safeguard == "none":
            assert simulation.train(server).standing == SafeguardState()
        else:
            with refuses("FP5196", loss, "fp32"):
                simulation.train(server)
        simulation.close()


HARMFUL = {"learning_rate": 3.0, "optimizer": "adamw(warmup=8, head_rate=1.0, schedule=constant)", "rounds": 4}
"""At this rate AdamW carries every client far from the good start that the ridge head is."""


def flags(folder, **given):
    words = []
    for name, value in {**TINY, **given}.items():
        words += ["--" + name.replace("_", "-")] + ([] if value is True else [str(value)])
    return [*words, "--output", str(folder)]


def validation(folder):
    return [line["accuracy"] for line in Records(folder).read("rounds.jsonl")]


def test_settings_that_ruin_a_good_start_do_no_harm(tmp_path):
    summaries = {}
    for name, given in {
        "bare": {"safeguard": "none", "measure": "validation(every=1, keep=last)"},
        "default": {},
    }.items():
        assert main(flags(tmp_path / name, **HARMFUL, **given)) == 0
        summaries[name] = json.loads((tmp_path / name / "summary.json").read_text())
    bare, default = validation(tmp_path / "bare"), validation(tmp_path / "default")
    assert bare[-1] < bare[0], "these settings do harm"
    assert min(default) >= bare[0] == default[0]
    rounds = Records(tmp_path / "default").read("rounds.jsonl")[1:]
    assert rounds[0]["undone"]
    assert rounds[0]["update_norm"] > 0, "what was tried is on record"
    assert rounds[1]["learning_rate"] == pytest.approx(0.25 * rounds[0]["learning_rate"])
    assert summaries["default"]["accuracy"] > summaries["bare"]["accuracy"]
    assert summaries["bare"]["kept_round"] == 4
    assert summaries["bare"]["last_accuracy"] == summaries["bare"]["accuracy"]


def test_the_best_state_is_saved_and_scored_beside_the_last_and_patience_ends_the_run(tmp_path):
    assert (
        main(
            flags(
                tmp_path / "run",
                **{**HARMFUL, "rounds": 9},
                safeguard="none",
                measure="validation(every=1, patience=2, score_last=True)",
            )
        )
        == 0
    )
    accuracies = validation(tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    best = summary["kept_round"]
    assert accuracies[best] == max(accuracies)
    assert summary["rounds"] == best + 2 == len(accuracies) - 1 < 9
    assert summary["last_accuracy"] < summary["accuracy"]
    assert (tmp_path / "run" / "last" / "adapter").is_dir()
    assert main(["--resume", str(tmp_path / "run")]) == 0, "a run that has ended does not go on"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] == summary["rounds"]


def test_a_language_model_keeps_the_state_of_the_lowest_loss(tmp_path):
    given = {
        "dataset": "tiny_lm",
        "partition": "iid",
        "learning_rate": 0.3,
        "optimizer": "adamw(warmup=8, schedule=constant)",
    }
    simulation, server = opened(tmp_path / "run", **given, safeguard="none")
    progress = simulation.train(server)
    losses = [line["loss"] for line in Records(tmp_path / "run").read("rounds.jsonl")]
    losses.insert(0, simulation.workers.evaluate(progress.started, 0).loss)  # which rounds.jsonl has no line of
    assert len(set(losses)) == 4, "nothing is told apart"
    assert progress.best.round == losses.index(min(losses))
    assert simulation.workers.evaluate(progress.result[0], 0).loss == progress.best.metrics.loss == min(losses)
    simulation.close()
