"""Where a client keeps its state: in a folder that the server does not choose, for one process."""

from __future__ import annotations

import secrets
import stat

import pytest
from rich.console import Console

from fedpeft.deployment.client.edge import check_machine
from fedpeft.deployment.client.joining import join
from fedpeft.deployment.client.state_folder import get_client_folder, lock_state_folder
from fedpeft.deployment.options import EdgeOptions, JoinOptions
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.deployment.wire.connection import Connection
from fedpeft.machine.shared_cache import VARIABLE
from tests.refusals import refuses


def test_servers_name_federations_as_clients_take_them(tmp_path):
    run = secrets.token_hex(8)  # as fedpeft.deployment.identity.members does
    assert get_client_folder(tmp_path, run, "edge-1") == tmp_path / run / "edge-1"


@pytest.mark.parametrize("run", ["", ".", "..", "../../evil0123456", "/tmp/elsewhere", "0123456789ABCDEF",
                                 "0123456789abcdef0", "0123456789abcde", "0123456789abcdef\n", "0123456789abcde\0",
                                 "٠١٢٣٤٥٦٧٨٩٠١٢٣٤٥"])  # fmt: skip
def test_a_server_s_name_for_its_federation_leads_nowhere_else(tmp_path, monkeypatch, run):
    monkeypatch.setattr(Connection, "describe", lambda self: v2.Description(run=run))
    (tmp_path / "rows.csv").write_text("text,label\nx,a\n")
    state = tmp_path / "a" / "b" / "state"
    options = JoinOptions("127.0.0.1:1", tmp_path / "rows.csv", insecure=True, name="edge-1", state=state)
    with refuses("FP5036"):
        join(options, EdgeOptions(), Console(quiet=True))
    assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"]


def test_nobody_else_sees_the_names_of_a_machine_s_clients(tmp_path):
    state = tmp_path / "new" / "state"
    folder = get_client_folder(state, "0123456789abcdef", "edge-1")
    with lock_state_folder(folder):
        assert {stat.S_IMODE(made.stat().st_mode) for made in (folder, folder.parent, state)} == {0o700}


def test_a_folder_of_the_user_keeps_its_mode(tmp_path):
    tmp_path.chmod(0o755)
    with lock_state_folder(get_client_folder(tmp_path, "0123456789abcdef", "edge-1")):
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_a_folder_that_can_not_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with refuses("FP5038", "--state"), lock_state_folder(tmp_path / "file" / "x"):
        pass


def test_a_client_s_examples_go_to_no_shared_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"file://{tmp_path}/bucket")
    (tmp_path / "rows.csv").write_text("text,label\nx,a\n")
    with refuses("FP1994", VARIABLE):
        check_machine(tmp_path / "rows.csv", EdgeOptions())
