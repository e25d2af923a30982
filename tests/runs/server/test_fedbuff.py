"""Asynchronous steps: who is waited for, what staleness does, and that a full buffer is a synchronous round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from fedpeft.aggregation.update import Fold, Update
from fedpeft.parts.families import strategies
from fedpeft.peft.adapter import Layout
from fedpeft.simulate import main
from tests.refusals import has_error

TINY = ["--dataset", "tiny", "--clients", "8", "--cohort", "6", "--rounds", "4", "--dtype", "fp32", "--workers", "1",
        "--optimizer", "adamw(head_rate=1)", "--learning-rate", "0.003", "--local-work", "steps(3)"]  # fmt: skip


@pytest.mark.fast
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 50)), min_size=1, max_size=6), st.floats(0, 2))
def test_a_step_is_the_papers_sum(updates, exponent):
    rule = strategies.build(f"fedbuff(exponent={exponent!r})")
    total, empty = Fold(), Layout(())
    deltas = [torch.full((2, 3), 1.0 + k) for k in range(len(updates))]
    for k, (staleness, rows) in enumerate(updates):
        rule.fold(total, Update(k, rows, None, {}, {"x": deltas[k]}, staleness), {}, empty)
    expected = sum(d * rows / (1 + tau) ** exponent for d, (tau, rows) in zip(deltas, updates, strict=True))
    expected = expected / sum(rows for _, rows in updates)
    torch.testing.assert_close(rule.pseudo_gradient(total, empty)["x"], expected)


def run(folder: Path, *more: str) -> list[dict]:
    assert main([*TINY, "--output", str(folder), *more]) == 0
    return [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors") | load_file(folder / "adapter/head.safetensors")


@pytest.mark.slow
def test_a_buffer_of_the_whole_cohort_is_a_synchronous_round(tmp_path):
    run(tmp_path / "fedit")
    run(tmp_path / "fedbuff", "--strategy", "fedbuff(buffer=6)")
    one, other = adapter(tmp_path / "fedit"), adapter(tmp_path / "fedbuff")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_step_waits_for_its_buffer_and_nobody_is_counted_twice(tmp_path):
    lines = run(tmp_path / "run", "--strategy", "fedbuff(buffer=2)")
    rounds = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()][1:]
    assert [r["clients"] for r in rounds] == [2] * 4
    assert len({(line["client"], line["round"]) for line in lines}) == len(lines) == 8
    assert {line["staleness"] for line in lines} > {0, 1}, "six at a time, two a step: some wait for two steps"


@pytest.mark.fast
def test_what_an_asynchronous_run_can_not_have_is_refused(tmp_path, capsys):
    words = [*TINY, "--strategy", "fedbuff", "--output", str(tmp_path / "run")]
    assert main([*words, "--drift", "scaffold", "--optimizer", "sgd"]) == 2
    assert has_error(capsys.readouterr().err, "FP1003")
    assert main([*words, "--privacy", "user_dp(epsilon=8)"]) == 2
    assert has_error(capsys.readouterr().err, "FP1323")


def test_memories_follow_the_round_that_a_client_was_asked_in(tmp_path):
    """Error feedback is staged under the asked round; an acknowledgement of another one would be a missing state."""
    lines = run(tmp_path / "run", "--strategy", "fedbuff(buffer=2)", "--codec", "ef14 | small", "--rounds", "6")
    assert max(line["staleness"] for line in lines) > 0
    assert not [line for line in lines if line.get("rejected")]


def test_all_that_is_sent_is_counted_when_it_is_sent(tmp_path):
    lines = run(tmp_path / "run", "--strategy", "fedbuff(buffer=2)")
    first, *_, last = (line["downlink_bytes"] for line in lines)  # the start has zeros, and is smaller
    rounds = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()][1:]
    assert [r["downlink_bytes"] for r in rounds] == [6 * first, 2 * last, 2 * last, 2 * last]


def test_late_answers_are_booked_with_what_their_clients_were_sent(tmp_path):
    lines = run(tmp_path / "run", "--strategy", "fedbuff(buffer=2)", "--codec", "small", "--rounds", "6")
    late = [line for line in lines if line["staleness"]]
    assert late
    by_round = {}
    for line in lines:  # from the start, all clients of one round are sent the same payload
        if line["downlink_from"] == 0:
            by_round.setdefault(line["round"], set()).add(line["downlink_bytes"])
    assert all(len(sizes) == 1 for sizes in by_round.values())
