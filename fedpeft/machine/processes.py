"""Starting processes from within somebody's script or notebook."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_main() -> Iterator[None]:
    """Processes that are started here do not run the user's script again, as multiprocessing has them do otherwise.

    Without this a script needs `if __name__ == "__main__":` around what starts them. What they are given to call is
    found by its module's name, which must not be `__main__`.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
