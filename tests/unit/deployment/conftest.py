"""Fixtures of the tests of the wire."""

from tests.deployment.fixtures import door, joins, server  # noqa: F401
