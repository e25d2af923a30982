"""The server of a run's page: static files, the state, and events whenever it changes.

It listens on the loopback address alone, accepts only names of this machine, and only GET. So a page from elsewhere
can't have a browser read it by another name.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedpeft.errors import ConfigError, FedpeftError, RunError
from fedpeft.machine.terminal import Console
from fedpeft.reporting.dashboard.live import LiveState

HOST = "127.0.0.1"
AT_ONCE = 32
"""The most connections at a time."""

LOOK_SECONDS = 0.25
KEEP_ALIVE_SECONDS = 15.0

FILES = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
}
POLICY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def parse_port(text: str) -> int:
    """Parse the port of --dashboard.

    Raises:
        ConfigError: the text is not a port.
    """
    if not (text.isdecimal() and int(text) <= 65535):
        raise ConfigError(
            f"FP1354 dashboard={text!r} is not a port: give a number such as 8480, or 0 for any free port; the page is "
            f"served at {HOST}, to this machine only"
        )
    return int(text)


def create_application(live: LiveState) -> Any:
    """Create the ASGI application."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    folder = importlib.resources.files("fedpeft.reporting.dashboard")

    async def file(request: Request) -> Response:
        name, kind = FILES[request.url.path]
        return Response(folder.joinpath(name).read_bytes(), media_type=kind, headers=POLICY)

    async def state(_: Request) -> Response:
        return Response(live.to_json(), media_type="application/json", headers=POLICY)

    async def events(_: Request) -> Response:
        return StreamingResponse(_stream_changes(live), media_type="text/event-stream", headers=POLICY)

    routes = [Route(path, file, methods=["GET"]) for path in FILES]
    routes += [Route("/state", state, methods=["GET"]), Route("/events", events, methods=["GET"])]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)
    return Starlette(routes=routes, middleware=[hosts])


async def _stream_changes(live: LiveState) -> AsyncIterator[str]:
    """Yield the state now and after every change until the run has ended, and a comment after a long silence."""
    sent, silence, over = -1, 0.0, False
    while not over:
        if live.version != sent:
            sent, silence = live.version, 0.0
            over = bool(live.ended)  # read before the state is sent: an end in between is another change
            yield f"data: {live.to_json()}\n\n"
        elif silence >= KEEP_ALIVE_SECONDS:
            silence = 0.0
            yield ": still here\n\n"
        await asyncio.sleep(LOOK_SECONDS)
        silence += LOOK_SECONDS


@contextmanager
def serve_dashboard(live: LiveState, port: int) -> Iterator[str]:
    """Serve the page in a thread while the context is open, and yield its address.

    Raises:
        RunError: the port is taken.
    """
    import uvicorn

    try:
        listening = socket.create_server((HOST, port))
    except OSError as error:
        raise RunError(
            f"FP5165 the dashboard can't be served at {HOST}:{port}: {error.strerror}; choose another port"
        ) from None
    config = uvicorn.Config(
        create_application(live), log_config=None, access_log=False, server_header=False, limit_concurrency=AT_ONCE,
        timeout_graceful_shutdown=1, lifespan="off",
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="dashboard", daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{listening.getsockname()[1]}"
    finally:
        if not live.ended:
            live.end("stopped")
        threading.Event().wait(2 * LOOK_SECONDS)  # open pages still receive the outcome
        server.should_exit = True
        thread.join(5)
        listening.close()


@contextmanager
def show_dashboard(port: str, folder: Path, console: Console) -> Iterator[LiveState | None]:
    """Serve the page of the run in `folder`, and print its address; yield None if `port` is empty.

    Raises:
        FedpeftError: the page can't be served.
    """
    if not port:
        yield None
        return
    live = LiveState(folder, folder.name)
    with serve_dashboard(live, parse_port(port)) as address:
        console.print(f"[bold]page[/]    {address}", highlight=False, soft_wrap=True)
        try:
            yield live
        except BaseException as error:
            live.end("stopped" if not isinstance(error, FedpeftError) else f"failed: {error}")
            raise
        live.end("finished")
