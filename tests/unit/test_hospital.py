"""docs/hospital.md lists every field that a client sends."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from fedpeft.communication.messages import Report
from fedpeft.deployment.wire import v2_pb2

PAGE = (Path(__file__).parents[2] / "docs" / "hospital.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("## What leaves the site")[2].partition("## What the server sees")[0]
ADDRESS = {"client", "round", "run"}
"""Fields that say whose message it is, and of which round or run."""


def test_each_field_of_a_client_s_messages_is_in_the_table() -> None:
    sent = {field.name for field in fields(Report)} | set(v2_pb2.Registration.DESCRIPTOR.fields_by_name)
    assert sent - ADDRESS - set(re.findall(r"`(\w+)`", TABLE)) == set()
