"""A real client: one machine's own examples, the base model loaded once, and the client code that simulations run.

It is built from those of the server's settings that it takes (`fedpeft.deployment.client.shared_settings`), as a
simulation is built from a user's, with a partition of one shard. What the server describes of labels, texts and weights
is compared with what is here before anything is trained.
"""

from __future__ import annotations

import dataclasses
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape

from fedpeft import __version__
from fedpeft.clients.masking import Masking, MaskPlan
from fedpeft.clients.store import ClientStore
from fedpeft.clients.workbench import WorkPlan
from fedpeft.communication.base_residual import HeldBase, ResidualFiles
from fedpeft.communication.messages import Instruction, Report
from fedpeft.data import cached_rows
from fedpeft.data.datasets.clients import read_first_example
from fedpeft.data.label_columns import AND
from fedpeft.data.partition import Partition, split_held_out
from fedpeft.data.task_sequence import TaskSequence
from fedpeft.deployment.client.answers import check_evaluation, check_question, measure_energy, report_missing_state
from fedpeft.deployment.client.capacity import fit_to_memory, has_common_batch_size, parse_device
from fedpeft.deployment.client.instruction_policy import InstructionPolicy
from fedpeft.deployment.client.ledger import make_client_protection
from fedpeft.deployment.client.shared_settings import parse_shared_settings
from fedpeft.deployment.compared_parts import check_all_told
from fedpeft.deployment.description import build_form, check_description, parse_tasks
from fedpeft.deployment.identity.credentials import Credentials
from fedpeft.deployment.identity.pinned_roster import PinnedRoster
from fedpeft.deployment.identity.registration import encode_terms
from fedpeft.deployment.options import EdgeOptions
from fedpeft.deployment.wire import size_limits
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.errors import ConfigError, DataError, FedpeftError, GoneError, ModelError, PrivacyError
from fedpeft.machine import cache, shared_cache
from fedpeft.machine.cache import get_cache_directory
from fedpeft.machine.hardware import get_gpu_name
from fedpeft.models import kernels
from fedpeft.parts import format_part
from fedpeft.parts.families import TASKS
from fedpeft.peft.abilities import NamesRuns
from fedpeft.privacy.client_protection import FAILED, ClientProtection, compute_state_digest
from fedpeft.privacy.engine import KEY
from fedpeft.privacy.guard import ClientPrivacy
from fedpeft.privacy.secure_sum.certificates import Identity
from fedpeft.privacy.secure_sum.shared_noise import SharedNoise
from fedpeft.reporting.observer import RunObserver
from fedpeft.reporting.workers import Machine, Workers, create_client_plan, create_work_plan
from fedpeft.wiring.auto_defaults import resolve_auto
from fedpeft.wiring.config import build_config
from fedpeft.wiring.dataset_info import DatasetInfo
from fedpeft.wiring.run_spec import RunSpec, parse_run
from fedpeft.wiring.setup import Setup


def check_machine(data: Path, options: EdgeOptions) -> None:
    """Check the examples, the roster and the device as far as possible before connecting to a server.

    Raises:
        DataError, ConfigError: a file is missing, empty or of another format, or lacks a column that the options name;
            or machines share a cache.
        RunError: there is no such device.
    """
    if os.environ.get(shared_cache.VARIABLE):
        raise ConfigError(
            f"FP1994 {shared_cache.VARIABLE} is set, and this client's examples would be copied there; unset it, since "
            "they must not leave this machine"
        )
    parse_device(options.device)
    _read_roster(options)
    _, first = read_first_example(data, options.file_format)
    for column in (options.text_column, options.label_column):
        if column and column not in first and not all(name in first for name in column.split(AND)):
            raise DataError(f"FP3034 {data} has no column {column!r}; it has {', '.join(map(repr, first))}")


class SingleClientPartition(Partition):
    """The partition of a client that has only its own examples: they belong to it, whatever its id."""

    def shard(self, client: int) -> NDArray[np.int64]:
        """Return all examples."""
        return self.indices


def build_settings(description: v2.Description, options: EdgeOptions) -> RunSpec:
    """Return what a client takes of the server's settings, with its own choices.

    Raises:
        RunError: the server's settings are not ones that a client takes.
        ConfigError: a choice can't be used.
    """
    config = parse_shared_settings(description.config)
    check_all_told(description.parts, config)
    spec = parse_run(config)
    chosen: dict[str, Any] = {"workers": 1, "cohort": "all"}
    if isinstance(spec.method, NamesRuns):
        folders = [Path(name).expanduser().absolute() for name in options.runs.split(",") if name.strip()]
        chosen["peft"] = format_part(spec.method.find_runs(folders))
    elif options.runs:
        raise ConfigError(
            f"FP1839 --runs {options.runs} names finished runs, and the federation's --peft {config.peft} reads none; "
            "leave --runs out"
        )
    if options.model:
        chosen["model"] = options.model
    if options.batch_size and has_common_batch_size(spec):
        raise ConfigError(
            f"FP1118 --batch-size {options.batch_size} would scale this client's updates: under "
            f"{config.privacy} all clients divide by the federation's {config.batch_size}, and rate sets how "
            "many examples join a step; leave --batch-size out"
        )
    if options.batch_size:
        chosen["batch_size"] = options.batch_size
    build_config(dataclasses.asdict(config) | chosen, "the command line")
    return spec.change(**chosen)


class EdgeClient:
    """A client of a server: a setup from the server's settings, one worker, and its own ledger.

    Args:
        description: the server's description of the federation.
        data: file of the client's examples.
        folder: where the client keeps its state in this federation; exists.
        ledgers: folder of what has been released about its examples, in any federation
            (`fedpeft.privacy.lifetime_ledger`).
        observer: receives messages about the client's work.
        options: the client's own choices.
        credentials: its certificate and key; None: no TLS.

    Attributes:
        roster: the clients whose updates its own may be added up with; None: all that the authority has certified.

    Raises:
        FedpeftError: data or model do not fit the federation.
    """

    def __init__(
        self,
        description: v2.Description,
        data: Path,
        folder: Path,
        ledgers: Path,
        observer: RunObserver,
        options: EdgeOptions,
        credentials: Credentials | None = None,
    ) -> None:
        """Check the description, load the examples, and build the setup, the worker and the ledger."""
        check_description(description)
        self.description = description
        self.file = data
        self.folder = folder
        self.ledgers = ledgers
        self.observer = observer
        self.device = parse_device(options.device)
        spec, names = build_settings(description, options), tuple(description.labels)
        self.options = fit_to_memory(options, resolve_auto(spec), description, self.device, observer)
        form = build_form(description, options)
        targets = TASKS.build(form.task).targets
        self.rows = form.read(
            data, names or None, targets, options.file_format, lambda note: observer.say(escape(note))
        )[0]
        if self.options.batch_size:
            spec = spec.change(batch_size=self.options.batch_size)
        tasks = parse_tasks(description)
        facts = DatasetInfo(form.kind, description.task, names or None, spec.config.model, clients=1, tasks=tasks)
        self.setup = Setup.create(spec, facts)
        self.config = self.setup.config
        labels = self.rows.labels
        of_row = None if tasks is None or labels is None else tasks.find_tasks(labels)
        if tasks is not None and of_row is not None and self._is_protected:
            _check_all_tasks(tasks, of_row[self._select_training_rows()], self.config.privacy)
        machine = Machine.create(self.setup, {}, (self.device,))
        data_key = self.setup.tokenize_rows(self.rows, self.setup.tokens)
        work = create_work_plan(self.setup, machine, data_key, folder).set_precision(self.options.precision)
        work = dataclasses.replace(work, threads=self.options.threads or os.cpu_count() or 1, clients_per_pass=1)
        self._check_model(work)
        self.protection = self._create_protection(work, machine.pin({}, work, folder))
        if self.protection is not None and (sums := self.protection.engine.sums) is not None:
            self.setup = dataclasses.replace(self.setup, secure_sum=sums)
        alone = SingleClientPartition(np.arange(len(self.rows)), np.array([0, len(self.rows)]))
        privacy = self._create_client_privacy()
        clients = create_client_plan(self.setup, alone, folder, self._held_out, privacy, of_row)
        self.roster = _pin_roster(self.options, self.setup, credentials)
        if self.setup.secure_sum is not None:
            masks = self._create_mask_plan(credentials)
            clients = dataclasses.replace(clients, masks=masks)
            if self.protection is not None:
                self.protection.begin_third = Masking(masks, clients.store, work.seed).begin_third
        self.policy = InstructionPolicy.from_setup(self.setup, self.options.rank)
        self.workers = Workers(work, clients, machine, observer)
        self.bases = HeldBase(work.residuals, self.setup.layout.pairs, self.setup.strategy.fills_base)

    # -------------------------------------------------------------------------------------------------- what is checked

    def _check_model(self, work: WorkPlan) -> None:
        told = self.description
        if cache.hash_files(self.setup.model_directory, cached_rows.TOKENIZER_FILES) != told.tokenizer_hash:
            raise ModelError(
                f"FP4014 the tokenizer in {self.setup.model_directory} is not the server's: it would split "
                "texts into other tokens; use the same model, with --model FOLDER"
            )
        if work.model_key != told.weights_hash:
            raise ModelError(
                f"FP4015 the weights in {self.setup.model_directory} are not the server's, so updates would not "
                "fit; use the same model, with --model FOLDER"
            )
        if self.setup.tokens != told.tokens:
            raise ModelError(
                f"FP4016 the server cuts texts to {told.tokens} tokens, but the model here reads at most "
                f"{self.setup.tokens}; ask whoever runs the server for smaller --tokens"
            )

    @property
    def _held_out(self) -> float:
        """Share of its examples that the client is evaluated on, as the server describes it."""
        return float(self.description.held_out)

    # ------------------------------------------------------------------------------------------------------- privacy

    def _select_training_rows(self) -> NDArray[np.int64]:
        """Return the examples that are not held out, as indices."""
        return split_held_out(np.arange(len(self.rows)), self._held_out, self.config.seed, 0)[0]

    @property
    def _is_protected(self) -> bool:
        """Whether the settings protect the client's updates, its classes included."""
        return self.setup.secure_sum is not None or (self.setup.mechanism is not None and self.setup.mechanism.protects)

    @property
    def silent(self) -> bool:
        """Whether nothing that is measured on the examples leaves this machine unprotected."""
        return self.setup.secure_sum is not None or (self.setup.mechanism is not None and self.setup.mechanism.silent)

    def _create_protection(self, work: WorkPlan, fixed: dict[str, Any]) -> ClientProtection | None:
        """Return the client's own ledger if noise is drawn here; `fixed` is what else an answer depends on."""
        rows = len(self._select_training_rows())
        identity = (
            f"{self.description.config} {work.data_key} {work.model_key} {work.dtype} {work.precision} {work.device} "
            f"{work.threads} {self.config.batch_size} {__version__} {fixed}"
        )
        told = parse_shared_settings(self.description.config)
        return make_client_protection(
            self.setup, told, self.options, rows, identity, (self.folder, self.ledgers, self.file)
        )

    def _create_client_privacy(self) -> ClientPrivacy | None:
        """Return what the worker needs of the mechanism."""
        if self.setup.mechanism is None:
            return None
        # Without a ledger here the server adds the noise; what is measured on the examples still stays here.
        noise = 0.0 if self.protection is None else self.protection.engine.noise_multiplier
        start = None if self.protection is None else self.protection.engine.start
        return ClientPrivacy(self.setup.mechanism, noise, self.folder / KEY, start)

    def _create_mask_plan(self, credentials: Credentials | None) -> MaskPlan:
        """Return the plan by which the client masks its updates, and what it signs with.

        Raises:
            PrivacyError: without TLS the other clients can't be identified.
        """
        if credentials is None:
            raise PrivacyError(
                f"FP7014 {self.config.privacy} needs certificates: without TLS anyone who forwards a message "
                "could pose as any client and remove the masks; leave --insecure out"
            )
        own, pinned = credentials, frozenset(self.roster.members.values()) if self.roster else None
        limits = self.options.fewest, self.options.collude
        identity = Identity(self.description.run, own.key, own.certificate, own.authority, pinned, *limits)
        secure = self.setup.secure_sum
        assert secure is not None
        noise = (secure, self.folder / KEY) if isinstance(secure, SharedNoise) else None
        return MaskPlan(secure, self.setup.by_rows, int(self.config.clients), identity, noise)

    def _compute_state_digest(self, instruction: Instruction) -> bytes:
        """Return a digest of what an answer depends on beside the instruction."""
        store = ClientStore(self.folder / "clients")
        last = instruction.acknowledged
        if self.setup.secure_sum is not None:
            last = store.find_newest(instruction.client, instruction.round)
        own = store.read_content(instruction.client, last)
        return compute_state_digest(own, ResidualFiles(self.workers.work.residuals).get_file(instruction.base))

    # ------------------------------------------------------------------------------------------------------- the work

    @property
    def instruction_limit(self) -> int:
        """The most bytes that a task's payloads may have."""
        return size_limits.compute_instruction_limit(self.setup)

    @property
    def hardware(self) -> str:
        """The client's description of its machine for the server."""
        if self.device == "cpu":
            return f"{kernels.get_cpu_name()}, {self.workers.work.threads} threads"
        return f"{get_gpu_name(self.device)}, {platform.machine()}"

    def create_registration(self) -> v2.Registration:
        """Return the client's description of itself for the server."""
        own = self.protection
        return v2.Registration(
            run=self.description.run,
            rows=1 if self.silent else len(self.rows),
            rank=self.options.rank,
            precision=self.options.precision or self.config.dtype,
            hardware=self.hardware,
            terms=encode_terms(own.declare_terms()) if own else None,
        )

    def warm_up(self) -> None:
        """Load the base model, and compute the activation cache of the examples."""
        self.workers.freeze_rows()

    def handle(self, instruction: Instruction) -> Report:
        """Carry out the server's instruction; failures are reported, and the client goes on."""
        own = self.protection
        try:
            instruction.check(len(self.setup.layout.tensors))
            check_question(instruction)
            self.policy.check(instruction)
            self.bases.update(instruction.round, instruction.base, instruction.acknowledged, instruction.residual)
            if own is None:
                check_evaluation(instruction, self.setup.mechanism)
                answer = self.workers.answer
                return answer(instruction) if self.silent else measure_energy(instruction, answer)
            return own.answer(
                instruction, self._compute_state_digest(instruction), self.workers.answer, self.workers.check
            )
        except (FedpeftError, OSError, RuntimeError) as error:  # RuntimeError: torch, out of memory
            if isinstance(error, GoneError) and not self.setup.drift.keeps:  # the server's sum holds the old variates
                return report_missing_state(instruction, self.folder, self.observer.say)
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.observer.say(f"[bold red]failed[/] {escape(reason)}")
            told = self._remove_paths(reason) if isinstance(error, FedpeftError) else FAILED
            return Report(instruction.client, instruction.round, b"", error=told[:500])

    def _remove_paths(self, reason: str) -> str:
        """Return a sentence for this machine's user without its folders, which the server must not learn."""
        for place, name in (
            (self.folder, "its state"),
            (self.ledgers, "its ledgers"),
            (self.file, "its examples"),
            (self.setup.model_directory, "its model"),
            (get_cache_directory(), "its cache"),
            (Path.home(), "~"),
        ):
            for path in {str(place), str(place.resolve())}:
                reason = reason.replace(path, name)
        return reason

    def close(self) -> None:
        """End the worker."""
        self.workers.close()


def _check_all_tasks(tasks: TaskSequence, of_row: NDArray[np.int64], privacy: str) -> None:
    """Refuse to join without examples of each task, since the server would learn of it in the first round of the task.

    Raises:
        PrivacyError: names a task without examples.
    """
    found = set(of_row.tolist())
    if missing := [name for task, name in enumerate(tasks.names) if task not in found]:
        raise PrivacyError(
            f"FP7276 this client has no example of the task {missing[0]}, which {privacy} would not hide from the "
            "server; give it examples of each task, or do not join"
        )


def _read_roster(options: EdgeOptions) -> PinnedRoster | None:
    if options.roster:
        return PinnedRoster.read(Path(options.roster).expanduser(), options.roster_hash)
    if options.roster_hash:
        raise ConfigError("FP1119 --roster-hash is the hash of a roster; give the roster's file too, with --roster")
    return None


def _pin_roster(options: EdgeOptions, setup: Setup, credentials: Credentials | None) -> PinnedRoster | None:
    """Return the client's roster, with itself in it; None: it pins none.

    Raises:
        ConfigError: the roster can't be used.
        PrivacyError: the federation has no sum that it could protect.
    """
    roster = _read_roster(options)
    if roster is None:
        return None
    if credentials is not None:
        roster.check_own(credentials)
    if setup.secure_sum is None:
        raise PrivacyError(
            "FP7015 this federation adds up nothing under masks, so --roster can't keep anybody out; leave it out if "
            "you trust the server with your updates, or ask for --privacy secure_sum or distributed_dp"
        )
    return roster
