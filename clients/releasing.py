"""What leaves a client: its update, clipped, noised and encoded, in this order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedpeft.communication.uplink import Uplink
from fedpeft.peft.adapter import Layout, State
from fedpeft.privacy.guard import Guard


@dataclass(frozen=True)
class LocalUpdate:
    """The outcome of a client's local training, before it is protected and encoded.

    Attributes:
        update: the change of the tensors that the client exchanges.
        received: those tensors before training.
        trained: those tensors after training.
        layout: the client's layout, at its rank.
    """

    update: State
    received: State
    trained: State
    layout: Layout


@dataclass(frozen=True)
class Encoding:
    """How one update is encoded; see `Uplink.encode`."""

    memory: State
    bits: float
    seed: int
    turn: int


def release(
    own: LocalUpdate,
    uplink: Uplink,
    guard: Guard | None,
    ids: tuple[int, int, int],
    encoding: Encoding,
    hand_in: Callable[[State], State] = lambda update: update,
) -> tuple[bytes, State]:
    """Clip, noise and encode an update, in this order. Audits release by it, too.

    Args:
        own: the outcome of local training.
        uplink: encodes the update.
        guard: clips and adds noise if the mechanism protects whole updates; None: nothing is protected.
        ids: round, attempt and client, whose noise it is.
        encoding: how the update is encoded.
        hand_in: returns the update to encode, given the protected one; an honest client hands in that.

    Returns:
        The payload, and the client's next memory.

    Raises:
        PayloadError: the update is not finite.
    """
    update, trained = own.update, own.trained
    if guard is not None:
        update = guard.protect_update(update, ids)
        # The codec looks at what was trained: it may only see what may be seen.
        trained = {name: own.received[name] + tensor for name, tensor in update.items()}
    return uplink.encode(
        hand_in(update),
        encoding.memory,
        bits=encoding.bits,
        seed=encoding.seed,
        trained=own.received | trained,
        layout=own.layout,
        turn=encoding.turn,
    )
