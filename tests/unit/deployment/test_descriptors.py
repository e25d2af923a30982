"""Connections that say nothing: they fill up their own places for the time of a handshake, and no file's."""

from __future__ import annotations

import configparser
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedpeft.deployment.wire.descriptors import OF_A_CLIENT, SPARE, STRANGERS, reserve_connections
from tests.refusals import refuses

ROOT = Path(__file__).parent.parent.parent.parent


@contextmanager
def soft_limit(limit):
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < limit:
        pytest.skip(f"this machine allows a process {hard} open files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


def test_the_soft_limit_is_raised_as_far_as_it_is_needed():
    with soft_limit(SPARE + STRANGERS + 100):
        assert reserve_connections(100) == OF_A_CLIENT * 100 + STRANGERS
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == OF_A_CLIENT * 100 + STRANGERS + SPARE


def test_what_the_machine_allows_is_not_exceeded(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    assert reserve_connections(3) == 1024 - SPARE
    with refuses("FP5068", "1000", "2256", "1024"):
        reserve_connections(1000)


def test_the_unit_starts_a_server_again_whatever_has_ended_it():
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read_string((ROOT / "clients" / "fedpeft-serve.service").read_text())
    service = unit["Service"]
    assert service["Restart"] == "on-failure"
    assert "RestartPreventExitStatus" not in service
    assert int(service["LimitNOFILE"]) >= OF_A_CLIENT * 1000 + STRANGERS + SPARE


def test_the_image_of_a_client_has_the_cpu_build_of_torch_before_anything_that_needs_torch():
    lines = (ROOT / "clients" / "Dockerfile").read_text().splitlines()
    index = lines.index("ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu")
    torch = lines.index('RUN pip install --no-cache-dir torch --index-url "${TORCH_INDEX}"')
    [wheel] = [i for i, line in enumerate(lines) if "/wheel/*.whl" in line]
    assert index < torch < wheel
