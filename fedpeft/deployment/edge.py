"""A real client: one machine's own rows, the base model loaded once, and the client code that simulations run.

It is made from those of the server's settings that it takes (`fedpeft.deployment.shared_settings`), as a simulation is
from a user's, with a partition of one shard. What the server says of labels, texts and weights is checked against what
is here, before anything is trained.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.markup import escape

from fedpeft import __version__
from fedpeft.aggregation.strategy import RoundStrategy, strategies
from fedpeft.clients.pool import Worker, result
from fedpeft.clients.store import ClientStore
from fedpeft.clients.workbench import WorkPlan
from fedpeft.communication.base_residual import ResidualFiles
from fedpeft.communication.held_base import HeldBase
from fedpeft.communication.messages import Instruction, Report
from fedpeft.config import RunConfig, from_mapping
from fedpeft.data import cached_rows
from fedpeft.data.partition import Partition, held_out
from fedpeft.data.rows import Dataset, Rows
from fedpeft.deployment.federation import Described, labelled_rows
from fedpeft.deployment.shared_settings import shared_settings
from fedpeft.deployment.wire import v1_pb2 as v1
from fedpeft.errors import FedpeftError, ModelError, PrivacyError, RunError
from fedpeft.machine.hardware import ModelSize, accelerators, choose, fast_bf16, free_memory, gpu_name
from fedpeft.models import kernels
from fedpeft.models.base_model import resolve_model
from fedpeft.parts import setting
from fedpeft.peft.method import PEFT_METHODS
from fedpeft.privacy.client_engine import FAILED, OwnLedger, own_mechanism, planned_participations, state_digest
from fedpeft.privacy.engine import KEY, ClientPrivacy
from fedpeft.privacy.lifetime_ledger import LifetimeLedger
from fedpeft.privacy.mechanism import Federation
from fedpeft.server.sampling import cohort_size
from fedpeft.simulation.simulation import Simulation, SimulationObserver

PRECISIONS_HERE = ("", "fp32", "bf16", "int8", "nf4")


@dataclass(frozen=True)
class EdgeOptions:
    """What a client decides for itself."""

    text_column: str = setting("", "column of your texts, if it has another name than the server says")
    label_column: str = setting("", "column of your classes, if it has another name than the server says")
    model: str = setting("", "folder of the base model, if the server's name for it means nothing here")
    device: str = setting("auto", "cpu, cuda, cuda:N, or auto: cuda if it is there")
    precision: str = setting(
        "",
        "of the frozen base here; empty: the server's, or what suits the memory and the CPU",
        choices=PRECISIONS_HERE,
    )
    batch_size: int = setting(0, "rows per local step; 0: as the server says, or fewer where memory is short", low=0)
    threads: int = setting(0, "of torch on a CPU; 0: one per core", low=0, high=1024)
    rank: int = setting(0, "the largest LoRA rank to hold; 0: the server's", low=0, high=1024)
    max_epsilon: float | None = setting(
        None,
        "your own privacy budget, over all runs on your file of rows, whatever the server says; a federation that "
        "can't keep it is refused",
        above=0,
    )
    max_delta: float = setting(1e-3, "the largest privacy delta that you accept", above=0, below=1)


class Alone(Partition):
    """The partition of a client that knows its own rows only: whatever its id, all of them are its."""

    def shard(self, client: int) -> NDArray[np.int64]:
        """All rows."""
        return self.indices


def settings_of(description: v1.Description, options: EdgeOptions) -> RunConfig:
    """What a client takes of the server's settings, with its own choices.

    Raises:
        RunError: the server's settings are not ones that a client takes.
        ConfigError: a choice that can't be used.
    """
    config = shared_settings(description.config)
    chosen: dict[str, Any] = {"workers": 1, "cohort": "all"}
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
        ledgers: folder of what has been released about its rows, in whatever federation
            (`fedpeft.privacy.lifetime_ledger`).
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
        ledgers: Path,
        observer: SimulationObserver,
        options: EdgeOptions,
    ) -> None:
        self.description = description
        self.ledgers = ledgers
        self.file = data
        self.options = options
        self.options = self._fitted(observer)
        self.common_cohort = shared_settings(description.config).cohort
        super().__init__(settings_of(description, self.options), folder, observer)
        self._check_model()
        self.bases = HeldBase(self.work.residuals, self.setup.layout.pairs)

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
        if cached_rows.file_hash(self.setup.model_directory, cached_rows.TOKENIZER_FILES) != told.tokenizer_hash:
            raise ModelError(
                f"the tokenizer in {self.setup.model_directory} is not the server's: texts would be cut into other "
                "tokens; take the same model, with --model FOLDER"
            )
        if self.work.model_key != told.weights_hash:
            raise ModelError(
                f"the weights in {self.setup.model_directory} are not the server's: updates would not fit; "
                "take the same model, with --model FOLDER"
            )
        if self.setup.tokens != told.tokens:
            raise ModelError(f"the server cuts texts to {told.tokens} tokens, the model here reads {self.setup.tokens}")

    @property
    def share(self) -> float:
        """As the server says."""
        return cohort_size(self.common_cohort, self.config.clients) / self.config.clients

    @property
    def held_out(self) -> float:
        """As the server says."""
        return float(self.description.held_out)

    # ------------------------------------------------------------------------------------------------------- privacy

    @property
    def silent(self) -> bool:
        """Whether nothing that is measured on the rows leaves this machine unprotected."""
        return self.setup.mechanism is not None and self.setup.mechanism.silent

    def _protection(self) -> OwnLedger | None:
        """The client's own ledger, where the mechanism acts here."""
        given, options, config = self.setup.mechanism, self.options, self.config
        if given is None or not (given.protects and given.noises_updates):
            if options.max_epsilon is not None:
                how = f"{config.privacy} is applied by the server" if given is not None else "it has no --privacy"
                raise PrivacyError(
                    f"this federation does not protect your updates on this machine ({how}), so --max-epsilon can't be "
                    "kept; leave it out if you trust the server, or ask for dp_sgd or local_dp"
                )
            return None
        if given.test_noise and options.max_epsilon is not None:
            raise PrivacyError(
                "this federation asks for test_noise, which protects nobody: --max-epsilon can't be kept"
            )
        rows = len(held_out(np.arange(len(self.train_rows)), self.held_out, config.seed, 0)[0])

        def alike(value: int) -> NDArray[np.int64]:
            return np.full(config.clients, value, np.int64)

        federation = Federation(
            strategy=self.setup.strategy,
            method=self.setup.method,
            layout=self.setup.layout,
            rows=alike(rows),
            steps=alike(self.setup.training.steps_for(rows)),
            participations=alike(planned_participations(config.rounds, self.share)),
            batch_size=config.batch_size,
            rounds=config.rounds,
            cohort=1,
            even=True,
        )
        mechanism = own_mechanism(given, given.units(federation), options.max_epsilon, options.max_delta)
        work = self.work
        identity = (
            f"{self.description.config} {work.data_key} {work.model_key} {work.dtype} {work.precision} {work.device} "
            f"{work.threads} {config.batch_size} {__version__} {self.fixed}"
        )
        lifetime = LifetimeLedger(self.ledgers, self.file, mechanism.unit, options.max_epsilon)
        return OwnLedger(mechanism, federation, self.folder, identity, given, lifetime, config.seed)

    def _client_privacy(self) -> ClientPrivacy | None:
        if (
            self.protection is None and self.setup.mechanism is not None
        ):  # the server's noise; what is measured stays here
            return ClientPrivacy(self.config.privacy, 0.0, self.folder / KEY)
        return super()._client_privacy()

    def _own_state(self, instruction: Instruction) -> bytes:
        """A digest of what an answer depends on beside the instruction."""
        store = ClientStore(self.folder / "clients")
        own = store.file(instruction.client, instruction.acknowledged)
        return state_digest(own, ResidualFiles(self.work.residuals).file(instruction.base))

    # ---------------------------------------------------------------------------------------------------- the hardware

    def _fitted(self, observer: SimulationObserver) -> EdgeOptions:
        """The options, with what is left to this machine chosen by its free memory."""
        options, config = self.options, settings_of(self.description, self.options)
        if options.precision or config.dtype == "fp64":
            return options
        strategy = strategies.build(config.strategy)
        fills = isinstance(strategy, RoundStrategy) and strategy.fills_base  # a dense R saves nothing
        nf4 = ("nf4",) if importlib.util.find_spec("bitsandbytes") else ()
        size = ModelSize.of(resolve_model(config.model))
        free, language = free_memory(self.device), self.description.task == "causal_lm"
        few_bits = ("int8", *nf4) if PEFT_METHODS.build(config.peft).few_bits and not fills else ()
        slow = config.dtype == "bf16" and not fast_bf16(self.device)
        dtype = "fp32" if slow else config.dtype
        choice = choose(size, free, dtype, config.batch_size, self.description.tokens, language, few_bits)
        precision = choice.precision or ("fp32" if slow else "")
        if not choice.fits:
            observer.say(
                f"[bold yellow]warning[/] {free / 1e9:.1f} GB of memory are free on {self.device}, and this model "
                f"needs about {choice.need / 1e9:.1f}, even with {precision or dtype} and one row a step"
            )
        elif choice.precision or choice.batch_size < config.batch_size:
            observer.say(
                f"[bold]memory[/]  {free / 1e9:.1f} GB are free on {self.device}: a base in "
                f"{precision or dtype}, {choice.batch_size} rows a step"
            )
        elif slow:
            observer.say(f"[bold]precision[/]  {self.device} has no bf16 arithmetic: a base in fp32")
        rows = options.batch_size or (choice.batch_size if choice.batch_size < config.batch_size else 0)
        return dataclasses.replace(options, precision=precision, batch_size=rows)

    @property
    def device(self) -> str:
        """Where the client trains."""
        gpus = accelerators()
        if self.options.device == "auto":
            return next(iter(gpus), "cpu")
        try:
            device = torch.device(self.options.device)
        except RuntimeError:
            raise RunError(f"{self.options.device!r} is no device; legal: cpu, {', '.join(gpus) or 'cuda:N'}") from None
        if device.type == "cuda" and f"cuda:{device.index or 0}" not in gpus:
            raise RunError(f"there is no {device} here; take --device {next(iter(gpus), 'cpu')}")
        return str(device)

    def _work_plan(self) -> WorkPlan:
        threads = self.options.threads or os.cpu_count() or 1
        plan = super()._work_plan().at(self.options.precision)
        return dataclasses.replace(plan, threads=threads, clients_per_pass=1)

    @property
    def devices(self) -> list[str]:
        """Its own."""
        return [self.device]

    @property
    def hardware(self) -> str:
        """What the client tells the server of its machine."""
        if self.device == "cpu":
            return f"{kernels.cpu_name()}, {self.work.threads} threads"
        return f"{gpu_name(self.device)}, {platform.machine()}"

    def registration(self) -> v1.Registration:
        """What the client tells the server of itself."""
        own = self.protection if isinstance(self.protection, OwnLedger) else None
        return v1.Registration(
            run=self.description.run,
            rows=1 if self.silent else len(self.train_rows),
            rank=self.options.rank,
            precision=self.options.precision or self.config.dtype,
            hardware=self.hardware,
            terms=own.declared().to_wire() if own else None,
        )

    # ------------------------------------------------------------------------------------------------------- the work

    def warm_up(self) -> None:
        """Load the base model, and compute what its frozen layers make of the rows."""
        if self.dataset.task == "classification":
            self.freeze(self.work.data_key, self.work.depth, "frozen layers (kept for later runs)")

    def handle(self, instruction: Instruction) -> Report:
        """Do what the server asks; what fails is reported, and the client lives on."""
        own = self.protection if isinstance(self.protection, OwnLedger) else None
        try:
            self.bases.update(instruction.base, instruction.acknowledged, instruction.residual)
            if own is None:
                return self._work(instruction)
            return own.answer(instruction, self._own_state(instruction), self._work)
        except (FedpeftError, OSError, RuntimeError) as error:  # RuntimeError: torch, out of memory
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if own is not None and not isinstance(error, FedpeftError):
                self.observer.say(f"[bold red]failed[/] {escape(reason)}")
                reason = FAILED
            return Report(instruction.client, instruction.round, b"", error=reason[:500])

    def _work(self, instruction: Instruction) -> Report:
        reports: list[Report] = result(self.pool.submit(Worker.handle, [instruction]))
        return reports[0]
