"""A real client whose training is a user's own Trainer, and the server's settings that it supports."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from torch import nn

from fedpeft.aggregation.head_start import HeadStart
from fedpeft.clients.client import ClientPlan, ClientSide
from fedpeft.clients.drift import Drift
from fedpeft.clients.rule_half import changes_steps
from fedpeft.clients.trainer import ProcessGroup, TrainerBench, TrainerExecutor, TrainerPlan
from fedpeft.communication.base_residual import HeldBase
from fedpeft.communication.messages import Instruction, Report
from fedpeft.deployment.client.answers import check_evaluation, check_question, report_missing_state
from fedpeft.deployment.client.edge import SingleClientPartition
from fedpeft.deployment.client.instruction_policy import InstructionPolicy
from fedpeft.deployment.client.shared_settings import parse_shared_settings
from fedpeft.deployment.compared_parts import check_all_told
from fedpeft.deployment.description import check_description
from fedpeft.deployment.wire import size_limits
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.errors import FedpeftError, GoneError, ModelError, PrivacyError, RunError
from fedpeft.machine import cache
from fedpeft.models.base_model import find_local_folder
from fedpeft.models.task import FederatedModel, find_trainable
from fedpeft.models.tasks.causal_lm import LanguageModel
from fedpeft.peft.adapter import Layout
from fedpeft.peft.method import PeftMethod
from fedpeft.privacy.engine import KEY
from fedpeft.privacy.guard import ClientPrivacy
from fedpeft.reporting.observer import RunObserver
from fedpeft.wiring.auto_defaults import resolve_auto
from fedpeft.wiring.run_spec import RunSpec, parse_run


class TrainerEdge:
    """A client of a server that trains by `trainer.train()`.

    Args:
        description: the server's description of the federation.
        trainer: of transformers, with a model of the `peft` library.
        train: the trainer's own method.
        ranks: the script's processes, of which this one is the first.
        folder: where the client keeps its state in this federation; exists.
        observer: receives messages about the client's work.

    Raises:
        FedpeftError: the federation asks for what a Trainer can't do, or for another adapter than it has.
    """

    protection = None
    """None: no noise is drawn here."""

    def __init__(
        self,
        description: v2.Description,
        trainer: Any,
        train: Any,
        ranks: ProcessGroup,
        folder: Path,
        observer: RunObserver,
    ) -> None:
        """Check the description and the adapter, and build the client around the trainer."""
        check_description(description)
        self.description = description
        self.folder = folder
        self.observer = observer
        told = parse_shared_settings(description.config)
        check_all_told(description.parts, told)
        self.parts = resolve_auto(parse_run(told))
        self.config = self.parts.config
        method, head = _check_parts(description, self.parts)
        model: Any = LanguageModel(trainer.model)
        reference = _create_reference(trainer.model, method)
        self.layout = method.layout(reference)
        _check_adapter(self.layout, model, self.config.peft)
        if changes_steps(self.parts.strategy):
            raise RunError(
                f"FP5112 with {self.config.strategy} clients keep a part of the adapter unchanged, which a "
                "Trainer does not do; ask for another strategy, such as fedit"
            )
        self.policy = InstructionPolicy(self.layout, self.parts, self.config.seed, self.parts.strategy.mixed_ranks)
        self._check_weights(trainer.model)
        device = str(next(model.parameters()).device)
        seed, dtype = self.config.seed, self.config.dtype
        plan = TrainerPlan(self.layout, self.parts.training, seed, dtype, folder / "base", device)
        executor = TrainerExecutor(trainer, model, train, ranks, self.layout, self.config.learning_rate)
        bench: Any = TrainerBench(plan, executor)
        self.side = ClientSide(bench, self._create_client_plan(method, head, reference, len(trainer.train_dataset)))
        self.rows = len(trainer.train_dataset)
        self.bases = HeldBase(plan.residuals, self.layout.pairs, self.parts.strategy.fills_base)

    def _create_client_plan(
        self, method: PeftMethod, head: HeadStart, reference: FederatedModel, rows: int
    ) -> ClientPlan:
        parts, start = self.parts, {}
        if not parts.downlink.lossless:
            start = method.start(reference, self.config.seed)
            if any(tensor.isnan().any() for tensor in start.values()):
                raise RunError(
                    "FP5113 the server encodes the model against its seeded start, which a Trainer can't "
                    f"compute for {self.config.peft}; ask for --downlink fp32"
                )
            start = parts.strategy.start(start, self.layout, self.config.seed)
        return ClientPlan(
            partition=SingleClientPartition(np.arange(rows), np.array([0, rows])),
            uplink=parts.uplink,
            downlink=parts.downlink,
            start=start,
            statistics=parts.lossless,
            lossless=parts.lossless,
            head=head,
            strategy=parts.strategy,
            drift=Drift(),
            store=self.folder / "clients",
            # The server adds the noise; what is measured on the examples still stays here.
            privacy=ClientPrivacy(parts.mechanism, 0.0, self.folder / KEY) if parts.mechanism else None,
        )

    def _check_weights(self, model: Any) -> None:
        """Compare the base's files with the server's, if the base was loaded from a folder."""
        folder = find_local_folder(str(getattr(model.config, "_name_or_path", "") or "?"))
        if folder is None:
            self.observer.say(
                "[bold]base[/]    was not loaded from a folder, so nothing checks that it is the server's"
            )
        elif cache.hash_files(folder, ("*.safetensors", "config.json")) != self.description.weights_hash:
            raise ModelError(
                f"FP4017 the weights in {folder} are not the server's, so updates would not fit; load the same "
                "weights in the script"
            )

    @property
    def instruction_limit(self) -> int:
        """The most bytes that a task's payloads may have."""
        return size_limits.compute_task_limit(self.layout)

    @property
    def silent(self) -> bool:
        """Whether nothing that is measured on the examples leaves this machine unprotected."""
        return self.parts.mechanism is not None and self.parts.mechanism.silent

    def create_registration(self) -> v2.Registration:
        """Return the client's description of itself for the server."""
        return v2.Registration(
            run=self.description.run,
            rows=1 if self.silent else self.rows,
            precision=self.config.dtype,
            hardware=platform.machine(),
        )

    def handle(self, instruction: Instruction) -> Report:
        """Carry out the server's instruction; failures are reported, and the client goes on."""
        try:
            instruction.check(len(self.layout.tensors))
            check_question(instruction)
            self.policy.check(instruction)
            check_evaluation(instruction, self.parts.mechanism)
            self.bases.update(instruction.round, instruction.base, instruction.acknowledged, instruction.residual)
            report: Report = self.side.handle([instruction])[0]
            return report
        except GoneError:
            return report_missing_state(instruction, self.folder, self.observer.say)
        except (FedpeftError, OSError, RuntimeError) as error:  # RuntimeError: torch, out of memory
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.observer.say(f"[bold red]failed[/] {escape(reason)}")
            told = reason if isinstance(error, FedpeftError) else "the training has failed"
            return Report(
                instruction.client, instruction.round, b"", error=told.replace(str(self.folder), "its state")[:500]
            )


def _check_parts(description: v2.Description, parts: RunSpec) -> tuple[PeftMethod, HeadStart]:
    """Return the PEFT method and head; refuse settings that need more of a client than training.

    Raises:
        RunError, PrivacyError: names what a Trainer can't do, and the remedy.
    """
    if description.task != "causal_lm":
        raise RunError(
            f"FP5114 the federation trains {description.task.partition('(')[0]}; a Trainer can join only "
            "federations of causal language models"
        )
    if parts.drift.corrections:
        raise RunError(
            f"FP5115 the federation corrects clients' gradients (--drift {parts.config.drift}), which a Trainer "
            "does not do; ask for a run without --drift"
        )
    mechanism, secure = parts.mechanism, parts.secure_sum
    if secure is not None:
        raise PrivacyError(
            f"FP7025 the federation's {secure.name} adds up updates under masks, which a Trainer does not do; join "
            "with fedpeft join, or ask for user_dp"
        )
    if mechanism is not None and mechanism.protects and mechanism.noises_updates:
        raise PrivacyError(
            f"FP7026 the federation's {mechanism.name} protects examples on the client, which a Trainer does "
            "not do; join with fedpeft join, or ask for user_dp"
        )
    if parts.method is None or parts.head is None:
        raise RunError("FP5253 the server's settings name no PEFT method; ask whoever runs the server for --peft lora")
    return parts.method, parts.head


def _create_reference(model: Any, method: PeftMethod) -> FederatedModel:
    """Return the method on a base of the trainer's architecture, without weights; its own tensors are NaN.

    Raises:
        ModelError: the method does not fit the base.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        auto: Any = AutoModelForCausalLM
        base = auto.from_config(model.get_base_model().config, trust_remote_code=False)
        made = LanguageModel(base.requires_grad_(False))
        method.attach(made, "fp32")
    for module in made.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                setattr(module, name, nn.Parameter(torch.full(parameter.shape, torch.nan)))
    return made


def _check_adapter(layout: Layout, model: FederatedModel, peft: str) -> None:
    """Refuse an adapter other than the federation's.

    Raises:
        ModelError: names the first tensor that differs.
    """
    own = {name: tuple(parameter.shape) for name, parameter in find_trainable(model).items()}
    missing = [name for name in layout.shapes if name not in own]
    more = [name for name in own if name not in layout.shapes]
    other = [name for name, shape in layout.shapes.items() if name in own and own[name] != shape]
    for names, what in ((missing, "lacks"), (more, "also trains"), (other, "has in another shape")):
        if names:
            raise ModelError(
                f"FP4018 the trainer's adapter is not the federation's {peft}: it {what} {names[0]} and "
                f"{len(names) - 1} others; make it with the same rank, targets and layers"
            )
