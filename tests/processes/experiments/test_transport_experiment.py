"""The transport experiment: many light clients at once, and what a client needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.transport.__main__ import run_own
from fedpeft.deployment.identity.certificates import Authority


@pytest.mark.slow
def test_200_light_clients_are_connected_at_once(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "certs", 30)
    authority.ensure()
    authority.server(["localhost", "127.0.0.1"])
    for i in range(200):
        authority.client(f"client-{i:03d}")
    result = run_own(tmp_path, 200, bytes(100), 2)
    assert len(result.seconds) == 2
