"""A real client: one machine's own rows, the base model loaded once, and the client code that simulations run.

It is made from the server's settings, as a simulation is from a user's, with a partition of one shard. What the server
says of labels, texts and weights is checked against what is here, before anything is trained.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedpeft import cache, kernels
from fedpeft.clients.held_base import HeldBase
from fedpeft.clients.pool import Worker, result
from fedpeft.clients.workbench import WorkPlan
from fedpeft.config import RunConfig, from_mapping
from fedpeft.data import Dataset, Rows
from fedpeft.deployment import Described, labelled_rows
from fedpeft.errors import FedpeftError, ModelError, RunError
from fedpeft.messages import Instruction, Report
from fedpeft.partition import Partition
from fedpeft.parts import setting
from fedpeft.simulation import Simulation, SimulationObserver
from fedpeft.task import FederatedModel
from fedpeft.wire import v1_pb2 as v1

PRECISIONS_HERE = ("", "fp32", "bf16", "int8", "nf4")


@dataclass(frozen=True)
class EdgeOptions:
    """What a client decides for itself."""

    text_column: str = setting("", "column of your texts, if it has another name than the server says")
    label_column: str = setting("", "column of your classes, if it has another name than the server says")
    model: str = setting("", "folder of the base model, if the server's name for it means nothing here")
    device: str = setting("auto", "cpu, cuda, cuda:N, or auto: cuda if it is there")
    precision: str = setting("", "of the frozen base here; empty: the server's", choices=PRECISIONS_HERE)
    batch_size: int = setting(0, "rows per local step; 0: as the server says", low=0)
    threads: int = setting(0, "of torch on a CPU; 0: one per core", low=0, high=1024)
    rank: int = setting(0, "the largest LoRA rank to hold; 0: the server's", low=0, high=1024)


class Alone(Partition):
    """The partition of a client that knows its own rows only: whatever its id, all of them are its."""

    def shard(self, client: int) -> NDArray[np.int64]:
        """All rows."""
        return self.indices


def settings_of(description: v1.Description, options: EdgeOptions) -> RunConfig:
    """The server's settings with the client's own choices.

    Raises:
        RunError: the server's settings are not ones that this version knows.
        ConfigError: a choice that can't be used.
    """
    try:
        config = from_mapping(tomllib.loads(description.config), "the server's settings")
    except (tomllib.TOMLDecodeError, FedpeftError) as error:
        raise RunError(f"the server's settings can't be used: {error}") from None
    chosen: dict[str, Any] = {"workers": 1, "grid": "cohort"}
    if options.model:
        chosen["model"] = options.model
    if options.batch_size:
        chosen["batch_size"] = options.batch_size
    return from_mapping(dataclasses.asdict(config) | chosen, "the command line")


class Edge(Simulation):
    """A client of a server.

    Args:
        description: what the server says of the federation.
        data: file of the client's rows.
        folder: where the client keeps its state in this federation; exists.
        observer: is told how things go on.
        options: the client's own choices.

    Raises:
        FedpeftError: data or model do not fit the federation.
    """

    def __init__(
        self,
        description: v1.Description,
        data: Path,
        folder: Path,
        observer: SimulationObserver,
        options: EdgeOptions,
    ) -> None:
        self.description = description
        self.file = data
        self.options = options
        super().__init__(settings_of(description, options), folder, observer)
        self._check_model()
        self.bases = HeldBase(self.work.residuals, self.layout.pairs)

    # -------------------------------------------------------------------------------------------------- what is checked

    def _data(self) -> tuple[Dataset, Rows, Rows, Partition]:
        told, options = self.description, self.options
        label = (options.label_column or told.label_column) if told.task == "classification" else None
        rows, _ = labelled_rows(str(self.file), options.text_column or told.text_column, label, tuple(told.labels))
        none = rows.take(np.zeros(0, np.int64))
        dataset = Described(
            name=self.file.name,
            kind="text",
            task="classification" if label else "causal_lm",
            train=rows,
            test=none,
            label_names=tuple(told.labels) or None,
            default_model=self.config.model,
        )
        return dataset, rows, none, Alone(np.arange(len(rows)), np.array([0, len(rows)]))

    def _check_model(self) -> None:
        told = self.description
        if cache.file_hash(self.model_directory, cache.TOKENIZER_FILES) != told.tokenizer_hash:
            raise ModelError(
                f"the tokenizer in {self.model_directory} is not the server's: texts would be cut into other tokens; "
                "take the same model, with --model FOLDER"
            )
        if self.work.model_key != told.weights_hash:
            raise ModelError(
                f"the weights in {self.model_directory} are not the server's: updates would not fit; "
                "take the same model, with --model FOLDER"
            )
        if self.tokens != told.tokens:
            raise ModelError(f"the server cuts texts to {told.tokens} tokens, the model here reads {self.tokens}")

    @property
    def held_out(self) -> float:
        """As the server says."""
        return float(self.description.held_out)

    # ---------------------------------------------------------------------------------------------------- the hardware

    @property
    def device(self) -> str:
        """Where the client trains."""
        if self.options.device != "auto":
            if self.options.device.startswith("cuda") and not torch.cuda.is_available():
                raise RunError(f"there is no {self.options.device} here; take --device cpu")
            return self.options.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def _work_plan(self, reference: FederatedModel) -> WorkPlan:
        threads = self.options.threads or os.cpu_count() or 1
        plan = super()._work_plan(reference).at(self.options.precision)
        if self.device == "cpu":
            return dataclasses.replace(plan, threads=threads, clients_per_pass=1)
        return dataclasses.replace(plan, threads=threads, device=self.device, executor="sequential", depth=0)

    @property
    def hardware(self) -> str:
        """What the client tells the server of its machine."""
        if self.device == "cpu":
            return f"{kernels.cpu_name()}, {self.work.threads} threads"
        return f"{torch.cuda.get_device_name(self.device)}, {platform.machine()}"

    def registration(self) -> v1.Registration:
        """What the client tells the server of itself."""
        return v1.Registration(
            run=self.description.run,
            rows=len(self.train_rows),
            rank=self.options.rank,
            precision=self.options.precision or self.config.dtype,
            hardware=self.hardware,
        )

    # ------------------------------------------------------------------------------------------------------- the work

    def warm_up(self) -> None:
        """Load the base model, and compute what its frozen layers make of the rows."""
        if self.dataset.task == "classification":
            self.freeze(self.work.data_key, self.work.depth, "frozen layers (kept for later runs)")

    def handle(self, instruction: Instruction) -> Report:
        """Do what the server asks; what fails is reported, and the client lives on."""
        try:
            self.bases.update(instruction.base, instruction.acknowledged, instruction.residual)
            reports: list[Report] = result(self.pool.submit(Worker.handle, [instruction]))
        except (FedpeftError, OSError, RuntimeError) as error:  # RuntimeError: torch, out of memory
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            return Report(instruction.client, instruction.round, b"", error=reason[:500])
        return reports[0]
