"""Rounds are signed and chained: a server that lies is refused with one sentence, and two transcripts show it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fedpeft.communication.broadcast_digests import compute_common_digest, format_state_name, is_newcomer


@pytest.mark.parametrize(
    "settings",
    [{}, {"codec": "small"}, {"downlink": "small", "strategy": "fedsa_lora"}, {"strategy": "flexlora"}],
    ids=str,
)
def test_real_clients_find_the_model_recorded_and_refuse_another(federation, settings):
    """The digest that the server announces is that of what a client decodes, lossy and private or not."""
    made = federation(rounds=3, **settings)
    server = made.server
    grid = server.create_grid()
    heard, announce = [], server.announcements.announce

    def announced(release):
        heard.append(release)
        return announce(release)

    server.announcements.announce = announced
    planted = []

    def handle(edge, honest):
        def answer(asked):
            states = heard[-1].states
            name = format_state_name(asked.form, is_newcomer(asked))
            assert asked.released == states[name] != ""
            assert heard[-1].common == compute_common_digest(asked)
            report = honest(asked)
            if asked.kind == "train" and asked.round == 3:
                planted.append(honest(replace(asked, released="0" * 64)).error)
            return report

        return answer

    for edge in server.edges:
        edge.handle = handle(edge, edge.handle)
    assert grid is not None
    assert made.run().round == 3
    lines = [json.loads(line) for line in (made.folder / "server" / "clients.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert not any(line.get("rejected") for line in lines)
    assert len(planted) == 2
    assert all("not the one that it has recorded" in error for error in planted)
    assert {r.kind for r in heard} >= {"train"}
