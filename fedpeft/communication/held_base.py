"""What exact rules have put into the base, as a remote client holds it: versions in files, and how one follows another.

The server sends what has come since the client's last acknowledged round. So the version of that round is kept until a
later one is acknowledged: a round that was lost, or repeated after the server's restart, starts from it again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedpeft.communication.base_residual import receive
from fedpeft.errors import RunError
from fedpeft.peft.adapter import LoraPair


@dataclass(frozen=True)
class HeldBase:
    """Versions in `folder/<version>.safetensors`, the names that `ResidualFiles` reads."""

    folder: Path
    pairs: Sequence[LoraPair]

    def _file(self, version: int) -> Path:
        return self.folder / f"{version:06d}.safetensors"

    def update(self, version: int, acknowledged: int, payload: bytes) -> None:
        """Make `version` from that of the round `acknowledged` (0: none, the plain base) and what the server sent.

        Raises:
            PayloadError: the payload does not fit these layers.
            RunError: the file can't be written.
        """
        if not version:
            return
        there = sorted(int(file.stem) for file in self.folder.glob("*.safetensors"))
        held = max((v for v in there if v < acknowledged), default=0)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if version != held:
                total = receive(load_file(self._file(held)) if held else {}, payload, self.pairs)
                partial = self._file(version).with_suffix(".partial")
                save_file({module: tensor.contiguous() for module, tensor in total.items()}, partial)
                os.replace(partial, self._file(version))
            for other in there:
                if other not in (held, version):
                    self._file(other).unlink()
        except (OSError, SafetensorError) as error:
            raise RunError(f"the base's residual can't be written to {self.folder}: {error}") from error
