"""fedpeft export RUN: the finished adapter with a model card, or the base with the adapter merged into it.

    fedpeft export RUN --output DIR              adapter/ and a model card
    fedpeft export RUN --merge --output DIR      a folder that transformers loads as it is: no adapter is left
    fedpeft export RUN --client 3 --output DIR   one client's own adapter, from a run with private tensors
    fedpeft export RUN --gguf --output DIR       adapter.gguf, what llama.cpp's --lora takes
    fedpeft export RUN --push ORG/NAME           the same folder, also sent to the Hugging Face hub

Merging is offered where it is exact; the merged model's outputs are compared with the adapter's before it is kept.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from fedpeft.errors import ConfigError, RunError, require_extra
from fedpeft.machine.files import find_links, raise_write_errors
from fedpeft.machine.terminal import Console
from fedpeft.reporting.command import (
    run_tool,
    start_command,
    tell_notes,
)
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.exports.hub import check_name, push
from fedpeft.reporting.run_folder import make_folder, refuse_file
from fedpeft.wiring.config import read_config

if TYPE_CHECKING:
    from fedpeft.data.examples import Batch
    from fedpeft.models.task import FederatedModel
    from fedpeft.reporting.finished_run import FinishedRun

TOLERANCE = 1e-5
"""Largest difference of the merged model's outputs, relative to the largest output."""

PASSES = 20
"""Forward passes that the latency is a median of."""


@dataclass(frozen=True)
class Command:
    """Write a finished run's adapter with a model card, or the base with the adapter merged into its weights."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="the run's folder")]
    output: Annotated[Path | None, tyro.conf.arg(help="folder to write to (default: RUN/export)")] = None
    merge: Annotated[bool, tyro.conf.arg(help="merge the adapter into the base's weights, if that is exact")] = False
    gguf: Annotated[
        bool, tyro.conf.arg(help="write GGUF for llama.cpp: the LoRA adapter, or with --merge the model")
    ] = False
    gguf_base: Annotated[bool, tyro.conf.arg(help="with --gguf: the base beside it, in fp32")] = False
    push: Annotated[str, tyro.conf.arg(metavar="ORG/NAME", help="also send the folder to the Hugging Face hub")] = ""
    public: Annotated[bool, tyro.conf.arg(help="with --push: make a new model public")] = False
    client: Annotated[int | None, tyro.conf.arg(help="id of a client whose own adapter to export, from 0")] = None
    plugin: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FILE", help="plugin of the run, at its present place"),
    ] = ()


READ = ("config.toml", "summary.json", "adapter", "model")
"""What an export reads of a run; with --client the whole folder."""


def refuse_links(paths: Iterable[Path]) -> None:
    """Refuse symbolic links: whoever made the folder could have any file of this machine published.

    Raises:
        RunError: a path is one, or leads to one.
    """
    for link in itertools.chain.from_iterable(map(find_links, paths)):
        raise RunError(
            f"FP5250 {link} is a symbolic link, which may lead to any file of this machine, and an export is "
            "published; replace it by a copy of the file, if that belongs to the run"
        )


def export(run: Path, output: Path, merge: bool, console: Console, gguf: bool = False, gguf_base: bool = False) -> None:
    """Write `output`/adapter or, with `merge` and after full fine-tuning, the whole model to `output`; and the card.

    `gguf`: as adapter.gguf or model.gguf; `gguf_base`: base.gguf, too.

    Raises:
        FedpeftError: there is no finished run, or its method can't be merged exactly.
    """
    from fedpeft.peft import saved_adapter
    from fedpeft.reporting.exports.model_card import describe_loading, format_card
    from fedpeft.reporting.exports.transformers_folder import write
    from fedpeft.reporting.finished_run import FinishedRun
    from fedpeft.reporting.next_commands import format_loading_lines, say_lines

    refuse_links(run / name for name in READ)
    finished_run = FinishedRun.read(run)
    tell_notes(console)
    method = finished_run.method
    if merge and not method.merges and not method.whole_model:
        raise ConfigError(
            f"FP1170 {method.name} can't be merged into the base's weights without changing what it computes; "
            "export the adapter (without --merge)"
        )
    if merge or gguf or method.whole_model:
        finished_run.check_rows()
        finished_run.check_reads_texts("GGUF" if gguf else "a merged model")
    text = format_card(finished_run, merged=merge, gguf=gguf)
    make_empty_folder(output)
    if not finished_run.files.is_dir():
        raise RunError(f"FP5132 {run} holds no finished run: there is no {finished_run.files.name}/ in it")
    if gguf:
        with empty_on_error(output):
            _write_gguf(finished_run, output, merge, gguf_base, console)
    elif method.whole_model:
        write(finished_run, finished_run.model(finished_run.base()), output)
    elif merge:
        write(finished_run, _merge_adapter(finished_run, console), output)
    else:
        saved_adapter.copy(finished_run.files, output / finished_run.files.name)
        saved_adapter.export_head(output / finished_run.files.name, finished_run.task)
    with raise_write_errors(output):
        (output / "README.md").write_text(text, encoding="utf-8")
    plain: Any = {"highlight": False, "soft_wrap": True, "markup": False}
    console.print(f"written to {output}", **plain)
    note, lines = format_loading_lines(
        describe_loading(finished_run, merge or method.whole_model, gguf), finished_run, output
    )
    say_lines(f"to load it ({note}):" if note else "to load it:", lines, console)


@contextmanager
def empty_on_error(output: Path) -> Iterator[None]:
    """Empty the folder again if an error occurs."""
    try:
        yield
    except BaseException:
        for file in output.iterdir():
            file.unlink()
        raise


def _write_gguf(run: FinishedRun, output: Path, merge: bool, base: bool, console: Console) -> None:
    """Load the adapter or the merged model, and the base."""
    from fedpeft.reporting.exports.gguf_files import write_adapter, write_model

    if run.method.whole_model:
        write_model(run, run.model(run.base()).base, output / "model.gguf")
    elif merge:
        write_model(run, _merge_adapter(run, console).base, output / "model.gguf")
    else:
        write_adapter(run, output / "adapter.gguf")
    if base:
        write_model(run, run.base(), output / "base.gguf")


def make_empty_folder(output: Path) -> None:
    """Make the folder, or RunError: it can't be made, or there is something in it."""
    refuse_file(output)
    if output.exists() and any(output.iterdir()):
        raise RunError(f"FP5133 {output} exists and is not empty; give another --output")
    make_folder(output)


def _merge_adapter(finished_run: FinishedRun, console: Console) -> FederatedModel:
    """Return the model with its adapter merged into the base."""
    import torch

    from fedpeft.reporting.finished_run import sample_batch

    base = finished_run.base()
    plain = finished_run.task.model(base, len(finished_run.labels or ())).eval()
    model = finished_run.model(base)
    batch = sample_batch(finished_run.model_directory)
    with torch.inference_mode():
        expected = model(batch)
    times = {"base model": _measure_latency(plain, batch), "with the adapter": _measure_latency(model, batch)}
    model.base = finished_run.method.merge_adapter(model)
    with torch.inference_mode():
        difference = float((model(batch) - expected).abs().max())
    if difference > TOLERANCE * max(1.0, float(expected.abs().max())):
        raise RunError(
            f"FP5134 the merged model's outputs differ by {difference:.1e}, so it is not kept; export the adapter"
        )
    times["merged"] = _measure_latency(model, batch)
    shown = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in times.items())
    said = f"The merged outputs differ from the adapter's by at most {difference:.1e}. "
    said += f"Median time of a forward pass on {len(next(iter(batch.values())))} examples: {shown}."
    console.print(said, highlight=False, soft_wrap=True)
    return model


def _measure_latency(model: FederatedModel, batch: Batch) -> float:
    """Median seconds of a forward pass."""
    import torch

    found = []
    with torch.inference_mode():
        for _ in range(PASSES + 3):
            started = time.perf_counter()
            model(batch)
            found.append(time.perf_counter() - started)
    return statistics.median(found[3:])


def export_client(run: Path, client: int, output: Path) -> None:
    """Write `output`/adapter, a client's own.

    Raises:
        FedpeftError: a package is missing, there is no such run or client, or clients have no adapters of their own.
    """
    require_extra("flwr", "simulate", "a client's own adapter")
    from fedpeft.peft import saved_adapter
    from fedpeft.reporting.final_score import save
    from fedpeft.simulation.simulation import Simulation

    if not (run / "config.toml").is_file():
        raise RunError(f"FP5135 {run} holds no run: there is no config.toml in it; give a run's folder, runs/NAME")
    refuse_links([run.resolve()])
    config = read_config(run / "config.toml", goes_on=False, of_run=True)
    tell_notes()
    simulation = Simulation(config, run, ConsoleObserver(Console(quiet=True)))
    state = simulation.load_client_state(client)
    make_empty_folder(output)
    save(simulation.setup, state, output)
    saved_adapter.export_head(
        output / ("model" if simulation.setup.method.whole_model else "adapter"), simulation.setup.task
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_tool(Command, _run_export, arguments)


def _run_export(command: Command, console: Console) -> None:
    output = command.output or command.run / "export"
    if command.gguf_base and not command.gguf:
        raise ConfigError("FP1171 --gguf-base writes the base beside an adapter in GGUF; give --gguf, too")
    if command.client is not None and command.gguf:
        raise ConfigError("FP1172 a client's own adapter is exported as it is; leave --gguf or --client out")
    if command.push and command.client is not None:
        raise ConfigError("FP1173 a client's own adapter stays here; leave --push or --client out")
    if command.public and not command.push:
        raise ConfigError("FP1174 --public sets who can see what --push sends; give --push ORG/NAME, too")
    if command.push:
        check_name(command.push)
    if command.client is None:
        export(command.run, output, command.merge, console, command.gguf, command.gguf_base)
    elif command.merge:
        raise ConfigError("FP1175 a client's own adapter is exported as it is; leave --merge or --client out")
    else:
        export_client(command.run, command.client, output)
        console.print(f"written to {output}", highlight=False, soft_wrap=True, markup=False)
    if command.push:
        console.print(f"sent to {push(output, command.push, command.public)}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    start_command("commands.export")
