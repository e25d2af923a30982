"""How does fedpeft perform on this CUDA machine? `python -m experiments.gpu --minutes 9`.

Needs no network: this repository and its packages (`pip install -e '.[quantized,ray]'`) are enough. Steps run one after
another, each within its own time limit. Results go into one JSON file and one page; the same command resumes after an
interruption. Models have random weights of the usual shapes. Real weights and data come from a folder that `--collect`
fills beforehand on a machine with network access.

    python -m experiments.gpu --collect --assets gpu-assets
    python -m experiments.gpu --minutes 9 --assets gpu-assets
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from experiments import exit_on_error
from experiments.gpu.kit import Kit, Step
from experiments.gpu.page import format_progress, render_page
from experiments.gpu.record import Outcome, Record
from experiments.gpu.worker import Worker
from fedpeft.errors import ConfigError
from fedpeft.machine.files import raise_write_errors

LEAST_SECONDS = 5.0
"""Remaining seconds below which no step begins."""


@dataclass(frozen=True)
class Settings:
    """The measurements to run and the time for them."""

    minutes: float = 9.0
    """after which the kit ends; what is not done then is done by the next call"""
    assets: Path | None = None
    """folder of real weights and rows"""
    collect: bool = False
    """fill --assets (60 MB at most) and do nothing else"""
    output: Path = Path("gpu.json")
    """the results; the page, a log and a folder for the runs lie beside it"""
    device: str = "auto"
    """cuda, cuda:N or cpu; auto: the first GPU, which must be there"""
    only: str = ""
    """only the steps whose name contains this text"""
    tiny: bool = False
    """tiny models and loads: shows that the kit works, and nothing of the device"""


def parse_device(text: str) -> str:
    """Return the requested device.

    Raises:
        ConfigError: this machine does not have it.
    """
    from fedpeft.machine.hardware import list_accelerators

    found = list_accelerators()
    wanted = {"auto": "cuda:0", "cuda": "cuda:0"}.get(text, text)
    if wanted != "cpu" and wanted not in found:
        here = ", ".join([*found, "cpu"])
        raise ConfigError(f"--device {text}: torch finds no such device here; there are: {here}")
    return wanted


def describe_machine(settings: Settings, device: str) -> dict[str, Any]:
    """Return a description of the machine for the record."""
    import torch

    from fedpeft.machine.hardware import get_gpu_name
    from fedpeft.models.kernels import get_cpu_name

    return {
        "device": get_cpu_name() if device == "cpu" else get_gpu_name(device),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        "tiny": settings.tiny,
    }


def run_steps(
    record: Record,
    steps: Sequence[Step],
    worker: Worker,
    seconds: float,
    left_out: Callable[[Step, Kit], str],
    say: Callable[[str], None],
) -> None:
    """Run all unsettled steps until the time is up.

    `left_out` returns the reason why a step can't run here, or an empty text.
    """
    end = time.monotonic() + seconds
    for step in steps:
        if record.is_settled(step.name):
            continue
        outcome: Outcome | None = None
        if reason := left_out(step, worker.kit):
            outcome = Outcome(step.section, "left out", reason=reason)
        elif (left := end - time.monotonic()) >= LEAST_SECONDS:
            outcome = worker.run(step, left)
        if outcome is None:
            say(f"the time is up before {step.name}; the same command goes on from there")
            return
        record.put(step.name, outcome)
        say(format_progress(step.name, outcome))


def main(settings: Settings) -> None:
    """Collect the assets, or run the measurements.

    Raises:
        FedpeftError: a setting is illegal, the record is from another machine, or assets are missing.
    """
    from experiments.gpu import assets
    from experiments.gpu.steps import explain_omission, list_steps

    if settings.collect:
        if settings.assets is None:
            raise ConfigError("--collect fills a folder: name it with --assets FOLDER")
        small = ("tiny", "tiny") if settings.tiny else ()
        size = assets.collect(settings.assets, *small)
        print(f"{settings.assets}: {size / 1e6:.1f} MB; give the kit this folder as --assets")
        return
    if settings.output.suffix != ".json":
        raise ConfigError(f"--output {settings.output} must end in .json; the page lies beside it as .html")
    device = parse_device(settings.device)
    steps = [step for step in list_steps() if settings.only in step.name]
    if not steps:
        raise ConfigError(f"--only {settings.only}: no step is called so; there are: {_format_names(list_steps())}")
    given = None if settings.assets is None else assets.check_folder(settings.assets)
    record = Record.from_file(settings.output, describe_machine(settings, device))
    record.save()
    work = settings.output.with_suffix(".work").absolute()
    work.mkdir(exist_ok=True)
    kit = Kit(device, work, settings.tiny, given)
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for child processes
    worker = Worker(kit, list_steps, work / "steps.log")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    command = "python -m experiments.gpu " + shlex.join(sys.argv[1:])
    try:
        run_steps(record, steps, worker, 60 * settings.minutes, explain_omission, console.print)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
    finally:
        worker.close()
        target = settings.output.with_suffix(".html")
        with raise_write_errors(target):
            target.write_text(render_page(record, list_steps(), command), encoding="utf-8")
    console.print(f"{settings.output} and {target}")


def _format_names(steps: Sequence[Step]) -> str:
    return ", ".join(step.name for step in steps)


if __name__ == "__main__":
    with exit_on_error():
        main(tyro.cli(Settings, description=__doc__))
