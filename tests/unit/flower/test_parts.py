"""Parts from outside in the Flower app: a node whose file is not the server's answers with why, and does no work."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedpeft.communication.flower_grid import MESSAGE_TYPES, set_identity
from fedpeft.communication.flower_messages import read_instruction, read_report, write_record
from fedpeft.communication.messages import Instruction, Report
from fedpeft.deployment.compared_parts import WHOLE_RUN, list_part_digests
from fedpeft.flower import client_app, server_app
from fedpeft.flower.grid import FlowerGrid
from fedpeft.flower.parts import RECORD, add_parts
from fedpeft.parts import plugins
from fedpeft.wiring.config import RunConfig
from tests.refusals import has_error
from tests.unit.deployment.test_compared_parts import only, two_files

GIVEN = {"codec": "uni", "dataset": "tiny", "output": "runs", "nodes": 1}
ASKED = Instruction("train", 1, 0, b"state")


pytestmark = pytest.mark.usefixtures("fresh_plugins")


@pytest.fixture
def codec(tmp_path):
    return two_files(tmp_path)


@pytest.fixture
def worked(monkeypatch):
    """Instructions that this node has worked on."""
    heard = []
    workers = SimpleNamespace(answer=lambda asked: heard.append(asked) or Report(1, 0, b"update"))
    monkeypatch.setattr(client_app, "_get_workers", lambda *_: workers)
    return heard


def answered(told):
    """Why this node refuses, where the server tells these parts; empty: it does not."""
    set_identity()
    content = write_record(ASKED) if told is None else add_parts(write_record(ASKED), told)
    asked = Message(content, dst_node_id=2, message_type=MESSAGE_TYPES["train"])
    return client_app.app(asked, Context(17, 2, {}, RecordDict(), GIVEN))


def test_a_node_with_another_file_says_so_and_one_with_the_same_elsewhere_works(codec, worked):
    own, other = codec
    [told] = list_part_digests(RunConfig(codec="uni"), WHOLE_RUN)
    only(other)
    error = read_report(answered([told])).error
    assert has_error(error, "FP5040", "codec step 'uni'", other)
    assert error.endswith("name it in the environment variable FEDPEFT_PLUGINS of each node")
    assert worked == []
    other.write_text(own.read_text())
    only(other)
    assert read_report(answered([told])) == Report(1, 0, b"update")
    assert worked == [ASKED]


def test_a_node_without_the_file_or_a_server_that_does_not_tell_it_is_refused(codec, worked):
    told = list_part_digests(RunConfig(codec="uni"), WHOLE_RUN)
    for missing in ([], None):
        assert has_error(read_report(answered(missing)).error, "FP5041", "codecs.uni")
    only(None)
    assert has_error(read_report(answered(told)).error, "FP5039", "ask whoever runs the server")
    assert worked == []


@pytest.mark.parametrize("told", [["codecs.uni"], ["no.uni " + "0" * 64]])
def test_what_no_server_tells_is_refused(told, worked):
    assert has_error(read_report(answered(told)).error, "FP5043")
    assert worked == []


def test_what_is_no_list_of_texts_is_refused(worked):
    set_identity()
    content = RecordDict({**write_record(ASKED), RECORD: ConfigRecord({RECORD: [1, 2]})})
    asked = Message(content, dst_node_id=2, message_type=MESSAGE_TYPES["train"])
    reply = client_app.app(asked, Context(17, 2, {}, RecordDict(), GIVEN))
    assert has_error(read_report(reply).error, "FP6102", "[1, 2]")


def test_nodes_run_data_sets_too(tmp_path):
    rows = tmp_path / "rows.py"
    rows.write_text(
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Rows:\n    pass\n\n\n"
        'parts = {"datasets": {"own_rows": Rows}}\n'
    )
    plugins.use([str(rows)])
    assert [text.split()[0] for text in list_part_digests(RunConfig(dataset="own_rows"), WHOLE_RUN)] == [
        "datasets.own_rows"
    ]


def test_the_server_app_tells_its_parts_with_each_message(codec, monkeypatch):
    set_identity()
    grids = []

    def simulated(*_, grid):
        grids.append(grid(1))

    monkeypatch.setattr(server_app, "simulate", simulated)
    monkeypatch.setattr(server_app, "show", lambda *_: None)
    inner = SimpleNamespace(get_node_ids=lambda: [7])
    server_app.main(inner, SimpleNamespace(run_config=GIVEN, run_id=17))
    [grid] = grids
    assert isinstance(grid, FlowerGrid)
    made = grid.create_message(write_record(ASKED), "train", 2, "1")
    assert made.content.config_records[RECORD][RECORD] == list_part_digests(RunConfig(codec="uni"), WHOLE_RUN)
    assert read_instruction(made) == ASKED
