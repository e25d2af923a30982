"""Constants that both ends of a connection share."""

from __future__ import annotations

from typing import Final

NAME_KEY: Final = "fedpeft-name"
"""The metadata key of a client's name."""

SERVICE: Final = "fedpeft.v2.Federation"
"""The name of a server's gRPC service, also in health checks."""

WIRE: Final = 2
"""Version of the protocol, which `SERVICE` names, too. It is frozen since 0.3.0 (docs/api.md)."""

CHUNK: Final = 512 * 1024
"""Bytes of payload in one message."""

KEEPALIVE: Final = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.ping_timeout_ms", 20_000),
)
"""A connection that falls silent is noticed within about 40 seconds, on either side.

Two clocks are needed. While a ping of gRPC's flow control is under way there is no keepalive ping, and such a ping may
take a minute by default.
"""

HANDSHAKE_SECONDS: Final = 10.0
"""Seconds within which a connection must show its certificate. A silent one frees its place after that."""

IDLE_SECONDS: Final = 60.0
"""Seconds for which a connection may be open without a call; a client's has its stream of tasks."""

SERVER_OPTIONS: Final = (
    *KEEPALIVE,
    ("grpc.server_handshake_timeout_ms", int(1000 * HANDSHAKE_SECONDS)),
    ("grpc.max_connection_idle_ms", int(1000 * IDLE_SECONDS)),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 4),
    ("grpc.max_concurrent_streams", 8),
    ("grpc.max_metadata_size", 8192),
    ("grpc.max_receive_message_length", 2 * CHUNK),
    ("grpc.so_reuseport", 0),
)
