"""Real clients of FedBuff, whose server is killed and stopped while they train."""

from __future__ import annotations

import json
import signal

import pytest

from tests.fleet import NAMES


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_client_in_flight_is_neither_lost_nor_counted_twice_when_the_server_goes(fleet, how):
    """Client c, suspended, trains while the others step; the next server takes the update that the first requested."""
    made = fleet(strategy="fedbuff(buffer=2)", rounds=14, measure="validation(every=14)")

    def lines(name=""):
        file = made.folder / "run" / "clients.jsonl"
        found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [line for line in found if not name or line["client"] == NAMES.index(name)]

    server = made.serve()
    clients = {name: made.join(name) for name in NAMES}
    made.wait(lambda: lines("c"), server)
    clients["c"].send_signal(signal.SIGSTOP)
    before = len(made.rounds())
    made.wait(lambda: len(made.rounds()) >= before + 3, server)
    known = len(lines("c"))
    server.send_signal(how)
    server.wait()
    done = len(made.rounds()) - 1
    assert done < 14, "the run was over before its server could go"
    server = made.serve()
    clients["b"].send_signal(signal.SIGSTOP)  # so that the next buffer needs c
    clients["c"].send_signal(signal.SIGCONT)
    made.wait(lambda: len(lines("c")) > known, server)
    clients["b"].send_signal(signal.SIGCONT)
    assert [made.end(p) for p in (server, *clients.values())] == [0, 0, 0, 0], made.logs()
    taken = lines("c")[known]
    assert taken["round"] <= done - 2, "it was asked before the server went"
    assert taken["staleness"] >= 2
    assert not [line for line in lines() if line.get("rejected")]
    assert len({(line["round"], line["client"]) for line in lines()}) == len(lines()) == 28
