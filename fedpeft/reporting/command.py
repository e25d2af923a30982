"""The frame of every command, and a run's command line.

A user's mistake becomes one sentence. An error in a user's own part becomes one sentence with its place. The exit code
reports how a command ended:

- 0: done.
- 1: done, and the answer is no (a claim refuted, runs failed, transcripts that differ).
- 2: a user's mistake.
- 130: Ctrl-C, or SIGTERM if a command can continue later.
- 141: the reader of the output has closed it, as `head` does.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import select
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape

from fedpeft import loading, plugins
from fedpeft.config import RunConfig
from fedpeft.errors import FedpeftError
from fedpeft.loading import INTERRUPTED
from fedpeft.machine.terminal import Console

MISTAKE = 2
"""Exit code after a user's mistake."""

UNREAD = 141
"""Exit code if nobody reads the output any more: the shell's code for SIGPIPE."""

_REMOTE = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
"""A line of a traceback in text form."""


def run_command(work: Callable[[], int | None], interrupted: Callable[[], str] = lambda: "interrupted") -> int:
    """Do a command's work, and return its exit code: the work's result (None: 0), `MISTAKE`, `UNREAD` or `INTERRUPTED`.

    Args:
        work: does the work, and also reads the arguments, so that wrong arguments are mistakes like any other.
        interrupted: returns the message after Ctrl-C.
    """
    loading.restore_signals()
    try:
        try:
            return work() or 0
        finally:
            sys.stdout.flush()  # a pipe that nobody reads breaks here, and not at the interpreter's end
    except FedpeftError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return MISTAKE
    except BrokenPipeError:
        if not _is_output_closed():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter complains at its end
        return UNREAD
    except KeyboardInterrupt:
        Console().print(f"\n{escape(interrupted())}", highlight=False, soft_wrap=True)
        return INTERRUPTED
    except (Exception, SystemExit) as error:
        own = _find_plugin_frames(error)
        if not own:
            if named := " ".join(
                plugin.source for plugin in plugins.list_named() if plugin.source != plugins.IN_PYTHON
            ):
                error.add_note(
                    "This command used parts of plugins; to check that they meet the rules for parts, run: "
                    f"python -m fedpeft.conformance {named}"
                )
            raise
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        where = f"FP0001 the plugin {own[-1].filename} has failed in line {own[-1].lineno}, in {own[-1].name}"
        console = Console(stderr=True)
        console.print(f"[bold red]error:[/] {escape(f'{where}: {said}')}", highlight=False, soft_wrap=True)
        console.print(escape("".join(traceback.format_list(own)).rstrip()), highlight=False, soft_wrap=True)
        return MISTAKE


@contextmanager
def handle_interrupts() -> Iterator[None]:
    """Let Ctrl-C, and SIGTERM from supervisors and `kill`, end the command in order; afterward ignore them.

    Afterward everything is written, and another interrupt would only show where Python ends.
    """
    loading.restore_signals()
    press = create_interrupt_handler()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a job in the background ignores it
        signal.signal(signal.SIGINT, press)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, press)
    yield
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def create_interrupt_handler() -> Callable[[int, object], None]:
    """Return a signal handler that raises KeyboardInterrupt, unless it has done so within the last second.

    A user who presses twice means one interruption. The second would arrive while the first is handled, in the middle
    of the cleanup. If the exception is lost, as those in destructors are, the user can press again after a second.
    """
    last = -math.inf

    def press(number: int, frame: object) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 1:
            last = now
            raise KeyboardInterrupt

    return press


def tell_notes(console: Console | None = None) -> None:
    """Print a line for each change of finished runs' plugins, on stderr without a console."""
    for note in plugins.take_notes():
        (console or Console(stderr=True)).print(f"note: {escape(note)}", highlight=False, soft_wrap=True)


def _find_plugin_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the frames of an error's traceback that are in files of plugins, outermost first.

    Frames of worker processes are included.
    """
    sources = plugins.list_places()
    frames = list(traceback.extract_tb(error.__traceback__))
    told = _REMOTE.findall(str(error.__cause__ or ""))  # what a process pool, or Ray, says of its worker
    frames += [traceback.FrameSummary(file, int(line), name) for file, line, name in told]
    return [f for f in frames if any(Path(f.filename).is_relative_to(source) for source in sources)]


def _is_output_closed() -> bool:
    """Return whether the other end of the output is closed; a broken pipe may also be that of a worker."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def quote_argument(text: str) -> str:
    """Quote a part's text for a shell: in double quotes, which keep its single quotes, else by `shlex`."""
    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'


def format_command(config: RunConfig, plugins: Iterable[str] = ()) -> str:
    """Return the command line of `python -m fedpeft.simulate` for a configuration, for a shell."""
    default = RunConfig()
    words = ["python -m fedpeft.simulate"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != getattr(default, field.name):
            plain = str(value)
            text = plain if plain and plain == shlex.quote(plain) else quote_argument(plain)
            words.append(f"--{field.name.replace('_', '-')} {text}")
    return " ".join([*words, *(f"--plugin {shlex.quote(source)}" for source in plugins)])
