"""python -m fedpeft.run_of_study CONFIG.toml FOLDER: one run of a study, in a process of its own.

It continues what an earlier process left in FOLDER, and ends with the study: the study holds the other end of its
standard input, so even a study that is killed leaves no run behind that would go on writing.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from filelock import FileLock, Timeout

ORPHAN_SECONDS = 60
"""How long an earlier process may take to notice that its study is gone."""


def main(arguments: list[str]) -> int:
    """Run or continue; the exit code of python -m fedpeft.simulate."""
    config, folder, *flags = arguments
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    try:
        with FileLock(f"{folder}.lock", timeout=ORPHAN_SECONDS):
            from fedpeft import simulate

            begun = (Path(folder) / "config.toml").is_file()
            return simulate.main([*(("--resume", folder) if begun else (config, "--output", folder)), *flags])
    except Timeout:
        print(f"error: another process is still writing to {folder}")
        return 2


def _end_with_standard_input() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
