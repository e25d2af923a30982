"""fedpeft COMMAND ...: every command by one name; the same as python -m fedpeft.COMMAND."""

from __future__ import annotations

import runpy
import sys
from importlib.util import find_spec

from fedpeft import __version__, loading

COMMANDS = {
    "init": "begin a project: example data, a run, a strategy of your own, and a test",
    "check": "look at a data set: rows, classes, lengths, duplicates, how a partition would look",
    "simulate": "a federation on this machine, from data to a scored adapter",
    "study": "many runs: axes and seeds, with means, intervals and comparisons",
    "tune": "a search: settings by trials, early ends for those that fall behind, hybrids of PEFT methods",
    "report": "runs and studies on one page, and as CSV",
    "describe": "the parts of a run: what each does, where it comes from, which settings it takes",
    "predict": "what finished runs answer to a text",
    "export": "a finished run's adapter with a model card, or merged into its base",
    "evaluate": "what a finished run has learned, beside its base",
    "flowertune": "the configuration of one of Flower's FlowerTune projects, run here",
    "certs": "the certificates of a federation of real clients",
    "serve": "the server of real clients",
    "join": "a client: its rows stay where they are",
    "transcript": "whether two clients were told the same by their server",
    "audit": "whether a mechanism or a finished run leaks what it should protect",
    "attack": "what hostile servers and clients learn under a server's settings, on this machine",
    "conformance": "whether parts of your own do what every part must",
    "completion": "what bash, zsh or fish needs to complete these commands and their flags",
}
"""What each does; a module or a package of this name."""


def format_overview() -> str:
    """Return the page that lists the commands."""
    lines = [f"  {name:<12} {about}" for name, about in COMMANDS.items()]
    return "\n".join(
        [
            f"fedpeft {__version__}: federated parameter-efficient fine-tuning",
            "",
            "usage: fedpeft COMMAND [OPTIONS]    (fedpeft COMMAND --help says more)",
            "",
            *lines,
        ]
    )


def main() -> int:
    """Run the named command; return its exit code, or 2 for an unknown command."""
    loading.refuse_windows()
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(format_overview())
        return 0
    if arguments[0] in ("-V", "--version", "version"):
        print(f"fedpeft {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        return _refuse_unknown(name)
    spec = find_spec(f"fedpeft.{name}")
    module = f"fedpeft.{name}" + (".__main__" if spec and spec.submodule_search_locations is not None else "")
    sys.argv = [f"fedpeft {name}", *rest]
    loading.handle_signals()
    runpy.run_module(module, run_name="__main__", alter_sys=True)  # ends by SystemExit, as python -m does
    return 0


def _refuse_unknown(name: str) -> int:
    from fedpeft.errors import ConfigError
    from fedpeft.parts import suggest_legal
    from fedpeft.reporting.command import run_command

    def refuse() -> None:
        raise ConfigError(f"FP1011 there is no command {name!r}; {suggest_legal(name, COMMANDS)}")

    return run_command(refuse)


if __name__ == "__main__":
    sys.exit(main())
