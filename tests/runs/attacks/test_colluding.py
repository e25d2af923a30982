"""How many colluding clients a secure sum tolerates: read with one more than the bound, not read with the bound."""

from __future__ import annotations

import json

import pytest

from tests.conftest import SilentObserver
from tests.here import Federation
from tests.refusals import has_error


def test_join_takes_collude_in_secure_sums(tmp_path):
    """The server runs; the client that assumes two colluding clients of five drops out of each sum."""
    made = Federation(tmp_path, SilentObserver(), [{"collude": 0.4}, {}, {}, {}, {}], privacy="secure_sum", clients=5)
    made.run()
    lines = [json.loads(line) for line in (tmp_path / "server" / "clients.jsonl").read_text().splitlines()]
    assert all(("which tolerates 1" in line.get("rejected", "")) == (line["client"] == 0) for line in lines)


@pytest.mark.parametrize("command", ["simulate", "audit"])
def test_commands_refuse_what_masks_do_not_hold(command, tmp_path, capsys):
    from fedpeft.audit.__main__ import main as audit
    from fedpeft.simulate import main as simulate

    given = ["--privacy", "distributed_dp(epsilon=8, collude=0.5)"]
    if command == "audit":
        assert audit(given) == 1
        assert "they could read single clients" in capsys.readouterr().out
    else:
        where = ["--dataset", "tiny", "--tokens", "32", "--clients", "10", "--output", str(tmp_path / "run")]
        assert simulate([*given, *where]) == 2
        assert has_error(capsys.readouterr().err, "FP7130", "collude=0.5")
