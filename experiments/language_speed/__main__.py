"""`python -m experiments.language_speed`: time and memory of a language model's training step, compared with peers."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from experiments import exit_on_error
from experiments.language_speed import own as clients
from experiments.language_speed import peers
from experiments.language_speed.peers import Step
from fedpeft.errors import ConfigError
from fedpeft.machine.memory import release


@dataclass(frozen=True)
class Settings:
    """The measurements to run, on one thread."""

    model: str = "smollm2"
    """a causal language model"""
    dtype: str = "fp32"
    """precision of base and activations: fp32 or bf16"""
    batch: int = 4
    """rows of a step"""
    tokens: int = 512
    """tokens of the longest example"""
    answers: float = 1.0
    """share of the tokens that count in the loss, at the end of each row"""
    repeats: int = 3
    """timed steps of each way, interleaved"""
    lengths: str = ""
    """data set whose rows' lengths those have that are packed, such as office; empty: tokens, and halves of it"""
    only: str = ""
    """only the ways in whose name this regular expression is found"""
    output: Path | None = None
    """a .jsonl file that a line per way is added to"""


WHOLE, CHUNKS, APART, PACKED = "all logits", "chunks", "rows apart", "rows packed"
CLIENT, CLIENT_RAGGED, CLIENT_PADDED = "client's step", "client's step, rows packed", "client's step, rows padded"
CLIENT_AGAIN = "client's step, checkpointing"
OUTPUT = "output layer: "


@dataclass(frozen=True)
class Way:
    """A function that creates a step when it is needed, and the tokens that the step reads, without padding."""

    step: Callable[[], Step]
    tokens: int


def choose_lengths(settings: Settings) -> list[int]:
    """Return the lengths in tokens of the packed examples."""
    if not settings.lengths:
        return [max(2, settings.tokens // 2**i) for i in range(settings.batch)]
    from fedpeft.data.rows import load_dataset
    from fedpeft.models.base_model import resolve_model
    from fedpeft.parts.families import TASKS

    dataset = load_dataset(settings.lengths)
    rows = TASKS.build(dataset.task).tokenise(dataset.train, resolve_model(settings.model), settings.tokens)
    stride = max(1, len(rows) // settings.batch)
    return [int(n) for n in rows.lengths[::stride][: settings.batch]]


def create_ways(settings: Settings, say: Callable[[str], object]) -> dict[str, Way]:
    """Return a training step for each way, and steps of the output layer and its loss alone.

    All steps return the loss.
    """
    import numpy as np
    import torch

    from fedpeft.data.examples import round_up_length
    from fedpeft.data.packing import pack_clients
    from fedpeft.models.base_model import resolve_model
    from fedpeft.models.dtypes import DTYPES
    from fedpeft.models.tasks.causal_lm import CausalLM
    from fedpeft.parts.families import PEFT_METHODS

    torch.set_num_threads(1)
    task, random = CausalLM(), np.random.default_rng(0)
    model: Any = task.model(task.base(resolve_model(settings.model), DTYPES[settings.dtype]), None)
    PEFT_METHODS.build("lora(targets=('q_proj', 'v_proj'), layers=0)").attach(model, settings.dtype)
    rows = make_rows([settings.tokens] * settings.batch, settings, model, random)
    full = rows.batch(range(settings.batch))
    lengths = choose_lengths(settings)
    ragged, longest = make_rows(lengths, settings, model, random), round_up_length(max(lengths))
    [bins] = pack_clients([np.array(lengths)], longest) or [[[i] for i in range(len(lengths))]]
    padding = 1 - sum(lengths) / (len(lengths) * longest)
    say(f"{len(lengths)} rows, padded {padding:.0%} is padding; sequences of {longest} tokens hold them in {len(bins)}")

    def chunks(batch: Any) -> Any:
        return task.row_losses(model, batch)

    own: dict[str, Step] = {
        **create_output_steps(model, full["labels"][:, 1:], DTYPES[settings.dtype]),
        WHOLE: lambda: take_step(model, compute_whole_loss(model, full)),
        CHUNKS: lambda: take_step(model, chunks(full)),
        APART: lambda: take_step(model, chunks(ragged.batch(range(len(lengths))))),
        PACKED: lambda: take_step(model, chunks(ragged.pack_batch(bins, longest))),
    }
    of_all, of_ragged = settings.tokens * settings.batch, sum(lengths)
    made: dict[str, Callable[[], Step]] = {name: partial(_return_step, step) for name, step in own.items()}
    made[CLIENT] = partial(clients.create_client_step, settings.model, settings.dtype, rows)
    made[CLIENT_AGAIN] = partial(clients.create_client_step, settings.model, settings.dtype, rows, again=True)
    made[CLIENT_RAGGED] = partial(clients.create_client_step, settings.model, settings.dtype, ragged)
    made[CLIENT_PADDED] = partial(clients.create_client_step, settings.model, settings.dtype, ragged, padded=True)
    made |= peers.list_steps(settings.model, settings.dtype, full, ragged.batch(range(len(lengths))), say)
    short = (APART, PACKED, CLIENT_RAGGED, CLIENT_PADDED, peers.PLAIN_RAGGED)
    return {name: Way(each, of_ragged if name in short else of_all) for name, each in made.items()}


def _return_step(step: Step) -> Step:
    return step


def make_rows(lengths: list[int], settings: Settings, model: Any, random: Any) -> Any:
    """Create examples of random tokens, of which the last ones count in the loss."""
    from fedpeft.data.tokens import build_token_rows

    first = [round(n * (1 - settings.answers)) for n in lengths]
    counted = [[i >= f for i in range(n)] for n, f in zip(lengths, first, strict=True)]
    vocabulary = model.base.config.vocab_size
    return build_token_rows([random.integers(5, vocabulary, size=n).tolist() for n in lengths], 0, None, counted)


def take_step(model: Any, losses: Any) -> float:
    """Return the loss after computing and discarding its gradient."""
    loss = losses.sums.sum() / losses.counts.sum()
    loss.backward()
    model.zero_grad(set_to_none=True)
    return float(loss.detach())


def compute_whole_loss(model: Any, batch: Any) -> Any:
    """Compute the loss as earlier versions did: logits of all positions in fp32, and their argmax."""
    from torch.nn import functional

    from fedpeft.data.tagged_words import IGNORED
    from fedpeft.models.task import RowLosses

    logits, labels = model(batch), batch["labels"][:, 1:]
    sums = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED).sum(1)
    return RowLosses(sums, (labels != IGNORED).sum(1), ((logits.argmax(-1) == labels) & (labels != IGNORED)).sum(1))


def create_output_steps(model: Any, labels: Any, dtype: Any) -> dict[str, Step]:
    """Create forward and backward steps of the output layer and its loss on random states (rows, tokens, width)."""
    import torch
    from torch import Tensor
    from torch.nn import functional

    from fedpeft.data.tagged_words import IGNORED
    from fedpeft.models.token_losses import OutputLayer, compute_token_losses

    output = OutputLayer.from_base(model.base)
    assert output is not None
    hidden = torch.randn(*labels.shape, model.base.config.hidden_size).to(dtype)

    def last(losses_of: Callable[[Tensor], Tensor]) -> float:
        entering = hidden.clone().requires_grad_(True)
        loss = losses_of(entering)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def whole_output(h: Tensor) -> Tensor:
        logits = output.compute_logits(h)
        (logits.argmax(-1) == labels).sum()
        return functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED)

    def chunked_output(h: Tensor) -> Tensor:
        counted = labels != IGNORED
        return compute_token_losses(h[counted], labels[counted], output.compute_logits)[0].mean()

    return {OUTPUT + WHOLE: lambda: last(whole_output), OUTPUT + CHUNKS: lambda: last(chunked_output)}


def measure_step(step: Step) -> tuple[float, float, float]:
    """Return a step's loss, its CPU seconds on this thread, and the MB that its peak adds to resident memory."""
    release()  # memory left by an earlier step would hide this step's peak
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    before, started = _read_status("VmRSS"), time.thread_time()
    loss = step()
    return loss, time.thread_time() - started, (_read_status("VmHWM") - before) / 1e3


def _read_status(name: str) -> int:
    """Return a field of /proc/self/status in kilobytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def main(settings: Settings) -> int:
    """Measure the steps and print the table.

    Raises:
        ConfigError: `only` is not a regular expression, or matches no step.
    """
    console = Console()
    try:
        re.compile(settings.only)
    except re.error as error:
        raise ConfigError(f"only={settings.only!r} is not a regular expression: {error}") from None
    every = create_ways(settings, console.print)
    chosen = {name: way for name, way in every.items() if re.search(settings.only, name)}
    if not chosen:
        raise ConfigError(f"only={settings.only!r} is in no way's name; there are: {', '.join(every)}")
    made = {name: way.step() for name, way in chosen.items()}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in made}
    for _ in range(settings.repeats):
        for name, step in made.items():
            found[name].append(measure_step(step))
            loss, seconds, memory = found[name][-1]
            console.print(f"{name}: {seconds:.2f} s, {memory:,.0f} MB, loss {loss:.6f}", highlight=False)
    shown = Table("way", "CPU seconds (least)", "tokens a second", "MB above the loaded model (least)", "loss")
    for name, each in found.items():
        (loss, *_), seconds, memory = each[0], min(s for _, s, _ in each), min(m for *_, m in each)
        speed = chosen[name].tokens / max(seconds, 1e-9)
        shown.add_row(name, f"{seconds:.2f}", f"{speed:,.0f}", f"{memory:,.0f}", f"{loss:.6f}")
        line = {"way": name, "seconds": seconds, "tokens_per_second": speed, "memory_mb": memory, "loss": loss}
        line["of"] = asdict(settings)
        if settings.output is not None:
            with open(settings.output, "a", encoding="utf-8") as file:
                file.write(json.dumps(line, default=str) + "\n")
    console.print(shown)
    return 0


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(tyro.cli(Settings, description=__doc__)))
