"""fedpeft flowertune PROJECT: run the configuration of one of Flower's FlowerTune projects here.

    fedpeft flowertune PROJECT --set num-server-rounds=10 --set model.name=smollm2

Its pyproject.toml says what is run: base, LoRA, rounds, steps, rates, prompts, and which client has which rows. Its
Python files are not executed; those that are none of the templates' are named. Other than in the template the base is
loaded once a worker, a client goes on in its rows where it stopped, updates are encoded (`--codec fp32`: they are not),
and some rows are held out. The run's folder is one of `fedpeft simulate`, with a peft_ROUND folder, which the
`peft` library loads, every train.save-every-round rounds.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.markup import escape

from fedpeft.errors import ConfigError
from fedpeft.machine.files import raise_write_errors
from fedpeft.machine.terminal import Console
from fedpeft.reporting.command import MISTAKE, parse_flags, run_command, start_command
from fedpeft.reporting.console import silence_libraries
from fedpeft.reporting.observer import RoundResult
from fedpeft.reporting.run_folder import load_default_settings, resolve_settings
from fedpeft.reporting.summary import show
from fedpeft.simulate import simulate
from fedpeft.wiring import early_checks
from fedpeft.wiring.config import RunConfig, build_config

if TYPE_CHECKING:
    from fedpeft.peft.adapter import Layout
    from fedpeft.reporting.flowertune_project import FlowerTuneProject
    from fedpeft.simulation.simulation import Simulation

MIB = 1024**2
"""Bytes of what the template's tracker calls a MB."""

BUDGET = 200_000
"""MB, of the FlowerTune leaderboard."""

HEADER = 128
"""Bytes that NumPy's format puts before an array, one for each tensor that a template sends."""


@dataclass(frozen=True)
class Command:
    """Run a FlowerTune project's configuration: fedpeft flowertune PROJECT --set num-server-rounds=10."""

    project: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="the folder with the project's pyproject.toml")]
    set: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="KEY=VALUE", help="another value for a key of the project"),
    ] = ()
    ignore_code: Annotated[
        bool, tyro.conf.arg(help="run although the project has Python code of its own, without that code")
    ] = False
    data: Annotated[str, tyro.conf.arg(help="file or folder with the examples, if the hub is out of reach")] = ""
    test: Annotated[str, tyro.conf.arg(help="file of test examples; by default, 200 examples are held out")] = ""
    track: Annotated[
        str, tyro.conf.arg(help="general_nlp, finance, medical or code, if the dataset's name matches none")
    ] = ""
    clients: Annotated[int, tyro.conf.arg(help="number of SuperNodes; 0: that of the project or its track")] = 0
    codec: Annotated[str, tyro.conf.arg(help="codec of updates; fp32: the template's")] = "small"
    dtype: Annotated[str, tyro.conf.arg(help="precision of a base that is not quantized: auto, bf16 or fp32")] = "auto"
    workers: Annotated[int, tyro.conf.arg(help="worker processes; 0: one per GPU, or per core without one")] = 0
    seed: Annotated[int, tyro.conf.arg(help="seed of all random draws except the partition")] = 0
    output: Annotated[Path | None, tyro.conf.arg(help="the run's folder (default: a new one under runs/)")] = None
    resume: Annotated[Path | None, tyro.conf.arg(help="continue the interrupted run in this folder")] = None
    dry_run: Annotated[bool, tyro.conf.arg(help="print the run's settings, and stop")] = False


class PeftFolders:
    """Writes the global adapter every few rounds, as the template's server does."""

    def __init__(self, every: int, base_name: str) -> None:
        """Prepare to write every `every` rounds, with the name of the base model in each folder."""
        self.every = every
        self.base_name = base_name
        self.simulation: Simulation | None = None

    def begins(self, simulation: Simulation) -> None:
        """Keep the simulation that is about to begin."""
        self.simulation = simulation

    def write_folder(self, result: RoundResult) -> None:
        """Write the state that a round has led to, if it is this round's turn."""
        from fedpeft.peft.lora_folder import write_lora

        simulation = self.simulation
        assert simulation is not None, "a round of a run that has begun"
        if result.round % self.every and result.round != simulation.config.rounds:
            return
        progress = simulation.checkpoints.load()
        assert progress is not None, "a finished round is on the disk"
        folder = simulation.folder / f"peft_{result.round}"
        write_lora(folder, simulation.setup.layout, progress.adapter, self.base_name, progress.residual.total)


def compute_template_traffic(layout: Layout, clients: int, rounds: int) -> int:
    """Bytes that the template's tracker counts: each tensor in fp32, in NumPy's format, with its name, both ways."""
    prefix = len("base_model.model.")
    one_way = sum(HEADER + 4 * tensor.numel + prefix + len(tensor.name) for tensor in layout.tensors)
    return 2 * clients * rounds * one_way


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 2 for a user's mistake or refused code, 130 after Ctrl-C."""
    folder: Path | None = None

    def work() -> int:
        nonlocal folder
        command = parse_flags(Command, sys.argv[1:] if arguments is None else arguments)
        chosen = _chosen(command)
        silence_libraries()
        from fedpeft.reporting.flowertune_project import FlowerTuneProject

        console = Console()
        project = FlowerTuneProject.read(
            command.project, command.set, command.ignore_code, command.track, command.clients
        )
        _print_introduction(project, console)
        if project.code and not command.ignore_code:
            console.print(
                "[bold red]error:[/] what these files change would be missing; run without them: --ignore-code"
            )
            return MISTAKE
        config = _build_settings(command, project, chosen)
        if command.dry_run:
            print(config.to_toml(), end="")  # whole lines, for a file
            return 0
        default = load_default_settings(None, command.resume) if command.resume else config
        config, folder = resolve_settings(default, default, command.output, command.resume)
        _run(project, config, folder, command.resume is not None, console)
        return 0

    def explain_interruption() -> str:
        left = folder is not None and (folder / "config.toml").exists()
        return f"interrupted; continue with the same command and --resume {folder}" if left else "interrupted"

    return run_command(work, explain_interruption)


def _print_introduction(project: FlowerTuneProject, console: Console) -> None:
    """Print which settings of the project the run uses and ignores."""
    data = project.values["static.dataset.name"]
    what = f"{project.folder}: {project.track}, {project.clients} clients, {data}"
    lines = [f"[bold]project[/] {escape(what)}"]
    lines += [f"[bold yellow]ignored[/] {escape(key)}: {why}" for key, why in project.ignored.items()]
    lines += [
        f"[bold yellow]not executed[/] {escape(file)}: it is not a file of the templates" for file in project.code
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _chosen(command: Command) -> dict[str, Any]:
    """Return the settings of the run that the command gives, and not the project.

    Raises:
        ConfigError: one is not legal.
    """
    chosen = {name: getattr(command, name) for name in ("codec", "dtype", "workers", "seed")}
    early_checks.check(build_config({**chosen, "clients": command.clients}, "the command line"))
    return chosen


def _build_settings(command: Command, project: FlowerTuneProject, chosen: dict[str, Any]) -> RunConfig:
    rows = command.data or project.values["static.dataset.name"]
    if command.data and not Path(command.data).expanduser().exists():
        raise ConfigError(f"FP1193 there is no file or folder {command.data}, which --data names")
    return project.config(rows, command.test or None, **chosen)


def _run(project: FlowerTuneProject, config: RunConfig, folder: Path, resume: bool, console: Console) -> None:
    """Run the simulation; save its peft folders and its traffic in the template's unit."""
    folders = PeftFolders(project.values["train.save-every-round"], project.values["model.name"])
    summary = simulate(config, folder, resume, console, on_round=folders.write_folder, begins=folders.begins)
    simulation = folders.simulation
    assert simulation is not None, "a run has ended"
    show(summary, folder, console)
    own = summary.costs.uplink_bytes + summary.costs.downlink_bytes
    theirs = compute_template_traffic(simulation.setup.layout, simulation.sampler.size, config.rounds)
    traffic = {
        "used_mb": round(own / MIB, 3),
        "template_mb": round(theirs / MIB, 3),
        "budget_mb": BUDGET,
        "bytes": own,
        "times_fewer": round(theirs / own, 2) if own else None,
    }
    with raise_write_errors(folder):
        (folder / "communication.json").write_text(json.dumps(traffic, indent=1) + "\n", encoding="utf-8")
    console.print(
        f"communication: {own:,} bytes, {own / MIB:,.2f} MB as FlowerTune counts (of {BUDGET:,}); the template's own "
        f"tensors come to {theirs / MIB:,.2f} MB, {theirs / max(own, 1):.1f} times as many",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    start_command("commands.flowertune")
