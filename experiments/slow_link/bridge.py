r"""A slow line between two network namespaces: a TUN device in each, and this process between them.

python -m experiments.slow_link.bridge '{"megabits": 10, "loss": 0.01, "delay": 0.05}'

Each packet waits for those before it, takes its length over the rate, and arrives after the delay. A share of the
packets is lost at random, and so is what does not fit the queue. Kernels that have `tc netem` do the same.

The process creates both namespaces and ends them when it ends. It needs the right to create them (root, or
`unshare --user --map-root-user` in front of the command) and /dev/net/tun. The first line on stdout has the namespaces'
file descriptors. Other processes enter with `nsenter --net=/proc/PID/fd/DESCRIPTOR`. Lines on stdin are commands:

    counts          print the packets and bytes of each direction
    cut SECONDS     lose everything for so long
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path

NAMES = ("server", "clients")
"""Sides of the line, and names of their devices."""

ADDRESSES = {"server": "10.77.0.1", "clients": "10.77.0.2"}
"""Address of each side."""

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
LARGEST_PACKET = 65_535


@dataclass(frozen=True)
class Line:
    """Properties of the line, equal in both directions.

    Attributes:
        megabits: rate in 10^6 bits per second, IP headers included, above 0.
        loss: share of the packets that are lost, 0 to 1.
        delay: seconds from one end to the other, at least 0; a round trip takes twice as long.
        queue: bytes that wait for the line at most; further packets are lost.
        congestion: TCP congestion control at both ends, one of the kernel's tcp_allowed_congestion_control.
        seed: seed of the lost packets.
    """

    megabits: float = 10.0
    loss: float = 0.01
    delay: float = 0.05
    queue: int = 256_000
    congestion: str = "reno"
    seed: int = 0


@dataclass
class Direction:
    """One direction of the line.

    Attributes:
        source: descriptor of the device that packets come from.
        target: descriptor of the device that they go to.
        line: the line's properties.
        draw: random numbers that decide which packets are lost.
        carried: bytes that have arrived.
        packets: packets that have arrived.
        lost: packets that were lost at random or by a cut.
        dropped: packets that the queue had no room for.
        cut_until: time until which everything is lost, in seconds of `time.monotonic`.
    """

    source: int
    target: int
    line: Line
    draw: random.Random
    carried: int = 0
    packets: int = 0
    lost: int = 0
    dropped: int = 0
    cut_until: float = 0.0
    _free_at: float = 0.0
    _waiting: deque[tuple[float, bytes]] = field(default_factory=deque)

    @property
    def next_arrival(self) -> float | None:
        """Time at which the next packet arrives; None: nothing is on the way."""
        return self._waiting[0][0] if self._waiting else None

    def take(self, packet: bytes, now: float) -> None:
        """Put a packet on the line, or lose it."""
        bytes_per_second = self.line.megabits * 1e6 / 8
        if now < self.cut_until:
            self.lost += 1
            return
        if (self._free_at - now) * bytes_per_second > self.line.queue:
            self.dropped += 1
            return
        self._free_at = max(now, self._free_at) + len(packet) / bytes_per_second
        if self.draw.random() < self.line.loss:
            self.lost += 1
            return
        self._waiting.append((self._free_at + self.line.delay, packet))

    def deliver(self, now: float) -> None:
        """Hand over the packets that have arrived by `now`."""
        while self._waiting and self._waiting[0][0] <= now:
            packet = self._waiting.popleft()[1]
            os.write(self.target, packet)
            self.carried += len(packet)
            self.packets += 1

    def count(self) -> dict[str, int]:
        """Return what was carried and lost so far."""
        return {"bytes": self.carried, "packets": self.packets, "lost": self.lost, "dropped": self.dropped}


def create_namespace(name: str, congestion: str) -> tuple[int, int]:
    """Move this process to a new network namespace with a TUN device; return the descriptors of both.

    Raises:
        OSError: the process may not do so, or there is no /dev/net/tun.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "can't create a network namespace (this needs root)")
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    peer = next(address for side, address in ADDRESSES.items() if side != name)
    Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1", encoding="ascii")  # it would talk unasked
    Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text(congestion, encoding="ascii")
    for words in (
        ("link", "set", "lo", "up"),
        ("address", "add", ADDRESSES[name], "peer", peer, "dev", name),
        ("link", "set", name, "mtu", "1500", "up"),
    ):
        subprocess.run(("ip", *words), check=True)
    return namespace, device


def forward(directions: dict[str, Direction], devices: dict[str, int]) -> None:
    """Carry packets until stdin ends."""
    commands = sys.stdin.fileno()
    outgoing = dict(zip(devices.values(), directions.values(), strict=True))
    while True:
        arrivals = [d.next_arrival for d in directions.values() if d.next_arrival is not None]
        timeout = max(0.0, min(arrivals) - time.monotonic()) if arrivals else None
        ready, _, _ = select.select([*outgoing, commands], [], [], timeout)
        now = time.monotonic()
        for direction in directions.values():
            direction.deliver(now)
        for source in ready:
            if source != commands:
                outgoing[source].take(os.read(source, LARGEST_PACKET), now)
                continue
            command = os.read(commands, 4096).split()
            if not command:
                return
            if command[0] == b"cut":
                for direction in directions.values():
                    direction.cut_until = now + float(command[1])
            print(json.dumps({name: direction.count() for name, direction in directions.items()}), flush=True)


def main() -> None:
    """Create the line that the only argument describes, and carry packets."""
    line = Line(**json.loads(sys.argv[1]))
    with contextlib.suppress(PermissionError):
        os.nice(-10)  # a late packet would look like a slower line
    sides = {name: create_namespace(name, line.congestion) for name in NAMES}
    devices = {name: device for name, (_, device) in sides.items()}
    directions = {
        f"from_{name}": Direction(devices[name], devices[other], line, random.Random(f"{line.seed} {name}"))
        for name, other in zip(NAMES, reversed(NAMES), strict=True)
    }
    namespaces = {name: namespace for name, (namespace, _) in sides.items()}
    print(json.dumps({"namespaces": namespaces, "line": asdict(line)}), flush=True)
    forward(directions, devices)


if __name__ == "__main__":
    main()
