"""Sixty kinds of hostile report, each from a client that belongs to the federation, while an honest one goes on.

Whatever a report says, the server ends its rounds, the state stays finite, what it keeps can be read again, and the
honest client's update counts.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpeft.communication.codec import parse_codec
from fedpeft.communication.messages import Report
from fedpeft.communication.payload import read_payload, seal, write_payload
from fedpeft.rounds.progress import Checkpoints
from tests.attacks.scale import SEED
from tests.conftest import SilentObserver
from tests.here import Federation
from tests.refusals import has_error

NAN, INF = float("nan"), float("inf")


def payload_of(edge, value):
    """Return an update in which each number is `value`.

    No codec would encode NaN, so the bytes are inserted directly.
    """
    state = edge.setup.start
    header, body = read_payload(parse_codec("fp32").encode(state), {n: tuple(t.shape) for n, t in state.items()})
    return write_payload(header, np.full(len(body) // 4, value, "<f4").tobytes())


def as_wide(edge, dtype):
    """Return an update whose numbers have the precision of `dtype`."""
    return parse_codec("cast(dtype=fp64)").encode({n: t.to(dtype) / 9 for n, t in edge.setup.start.items()})


def _numbers():
    for name in ("loss", "seconds", "correct", "count"):
        for value in (NAN, INF, -INF, -1.0, 1e300, 5e-324):
            yield f"{name}={value}", lambda report, edge, n=name, v=value: replace(report, **{n: v})
    for name in ("rows", "steps", "charged", "used"):
        for value in (-(2**63), -1, 0, 2**31, 2**62):
            yield f"{name}={value}", lambda report, edge, n=name, v=value: replace(report, **{n: v})


def _payloads():
    yield "no payload", lambda report, edge: replace(report, payload=b"")
    yield "a zero byte", lambda report, edge: replace(report, payload=b"\0")
    yield "half of it", lambda report, edge: replace(report, payload=report.payload[: len(report.payload) // 2])
    yield "twice", lambda report, edge: replace(report, payload=report.payload * 2)
    yield "backwards", lambda report, edge: replace(report, payload=report.payload[::-1])
    yield "random bytes", lambda report, edge: replace(report, payload=random.Random(SEED).randbytes(4096))
    yield "sealed random bytes", lambda report, edge: replace(report, payload=seal(random.Random(SEED).randbytes(999)))
    for word, value in (("nan", NAN), ("infinity", INF), ("1e30", 1e30), ("1e38", 1e38), ("-1e20", -1e20)):
        yield (
            f"all {word}",
            lambda report, edge, v=value: replace(report, payload=payload_of(edge, v)),
        )
    yield (
        "fewer tensors",
        lambda report, edge: replace(
            report,
            payload=parse_codec("fp32").encode(
                dict(list(edge.setup.start.items())[:1]),
                shapes={n: tuple(t.shape) for n, t in edge.setup.start.items()},
            ),
        ),
    )
    yield "twice as wide", lambda report, edge: replace(report, payload=as_wide(edge, torch.float64))
    yield "half as wide", lambda report, edge: replace(report, payload=as_wide(edge, torch.float16))
    yield "a correction", lambda report, edge: replace(report, correction=report.payload)
    yield "random correction", lambda report, edge: replace(report, correction=b"\xff" * 300)


def _words():
    yield "an error", lambda report, edge: replace(report, error="no")
    yield "an error of a megabyte", lambda report, edge: replace(report, error="[bold]x" * 150_000)
    yield "an error with control characters", lambda report, edge: replace(report, error="\x1b[2J\r\n\0")
    yield "an error of half a character", lambda report, edge: replace(report, error="\ud800")
    yield "spent", lambda report, edge: replace(report, spent=True)
    yield "spent, with an error", lambda report, edge: replace(report, spent=True, error="spent", payload=b"")
    yield "another client", lambda report, edge: replace(report, client=0)
    yield "a client that is none", lambda report, edge: replace(report, client=10**6)
    yield "an earlier round", lambda report, edge: replace(report, round=0)
    yield "a later round", lambda report, edge: replace(report, round=10**6)


def _losses():
    for value in (-1e6, -0.5, 1e6):
        yield f"loss={value}", lambda report, edge, v=value: replace(report, loss=v)


KINDS = dict([*_numbers(), *_losses(), *_payloads(), *_words()])


@pytest.mark.fast
def test_there_are_sixty_kinds():
    assert len(KINDS) >= 60


def stays_sound(made, lie):
    """Run the federation with a lying second client, and return the lines of its reports."""
    edge = made.server.edges[1]
    honest = edge.handle
    edge.handle = lambda instruction: lie(honest(instruction), edge)
    progress = made.run()
    assert progress.round == made.config.rounds
    assert all(bool(tensor.isfinite().all()) for tensor in progress.adapter.values())
    stored = Checkpoints(made.folder / "server" / "checkpoint").load()
    assert stored is not None
    assert stored.round == progress.round
    lines = [json.loads(line) for line in (made.folder / "server" / "clients.jsonl").read_text().splitlines()]
    assert not any("rejected" in line for line in lines if line["client"] == 0), "the honest client was refused"
    return [line for line in lines if line["client"] == 1]


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_report(kind, tmp_path):
    made = Federation(tmp_path, SilentObserver(), rounds=1)
    [line] = stays_sound(made, KINDS[kind])
    print(f"{kind}: {line.get('rejected') or 'taken'}"[:200])


@pytest.mark.long
def test_all_of_them_in_one_run(tmp_path):
    """One round each, in an order that is drawn: nothing of one is left that spoils another."""
    names = random.Random(SEED).sample(sorted(KINDS), len(KINDS))
    made = Federation(tmp_path, SilentObserver(), rounds=len(names))
    order = iter(names)
    lines = stays_sound(made, lambda report, edge: KINDS[next(order)](report, edge))
    assert len(lines) == len(names)
    refused = sum("rejected" in line for line in lines)
    print(f"{len(names)} kinds, {refused} refused")
    assert refused > len(names) / 2, "next to nothing was refused: the attack is none"


def test_a_lie_is_noticed_here(tmp_path):
    """The harness sees what it should: a report of nonsense is refused, an honest one is not."""
    made = Federation(tmp_path, SilentObserver(), rounds=2)
    lies = iter([lambda report, edge: report, KINDS["random bytes"]])
    first, second = stays_sound(made, lambda report, edge: next(lies)(report, edge))
    assert "rejected" not in first
    assert "rejected" in second
    assert isinstance(KINDS["an error"](Report(1, 1, b""), None), Report)


@pytest.mark.parametrize("kind", ["twice as wide", "half as wide"])
def test_numbers_of_another_width_are_refused_and_end_nothing(kind, tmp_path):
    """A sum of the honest client's and of these would be of another width, or none."""
    made = Federation(tmp_path, SilentObserver(), rounds=1)
    [line] = stays_sound(made, KINDS[kind])
    assert has_error(line["rejected"], "FP6159", "torch.float32")


class Lines(SilentObserver):
    """Keeps what the server tells its user."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.mark.parametrize("kind", ["loss=-1e6", "loss=-0.5", "loss=1e6"])
def test_a_lie_about_the_loss_does_not_distort_the_recorded_mean_unnoticed(kind, tmp_path):
    """A loss below 0 is refused; one that is far above the others' counts for less, and the user reads whose it is."""
    observer, means, honest = Lines(), [], None
    kind = kind.replace("1e6", "1000000.0")
    for lie in (lambda report, edge: report, KINDS[kind]):
        folder = tmp_path / str(len(means))
        folder.mkdir()
        made = Federation(folder, observer, rounds=1, clients=3)
        [line] = stays_sound(made, lie)
        honest = honest or line["loss"]
        [record] = [json.loads(r) for r in (folder / "server" / "rounds.jsonl").read_text().splitlines()][-1:]
        means.append(record["train_loss"])
    if kind.startswith("loss=-"):
        assert "FP6" in line["rejected"]
        assert means[1] == pytest.approx(means[0], rel=0.2), "the mean is that of the other two"
    else:
        assert means[1] < 100
        assert any("edge-1 states a training loss of 1e+06" in said for said in observer.lines)
