"""Shared by the tests of the wire."""

from __future__ import annotations

import pytest

from tests.deployment.door import Door
from tests.deployment.signing_server import joins, server  # noqa: F401


@pytest.fixture
def door(tmp_path):
    made = Door(tmp_path)
    yield made
    made.gateway.close(None)
