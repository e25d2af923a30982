"""File descriptors of a server: connections need one each before they show a certificate, and files need some.

A process without free descriptors can't write its records. So connections are counted, and the files' share is kept
from them. A stranger who opens a thousand silent connections fills the places of connections for the length of a
handshake, and nothing else.
"""

from __future__ import annotations

import resource

from fedpeft.errors import RunError

SPARE = 256
"""Descriptors that connections never get: files of the run, libraries, workers, metrics and health checks."""

OF_A_CLIENT = 2
"""Connections of a client: its own, and briefly a second one if it returns before the first one is found lost."""

STRANGERS = 4096
"""Connections that have not shown a certificate yet, beside the clients'; each takes 20 kB."""


def reserve_connections(places: int) -> int:
    """Return the most connections of a server with `places` clients; raise the process's soft limit as needed.

    Raises:
        RunError: the machine allows too few open files for so many clients.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = OF_A_CLIENT * places + SPARE
    wanted = needed + STRANGERS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = wanted if soft == resource.RLIM_INFINITY else min(soft, wanted)
    if allowed < needed:
        raise RunError(
            f"FP5068 {places} clients may need {needed} open files, and this process may have {allowed}; raise the "
            "limit (ulimit -n, or LimitNOFILE= of a systemd unit), or give fewer --clients"
        )
    return allowed - SPARE
