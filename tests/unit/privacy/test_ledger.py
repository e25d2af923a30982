"""The ledger and the run's secret key: on disk first, never back, one noise per input."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch

from fedpeft.privacy.accountant import Event
from fedpeft.privacy.ledger import Ledger, terms_in
from fedpeft.privacy.noise import RunKey, draw_gaussian, make_key, read_key
from tests.refusals import refuses

TERMS = {"unit": "client", "dp_delta": 1e-3}
EVENT = Event(1.0, 0.1)


def test_charges_are_on_disk_when_the_call_returns(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", TERMS)
    assert ledger.charge(1, "a", {3: (EVENT, 10), 5: (EVENT, 4)}) == 0
    again = Ledger(tmp_path / "ledger.jsonl", TERMS)
    assert again.spent == {3: {EVENT: 10}, 5: {EVENT: 4}}
    assert again.after(3, EVENT, 2) == {EVENT: 12}
    assert again.accounts(1, 0) == {3, 5}
    assert (tmp_path / "ledger.jsonl").stat().st_mode & 0o077 == 0


def test_a_repeated_round_is_charged_once_for_equal_inputs_and_anew_for_others(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", TERMS)
    assert [ledger.charge(1, f, {0: (EVENT, 1)}) for f in ("a", "a", "b", "a", "b", "c")] == [0, 0, 1, 0, 1, 2]
    assert ledger.spent == {0: {EVENT: 3}}


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_charge_cut_short_by_a_kill_is_no_charge_and_spoils_nothing(tmp_path, cut):
    path = tmp_path / "ledger.jsonl"
    Ledger(path, TERMS).charge(1, "a", {0: (EVENT, 1)})
    whole = path.read_bytes()
    Ledger(path, TERMS).charge(2, "b", {0: (EVENT, 1)})
    path.write_bytes(path.read_bytes()[: len(whole) + cut])
    ledger = Ledger(path, TERMS)
    assert ledger.spent == {0: {EVENT: 1}}
    ledger.charge(2, "b", {0: (EVENT, 1)})
    assert Ledger(path, TERMS).spent == {0: {EVENT: 2}}


def test_a_first_line_cut_short_is_written_again(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"version": 1, "un')
    Ledger(path, TERMS).charge(1, "a", {0: (EVENT, 1)})
    assert Ledger(path, TERMS).spent == {0: {EVENT: 1}}


def test_who_was_left_out_is_known_when_the_file_is_read_again(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, TERMS)
    ledger.charge(1, "a", {0: (EVENT, 1)})
    ledger.charge(2, "b", {0: (EVENT, 1)}, {4, 2})
    ledger.charge(3, "c", {}, {0})
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert [line.get("spent") for line in lines] == [None, [2, 4], [0]], "a line that leaves nobody out is as it was"
    assert Ledger(path, TERMS).left_out == ledger.left_out == {0, 2, 4}


def test_how_often_each_was_asked_counts_rounds_and_not_attempts(tmp_path):
    """Whoever is left out was asked, too; the start is no round."""
    for path in (tmp_path / "ledger", tmp_path / "ledger"):  # the second time it is read
        ledger = Ledger(path, TERMS)
        ledger.charge(0, "start", {7: (EVENT, 1), 8: (EVENT, 1)})
        ledger.charge(1, "a", {7: (EVENT, 3)}, [9])
        ledger.charge(1, "again", {7: (EVENT, 3)})
        ledger.charge(2, "b", {7: (EVENT, 1), 8: (EVENT, 1)})
        assert [ledger.count_rounds(round_number) for round_number in (1, 2, 3)] == [
            {},
            {7: 1, 9: 1},
            {7: 2, 8: 1, 9: 1},
        ]


def test_other_terms_and_damage_are_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    Ledger(path, TERMS).charge(1, "a", {0: (EVENT, 1)})
    with refuses("FP7042"):
        Ledger(path, {**TERMS, "dp_delta": 1e-2})
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "not json", lines[1]]) + "\n")
    with refuses("FP7044"):
        Ledger(path, TERMS)


def test_what_is_said_otherwise_is_named(tmp_path):
    """A run that was begun before its cohorts were dealt has another noise: who resumes it is told so."""
    path = tmp_path / "ledger.jsonl"
    Ledger(path, {**TERMS, "noise_multiplier": 2.09})
    with refuses("FP7042", "noise_multiplier", 2.09, 0.98) as caught:
        Ledger(path, {**TERMS, "noise_multiplier": 0.98})
    assert "dp_delta" not in str(caught.value)
    path.write_text("[1]\n")
    with refuses("FP7042", "[1]"):
        Ledger(path, TERMS)
    with refuses("FP7046", "ledger.jsonl"):
        terms_in(path)


def test_nothing_is_spent_before_it_is_written(tmp_path, monkeypatch):
    """If the disk refuses the charge, the round must not begin."""
    ledger = Ledger(tmp_path / "ledger.jsonl", TERMS)

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with refuses("FP7045", "No space left"):
        ledger.charge(1, "a", {0: (EVENT, 1)})
    assert ledger.spent == {}


def test_lines_hold_no_secret(tmp_path):
    key = make_key(tmp_path / "privacy.key")
    Ledger(tmp_path / "ledger.jsonl", TERMS).charge(1, key.name, {0: (EVENT, 1)})
    assert key.secret.hex() not in (tmp_path / "ledger.jsonl").read_text()
    assert "secret" not in repr(key)
    [_, line] = (tmp_path / "ledger.jsonl").read_text().splitlines()
    assert json.loads(line)["charges"] == [[0, 1.0, 0.1, 1]]


def test_the_key_is_private_and_kept(tmp_path):
    key = make_key(tmp_path / "privacy.key")
    assert make_key(tmp_path / "privacy.key") == key == read_key(tmp_path / "privacy.key")
    assert (tmp_path / "privacy.key").stat().st_mode & 0o777 == 0o600
    assert make_key(tmp_path / "other.key") != key
    (tmp_path / "privacy.key").chmod(0o644)
    with refuses("FP7074"):
        read_key(tmp_path / "privacy.key")
    with refuses("FP7073"):
        read_key(tmp_path / "nowhere.key")


def test_streams_differ_by_purpose_and_ids_and_are_standard_normal():
    key = RunKey(bytes(32))
    like = torch.zeros(100_000)
    draws = {
        ids: draw_gaussian(key.stream(purpose, *ids), like)
        for purpose, ids in (("noise", (1, 0, 2)), ("noise", (1, 1, 2)), ("noise", (2, 0, 1)), ("rows", (1, 0, 3)))
    }
    for one in draws.values():
        assert abs(float(one.mean())) < 0.02
        assert float(one.std()) == pytest.approx(1, abs=0.02)
    correlations = np.corrcoef([d.numpy() for d in draws.values()])
    assert np.abs(correlations - np.eye(len(draws))).max() < 0.02
    assert torch.equal(draw_gaussian(key.stream("noise", 1, 0, 2), like), draws[1, 0, 2])


def test_a_stream_is_philox_under_the_hmac_of_purpose_and_ids():
    """A run that is resumed draws its noise again: the number is the first half of OpenSSL's HMAC-SHA256."""
    key = 0x0DA19D437878B63D34FA1DEA21DE4D13
    expected = np.random.Generator(np.random.Philox(key=key)).integers(2**32, size=3)
    assert (RunKey(bytes(range(32))).stream("noise", 1, 0, 2).integers(2**32, size=3) == expected).all()


def test_torch_generators_would_repeat_noise():
    """Why noise does not come from them: a seed counts only modulo 2^32."""
    one, other = (torch.randn(4, generator=torch.Generator().manual_seed(s)) for s in (5, 5 + 2**32))
    assert torch.equal(one, other)


def test_a_ledger_makes_the_folders_above_it(tmp_path):
    ledger = Ledger(tmp_path / "runs" / "first" / "ledger.jsonl", TERMS)
    assert ledger.path.is_file()
