"""The frame of every command, and a run's command line.

`start_command` runs a module as a program. `run_tool` parses its flags, loads its plugins and does its work.
`run_command` turns errors into sentences and exit codes: a user's mistake is one sentence, and an error in a user's
own part names the place.

| exit code | meaning |
|---|---|
| 0 | The work is done. |
| 1 | The work is done, and the answer is no: a claim is refuted, runs failed, or transcripts differ. |
| 2 | The user made a mistake. |
| 130 | Ctrl-C or SIGTERM ended the command. |
| 141 | The reader of the output closed it, as `head` does. |
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import re
import select
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro
from rich.markup import escape

from fedpeft.errors import ConfigError, FedpeftError
from fedpeft.machine import startup
from fedpeft.machine.startup import INTERRUPTED
from fedpeft.machine.terminal import Console
from fedpeft.parts import plugins
from fedpeft.reporting import help_page
from fedpeft.wiring.config import RunConfig

C = TypeVar("C")

MISTAKE = 2
"""Exit code after a user's mistake."""

UNREAD = 141
"""Exit code if nobody reads the output any more: the shell's code for SIGPIPE."""

OTHER_NAMES = {
    "--lr": "--learning-rate 0.002",
    "--epochs": '--local-work "epochs(1.0)" for the work in a round, or --rounds 20',
    "--local-epochs": '--local-work "epochs(1.0)"',
    "--local-steps": '--local-work "steps(10)"',
    "--rank": '--peft "lora(rank=8)"',
    "--lora-rank": '--peft "lora(rank=8)"',
    "--alpha": '--partition "dirichlet(alpha=0.5)"',
    "--algorithm": "--strategy fedit",
    "--aggregation": "--strategy fedit",
    "--fraction": "--cohort 0.1",
}
"""Names of settings in other software, and the flag here with an example value."""

_REMOTE = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
"""A line of a traceback in text form."""


def start_command(name: str) -> NoReturn:
    """Run the module `fedpeft.NAME` as a program, and exit.

    The module is imported under its own name, since other processes find its functions by that name.
    """
    startup.postpone_collection()
    module = importlib.import_module(f"fedpeft.{name}")
    with handle_interrupts():
        code: int = module.main()
    sys.exit(code)


def run_tool(
    command: type[C],
    work: Callable[[C, Console], int | None],
    arguments: Sequence[str] | None,
    *,
    parse: Callable[[list[str]], C] | None = None,
    silent: bool = True,
    interrupted: Callable[[], str] = lambda: "interrupted",
) -> int:
    """Parse the flags of a command, load its plugins, do its work, and return the exit code.

    Args:
        command: dataclass of the flags; files in its field `plugin` are loaded.
        work: does the work and returns the exit code; None: 0.
        arguments: the words of the command line; None: those of the process.
        parse: parses the words; None: `parse_flags`.
        silent: whether to silence progress bars and warnings of libraries, which imports transformers.
        interrupted: returns the line that is printed after Ctrl-C.
    """

    def run() -> int | None:
        words = list(sys.argv[1:] if arguments is None else arguments)
        given = parse_flags(command, words) if parse is None else parse(words)
        if silent:
            from fedpeft.reporting.console import silence_libraries

            silence_libraries()
        if hasattr(given, "plugin"):
            from fedpeft.wiring import catalogue

            catalogue.use(given.plugin)
        return work(given, Console())

    return run_command(run, interrupted)


def parse_flags(command: type[C], arguments: Sequence[str], default: C | None = None) -> C:
    """Return the flags of a command line, over those of `default`.

    Raises:
        SystemExit: help was asked for, or a flag is unknown or malformed.
    """
    more: dict[str, Any] = {} if default is None else {"default": default}
    flags: C = tyro.cli(command, args=list(arguments), prog=name_program(command), **more)
    return flags


def _refuse_other_names(arguments: Sequence[str]) -> None:
    """Raise if a flag is a name of `OTHER_NAMES`: these are too unlike the flag here for tyro to suggest it.

    Raises:
        ConfigError: one is. The message names the flag here.
    """
    for word in arguments:
        flag = word.partition("=")[0].replace("_", "-")
        if here := OTHER_NAMES.get(flag):
            raise ConfigError(f"FP1989 there is no flag {flag}; write {here}")


def parse_run_flags(
    command: type[C], arguments: Sequence[str], page: Callable[[], str], load_defaults: Callable[[C], C]
) -> tuple[C, C]:
    """Return the flags of a command about a run, over the settings that its file contains, and these settings.

    Args:
        command: dataclass of the flags, with the field `plugin`; `--help` shows a page instead of all fields.
        arguments: the words of the command line.
        page: returns the page of `--help`.
        load_defaults: returns the defaults of the flags, given the flags alone; plugins are loaded by then.

    Raises:
        SystemExit: help was asked for, or a flag is unknown or malformed.
        FedpeftError: a flag has another name here, or a plugin or the file of settings can't be used.
    """
    if help_page.is_help_requested(arguments):
        print(page())
        raise SystemExit(0)
    _refuse_other_names(arguments)
    from fedpeft.wiring import catalogue

    alone: Any = parse_flags(command, arguments, command())
    catalogue.use(alone.plugin)
    default = load_defaults(alone)
    return parse_flags(command, arguments, default), default


def name_program(command: type) -> str:
    """Return how a command is called, from the module of its flags."""
    module = command.__module__.removesuffix(".__main__")
    package, _, name = module.rpartition(".")
    return f"fedpeft {name}" if package in ("fedpeft", "fedpeft.commands") else f"python -m {module}"


def run_command(work: Callable[[], int | None], interrupted: Callable[[], str] = lambda: "interrupted") -> int:
    """Do a command's work, and return its exit code: the work's result (None: 0), `MISTAKE`, `UNREAD` or `INTERRUPTED`.

    Args:
        work: does the work, and also reads the arguments, so that wrong arguments are mistakes like any other.
        interrupted: returns the message after Ctrl-C.
    """
    startup.restore_signals()
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
                    f"fedpeft conformance {named}"
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
    startup.restore_signals()
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
    """Return the command line of `fedpeft simulate` for a configuration, for a shell."""
    default = RunConfig()
    words = ["fedpeft simulate"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != getattr(default, field.name):
            plain = str(value)
            text = plain if plain and plain == shlex.quote(plain) else quote_argument(plain)
            words.append(f"--{field.name.replace('_', '-')} {text}")
    return " ".join([*words, *(f"--plugin {shlex.quote(source)}" for source in plugins)])
