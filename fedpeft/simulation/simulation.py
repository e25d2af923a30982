"""A federation on one machine: examples, setup, workers, and the server's rounds."""

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

from fedpeft.aggregation.abilities import PreparesStart
from fedpeft.aggregation.grouped_rules import GroupedStrategy
from fedpeft.clients.client import ClientPlan
from fedpeft.clients.executor import Totals
from fedpeft.clients.label_shift import mask_other_classes
from fedpeft.clients.personal import compose_model
from fedpeft.clients.store import ClientStore, select_section
from fedpeft.clients.workbench import WorkPlan
from fedpeft.data.partition import PartitionStatistics, Shards, select_training_shards, split_held_out
from fedpeft.errors import ConfigError, PrivacyError, RunError
from fedpeft.machine.memory import release
from fedpeft.models import scoring
from fedpeft.models.tasks.classification import RowTask
from fedpeft.parts.plugin_files import hash_own_code
from fedpeft.peft.adapter import State
from fedpeft.privacy.abilities import is_whitened
from fedpeft.privacy.engine import KEY, PrivacyEngine, make_engine
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.guard import ClientPrivacy
from fedpeft.privacy.secure_sum.contribution import count_tensor_entries
from fedpeft.reporting.final_score import Scorer
from fedpeft.reporting.observer import RunObserver
from fedpeft.reporting.records import Records
from fedpeft.reporting.workers import Machine, Workers, create_client_plan, create_work_plan
from fedpeft.rounds.energy import AwarePopulation, EnergyTracker
from fedpeft.rounds.evaluation import HELD_OUT
from fedpeft.rounds.exchange import Transport
from fedpeft.rounds.features import RunParts, ServerModel, attach_features, check_features
from fedpeft.rounds.preparation import prepare
from fedpeft.rounds.progress import Checkpoints, RunStore, ServerState
from fedpeft.rounds.rounds import Server, never_stop
from fedpeft.rounds.sampling import Population, Sampler, create_population
from fedpeft.simulation.grid import CohortGrid
from fedpeft.simulation.hostile import HostilePlan, compute_attacked_labels, plant_triggers
from fedpeft.simulation.rows import SimulatedRows
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.measurement import NewRun
from fedpeft.wiring.private_plan import note_unused_training, plan_training, restore_start_share
from fedpeft.wiring.profiles import compute_chances, count_clients, keep_profiles, list_distinct, load_groups
from fedpeft.wiring.run_spec import parse_run
from fedpeft.wiring.setup import Setup


class Simulation:
    """All that a run needs, built from its configuration.

    Args:
        config: checked settings.
        folder: the run's folder; exists.
        observer: receives messages about the run.
        grid: returns a grid for a number of clients, in place of this run's workers: inside a Flower app, Flower's.
        tested: whether the run is scored on the test set; a trial of a search is not.

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
        """Load the examples, and build the setup, the ledger and the workers; nothing is trained."""
        self.folder = folder
        self.observer = observer
        head, spec = config.head, parse_run(config)
        observer.phase("reading the examples", 1)
        groups = load_groups(config.ranks, config.clients, folder)
        self.rows = SimulatedRows.load(spec, count_clients(config.clients, groups))
        config = self.rows.spec.config
        observer.phase("loading the model", 1)
        if config.privacy and self.rows.partition.resampled:
            raise PrivacyError(
                f"FP7118 privacy={config.privacy} needs each example at one client, and under "
                f"{config.partition} several clients have it; choose another partition"
            )
        self.setup = Setup.create(self.rows.spec, self.rows.facts, groups)
        if self._held_out and self.rows.partition.resampled:
            scored = config.strategy if self.setup.personal else "calibration(rows=clients)"
            raise ConfigError(
                f"FP1417 under {config.partition} a client's held-out examples are also trained on, by it and "
                f"by others, and {scored} is scored on them; choose another partition, or leave it out"
            )
        self.clients = self.setup.clients
        self.search = self.setup.personal and not tested
        self.book = EnergyTracker.create(self.setup)
        self.sampler = self._create_sampler()
        if self.setup.is_private:
            exposure = self._compute_exposure()
            self.setup = plan_training(restore_start_share(self.setup, exposure, folder), exposure, groups, head)
            self.sampler = self._create_sampler()
            self.setup = note_unused_training(self.setup, self._compute_exposure())
        self.config = self.setup.config
        check_features(self.setup)
        rows = self.rows
        new = NewRun(self.setup, lambda: rows.all.take(rows.validation), rows.dataset, observer.say)
        self.begun = self.setup.measured.begin(new)
        if self.setup.secure_sum is not None:
            self.setup.secure_sum.check(self.sampler.size)
        self.checkpoints = Checkpoints(folder / "checkpoint")
        fixed = self._load_constants()
        observer.phase("tokenizing the examples", 1)
        machine = Machine.create(self.setup, fixed)
        work = self._create_work_plan(machine)
        self.fixed = machine.pin(fixed, work, folder)
        self.protection = self._create_protection(work)
        if self.protection is not None and (sums := self.protection.sums) is not None:
            self.setup = replace(self.setup, secure_sum=sums)
        self.workers = Workers(work, self._create_client_plan(), machine, observer, self.rows.validation)
        self._grid = grid
        task = self.setup.task
        if isinstance(task, RowTask) and hash_own_code(type(task)):  # a user's own task must accept the test set, too
            scoring.check_task_outputs(task, self.rows.dataset.test, self.setup.facts.label_names or ())

    def _load_constants(self) -> dict[str, Any]:
        """Return the run constants of a resumed run; a new one has none, or is marked as a trial of a search.

        Raises:
            ConfigError: it is an unfinished trial, and would continue as a run.
        """
        begun = self.checkpoints.load()
        if begun is None:
            return {"search": True} if self.search else {}
        if begun.round < self.setup.rounds and begun.fixed.get("search", False) != self.search:
            raise ConfigError(
                f"FP1507 {self.folder} contains an unfinished trial of a search, whose clients train on fewer "
                "examples; continue the search, or train it whole: fedpeft simulate "
                f"{self.folder.with_suffix('.toml')}"
            )
        return begun.fixed

    def _create_sampler(self) -> Population:
        """Return what draws the cohorts."""
        setup, size = self.setup, self.setup.compute_cohort_size(self.clients)
        return create_population(self.clients, size, compute_chances(setup.profiles), setup.mechanism)

    def _create_work_plan(self, machine: Machine) -> WorkPlan:
        attack = self.setup.attack
        examples, self._triggered = plant_triggers(attack, self.rows, self.config.seed)
        data_key = self.setup.tokenize_rows(examples, self.setup.tokens)
        labels = None if attack is None else compute_attacked_labels(attack, self.rows, self.config.seed)
        plan = create_work_plan(self.setup, machine, data_key, self.folder, labels, self.clients)
        return replace(plan, clients_per_pass=min(plan.clients_per_pass, self.sampler.size))  # no unused places

    def _create_client_plan(self) -> ClientPlan:
        privacy = None
        if self.protection is not None and self.setup.mechanism is not None:
            own = self.protection
            privacy = ClientPrivacy(self.setup.mechanism, own.noise_multiplier, self.folder / KEY, own.start)
        plan = create_client_plan(self.setup, self._shards, self.folder, self._held_out, privacy, self.rows.train.tasks)
        attack = self.setup.attack
        return plan if attack is None else HostilePlan.from_plan(plan, attack, self.setup.layout)

    @cached_property
    def _sizes(self) -> NDArray[np.int64]:
        """Example count of each client, (clients,)."""
        return self._shards.sizes

    @cached_property
    def _shards(self) -> Shards:
        """The shards of the clients; in a trial of a search, without the examples of the final score."""
        shards = self.rows.partition
        return select_training_shards(shards, self._held_out, self.setup.config.seed) if self.search else shards

    def _count_steps(self, client: int) -> int:
        """Return the local steps of a client in a round."""
        return self.setup.profiles[client].steps or self.setup.training.steps_for(int(self._sizes[client]))

    @property
    def most_steps(self) -> int:
        """The most local steps that any client takes in a round."""
        usual = self.setup.training.steps_for(len(self.select_training_rows(int(self._sizes.argmax()))))
        return max(profile.steps or usual for profile in list_distinct(self.setup.profiles))

    @property
    def _held_out(self) -> float:
        """Share of its examples that a client is evaluated on and does not train on."""
        return HELD_OUT if self.setup.personal or self.setup.measured.asks_clients(self.setup) else 0.0

    def divide_rows(self, client: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return a client's examples to train on, and its held-out ones, as indices."""
        return split_held_out(self._shards.shard(client), self._held_out, self.setup.config.seed, client)

    def select_training_rows(self, client: int) -> NDArray[np.int64]:
        """Return a client's examples without the held-out ones, as indices (rows of it,)."""
        return self.divide_rows(client)[0]

    def _create_protection(self, work: WorkPlan) -> PrivacyEngine | None:
        """Return the mechanism with this run's costs; None: nothing is protected.

        Raises:
            PrivacyError: settings that would not protect.
        """
        config, setup = self.config, self.setup
        mechanism = setup.mechanism
        if mechanism is None or not mechanism.protects:
            return None
        federation = self._compute_exposure()
        identity = (
            f"{config.to_toml()} {work.data_key} {work.model_key} {torch.__version__} {self.fixed} "
            f"{setup.profiles} {federation.rows.tolist()} {federation.steps.tolist()}"
        )
        mechanism.check_start(federation)
        labels_of_rows = self.rows.dataset.labels_of_rows
        return make_engine(mechanism, federation, self.folder, identity, config.seed, labels_of_rows)

    def _compute_exposure(self) -> Exposure:
        """Return what the cost of this run depends on."""
        setup, config = self.setup, self.setup.config
        profiles = setup.profiles
        rows = np.array([len(self.select_training_rows(k)) for k in range(self.clients)])
        steps = [profiles[k].steps or setup.training.steps_for(int(rows[k])) for k in range(self.clients)]
        taken = np.zeros(self.clients, dtype=np.int64)
        for round_number in range(1, config.rounds + 1):
            taken[self.sampler.draw(config.seed, round_number)] += 1
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
            start=setup.has_private_start,
            start_entries=count_tensor_entries(setup.noised_shapes) if setup.has_private_start else 0,
            trained=setup.trained_entries,
            whitened=setup.whitened_directions if is_whitened(setup.mechanism) else 0,
        )

    @property
    def statistics(self) -> PartitionStatistics:
        """Statistics of the partition, without labels if the run has privacy."""
        found = self.rows.statistics
        return found.drop_labels() if self.protection is not None else found

    def server(self, records: Records, stopping: Callable[[], bool] = never_stop) -> Server:
        """Return the round loop of this run; `stopping` returns, before each round, whether the run should end here."""
        workers = self.workers
        if self._grid is not None:
            grid = self._grid(self.clients)
        else:
            workers.start()
            grid = CohortGrid(workers.pool, self._sizes, workers.work.clients_per_pass, self._count_steps)
        setup, observer = self.setup, self.observer
        transport, store = Transport(grid, observer.client_done), RunStore.from_records(records)
        model = ServerModel(
            workers.evaluate, workers.compute_validation_loss, self._score_task, workers.examine, self._score_trigger
        )
        run = RunParts(setup, transport, store, observer, model, self.begun, self.protection, self.book)
        start = partial(prepare, setup, transport, self.fixed, self.protection, observer.say)
        return Server(setup, transport, self._chooser, store, observer, attach_features(run), start, stopping)

    def _score_task(self, state: State, version: int, task: int, known: bool) -> Totals:
        """Return the totals of a state on a task's validation examples; if `known`, only the task's classes compete."""
        sequence, rows = self.setup.facts.tasks, self.rows
        assert sequence is not None
        assert rows.held.tasks is not None
        own = rows.validation[rows.held.tasks == task]
        offsets = mask_other_classes(sequence.classes[task], self.setup.facts.classes) if known else None
        return self.workers.score(state, version, own, offsets)

    def _score_trigger(self, state: State, version: int) -> float | None:
        """Return the share of validation examples of other classes that the trigger leads to the target; None: none."""
        return self.workers.score(state, version, self._triggered).accuracy if len(self._triggered) else None

    @property
    def _chooser(self) -> Sampler:
        """The sampler of cohorts: it treats all clients alike, or depends on the energy tracker."""
        rule = self.setup.sampler
        return (
            self.sampler if rule is None or self.book is None else AwarePopulation(rule, self.book, self.sampler.size)
        )

    def train(self, server: Server) -> ServerState:
        """Run all rounds, and return the state that they lead to."""
        self.workers.freeze_rows(self.setup.base_precisions)
        release()
        keep_profiles(self.config.clients, self.folder)
        return server.run()

    @property
    def scorer(self) -> Scorer:
        """The scorer of saved adapters on the test set."""
        rows, workers = self.rows, self.workers
        held = rows.all.take(rows.validation)
        return Scorer(self.setup, workers.work, rows.dataset.test, held, workers.machine.threads, self.observer)

    def load_client_state(self, client: int) -> State:
        """Return a client's own adapter: what is shared, and what the client keeps.

        A client that never took part keeps the common start.

        Raises:
            RunError: no round is finished, or there is no such client.
            ConfigError: under this strategy clients keep nothing.
        """
        progress = self.checkpoints.load()
        if progress is None or not 0 <= client < self.clients:
            raise RunError(
                f"FP5209 {self.folder} has no finished round, or no client {client}; ids are 0 to {self.clients - 1}"
            )
        if not self.setup.personal:
            raise ConfigError(
                f"FP1418 with {self.config.strategy} all clients have the same adapter; leave --client out, and "
                f"use {self.folder}/adapter"
            )
        store = ClientStore(self.folder / "clients")
        own = store.load(client, progress.acknowledged.get(client, 0), tidy=False) or {}
        rule, layout = self.setup.strategy, self.setup.layout
        state = progress.reached_state
        if isinstance(rule, GroupedStrategy):
            group = rule.find_group(client, progress.learned)
            state = rule.get_group_state(group, state, progress.learned, layout)
        state = compose_model(state | select_section(own, "private"), own)
        return rule.prepare_start(state, layout) if isinstance(rule, PreparesStart) else state

    def close(self) -> None:
        """End the workers."""
        self.workers.close()
