"""Shared by the tests of the wire."""

from __future__ import annotations

import pytest

from tests.deployment.door import Door


@pytest.fixture
def door(tmp_path):
    made = Door(tmp_path)
    yield made
    made.gateway.close(None)
