"""Addresses of the form HOST:PORT."""

from __future__ import annotations

import ipaddress
import re
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
