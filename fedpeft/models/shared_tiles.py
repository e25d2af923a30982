"""Tiles of the activation cache that machines share in object storage (`machine.shared_cache`)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from fedpeft.machine.shared_cache import SharedCache, get_shared_cache
from fedpeft.models.frozen_blocks import ActivationCache

AT_ONCE = 16
"""Objects that are read at the same time, since each costs a round trip."""


def fetch_missing_tiles(store: ActivationCache) -> list[int]:
    """Fetch missing tiles from the shared cache, and return the tiles that it lacks, too.

    Raises:
        AssetError: the disk has no room for them, or the shared cache can't be reached.
    """
    missing = store.find_missing_tiles()
    shared = get_shared_cache() if missing else None
    if shared is None:
        return missing
    with ThreadPoolExecutor(AT_ONCE) as readers:
        fetched = list(readers.map(lambda tile: _fetch_tile(store, tile, shared), missing))
    return [tile for tile, here in zip(missing, fetched, strict=True) if not here]


def offer(store: ActivationCache, tiles: Sequence[int]) -> None:
    """Put tiles into the shared cache, if there is one.

    Raises:
        AssetError: it can't be reached, or may not be written.
    """
    shared = get_shared_cache()
    if shared is not None:
        for tile in tiles:
            shared.write(_name(store, tile), store.read(tile))


def _fetch_tile(store: ActivationCache, tile: int, shared: SharedCache) -> bool:
    data = shared.read(_name(store, tile))
    return data is not None and store.put(tile, data)


def _name(store: ActivationCache, tile: int) -> str:
    return f"{store.folder.name}/{tile:07d}"
