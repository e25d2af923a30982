"""File descriptors of a server: a connection costs one before its certificate is seen, and files of the run need some.

A process that has none left can't write its records. So connections are counted, and what files need is kept from them:
whoever opens a thousand connections and says nothing fills up the places of connections for as long as a handshake may
take, and nothing else.
"""

from __future__ import annotations

import resource

from fedpeft.errors import RunError

SPARE = 256
"""Descriptors that connections never get: files of the run, libraries, workers, metrics and health checks."""

OF_A_CLIENT = 2
"""Connections of a client: its own, and for a moment a new one, when it comes back before the older one is missed."""

STRANGERS = 4096
"""Connections beside the clients' that have not shown a certificate yet; each takes 20 kB."""


def reserve_connections(places: int) -> int:
    """How many connections a server with `places` clients may accept; raises the process's soft limit as it needs.

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
