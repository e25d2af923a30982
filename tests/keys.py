"""Secret keys of runs in tests: the same in each run of the tests."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from fedpeft.privacy import noise


@contextlib.contextmanager
def keys_of(name: str) -> Iterator[None]:
    """Draw the secret keys of runs from a name, so that a test that looks at noise sees the same each time."""
    drawn = (hashlib.sha256(f"{name} {k}".encode()).digest() for k in itertools.count())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "os", SimpleNamespace(urandom=lambda size: next(drawn)[:size]))
        yield
