"""Addresses of the form HOST:PORT."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Final

from fedpeft.errors import ConfigError

HOST: Final = re.compile(r"[\w.-]+|\[[0-9A-Fa-f:.]+(%[\w.-]+)?\]|[0-9A-Fa-f:.]+(%[\w.-]+)?")
"""A name or an address; gRPC searches without end for any other host."""


def parse_address(text: str, option: str) -> tuple[str, int]:
    """Return the two parts of HOST:PORT.

    Raises:
        ConfigError: the text, which the `option` has given, has another form.
    """
    host, _, port = text.rpartition(":")
    if not (HOST.fullmatch(host) and port.isdecimal() and int(port) <= 65535):
        raise ConfigError(
            f"FP1122 {option}={text!r} is not of the form HOST:PORT: a host's name or address (no https:// before it), "
            "and a port up to 65535, such as 127.0.0.1:8470"
        )
    return host.strip("[]"), int(port)


def is_loopback(address: str) -> bool:
    """Return whether HOST:PORT can be reached from this machine only."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def explain_bind(address: str) -> str:
    """Return why no server can listen at HOST:PORT now; empty: one can. gRPC states no reason."""
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host.strip("[]"), int(port)), family=family):
            return ""
    except OSError as error:
        return (error.strerror or str(error)).split(" (while attempting", 1)[0]
