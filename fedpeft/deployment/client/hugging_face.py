"""A script with a Trainer of transformers, or trl's SFTTrainer, as a client: `fedpeft.patch(trainer, server=...)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from fedpeft.clients.trainer import ProcessGroup, TrainerExecutor
from fedpeft.deployment.client.joining import Patience, link_of, open_transcript, take_part, wait_for_description
from fedpeft.deployment.client.state_folder import get_client_folder, lock_state_folder
from fedpeft.deployment.client.trainer_edge import TrainerEdge
from fedpeft.deployment.options import JoinOptions
from fedpeft.deployment.wire.connection import Link
from fedpeft.errors import ConfigError
from fedpeft.machine.terminal import Console
from fedpeft.models.tasks.causal_lm import LanguageModel
from fedpeft.parts import check_settings, plugins
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.wiring import catalogue

STATE = Path("~/.local/state/fedpeft")


def patch(  # noqa: PLR0913
    trainer: Any,
    *,
    server: str,
    certs: str | Path = "certs",
    insecure: bool = False,
    name: str = "",
    state: str | Path = STATE,
    give_up: float = 0.0,
    plugin: tuple[str, ...] = (),
    progress: bool = True,
) -> Any:
    """Make `trainer.train()` take part in a federation.

    In each round it receives the adapter, trains as the script sets, and sends the trained adapter. The trainer's model
    is one of the `peft` library with the adapter that the federation exchanges. The script sets the optimizer,
    scheduler, data, callbacks and number of steps. Its learning rate is scaled as the federation's falls over the
    rounds. An optimizer that the Trainer creates starts anew in each round. After the last round `train` returns its
    result of this client's last round, or None. A killed script continues when it is started again. Under torchrun
    every process calls `train`, and the first one talks to the server.

    Args:
        trainer: of transformers or trl, with `model`, `args`, `train_dataset` and `train`.
        server: HOST:PORT.
        certs: the folder that this client was handed (`fedpeft certs`).
        insecure: no TLS, for a server on this machine that runs without it; then `name` says who this is.
        name: of the client, with `insecure`; else it stands in the certificate.
        state: folder of what is kept between rounds and restarts.
        give_up: seconds without a connection after which to end; 0: never.
        plugin: files, folders or installed packages with parts that the federation uses.
        progress: whether to show how it goes on.

    Returns:
        The trainer.

    Raises:
        FedpeftError: the trainer is of another kind. `train` raises it for mistakes that a user can mend.
    """
    _check(trainer)
    given = JoinOptions(server, Path("rows"), Path(certs), insecure, name, Path(state), give_up)
    link = link_of(JoinOptions(**check_settings("patch", JoinOptions, asdict(given))))
    trainer.train = FederatedTraining(trainer, trainer.train, link, Path(state).expanduser(), give_up, plugin, progress)
    return trainer


@dataclass
class FederatedTraining:
    """What `train` of a patched trainer is.

    Attributes:
        trainer: that is patched.
        own: its own `train`.
        link, state, give_up, plugin, progress: see `patch`.
        last: what the last round's training has returned.
    """

    trainer: Any
    own: Callable[[], Any]
    link: Link
    state: Path
    give_up: float
    plugin: tuple[str, ...]
    progress: bool
    last: Any = None

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Take part until the federation is finished.

        Raises:
            FedpeftError: what the user can mend.
        """
        if given or any(named.values()):
            raise ConfigError("FP1195 a patched trainer continues automatically; call train() without arguments")
        self.last, ranks = None, ProcessGroup()
        if not ranks.first:
            executor = TrainerExecutor(self.trainer, LanguageModel(self.trainer.model), self.train_once, ranks)
            while (order := ranks.tell(None)) is not None:
                executor.carry_out(order)
            return self.last
        try:
            with plugins.use_parts({}), ConsoleObserver(Console(quiet=not self.progress)) as observer:
                plugins.ignore_installed()
                catalogue.use(self.plugin)
                self._join(ranks, observer)
        finally:
            ranks.tell(None)
        return self.last

    def train_once(self) -> Any:
        """Train one round."""
        self.last = self.own()
        return self.last

    def _join(self, ranks: ProcessGroup, observer: ConsoleObserver) -> None:
        """Be a client until the federation is finished."""
        patience = Patience(self.give_up, observer)
        description = wait_for_description(self.link, patience)
        folder = get_client_folder(self.state, description.run, self.link.name)
        with lock_state_folder(folder):
            edge = TrainerEdge(description, self.trainer, self.train_once, ranks, folder, observer)
            observer.say(
                f"[bold]{self.link.name}[/]  {edge.rows} examples, {type(self.trainer).__name__}, "
                f"{escape(edge.config.peft)}"
            )
            take_part(edge, self.link, open_transcript(edge, self.link), patience, observer)


def _check(trainer: Any) -> None:
    """Refuse what can't be patched.

    Raises:
        ConfigError: it is none of transformers, or one whose adapter does not lie in one piece in each process.
    """
    if not all(hasattr(trainer, name) for name in ("model", "args", "train", "train_dataset", "optimizer")):
        raise ConfigError(f"FP1196 patch takes a Trainer of transformers or trl, got {type(trainer).__name__}")
    if not hasattr(trainer.model, "peft_config"):
        raise ConfigError(
            "FP1197 the trainer's model has no adapter; wrap it first: peft.get_peft_model(model, LoraConfig(...))"
        )
    if getattr(trainer, "is_deepspeed_enabled", False) or getattr(trainer, "is_fsdp_enabled", False):
        raise ConfigError(
            "FP1198 with DeepSpeed or FSDP no process holds the whole adapter; train with DDP, or in one process"
        )
    if trainer.train_dataset is None or not hasattr(trainer.train_dataset, "__len__"):
        raise ConfigError(
            "FP1199 the trainer's train_dataset must have a length: a client's number of examples is its "
            "weight in the mean"
        )
