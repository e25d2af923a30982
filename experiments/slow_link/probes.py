"""Measurements of a line: round trips of pings, and raw transfers without fedpeft.

python -m experiments.slow_link.probes ping ADDRESS COUNT
python -m experiments.slow_link.probes receive tcp|udp CONNECTIONS
python -m experiments.slow_link.probes send tcp|udp ADDRESS CONNECTIONS SECONDS

Each prints a JSON object.
"""

from __future__ import annotations

import json
import select
import socket
import statistics
import struct
import sys
import time

PORT = 9000
PING_INTERVAL = 0.02
"""Seconds between two pings."""

ECHO_REQUEST, ECHO_REPLY = 8, 0
CHUNK = bytes(65_536)
DATAGRAM = bytes(1400)
FLOOD = 2.5e6
"""Bytes per second that the UDP sender offers: 20 Mbit/s."""

SILENCE = 2.0
"""Seconds without a packet after which the UDP receiver ends."""


def compute_checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ping(address: str, count: int) -> dict[str, float]:
    """Send `count` ICMP echo requests, and return the share without a reply and the median round trip in ms."""
    sent: dict[int, float] = {}
    trips: dict[int, float] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        until = 0.0
        while len(sent) < count or (len(trips) < count and time.monotonic() < until):
            if len(sent) < count:
                number = len(sent)
                body = struct.pack("!HH", 77, number) + bytes(56)
                check = compute_checksum(struct.pack("!BBH", ECHO_REQUEST, 0, 0) + body)
                sent[number] = time.monotonic()
                raw.sendto(struct.pack("!BBH", ECHO_REQUEST, 0, check) + body, (address, 0))
                until = time.monotonic() + 1.0
            wait = time.monotonic() + PING_INTERVAL
            while (left := wait - time.monotonic()) > 0 and select.select([raw], [], [], left)[0]:
                packet = raw.recv(2048)
                kind, _, _, identifier, number = struct.unpack_from("!BBHHH", packet, 4 * (packet[0] & 15))
                if kind == ECHO_REPLY and identifier == 77:
                    trips.setdefault(number, time.monotonic() - sent[number])
    return {"sent": count, "lost": 1 - len(trips) / count, "median_ms": 1000 * statistics.median(trips.values())}


def receive(kind: str, connections: int) -> dict[str, float]:
    """Receive what the other side sends, and return the Mbit/s from the first to the last byte."""
    total, first, last = 0, 0.0, 0.0
    sockets: list[socket.socket] = []
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", PORT))  # of a namespace of its own
    if kind == "tcp":
        listener.listen()
    print("ready", flush=True)
    if kind == "tcp":
        sockets = [listener.accept()[0] for _ in range(connections)]
    else:
        sockets = [listener]
    while sockets:
        ready, _, _ = select.select(sockets, [], [], SILENCE if kind == "udp" and total else None)
        if not ready:
            break
        for one in ready:
            data = one.recv(1 << 16)
            if not data:
                sockets.remove(one)
                continue
            last = time.monotonic()
            first = first or last
            total += len(data)
    return {"bytes": total, "seconds": last - first, "megabits": 8e-6 * total / max(last - first, 1e-9)}


def send(kind: str, address: str, connections: int, seconds: float) -> dict[str, float]:
    """Send for some seconds over TCP connections, or UDP packets faster than the line."""
    total, until = 0, time.monotonic() + seconds
    if kind == "udp":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            start = time.monotonic()
            while (now := time.monotonic()) < until:
                while total < (now - start) * FLOOD:
                    total += one.sendto(DATAGRAM, (address, PORT))
                select.select([], [], [], 0.002)
        return {"bytes": total}
    sockets = [socket.create_connection((address, PORT)) for _ in range(connections)]
    for one in sockets:
        one.setblocking(False)
    while (left := until - time.monotonic()) > 0:
        for one in select.select([], sockets, [], left)[1]:
            total += one.send(CHUNK)
    for one in sockets:
        one.close()
    return {"bytes": total}


def main() -> None:
    """Run the probe that the command line names."""
    what, *words = sys.argv[1:]
    if what == "ping":
        found = ping(words[0], int(words[1]))
    elif what == "receive":
        found = receive(words[0], int(words[1]))
    else:
        found = send(words[0], words[1], int(words[2]), float(words[3]))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
