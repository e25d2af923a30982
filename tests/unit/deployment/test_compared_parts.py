"""Parts from outside: a client whose file is not the server's does not join, and a server can't make it load one."""

from __future__ import annotations

import re

import pytest

from fedpeft.deployment.client.shared_settings import compute_settings_digest
from fedpeft.deployment.compared_parts import MOST, check_parts, list_part_digests
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.parts import plugins
from fedpeft.wiring.config import RunConfig
from tests.refusals import refuses
from tests.runs.deployment.test_edge import told
from tests.unit.deployment.test_edge import joins

CODEC = '''
import struct
from dataclasses import dataclass

import numpy as np

from fedpeft.communication.payload import count_total
from fedpeft.communication.steps import Encoded, Plan, Quantizer
from fedpeft.communication.symbols import Expected, Symbols


@dataclass(frozen=True)
class Uni(Quantizer):
    """8 bits, and one scale for all."""

    lossless = False

    def encode(self, signal, context):
        most = float(np.abs(signal.values).max())
        symbols = np.rint(signal.values / (most or 1.0) * 127).astype(np.int64) + 127
        return Encoded(None, struct.pack("<f", most / 1), (Symbols(symbols.astype(np.uint16), 255),))

    @classmethod
    def plan(cls, parameters, shapes, context):
        (most,) = struct.unpack("<f", bytes(parameters.take(4, "scale")))
        expected = (Expected(count_total(shapes), 255),)
        return Plan((), expected, lambda _, s: ((s[0] - 127.0) / 127 * most).astype(context.dtype))


parts = {"codecs": {"uni": Uni}}
'''


pytestmark = pytest.mark.usefixtures("fresh_plugins")


def two_files(folder):
    """Write and load a file with a codec, and write another one of the same name that quarters the update."""
    own, other = folder / "mine.py", folder / "other" / "mine.py"
    other.parent.mkdir()
    own.write_text(CODEC)
    other.write_text(CODEC.replace("most / 1", "most / 4"))
    plugins.use([str(own)])
    return own, other


@pytest.fixture
def codec(tmp_path):
    return two_files(tmp_path)


def only(file):
    """From now on this process has the parts of one file."""
    plugins._state.named.clear()
    plugins.use([str(file)] if file else [])


def test_a_client_with_another_file_is_refused_and_one_with_the_same_elsewhere_joins(federation, observer, codec):
    own, other = codec
    made = federation(clients=1, codec="uni")
    description = told(made)
    [text] = description.parts
    assert re.fullmatch("codecs.uni [0-9a-f]{64}", text)
    only(other)
    digests = (f"{plugins.list_named()[0].version:.12}", f"{text.split()[1]:.12}")
    with refuses("FP5040", "'uni'", other, *digests):
        joins(made, observer, description)
    other.write_text(own.read_text())
    only(other)
    assert joins(made, observer, description).create_registration().rows == 40


def test_a_client_without_the_file_is_told_so(federation, observer, codec):
    made = federation(clients=1, codec="uni")
    description = told(made)
    only(None)
    with refuses("FP5039", "codec step 'uni", "--plugin FILE"):
        joins(made, observer, description)


def test_a_part_that_the_server_does_not_tell_is_refused(federation, observer, codec):
    made = federation(clients=1, codec="uni")
    description = told(made)
    del description.parts[:]
    with refuses("FP5041", "codecs.uni", "mine.py"):
        joins(made, observer, description)


def test_parts_that_clients_do_not_run_by_name_are_the_server_s_own(tmp_path, codec):
    assert [text.split()[0] for text in list_part_digests(RunConfig(codec="topk(0.1) | uni", downlink="uni"))] == [
        "codecs.uni"
    ]
    assert list_part_digests(RunConfig()) == []
    rows = tmp_path / "rows.py"
    rows.write_text(
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Rows:\n    pass\n\n\n"
        'parts = {"datasets": {"own_rows": Rows}}\n'
    )
    plugins.use([str(rows)])
    assert list_part_digests(RunConfig(dataset="own_rows")) == []


@pytest.mark.parametrize(
    "text",
    [
        "codecs.uni", "codecs.uni " + "0" * 63, "codecs.uni " + "G" * 64, "datasets.rows " + "0" * 64,
        f"codecs.{'u' * 101} " + "0" * 64, "codecs.uni\n " + "0" * 64, "codecs.u[red] " + "0" * 64,
        "no.uni " + "0" * 64,
    ],
)  # fmt: skip
def test_what_no_server_tells_is_refused(text):
    with refuses("FP5043"):
        check_parts([text])


def test_a_part_is_told_once_and_not_too_many_are():
    text = "codecs.uni " + "0" * 64
    with refuses("FP5043"):
        check_parts([text, text])
    with refuses("FP5042", MOST + 1):
        check_parts([text] * (MOST + 1))


def test_the_digest_of_settings_without_parts_is_as_it_was_before_parts_were_told():
    """A federation of before goes on: its transcript holds the digest of its settings."""
    plain = v2.Description(run="r", config="c", labels=["a", "b"], task="classification", tokens=8)
    assert compute_settings_digest(plain).startswith(DIGEST)
    plain.parts.append("codecs.uni " + "0" * 64)
    assert not compute_settings_digest(plain).startswith(DIGEST)


DIGEST = "081c25afa4dbcae8"
