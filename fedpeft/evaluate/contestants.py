"""Models of an evaluation: the base, the run's global model, clients' own adapters, and clients who trained alone.

`fedpeft.simulation.alone` trains a client alone. The resulting adapter is kept in the run's folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn

from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.machine.files import make_private_folder, raise_write_errors
from fedpeft.models.task import FederatedModel
from fedpeft.peft import saved_adapter
from fedpeft.peft.adapter import State
from fedpeft.reporting.final_score import save
from fedpeft.reporting.finished_run import FinishedRun, clone_modules
from fedpeft.reporting.observer import RunObserver
from fedpeft.reporting.run_folder import refuse_servers_run
from fedpeft.simulation.alone import train_one_alone
from fedpeft.simulation.simulation import Simulation

BASE, GLOBAL = "base", "global"

ALL = "all"
"""Text that selects every client instead of a list of ids."""


@dataclass(frozen=True)
class Contestant:
    """A model of the evaluation.

    Attributes:
        name: "base", "global", "client 3" or "client 3 alone".
        model: creates the model, which shares the base's weights.
    """

    name: str
    model: Callable[[], FederatedModel]


@dataclass(frozen=True)
class Contestants:
    """Models of a finished run.

    Attributes:
        run: the run.
        observer: observes the progress of training.
    """

    run: FinishedRun
    observer: RunObserver

    @cached_property
    def base(self) -> nn.Module:
        """Base model in fp32, without adapter; all models share its weights."""
        return self.run.base()

    @cached_property
    def simulation(self) -> Simulation:
        """Run with its examples and parts.

        Raises:
            RunError: it was a server's run, whose examples only the clients hold.
        """
        refuse_servers_run(self.run.folder)
        return Simulation(self.run.config, self.run.folder, self.observer)

    def select_clients(self, own: str, alone: str) -> list[Contestant]:
        """Return base and global model, and the clients in `own` and `alone`, such as "0, 3" or "all"; empty: none.

        Raises:
            ConfigError: a client does not exist, or clients have no adapters of their own.
            PrivacyError: clients of a private run would be trained without protection.
        """
        run = self.run
        found = [Contestant(GLOBAL, lambda: run.model(self.base))]
        if run.labels is None:  # a classifier's base has no head: `fedpeft.evaluate` reads its probe's score
            found.insert(
                0, Contestant(BASE, lambda: run.task.model(clone_modules(self.base), None).eval().requires_grad_(False))
            )
        found += [self._load_saved(f"client {client}", self._save_own(client)) for client in self._parse_ids(own)]
        found += [
            self._load_saved(f"client {client} alone", self._train_alone(client)) for client in self._parse_ids(alone)
        ]
        return found

    def _load_saved(self, name: str, folder: Path) -> Contestant:
        run, classes = self.run, len(self.run.labels or ())
        return Contestant(name, lambda: saved_adapter.load(folder, run.task, clone_modules(self.base), classes))

    def _parse_ids(self, text: str) -> list[int]:
        if not text.strip():
            return []
        count = self.simulation.clients
        if text.strip() == ALL:
            return list(range(count))
        words = [word.strip() for word in text.split(",")]
        if not all(word.isdecimal() and int(word) < count for word in words):
            raise ConfigError(
                f"FP1160 {text!r} is not a list of clients; give ids from 0 to {count - 1}, such as 0,3, or {ALL}"
            )
        return list(dict.fromkeys(map(int, words)))

    def _save_own(self, client: int) -> Path:
        return self._save_state(f"client-{client}", self.simulation.load_client_state(client))

    def _train_alone(self, client: int) -> Path:
        folder = self._get_folder(f"alone-{client}")
        if saved_adapter.is_complete(
            folder, self.run.labels is not None
        ):  # an earlier version may have left incomplete ones
            return folder
        if self.run.config.privacy:
            raise PrivacyError(
                "FP7027 clients of a private run can't be trained alone, since their adapters would reveal their "
                "examples; leave --alone out, or give it for a run of the same settings without --privacy"
            )
        return self._save_state(folder.name, train_one_alone(self.simulation, client))

    def _get_folder(self, name: str) -> Path:
        return self.run.folder / "evaluation" / name

    def _save_state(self, name: str, state: State) -> Path:
        """Save an adapter and return its folder, which appears only when it is complete."""
        folder, part = self._get_folder(name), self._get_folder(f"{name}.part")
        with raise_write_errors(folder):
            if part.exists():  # left by a killed command
                shutil.rmtree(part)
            make_private_folder(part)
        save(self.simulation.setup, state, part)
        with raise_write_errors(folder):
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(part, folder)
        return folder

    def close(self) -> None:
        """End the workers, if there are any."""
        if "simulation" in self.__dict__:
            self.simulation.close()
