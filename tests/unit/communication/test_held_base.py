"""What exact rules put into the base, at a remote client: bit for bit the server's, whatever is lost on the way."""

from __future__ import annotations

import random
import shutil
import struct

import pytest
import torch

from fedpeft.communication.base_residual import ROUNDS, HeldBase, Residual, ResidualFiles, receive
from fedpeft.communication.codec import parse_codec
from fedpeft.errors import GoneError, PayloadError
from fedpeft.peft.adapter import LoraPair
from fedpeft.peft.low_rank import LowRank
from tests.refusals import pattern_of, refuses

PAIRS = (LoraPair("low", "low.A", "low.B", 6, 10), LoraPair("high", "high.A", "high.B", 4, 8))
CODEC = parse_codec("fp32")


def increments(round_number):
    """Return a round's low-rank increments, which exceed the layer's own size after some rounds."""
    draws = torch.Generator().manual_seed(round_number)

    def draw(*shape):
        return torch.randn(*shape, generator=draws)

    pairs = PAIRS if round_number % 3 else PAIRS[:1]
    return {p.module: LowRank(draw(p.out_features, 1), draw(1, p.in_features)) for p in pairs}


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_lost_or_repeated_the_base_is_the_servers(tmp_path, seed):
    """Replies are lost, instructions come twice, rounds go on without the client: it holds the server's matrix."""
    chance = random.Random(seed)
    server = Residual()
    client = HeldBase(tmp_path, PAIRS, True)
    acknowledged = 0
    for round_number in range(1, 16):
        if chance.random() < 0.6:
            for _ in range(chance.choice([1, 1, 2])):
                trained_on = max(0, acknowledged - 1)  # the base of the round before
                sent = server.encode_payload(trained_on, PAIRS, CODEC)
                client.update(round_number, server.version, acknowledged, sent)
                held = ResidualFiles(tmp_path).get(server.version)
                assert held.keys() == server.total.keys()
                assert all(torch.equal(held[module], server.total[module]) for module in held)
            assert len(list(tmp_path.glob("*.safetensors"))) <= 2
            if chance.random() < 0.7:
                acknowledged = round_number
        server = server.after(round_number, increments(round_number), torch.float32)


def test_a_server_cannot_choose_how_many_directions_a_client_draws():
    hostile = (
        Residual()
        .after(1, increments(3), torch.float32)
        .encode_payload(0, PAIRS, parse_codec("scalars | cast(dtype=fp32)"))
    )
    with pytest.raises(PayloadError):
        receive({}, hostile, PAIRS)


def test_a_payload_for_other_layers_is_refused_and_spoils_nothing(tmp_path):
    server, client = Residual(), HeldBase(tmp_path, PAIRS, True)
    server = server.after(1, increments(1), torch.float32)
    client.update(2, 1, 0, server.encode_payload(0, PAIRS, CODEC))
    server = server.after(2, increments(2), torch.float32)
    sent = server.encode_payload(1, PAIRS, CODEC)
    whole = {f"{pair.module}.total": (pair.out_features, pair.in_features) for pair in PAIRS}
    nothing = b"\xff" * 8 + CODEC.encode({}, shapes=whole)  # both matrices are announced, and neither is sent
    for payload in (sent[:5], b"\xff" * 40, nothing):
        with pytest.raises(PayloadError):
            client.update(3, 2, 2, payload)
    client.update(3, 2, 2, sent)
    assert torch.equal(ResidualFiles(tmp_path).get(2)["low"], server.total["low"])
    with refuses("FP6023", "high"):
        receive({}, struct.pack("<3I", 0, 1, 3), PAIRS)  # 3 x (4 + 8) numbers for a layer of 4 x 8


def test_increments_that_add_nothing_are_refused():
    """Each would cost a client a dense product, and a server 4 bytes."""
    empty = {"low.0.left": torch.zeros(6, 0), "low.0.right": torch.zeros(0, 10)}
    with refuses("FP6496", "low", 0):
        receive({}, struct.pack("<3I", 1, 0, 0) + CODEC.encode(empty), PAIRS)
    most = 6 * 10 // (6 + 10)
    with refuses("FP6022", most + 1, "low"):
        receive({}, struct.pack("<I", most + 1), PAIRS)
    server = Residual()
    for round_number in range(1, most + 1):
        server = server.after(round_number, {"low": increments(round_number)["low"]}, torch.float32)
    sent = server.encode_payload(0, PAIRS, CODEC)
    assert sent[:4] == struct.pack("<I", most)
    assert torch.equal(receive({}, sent, PAIRS)["low"], server.total["low"])


def test_a_folder_that_was_not_there_in_the_acknowledged_round_is_noticed(tmp_path):
    """The increments since would be added to another matrix: to none, or to that of an older copy."""
    server, client = Residual(), HeldBase(tmp_path / "own", PAIRS, True)
    for round_number in (1, 2, 3):
        client.update(
            round_number,
            server.version,
            round_number - 1,
            server.encode_payload(max(0, round_number - 2), PAIRS, CODEC),
        )
        server = server.after(round_number, increments(round_number), torch.float32)
        if round_number == 2:
            shutil.copytree(tmp_path / "own", tmp_path / "copy")
    sent = server.encode_payload(2, PAIRS, CODEC)
    for lost in ("copy", "nothing"):
        with pytest.raises(GoneError, match=pattern_of("FP5014", "3")):
            HeldBase(tmp_path / lost, PAIRS, True).update(4, 3, 3, sent)
    client.update(4, 3, 3, sent)
    HeldBase(tmp_path / "nothing", PAIRS, True).update(4, 3, 0, server.encode_payload(0, PAIRS, CODEC))  # as a newcomer
    for folder in ("own", "nothing"):
        assert torch.equal(ResidualFiles(tmp_path / folder).get(3)["low"], server.total["low"])


@pytest.mark.parametrize("lost", ["versions", "notes"])
def test_a_folder_that_has_lost_part_of_it_is_that_of_a_newcomer(tmp_path, lost):
    """Deleted to make room, say, or damaged: what is left does not tell the base of the acknowledged round."""
    server, client = Residual(), HeldBase(tmp_path, PAIRS, True)
    for round_number in (1, 2, 3):
        client.update(
            round_number,
            server.version,
            round_number - 1,
            server.encode_payload(max(0, round_number - 2), PAIRS, CODEC),
        )
        server = server.after(round_number, increments(round_number), torch.float32)
    if lost == "versions":
        for file in tmp_path.glob("*.safetensors"):
            file.unlink()
    else:
        (tmp_path / ROUNDS).write_text("damaged")
    with pytest.raises(GoneError, match=pattern_of("FP5014", "3")):
        client.update(4, 3, 3, server.encode_payload(2, PAIRS, CODEC))
    client.update(5, 3, 0, server.encode_payload(0, PAIRS, CODEC))
    held = ResidualFiles(tmp_path).get(3)
    assert all(torch.equal(held[module], server.total[module]) for module in server.total)


def test_a_damaged_version_is_one_sentence(tmp_path):
    server, client = Residual(), HeldBase(tmp_path, PAIRS, True)
    server = server.after(1, increments(1), torch.float32)
    client.update(2, 1, 0, server.encode_payload(0, PAIRS, CODEC))
    (tmp_path / "000001.safetensors").write_bytes(b"damaged")
    (tmp_path / "notes.safetensors").write_bytes(b"of the user's")
    server = server.after(2, increments(2), torch.float32)
    with refuses("FP5013", "000001.safetensors"):
        client.update(3, 2, 2, server.encode_payload(1, PAIRS, CODEC))
    with refuses("FP5013"):
        ResidualFiles(tmp_path).get(1)
