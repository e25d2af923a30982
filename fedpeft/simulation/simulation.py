"""A federation on one machine: rows, setup, workers, and the server's rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedpeft.answers.exam import Exam
from fedpeft.clients.client import ClientPlan
from fedpeft.clients.executor import Totals
from fedpeft.clients.label_shift import only
from fedpeft.clients.personal import PERSONAL
from fedpeft.clients.store import ClientStore, section
from fedpeft.clients.workbench import WorkPlan
from fedpeft.config import RunConfig
from fedpeft.data.partition import PartitionStatistics, Shards, held_out, training_shards
from fedpeft.errors import ConfigError, PrivacyError, RunError
from fedpeft.machine.memory import release
from fedpeft.models import scoring
from fedpeft.models.tasks.classification import RowTask
from fedpeft.peft.adapter import State
from fedpeft.plugin_files import own_code
from fedpeft.privacy.engine import KEY, ClientPrivacy, PrivacyEngine
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.secure_sum.contribution import entries
from fedpeft.privacy.summed_engine import SummedEngine
from fedpeft.run.asked import asks_clients
from fedpeft.run.catalogue import check_parts
from fedpeft.run.examined import exam_of
from fedpeft.run.final_score import Scorer
from fedpeft.run.observer import RunObserver
from fedpeft.run.private_plan import as_begun, planned, unheard
from fedpeft.run.profiles import chances, groups_of, keep_profiles, kinds, number_of
from fedpeft.run.records import Records
from fedpeft.run.sampling import aware, cohort_size
from fedpeft.run.setup import Setup
from fedpeft.run.workers import Machine, Workers, client_plan, work_plan
from fedpeft.server.energy import Choosing, EnergyBook
from fedpeft.server.evaluation import HELD_OUT
from fedpeft.server.exchange import Exchange
from fedpeft.server.features import ServerModel, attach_features
from fedpeft.server.preparation import noised_statistics, prepare
from fedpeft.server.progress import Checkpoints, Progress, RunStore
from fedpeft.server.rounds import Server, never
from fedpeft.server.sampling import Population, Sampler, population
from fedpeft.simulation.forgetting import second_task
from fedpeft.simulation.grid import CohortGrid
from fedpeft.simulation.hostile import HostilePlan, attacked_labels
from fedpeft.simulation.rows import SimulatedRows


class Simulation:
    """All that a run needs, made from its configuration.

    Args:
        config: checked settings.
        folder: the run's folder; exists.
        observer: is told how things go on.
        grid: makes another grid for a number of clients than one of this run's workers: inside a Flower app, Flower's.
        tested: whether the run is scored on test rows; a trial of a search is not.

    Raises:
        FedpeftError: settings that do not fit the data or the model, before anything is trained.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        observer: RunObserver,
        grid: Callable[[int], Grid] | None = None,
        tested: bool = True,
    ) -> None:
        self.folder = folder
        self.observer = observer
        head = config.head
        check_parts(config)
        observer.phase("reading the rows", 1)
        groups = groups_of(config.ranks, config.clients, folder)
        self.rows = SimulatedRows.of(config, number_of(config.clients, groups))
        config = replace(config, partition=self.rows.called)
        observer.phase("loading the model", 1)
        if config.privacy and self.rows.partition.resampled:
            raise PrivacyError(
                f"FP7118 privacy={config.privacy} takes a row to be one client's, and under {config.partition} it is "
                "many clients'; take another partition"
            )
        self.setup = Setup.of(config, self.rows.facts, groups)
        second = self.setup.measured.second
        if self._held_out and self.rows.partition.resampled:
            scored = config.strategy if self.setup.personal else "calibration(rows=clients)"
            raise ConfigError(
                f"FP1417 under {config.partition} a client's held-out rows are trained on by it and by others, and "
                f"{scored} is scored on them; take another partition, or leave it out"
            )
        self.second = second_task(second, self.rows.dataset) if second else None
        self.clients = self.setup.clients
        self.search = self.setup.personal and not tested
        chosen = aware(config.cohort) is not None
        self.book = EnergyBook(self.setup) if chosen or self.setup.measured.energy is not None else None
        self.sampler = self._sampler()
        if self.setup.mechanism is not None and self.setup.mechanism.protects:
            exposure = self._exposure()
            self.setup = planned(as_begun(self.setup, exposure, folder), exposure, groups, head)
            self.sampler = self._sampler()
            self.setup = unheard(self.setup, self._exposure())
        self.config = self.setup.config
        if self.setup.secure_sum is not None:
            self.setup.secure_sum.check(self.sampler.size)
        self.checkpoints = Checkpoints(folder / "checkpoint")
        fixed = self._begun_with()
        observer.phase("tokenising the rows", 1)
        machine = Machine.of(self.setup, fixed)
        work = self._work_plan(machine)
        self.fixed = machine.pinned(fixed, work, folder)
        self.protection = self._protection(work)
        if isinstance(self.protection, SummedEngine):
            self.setup = replace(self.setup, secure_sum=self.protection.sums)
        self.workers = Workers(work, self._client_plan(), machine, observer, self.rows.validation)
        self._grid = grid
        _ = self._exam  # what is wrong with its questions is said before anything is trained
        task = self.setup.task
        if isinstance(task, RowTask) and own_code(type(task)):  # and with what a task of the user's own makes
            scoring.tried(task, self.rows.dataset.test, self.setup.facts.label_names or ())

    def _begun_with(self) -> dict[str, Any]:
        """Return what the run must stay with; nothing, or that it is a trial of a search, if it begins.

        Raises:
            ConfigError: it is an unfinished trial, and would go on as a run.
        """
        begun = self.checkpoints.load()
        if begun is None:
            return {"search": True} if self.search else {}
        if begun.round < self.setup.rounds and begun.fixed.get("search", False) != self.search:
            raise ConfigError(
                f"FP1507 {self.folder} holds an unfinished trial of a search, whose clients train on fewer rows; "
                f"continue the search, or train it whole: python -m fedpeft.simulate {self.folder.with_suffix('.toml')}"
            )
        return begun.fixed

    def _sampler(self) -> Population:
        """What cohorts are drawn from."""
        setup, size = self.setup, cohort_size(self.setup.config.cohort, self.clients)
        return population(self.clients, size, chances(setup.profiles), setup.mechanism)

    def _work_plan(self, machine: Machine) -> WorkPlan:
        data_key = self.setup.tokenised(self.rows.all, self.setup.tokens)
        attack = self.config.attack
        labels = attacked_labels(attack, self.rows, self.config.seed) if attack else None
        plan = work_plan(self.setup, machine, data_key, self.folder, labels, self.clients)
        return replace(plan, clients_per_pass=min(plan.clients_per_pass, self.sampler.size))  # no room that stays empty

    def _client_plan(self) -> ClientPlan:
        privacy = None
        if self.protection is not None:
            own = self.protection
            privacy = ClientPrivacy(self.setup.config.privacy, own.noise, self.folder / KEY, own.start)
        plan = client_plan(self.setup, self._shards, self.folder, self._held_out, privacy, self.rows.train.tasks)
        return HostilePlan.of(plan, self.config.attack, self.setup.layout) if self.config.attack else plan

    @cached_property
    def _sizes(self) -> NDArray[np.int64]:
        """Rows of each client, (clients,)."""
        return self._shards.sizes

    @cached_property
    def _shards(self) -> Shards:
        """The rows of each client; in a trial of a search without those that the final score is of."""
        shards = self.rows.partition
        return training_shards(shards, self._held_out, self.setup.config.seed) if self.search else shards

    def _steps(self, client: int) -> int:
        """Of a client in a round."""
        return self.setup.profiles[client].steps or self.setup.training.steps_for(int(self._sizes[client]))

    @property
    def most_steps(self) -> int:
        """Of a client in a round, of the one that takes most."""
        usual = self.setup.training.steps_for(len(self.training_rows(int(self._sizes.argmax()))))
        return max(profile.steps or usual for profile in kinds(self.setup.profiles))

    @property
    def _held_out(self) -> float:
        """Share of its rows that a client is evaluated on and does not train on."""
        return HELD_OUT if self.setup.personal or asks_clients(self.setup) else 0.0

    def divided(self, client: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A client's rows in two: to train on, and those held out."""
        return held_out(self._shards.shard(client), self._held_out, self.setup.config.seed, client)

    def training_rows(self, client: int) -> NDArray[np.int64]:
        """The client's rows without those held out, (rows of it,)."""
        return self.divided(client)[0]

    def _protection(self, work: WorkPlan) -> PrivacyEngine | None:
        """The mechanism with this run's costs; refuses what would not protect."""
        config, setup = self.config, self.setup
        mechanism = setup.mechanism
        if mechanism is None or not mechanism.protects:
            return None
        federation = self._exposure()
        identity = (
            f"{config.to_toml()} {work.data_key} {work.model_key} {torch.__version__} {self.fixed} "
            f"{setup.profiles} {federation.rows.tolist()} {federation.steps.tolist()}"
        )
        mechanism.check_start(federation)
        engine = SummedEngine if mechanism.summed else PrivacyEngine
        labels_of_rows = self.rows.dataset.labels_of_rows
        return engine(mechanism, federation, self.folder, identity, config.seed, labels_of_rows)

    def _exposure(self) -> Exposure:
        """What the cost of this run depends on."""
        setup, config = self.setup, self.setup.config
        profiles = setup.profiles
        rows = np.array([len(self.training_rows(k)) for k in range(self.clients)])
        steps = [profiles[k].steps or setup.training.steps_for(int(rows[k])) for k in range(self.clients)]
        taken = np.zeros(self.clients, dtype=np.int64)
        for round in range(1, config.rounds + 1):
            taken[self.sampler.draw(config.seed, round)] += 1
        return Exposure(
            strategy=setup.strategy,
            method=setup.method,
            layout=setup.layout,
            rows=rows,
            steps=np.array(steps),
            participations=taken,
            batch_size=config.batch_size,
            rounds=config.rounds,
            cohort=self.sampler.size,
            even=len(set(self.sampler.weights)) <= 1,
            start=setup.private_start,
            start_entries=entries(noised_statistics(setup)) if setup.private_start else 0,
            trained=setup.trained_entries,
            whitened=setup.whitened_directions if setup.mechanism and setup.mechanism.whitens else 0,
        )

    @property
    def statistics(self) -> PartitionStatistics:
        """What the partition looks like, as far as anybody may know it."""
        found = self.rows.statistics
        return found.without_labels() if self.protection is not None else found

    def server(self, records: Records, stopping: Callable[[], bool] = never) -> Server:
        """The server of this run; `stopping` is asked before each round whether the run should end here."""
        workers = self.workers
        if self._grid is not None:
            grid = self._grid(self.clients)
        else:
            workers.start()
            grid = CohortGrid(workers.pool, self._sizes, workers.work.clients_per_pass, self._steps)
        setup, observer = self.setup, self.observer
        transport, store = Exchange(grid, observer.client_done), RunStore.of(records)
        model = ServerModel(workers.evaluate, workers.validation_loss, self._score_task, self._exam, workers.examine)
        hooks = attach_features(setup, transport, store, observer, model, self.protection, self.book)
        start = partial(prepare, setup, transport, self.fixed, self.protection, observer.say)
        return Server(setup, transport, self._chooser, store, observer, hooks, start, stopping)

    @cached_property
    def _exam(self) -> Exam | None:
        """The questions of `--measure evaluate`; None: the run asks none."""
        return exam_of(self.setup, self.rows.all.take(self.rows.validation), self.observer.say)

    def _score_task(self, state: State, version: int, task: int, known: bool) -> Totals:
        """A state on the validation rows of a task; where it is `known`, only the task's classes compete."""
        sequence, rows = self.setup.facts.tasks, self.rows
        assert sequence is not None
        assert rows.held.tasks is not None
        own = rows.validation[rows.held.tasks == task]
        offsets = only(sequence.classes[task], self.setup.facts.classes) if known else None
        return self.workers.score(state, version, own, offsets)

    @property
    def _chooser(self) -> Sampler:
        """Who draws the cohorts: all alike, or by what is known of clients."""
        rule = aware(self.config.cohort)
        return self.sampler if rule is None or self.book is None else Choosing(rule, self.book, self.sampler.size)

    def train(self, server: Server) -> Progress:
        """All rounds."""
        self.workers.freeze_rows(self.setup.base_precisions)
        release()
        keep_profiles(self.config.clients, self.folder)
        return server.run()

    @property
    def scorer(self) -> Scorer:
        """Scores what is saved on the test rows."""
        rows, workers = self.rows, self.workers
        held = rows.all.take(rows.validation)
        return Scorer(self.setup, workers.work, rows.dataset.test, held, workers.machine.threads, self.observer)

    def client_state(self, client: int) -> State:
        """A client's own adapter: what is shared, and what the client keeps (its common start, if it never took part).

        Raises:
            RunError: no round is finished, or there is no such client.
            ConfigError: the strategy leaves nothing with clients.
        """
        progress = self.checkpoints.load()
        if progress is None or not 0 <= client < self.clients:
            raise RunError(
                f"FP5209 {self.folder} has no finished round, or no client {client}; ids are 0 to {self.clients - 1}"
            )
        if not self.setup.personal:
            raise ConfigError(
                f"FP1418 with {self.config.strategy} all clients have the same adapter: {self.folder}/adapter"
            )
        store = ClientStore(self.folder / "clients")
        own = store.load(client, progress.acknowledged.get(client, 0), tidy=False) or {}
        rule, layout = self.setup.strategy, self.setup.layout
        sent = rule.of_group(rule.group(client, progress.learned), progress.reached, progress.learned, layout)
        return rule.prepared(sent | section(own, "private") | section(own, PERSONAL), layout)

    def close(self) -> None:
        """End the workers."""
        self.workers.close()
