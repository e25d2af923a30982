"""Federations of real clients with secure sums: exact whoever drops out, and whenever a server is killed."""

from __future__ import annotations

import json
import re
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedpeft.communication.messages import Report
from fedpeft.privacy.engine import LEDGER
from fedpeft.privacy.secure_sum.coordinator import Coordinator
from fedpeft.privacy.secure_sum.masks import unpack
from fedpeft.privacy.secure_sum.member import Member
from fedpeft.rounds.exchange import Transport
from fedpeft.rounds.sum_journal import SumJournal
from tests.conftest import SilentObserver
from tests.here import Federation
from tests.refusals import refuses

SUMMED = {"privacy": "secure_sum", "clients": 5, "head": "ridge"}
SHARED = {"privacy": "distributed_dp(noise_multiplier=1, rows=310, dropouts=0.2, test_noise=True)", "clients": 5,
          "head": "private_centroids", "local_work": "epochs(1.0)", "batch_size": 16}  # fmt: skip


def lines(folder, name):
    return [json.loads(line) for line in (folder / "server" / name).read_text().splitlines()]


class Killed(BaseException):
    """The server is."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Record a run in which client k drops out at step k + 1 of round k + 1, and three do in round 6."""
    folder, said = tmp_path_factory.mktemp("dropouts"), []
    leaving = {(k + 1, k + 1, k) for k in range(5)} | {(6, 4, k) for k in (0, 2, 4)}
    plain: dict[int, dict[int, np.ndarray]] = {}
    sums: list[tuple[int, int, list[int], np.ndarray]] = []
    in_order, vector, total = Transport.send_in_order, Member.vector, Coordinator.sum

    def dropping(exchange, instructions, count, phase, *early):
        asked = list(instructions)
        steps = {i.client: (i.round, i.step) for i in asked}
        for report in in_order(exchange, asked, count, phase, *early):
            gone = (*steps[report.client], report.client) in leaving
            yield Report(report.client, report.round, b"", error="gone") if gone else report

    def round_of(terms):
        return struct.unpack_from(">QI", terms.context)[1]

    def kept(self, sealed, numbers):
        plain.setdefault(round_of(self.terms), {})[self.client] = numbers
        return vector(self, sealed, numbers)

    def summed(self):
        found = total(self)
        sums.append((round_of(self.terms), self.terms.bits, list(self.survivors), found))
        return found

    class Says(SilentObserver):
        def say(self, text):
            said.append(text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transport, "send_in_order", dropping)
        patch.setattr(Member, "vector", kept)
        patch.setattr(Coordinator, "sum", summed)
        made = Federation(folder, Says(), **SUMMED, rounds=7)
        made.run()
    return SimpleNamespace(folder=folder, plain=plain, sums=sums, said=said, server=made.server)


def test_each_sum_is_that_of_the_integers_of_those_whose_vectors_have_arrived(recorded):
    assert [round_number for round_number, *_ in recorded.sums] == [0, 1, 2, 3, 4, 5, 7]
    for round_number, bits, survivors, found in recorded.sums:
        gone = {round_number - 1} if 1 <= round_number <= 3 else set()  # later ones had sent their vectors
        assert sorted(survivors) == sorted(set(range(5)) - gone)
        expected = sum(recorded.plain[round_number][k].astype(np.uint64) for k in survivors) % 2**bits
        np.testing.assert_array_equal(found, expected)
    assert set(recorded.plain[3]) == {0, 1, 2, 3, 4}, "the client that was lost in step 3 had sent its vector"


def test_a_void_round_leaves_the_model_and_the_run_goes_on(recorded):
    rounds = lines(recorded.folder, "rounds.jsonl")
    assert [r["rejected"] for r in rounds] == [0, 1, 1, 1, 0, 0, 5, 0]
    assert rounds[6]["update_norm"] == 0 < rounds[7]["update_norm"]
    void = [text for text in recorded.said if re.search(r"round 6: FP\d{4} the sum is void", text)]
    assert any("the model stays as it is" in text for text in void)


def test_who_is_left_out_of_a_sum_is_said(recorded):
    """Whose vector has arrived is in the sum, though it was gone a step later."""
    said = [text for text in recorded.said if "without" in text]
    assert said == [f"round {client + 1} without edge-{client}: FP6000 gone" for client in range(3)]


def test_the_server_receives_uniform_vectors_and_no_number_of_a_single_client(recorded):
    """All reports of the run; the same detector finds the integers before they were masked."""
    asked, reports = recorded.server.direct.asked, recorded.server.direct.reports
    statistics = {True: [], False: []}
    for instruction, report in zip(asked, reports, strict=True):
        assert (report.rows, report.steps, report.loss, report.seconds, report.used, report.count) == (0,) * 6
        assert not report.correction
        if instruction.step != 3:
            continue
        bits = 16 if instruction.kind == "train" else 32
        masked = unpack(report.payload, 8 * len(report.payload) // bits, bits)
        for arrived, numbers in ((True, masked), (False, recorded.plain[instruction.round][instruction.client])):
            assert len(numbers) == len(masked)
            for shift in (0, bits - 4):
                counts = np.bincount((numbers >> shift) & 15, minlength=16)
                statistics[arrived].append(float(((counts - counts.mean()) ** 2 / counts.mean()).sum()))
    assert len(statistics[True]) == 2 * (5 * 8 - 2)
    assert max(statistics[True]) < 65  # 15 degrees of freedom: p = 3e-8 for each of 76
    assert min(statistics[False][1::2]) > 1000
    rows = [member.rows for member in recorded.server.roster.members]
    assert rows == [1] * 5


DEATHS = [(0, 1, 2), (0, 2, 0), (0, 3, 3), (0, 4, 1), (0, 5, 4), (1, 1, 0), (1, 2, 4), (1, 3, 1), (1, 4, 3), (1, 5, 2)]
"""Round, step, and how many answers have been taken by then."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "given", [SUMMED, pytest.param(SHARED, marks=pytest.mark.slow)], ids=["secure sums", "shared noise"]
)
def test_a_server_and_clients_killed_at_every_step_end_with_the_same_adapter(tmp_path, observer, monkeypatch, given):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = Federation(tmp_path / "whole", observer, **given).run()
    made = Federation(tmp_path / "killed", observer, **given)
    left, real = list(DEATHS), Transport.send_in_order

    def mortal(exchange, instructions, count, phase, *early):
        asked = list(instructions)
        for answers, report in enumerate(real(exchange, asked, count, phase, *early)):
            if left and (asked[0].round, asked[0].step, answers) == left[0]:
                left.pop(0)
                raise Killed
            yield report

    monkeypatch.setattr(Transport, "send_in_order", mortal)
    for death in DEATHS:
        with pytest.raises(Killed):
            made.run()
        edges = made.server.edges
        if death[0]:
            edges[death[1] - 1] = made.edge(death[1] - 1)
        made.start(edges)
    after = made.run()
    assert not left
    assert all(torch.equal(tensor, after.adapter[name]) for name, tensor in whole.adapter.items())
    assert whole.losses == after.losses
    assert not [line for line in lines(made.folder, "clients.jsonl") if "rejected" in line]
    counts = [[(r["uplink_bytes"] > 0, r["rejected"]) for r in lines(f, "rounds.jsonl")] for f in
              (tmp_path / "whole", tmp_path / "killed")]  # fmt: skip
    assert counts[0] == counts[1]
    if given is SHARED:  # nor has anybody been charged for it
        for home in ("server", *(f"edge-{k}" for k in range(5))):
            books = [(tmp_path / run / home / LEDGER).read_text().splitlines() for run in ("whole", "killed")]
            assert len(books[0]) == len(books[1]) == 1 + 3


def test_a_server_without_its_journal_loses_the_round_and_not_the_run(tmp_path, observer, monkeypatch):
    """Clients take part in one sum a round: the second one is void, and the next round is as any."""
    made = Federation(tmp_path, observer, **SUMMED | {"clients": 3})
    real = Transport.send_in_order

    def mortal(exchange, instructions, count, phase, *early):
        asked = list(instructions)
        if (asked[0].round, asked[0].step) == (1, 4):
            raise Killed
        yield from real(exchange, asked, count, phase, *early)

    with monkeypatch.context() as patch:
        patch.setattr(Transport, "send_in_order", mortal)
        with pytest.raises(Killed):
            made.run()
    SumJournal(tmp_path / "server" / "secure_sum", "").forget()
    made.start(made.server.edges)
    made.run()
    assert [r["rejected"] for r in lines(tmp_path, "rounds.jsonl")] == [0, 3, 0]
    assert all("void" in line["rejected"] or "a second sum of round 1" in line["rejected"]
               for line in lines(tmp_path, "clients.jsonl")[:3])  # fmt: skip


def test_a_damaged_journal_is_one_sentence(tmp_path, observer, monkeypatch):
    made = Federation(tmp_path, observer, **SUMMED | {"clients": 3})
    made.run()
    journal = SumJournal(tmp_path / "server" / "secure_sum", made.server.roster.run)
    assert journal.load_opened(2).cohort == [0, 1, 2]
    assert journal.load_opened(1) is None
    for name in ("announced", "3"):
        file = journal.folder / name
        file.write_bytes(file.read_bytes()[:-1])
    with refuses("FP5208", "announced"):
        journal.load_opened(2)
    with refuses("FP5208", "3"):
        journal.step(3)
