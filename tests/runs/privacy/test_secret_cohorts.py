"""Who took part in a round is told to nobody: neither on the screen nor in files that others may read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fedpeft.privacy.ledger import POPULATION
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.records import Records
from fedpeft.rounds.progress import Checkpoints
from fedpeft.simulate import main
from tests.here import Federation
from tests.privacy.small_runs import QUIET, TINY, StopError, told, trained


def test_a_poisson_cohort_is_secret_may_be_empty_and_is_charged(tmp_path):
    given = {"rounds": 6, "cohort": 1, "privacy": "user_dp(noise_multiplier=1, test_noise=True)", "seed": 1}
    simulation, progress = trained(tmp_path / "run", **given)
    rounds = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    lines = [json.loads(line) for line in (tmp_path / "run" / "clients.jsonl").read_text().splitlines()]
    sizes = [sum(line["round"] == r["round"] for line in lines) for r in rounds]
    assert 0 in sizes, "another seed is needed: no cohort was empty"
    assert max(sizes) != min(sizes)
    assert all(r["update_norm"] > 0 for r in rounds)
    [(event, releases)] = simulation.protection.ledger.spent[POPULATION].items()
    assert (event.rate, releases) == (1 / 6, 6)
    assert progress.round == 6


@pytest.mark.parametrize("killed", ["save", "append"])
def test_a_round_is_told_of_once_its_checkpoint_is_safe_and_only_once(killed, tmp_path, monkeypatch):
    """Before that, user_dp may still answer anew, with other reports under the same noise."""
    given = {"privacy": "user_dp(noise_multiplier=1, test_noise=True)"}
    owner, plain = (Checkpoints, Checkpoints.save) if killed == "save" else (Records, Records.append)

    def die(self, *arguments):
        progress_or_name = arguments[0]
        if (getattr(progress_or_name, "round", None) == 2) or (killed == "append" and '"round": 1,' in seen()):
            raise StopError
        plain(self, *arguments)

    def seen() -> str:
        file = tmp_path / "cut" / "rounds.jsonl"
        return file.read_text() if file.exists() else ""

    with monkeypatch.context() as patch:
        patch.setattr(owner, killed, die)
        with pytest.raises(StopError):
            trained(tmp_path / "cut", **given)
    assert [json.loads(line)["round"] for line in seen().splitlines()] == [1]
    assert Checkpoints(tmp_path / "cut" / "checkpoint").load().round == (1 if killed == "save" else 2)
    trained(tmp_path / "cut", **given)
    trained(tmp_path / "whole", **given)
    for name in ("rounds.jsonl", "clients.jsonl"):
        lines = [Records(tmp_path / f).read(name) for f in ("cut", "whole")]
        cut, whole = ([{k: v for k, v in line.items() if k != "seconds"} for line in found] for found in lines)
        assert cut == whole


def test_record_lines_are_on_the_disk_before_the_checkpoint_that_counts_them(tmp_path, monkeypatch):
    order = []
    fsync = os.fsync

    def note(descriptor):
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.partition(".")[0])
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    trained(tmp_path / "run", local_work="epochs(1.0)")  # clients keep nothing of their own
    first, last = order.index("000002"), order.index("000003")
    assert {"rounds", "clients"} <= set(order[first:last])


def open_to_others(folder: Path) -> set[str]:
    """Return the relative paths in a run's folder that other users may read; closed folders close their contents."""
    found = set()
    for path in folder.iterdir():
        if path.stat().st_mode & 0o077:
            found |= {path.name} | {f"{path.name}/{below}" for below in (open_to_others(path) if path.is_dir() else ())}
        elif path.is_dir():
            found |= {f"{path.name}/{p.name}" for p in path.rglob("*") if p.stat().st_mode & 0o077}
    return found


USER_DP = {"privacy": "user_dp(noise_multiplier=1, test_noise=True)", "cohort": 2, "rounds": 4}
CLOSED = {"clients.jsonl", "checkpoint", "ledger.jsonl", "privacy.key"}


def test_a_run_that_stops_in_round_1_has_told_nobody_who_took_part(tmp_path, monkeypatch, capsys):
    def stop(self, result):
        plain(self, result)
        raise KeyboardInterrupt

    plain = ConsoleObserver.round_done
    monkeypatch.setattr(ConsoleObserver, "round_done", stop)
    given = {**TINY, **USER_DP, "codec": "ef14 | small", "cohort": 4}
    words = [f"--{k.replace('_', '-')}={v}" for k, v in given.items()]
    before = os.umask(0)
    try:
        assert main([*words, "--output", str(tmp_path / "run")]) == 130
    finally:
        os.umask(before)
    folder = tmp_path / "run"
    assert {p.name for p in folder.iterdir()} >= CLOSED | {"clients"}
    assert open_to_others(folder) <= {"config.toml", "rounds.jsonl", ".lock"}
    assert any((folder / "clients").iterdir())
    assert "  4 clients  " in capsys.readouterr().out


@pytest.mark.parametrize("downlink", ["auto", "small"])
def test_rounds_with_a_secret_cohort_all_look_alike(downlink, tmp_path, monkeypatch, capsys):
    heard = []
    monkeypatch.setattr(ConsoleObserver, "client_done", lambda _self, phase, *_: heard.append(phase))
    given = {**USER_DP, "downlink": downlink}
    words = [f"--{k.replace('_', '-')}={v}" for k, v in ({**TINY, **given}).items()]
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "clients.jsonl").read_text().splitlines()]
    sizes = [sum(line["round"] == r + 1 for line in lines) for r in range(4)]
    assert len(set(sizes)) > 1, "another seed is needed: all cohorts are equal"
    first, *others = told(tmp_path / "run")  # the first sends B, which is zero, down, and A as it was up: fewer bytes
    if downlink == "auto":
        assert all(other == others[0] for other in others)
    assert {r["clients"] for r in (first, *others)} == {2}
    one = next(line for line in lines if line["round"] == 3)
    assert others[1]["uplink_bytes"] == pytest.approx(2 * one["uplink_bytes"], rel=0.01)
    assert others[1]["downlink_bytes"] == pytest.approx(2 * one["downlink_bytes"], rel=0.01)
    assert "train" not in heard
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["uplink_bytes"] == sum(r["uplink_bytes"] for r in (first, *others))
    assert (tmp_path / "run" / "clients.npz").stat().st_mode & 0o077 == 0
    shown = capsys.readouterr().out
    assert shown.count("  2 clients  ") == 4
    assert not any(f"  {size} clients  " in shown for size in set(sizes) - {2})


def test_a_server_of_real_clients_tells_no_more_of_a_secret_cohort(tmp_path):
    made = Federation(tmp_path, ConsoleObserver(QUIET), rounds=4, cohort=1, privacy="user_dp(noise_multiplier=1)")
    before = os.umask(0)
    try:
        made.run()
    finally:
        os.umask(before)
    folder = tmp_path / "server"
    first, *others = told(folder)
    assert all(other == others[0] for other in others)
    assert first["clients"] == 1
    assert open_to_others(folder) <= {"rounds.jsonl", "roster.json"}
    assert (folder / "clients.jsonl").exists()
