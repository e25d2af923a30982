"""The residual that exact rules move into the base: clients train on W0 + R, where R sums all rounds' residuals.

R is one matrix per adapted layer, in fp32 (fp64 in an fp64 run). Each round's increment L R is added to it, in the
order of the rounds. Everyone who adds the same increments in the same order holds the same bits. A client that holds
the version of round v receives the increments since then, as factors. If they are more numbers than the matrix, it
receives the matrix. So increments are kept only as long as together they are smaller than the matrix.

A payload is a table of what follows, with the number of increments and their widths (or WHOLE) for each layer. After it
comes one payload of the run's lossless codec.

A remote client holds versions in files. The server sends the increments since the client's last acknowledged round. So
the version of that round is kept until a later one is acknowledged: a round that was lost, or repeated after a restart
of the server, starts from it again. A file beside the versions lists which of them each round needed. If the version of
the acknowledged round was lost, or is an older copy, increments would lead elsewhere, unnoticed: the client refuses.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedpeft.communication.codec import Codec
from fedpeft.communication.decoding import decode_whole
from fedpeft.errors import GoneError, PayloadError, RunError
from fedpeft.machine.files import check_regular_file
from fedpeft.machine.files import replace as replace_file
from fedpeft.peft.adapter import LoraPair, State
from fedpeft.peft.low_rank import LowRank

WHOLE = 0xFFFFFFFF
"""Entry of a payload's table that replaces a number of increments: the whole matrix follows."""

ROUNDS = "rounds"
"""The file that lists a client's rounds from the acknowledged one on, each with its version (0: none)."""

_NUMBER = struct.Struct("<I")


@dataclass(frozen=True)
class Residual:
    """The server's copy of the residual.

    Attributes:
        version: the last round that added to it; 0: no round has.
        total: R by module; modules that never had an increment are missing.
        steps: increments by module, as (round, factors), oldest first.
        since: by module the round after which no increment has been dropped; 0 if the module is missing.
    """

    version: int = 0
    total: State = field(default_factory=dict)
    steps: dict[str, list[tuple[int, LowRank]]] = field(default_factory=dict)
    since: dict[str, int] = field(default_factory=dict)

    def after(self, round_number: int, increments: dict[str, LowRank], dtype: torch.dtype) -> Residual:
        """Return the residual with a round's increments; R has this `dtype`."""
        total, steps, since = dict(self.total), dict(self.steps), dict(self.since)
        for module, increment in increments.items():
            step = LowRank(increment.left.to(dtype), increment.right.to(dtype))
            product = step.to_dense()
            total[module] = total[module] + product if module in total else product
            kept = [*steps.get(module, []), (round_number, step)]
            while kept and sum(s.numel for _, s in kept) > product.numel():
                since[module] = kept.pop(0)[0]
            steps[module] = kept
        return Residual(round_number if increments else self.version, total, steps, since)

    def encode_payload(self, held: int, pairs: Sequence[LoraPair], codec: Codec) -> bytes:
        """Return the payload that brings a client up to date; empty if it already is.

        Args:
            held: the version that the client holds; 0: the plain base.
            pairs: the adapted layers.
            codec: the run's lossless codec.
        """
        if held >= self.version:
            return b""
        table, tensors = b"", State()
        for pair in pairs:
            if self.since.get(pair.module, 0) > held:
                table += _NUMBER.pack(WHOLE)
                tensors[f"{pair.module}.total"] = self.total[pair.module]
                continue
            missing = [step for round_number, step in self.steps.get(pair.module, []) if round_number > held]
            table += _NUMBER.pack(len(missing)) + b"".join(_NUMBER.pack(step.width) for step in missing)
            for i, step in enumerate(missing):
                tensors |= {f"{pair.module}.{i}.left": step.left, f"{pair.module}.{i}.right": step.right}
        return table + codec.encode(tensors)

    def to_tensors(self) -> State:
        """Return the residual as tensors by name, for a checkpoint."""
        state = {"version": torch.tensor(self.version)} if self.version else {}
        state |= {f"total/{module}": tensor for module, tensor in self.total.items()}
        state |= {f"since/{module}": torch.tensor(round_number) for module, round_number in self.since.items()}
        for module, steps in self.steps.items():
            for round_number, step in steps:
                state |= {f"left/{round_number}/{module}": step.left, f"right/{round_number}/{module}": step.right}
        return state

    @classmethod
    def from_tensors(cls, state: State) -> Residual:
        """Build a residual from the result of `to_tensors`."""
        made = cls(int(state.get("version", torch.tensor(0))))
        for name, tensor in state.items():
            kind, _, rest = name.partition("/")
            if kind == "total":
                made.total[rest] = tensor
            elif kind == "since":
                made.since[rest] = int(tensor)
            elif kind == "left":
                round_number, _, module = rest.partition("/")
                made.steps.setdefault(module, []).append((int(round_number), LowRank(tensor, state[f"right/{rest}"])))
        for steps in made.steps.values():
            steps.sort(key=lambda item: item[0])
        return made


def receive(total: State, payload: bytes, pairs: Sequence[LoraPair]) -> State:
    """Return R at a client after `payload`, given the `total` that it held.

    Raises:
        PayloadError: the payload is not what `Residual.encode_payload` makes for these layers.
    """
    if not payload:
        return total
    shapes: dict[str, tuple[int, ...]] = {}
    widths: dict[str, list[int] | None] = {}
    position = 0

    def number() -> int:
        nonlocal position
        if position + _NUMBER.size > len(payload):
            raise PayloadError("FP6021 the table of the base's increments is cut short")
        position += _NUMBER.size
        return int(_NUMBER.unpack_from(payload, position - _NUMBER.size)[0])

    for pair in pairs:
        out, in_ = pair.out_features, pair.in_features
        count = number()
        if count == WHOLE:
            widths[pair.module] = None
            shapes[f"{pair.module}.total"] = (out, in_)
            continue
        if count * (out + in_) > out * in_:  # each has a width of 1 or more
            raise PayloadError(f"FP6022 {count} increments of {pair.module} have more entries than the layer")
        own = widths[pair.module] = [number() for _ in range(count)]
        if 0 in own:
            raise PayloadError(f"FP6496 an increment of {pair.module} has width 0; legal is 1 or more")
        if sum(own) * (out + in_) > out * in_:
            raise PayloadError(f"FP6023 the increments of {pair.module} are larger than the layer")
        for i, width in enumerate(own):
            shapes |= {f"{pair.module}.{i}.left": (out, width), f"{pair.module}.{i}.right": (width, in_)}
    tensors = decode_whole(payload[position:], shapes, agreed=())
    after = dict(total)
    for module, steps in widths.items():
        if steps is None:
            after[module] = tensors[f"{module}.total"]
            continue
        for i in range(len(steps)):
            product = tensors[f"{module}.{i}.left"] @ tensors[f"{module}.{i}.right"]
            after[module] = after[module] + product if module in after else product
    return after


@dataclass(frozen=True)
class ResidualFiles:
    """Versions of R in files `folder/<version>.safetensors`, where clients on this machine read what others receive."""

    folder: Path

    def get_file(self, version: int) -> Path:
        """Return the path of a version's file, whether it exists or not."""
        return self.folder / f"{version:06d}.safetensors"

    def put(self, version: int, total: State) -> None:
        """Store R of a version; older ones are removed. Version 0 is the plain base and needs no file.

        Raises:
            RunError: a file can't be read or written.
        """
        if not version:
            return
        try:
            self.write(version, total)
            for other in self.folder.iterdir():
                if other != self.get_file(version):
                    other.unlink()
        except (OSError, SafetensorError) as error:
            raise RunError(f"FP5012 the base's residual can't be written to {self.folder}: {error}") from error

    def write(self, version: int, total: State) -> None:
        """Store R of a version, whole or not at all.

        Raises:
            OSError, SafetensorError: it can't be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.get_file(version).with_suffix(".partial")
        save_file({module: tensor.contiguous() for module, tensor in total.items()}, partial)
        os.replace(partial, self.get_file(version))

    def get(self, version: int) -> State:
        """Return R of a version.

        Raises:
            RunError: the file is missing or damaged.
        """
        try:
            return load_file(check_regular_file(self.get_file(version))) if version else {}
        except (OSError, SafetensorError) as error:
            raise RunError(f"FP5013 the base's residual {self.get_file(version)} can't be read: {error}") from error


@dataclass(frozen=True)
class HeldBase:
    """The versions that a remote client holds in `folder`, in files that `ResidualFiles` reads.

    Attributes:
        folder: the folder.
        pairs: the adapted layers.
        filled: whether the rule adds anything to the base.
    """

    folder: Path
    pairs: Sequence[LoraPair]
    filled: bool

    def update(self, round_number: int, version: int, acknowledged: int, payload: bytes) -> None:
        """Make the version that a round needs, from the version of the acknowledged round and the server's payload.

        Args:
            round_number: the round.
            version: the version that it needs.
            acknowledged: the last acknowledged round; 0: none, so the plain base.
            payload: the server's payload.

        Raises:
            PayloadError: the payload does not fit these layers, or the rule adds nothing to the base.
            GoneError: the folder lacks the round `acknowledged`, or has lost its version.
            RunError: a file can't be written.
        """
        if not self.filled:
            if version:
                raise PayloadError(
                    f"FP6024 the server sent version {version} of the base, but the run's rule adds nothing to it"
                )
            return
        rounds, files = self._load_rounds(), ResidualFiles(self.folder)
        held = rounds.get(acknowledged, 0)
        if acknowledged and (acknowledged not in rounds or (held and not files.get_file(held).exists())):
            raise GoneError(
                f"FP5014 the base's residual after round {acknowledged} is missing from {self.folder}; restore "
                "it from a backup, since it can't be computed again"
            )
        noted = {other: made for other, made in rounds.items() if other >= acknowledged} | {round_number: version}
        try:
            if version not in (0, held):
                files.write(version, receive(files.get(held), payload, self.pairs))
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(self.folder / ROUNDS, " ".join(f"{r}:{v}" for r, v in sorted(noted.items())).encode())
            for file in self.folder.glob("*.safetensors"):
                if file.stem.isdecimal() and int(file.stem) not in (held, version):
                    file.unlink()
        except (OSError, SafetensorError) as error:
            raise RunError(f"FP5012 the base's residual can't be written to {self.folder}: {error}") from error

    def _load_rounds(self) -> dict[int, int]:
        """Return the version that each listed round needed; empty if the file is missing or unreadable."""
        try:
            noted = (self.folder / ROUNDS).read_text()
            return {int(r): int(v) for r, v in (entry.split(":") for entry in noted.split())}
        except (FileNotFoundError, ValueError):
            return {}
        except OSError as error:
            raise RunError(
                f"FP5015 the rounds of the base's residual in {self.folder} can't be read: {error}"
            ) from error
