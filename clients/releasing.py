"""What leaves a client of its update: clipped, noised, encoded, in this order."""

from __future__ import annotations

from collections.abc import Callable

from fedpeft.communication.uplink import Uplink
from fedpeft.peft.adapter import Layout, State
from fedpeft.privacy.guard import Guard


def release(
    update: State,
    received: State,
    trained: State,
    layout: Layout,
    uplink: Uplink,
    guard: Guard | None,
    ids: tuple[int, int, int],
    *,
    memory: State,
    bits: float,
    seed: int,
    turn: int,
    handed_in: Callable[[State], State],
) -> tuple[bytes, State]:
    """What leaves a client of its update: clipped, noised, encoded, in this order. Audits release by it, too.

    Args:
        update: the change of what the client exchanges.
        received: what it started from.
        trained: what it has come to.
        layout: the client's own, at its rank.
        uplink: encodes.
        guard: clips and adds noise, where the mechanism does that to whole updates; None: nothing is protected.
        ids: round, attempt and client, whose noise it is.
        memory, bits, seed, turn: see `Uplink.encode`.
        handed_in: what is encoded instead of an update, which is protected by then.

    Returns:
        The payload, and the client's next memory.

    Raises:
        PayloadError: the update is not finite.
    """
    if guard is not None:
        update = guard.protect_update(update, ids)
        # The codec looks at what was trained: it may only see what may be seen.
        trained = {name: received[name] + tensor for name, tensor in update.items()}
    return uplink.encode(
        handed_in(update),
        memory,
        bits=bits,
        seed=seed,
        trained=received | trained,
        layout=layout,
        turn=turn,
    )
