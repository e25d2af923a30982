"""Federations of real clients with secure sums: exact whoever drops out, and whenever a server is killed."""

from __future__ import annotations

import queue
import threading
from types import SimpleNamespace

import pytest

from fedpeft.deployment.client.shared_settings import parse_shared_settings
from fedpeft.deployment.options import ServeOptions
from fedpeft.deployment.server import federation as served
from fedpeft.deployment.server.grid import GrpcGrid, StoppedError
from fedpeft.deployment.server.settings_checks import check
from fedpeft.deployment.wire.session import Session
from fedpeft.join import main as join
from fedpeft.rounds.sum_journal import SumJournal
from fedpeft.serve import main as serve
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run
from tests.refusals import has_error, refuses


def test_a_sum_that_was_never_begun_is_forgotten(tmp_path):
    """The server says why there is no sum before round 1, and not that there is no folder of it."""
    SumJournal(tmp_path / "secure_sum", "").forget()


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("given", "serving", "says"),
    [
        ({"privacy": "secure_sum(threshold=0.5)"}, {}, ("FP7081",)),
        ({}, {"held_out": 0.2}, ("FP7021",)),
        ({"clients": 2}, {}, ("FP7079", "3", "2")),
        ({"strategy": "krum"}, {}, ("FP7100", "krum")),
        ({"privacy": "secure_sum(bits=6)", "clients": 6}, {}, ("FP7078", "7")),
        ({"codec": "small"}, {}, ("FP7101",)),
    ],
    ids=str,
)
def test_what_a_server_refuses(federation, given, serving, says):
    with refuses(*says):
        federation(**{"clients": 3, "privacy": "secure_sum"} | given, serve=ServeOptions(**serving))


def test_a_threshold_that_lies_get_around_is_refused_by_clients_too():
    parse_shared_settings('privacy = "secure_sum"\nclients = 3')
    with refuses("FP7081"):
        parse_shared_settings('privacy = "secure_sum(threshold=0.6)"\nclients = 3')
    check(parse_run(RunConfig(privacy="secure_sum(threshold=0.67)")), ServeOptions())


def test_without_tls_there_are_no_secure_sums(tmp_path, capsys):
    words = ["--privacy", "secure_sum", "--dataset", "tiny", "--clients", "3", "--insecure", "--output", str(tmp_path)]
    assert serve([*words, "--listen", "127.0.0.1:0"]) == 2
    assert has_error(capsys.readouterr().err, "FP1404")


def test_what_clients_refuse_of_their_own_options(federation):
    made = federation(clients=3, privacy="secure_sum")
    for options, says in (
        ({"roster_hash": "0" * 16}, ("FP1119", "--roster")),
        ({"roster": "nowhere.txt"}, ("FP1125", "nowhere.txt")),
        ({"rank": 1}, ("FP5071", "--rank")),
    ):
        made.options[0] = options
        with refuses(*says):
            made.edge(0)
    made.summed = False
    made.options[0] = {}
    with refuses("FP7014"):
        made.edge(0)


def test_a_roster_that_could_keep_nobody_out_is_refused(federation, tmp_path):
    (tmp_path / "roster.txt").write_text(f"{'0' * 64} edge-0\n")
    with refuses("FP7015"):
        federation(clients=1, options=[{"roster": str(tmp_path / "roster.txt")}])


def test_wrong_options_of_a_client_are_found_before_the_server_is_asked(tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("text,label\na,x\n")
    assert join(["--server", "127.0.0.1:1", "--data", str(tmp_path / "rows.csv"), "--fewest", "2"]) == 2
    assert has_error(capsys.readouterr().err, "FP1227", "fewest", "at least 3", "2")
    (tmp_path / "roster.txt").write_text(f"{'0' * 64} edge-0\n")
    words = ["--server", "127.0.0.1:1", "--data", str(tmp_path / "rows.csv"), "--insecure", "--name", "edge-0"]
    assert join([*words, "--roster", str(tmp_path / "roster.txt"), "--roster-hash", "1" * 16]) == 2
    assert has_error(capsys.readouterr().err, "FP1127"), "before the server is asked"


def test_rounds_wait_for_three_clients_at_least(federation, monkeypatch):
    made = federation(clients=3, privacy="secure_sum", serve=ServeOptions(quorum=0.1, patience=0.0))
    server = made.server
    server.roster.start()
    server.stopping.set()

    def here(count):
        sessions = [Session(m, connected=1, seen=0.0) for m in server.roster.members[:count]]
        monkeypatch.setattr(server.gateway, "list_sessions", lambda: sessions)
        return served.Federation.wait_for_present(server)

    with pytest.raises(StoppedError):
        here(2)
    assert here(3) == [0, 1, 2]


def test_a_server_that_is_asked_to_stop_leaves_a_sum_at_once():
    """It goes on with it: whoever would be left out now might be one too many."""
    stopping = threading.Event()
    gateway = SimpleNamespace(answers=queue.SimpleQueue(), roster=SimpleNamespace(members=[]))
    grid = GrpcGrid(gateway, 0.5, 0.0, stopping, goes_on=True)
    assert grid.pull_messages([]) == []
    stopping.set()
    with pytest.raises(StoppedError):
        grid.pull_messages([])
