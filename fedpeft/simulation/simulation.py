"""A federation on one machine: data, partition, base model, workers, the server's rounds, and the final score."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from concurrent.futures import as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from flwr.serverapp import Grid
from torch import nn

from fedpeft import seeds
from fedpeft.aggregation.factors import effective as effective_weight
from fedpeft.aggregation.factors import lora_form
from fedpeft.clients.attack import ATTACKS
from fedpeft.clients.client import ClientPlan
from fedpeft.clients.executor import Job, Totals
from fedpeft.clients.pool import Pool, Worker, result
from fedpeft.clients.ray_pool import RayPool, default_workers, worker_device
from fedpeft.clients.store import ClientStore, section
from fedpeft.clients.workbench import WorkPlan, cached_examples
from fedpeft.communication.base_residual import ResidualFiles
from fedpeft.communication.codec import parse_codec
from fedpeft.config import RunConfig
from fedpeft.data import cached_rows
from fedpeft.data.examples import Examples
from fedpeft.data.partition import PARTITIONS, Partition, PartitionStatistics, held_out
from fedpeft.data.rows import Dataset, Rows, load_dataset, split_validation
from fedpeft.errors import AssetError, ConfigError, RunError
from fedpeft.machine.hardware import accelerators, gpu_name, usable_cores
from fedpeft.machine.memory import release
from fedpeft.models import kernels
from fedpeft.models.base_model import origin_of
from fedpeft.models.calibration import temperature
from fedpeft.models.frozen_blocks import HiddenRows, above
from fedpeft.models.quantized import quantize
from fedpeft.models.task import DTYPES, TASKS, FederatedModel
from fedpeft.parts import part_text
from fedpeft.peft import saved_adapter
from fedpeft.peft.adapter import State
from fedpeft.peft.stacked_layers import Kernel
from fedpeft.privacy.engine import KEY, ClientPrivacy, Protection
from fedpeft.privacy.mechanism import Federation
from fedpeft.run.observer import Metrics, Observer
from fedpeft.run.profiles import PROFILES, groups_of
from fedpeft.run.records import Records
from fedpeft.run.setup import DataFacts, Setup
from fedpeft.server.evaluation import HELD_OUT
from fedpeft.server.progress import Checkpoints, Progress
from fedpeft.server.rounds import Schedule, Server
from fedpeft.server.sampling import FixedSize, cohort_size
from fedpeft.simulation.forgetting import PROBE_ROWS, TEST_ROWS, Forgetting, compared, second_task, standing
from fedpeft.simulation.grid import CohortGrid
from fedpeft.simulation.pooled import best_pooled
from fedpeft.simulation.probe import PROBE_TOKENS, ProbeResult, linear_probe

VALIDATION_ROWS = 1000
"""Training rows that no client gets, for tuning and the curve per round; a tenth of the rows if there are fewer."""

TOKENS_PER_PASS, GPU_TOKENS_PER_PASS = 1024, 16384
"""How many clients train in one pass: as many as make about this many tokens a step."""

TILES_PER_CALL = 4


class SimulationObserver(Observer, Protocol):
    """Is also told about the work before the rounds and after them."""

    def phase(self, name: str, total: int) -> None:
        """A phase of `total` steps begins."""

    def advance(self, steps: int = 1) -> None:
        """Steps of the phase are done."""


def joined(first: Rows, second: Rows) -> Rows:
    """The rows of both, one after the other."""
    if isinstance(first.inputs, np.ndarray):
        inputs: Any = np.concatenate([first.inputs, np.asarray(second.inputs)])
    else:
        inputs = [*first.inputs, *second.inputs]
    pairs = ((first.labels, second.labels), (first.owners, second.owners))
    labels, owners = (None if a is None or b is None else np.concatenate([a, b]) for a, b in pairs)
    return Rows(inputs, labels, owners)


@dataclass(frozen=True)
class Score:
    """The finished model on the test rows."""

    accuracy: float
    loss: float
    scores: saved_adapter.Scores
    temperature: float = 1.0


class Simulation:
    """All that a run needs, made from its configuration.

    Args:
        config: checked settings.
        folder: the run's folder; exists.
        observer: is told how things go on.

    Raises:
        FedpeftError: settings that do not fit the data or the model, before anything is trained.
    """

    outside: Grid | None = None
    """Another grid than the configured one: inside a Flower app, Flower's."""

    def __init__(self, config: RunConfig, folder: Path, observer: SimulationObserver) -> None:
        self.config = config
        self.folder = folder
        self.observer = observer
        self.checkpoints = Checkpoints(folder / "checkpoint")
        earlier = self.checkpoints.load()
        self.fixed: dict[str, Any] = earlier.fixed if earlier else {}

        self.dataset, self.train_rows, validation, self.partition = self._data()
        self.second = second_task(config.forgetting, self.dataset) if config.forgetting else None
        self.clients = len(self.partition)
        facts = DataFacts.of(self.dataset, self.clients)
        self.setup = Setup.of(config, facts, groups_of(config.ranks, config.profiles, folder))
        self.profiles = self.setup.profiles
        chances = tuple(profile.participation for profile in self.profiles)
        self.sampler = FixedSize(self.clients, cohort_size(config.cohort, self.clients), chances)
        self.validation = np.arange(len(self.train_rows), len(self.train_rows) + len(validation))
        self.all_rows = joined(self.train_rows, validation)
        self.work = self._work_plan()
        self.protection = self._protection()

    @property
    def share(self) -> float:
        """Of the clients, those that a round asks."""
        return self.sampler.size / self.clients

    def _protection(self) -> Protection | None:
        """The mechanism with this run's costs; refuses what would not protect."""
        config, mechanism = self.config, self.setup.mechanism
        if mechanism is None or not mechanism.protects:
            return None
        held = HELD_OUT if self.setup.personal else 0.0
        rows = np.array([len(held_out(self.partition.shard(k), held, config.seed, k)[0]) for k in range(self.clients)])
        steps = [self.profiles[k].steps or self.setup.training.steps_for(int(rows[k])) for k in range(self.clients)]
        taken = np.zeros(self.clients, dtype=np.int64)
        for round in range(1, config.rounds + 1):
            taken[self.sampler.draw(config.seed, round)] += 1
        federation = Federation(
            strategy=self.setup.strategy,
            method=self.setup.method,
            layout=self.setup.layout,
            rows=rows,
            steps=np.array(steps),
            participations=taken,
            batch_size=config.batch_size,
            rounds=config.rounds,
            cohort=self.sampler.size,
            even=len(set(self.sampler.weights)) <= 1,
        )
        identity = (
            f"{config.to_toml()} {self.work.data_key} {self.work.model_key} {torch.__version__} {self.fixed} "
            f"{self.profiles} {rows.tolist()} {steps}"
        )
        return Protection(
            mechanism, federation, self.sampler, self.folder, identity, config.stop_at_budget, config.seed
        )

    def _data(self) -> tuple[Dataset, Rows, Rows, Partition]:
        """The data set, its training and validation rows, and how the former lie on clients."""
        config = self.config
        partitioner = PARTITIONS.build(config.partition)
        dataset = load_dataset(config.dataset)
        validation_rows = min(VALIDATION_ROWS, max(1, len(dataset.train) // 10))
        train, validation = split_validation(dataset.train, validation_rows)
        return dataset, train, validation, partitioner.split(train, config.clients, config.seed)

    def _attacked_labels(self) -> np.ndarray | None:
        """All rows' labels, with those of hostile clients as they change them; None: nobody does."""
        if not self.config.attack:
            return None
        attack = ATTACKS.build(self.config.attack)
        if not attack.changes_labels:
            return None
        if self.all_rows.labels is None:
            raise ConfigError(f"{self.config.attack} changes labels, and {self.dataset.name} has none; take sign_flip")
        labels: np.ndarray = self.all_rows.labels.copy()
        for client in attack.attackers(self.clients, self.config.seed):
            shard = self.partition.shard(client)
            labels[shard] = attack.relabel(labels[shard], self.dataset.classes)
        return labels

    @property
    def statistics(self) -> PartitionStatistics:
        """What the partition looks like."""
        found = self.partition.statistics(self.train_rows.labels, len(self.train_rows))
        return found.without_labels() if self.protection is not None else found

    # ------------------------------------------------------------------------------------------------------ the plan

    @cached_property
    def devices(self) -> list[str]:
        """What the workers share: the GPUs, or the CPU."""
        if self.config.grid == "ray":
            return [worker_device(self.config.ray_address, int(self.fixed.get("workers") or self.config.workers))]
        return accelerators() or ["cpu"]

    @property
    def gpus(self) -> list[str]:
        """Those among `devices`."""
        return [device for device in self.devices if device != "cpu"]

    def _default_workers(self) -> int:
        """One per GPU, or core where there is none; on a cluster of all its machines."""
        if self.config.grid == "ray":
            return int(default_workers(self.config.ray_address))
        return len(self.gpus) or usable_cores()

    def _work_plan(self) -> WorkPlan:
        config = self.config
        workers = int(self.fixed.get("workers") or config.workers or self._default_workers())
        dtype = DTYPES[config.dtype]
        kernel: Kernel = self.fixed.get("kernel") or kernels.choose(dtype)
        if kernel not in kernels.candidates(dtype):  # a run that began on another machine
            kernel = kernels.choose(dtype)
        if self.gpus:
            kernel = "native"
        self.fixed |= {"workers": workers, "kernel": kernel, "torch": torch.__version__, "cpu": kernels.cpu_name()}
        self.fixed["gpus"] = [gpu_name(device) for device in self.gpus]
        data_key = self.setup.tokenised(self.all_rows, self.setup.tokens)
        model_key = cached_rows.file_hash(self.setup.model_directory, ("*.safetensors", "config.json"))
        self._pin(data=data_key, model=model_key)
        per_example = self.setup.mechanism is not None and self.setup.mechanism.per_example
        reusing = config.executor == "batched" and not per_example  # methods without a batched form, too
        batched = reusing and self.setup.method.batched
        lengths = cached_examples(data_key).lengths
        tokens = float(lengths.mean()) if len(lengths) else self.setup.tokens
        together = GPU_TOKENS_PER_PASS if self.gpus else TOKENS_PER_PASS
        return WorkPlan(
            task=self.dataset.task,
            method=self.setup.peft,
            model=self.setup.model_directory,
            model_key=model_key,
            width=self.setup.width,
            data_key=data_key,
            classes=self.dataset.classes,
            layout=self.setup.layout,
            dtype=config.dtype,
            executor="private" if per_example else "batched" if batched else "sequential",
            clients_per_pass=max(1, round(together / (config.batch_size * tokens))),
            depth=self.setup.frozen_blocks if reusing else 0,
            kernel=kernel if batched else "native",
            threads=1,
            device=self.devices[0],
            training=self.setup.training,
            seed=config.seed,
            residuals=self.folder / "base",
            labels=self._attacked_labels(),
        )

    def _pin(self, **keys: str) -> None:
        """Note what must stay the same until the run's end.

        Raises:
            RunError: a resumed run finds other rows, or another model, than it began with.
        """
        for name, value in keys.items():
            if self.fixed.setdefault(name, value) != value:
                raise RunError(
                    f"the run in {self.folder} can't be continued: its {name} has changed since it began; put back "
                    "what was there, or start a new run"
                )

    @property
    def held_out(self) -> float:
        """Share of its rows that a client is evaluated on and does not train on."""
        return HELD_OUT if self.setup.personal else 0.0

    @cached_property
    def pool(self) -> Pool:
        """The workers."""
        clients = ClientPlan(
            partition=self.partition,
            codec=str(self.setup.uplink),
            downlink=str(self.setup.downlink),
            start={} if self.setup.downlink.lossless else self.setup.start,
            statistics=self.setup.statistics,
            lossless=self.setup.lossless,
            head=part_text(self.setup.head),
            strategy=self.config.strategy,
            store=self.folder / "clients",
            held_out=self.held_out,
            attack=self.config.attack,
            privacy=self._client_privacy(),
        )
        if self.config.grid == "ray":
            return RayPool(self.work, clients, self.fixed["workers"], self.config.ray_address)
        return Pool(self.work, clients, self.fixed["workers"], self.devices)

    def _client_privacy(self) -> ClientPrivacy | None:
        """What clients need to know of the mechanism."""
        if self.protection is None:
            return None
        return ClientPrivacy(self.config.privacy, self.protection.noise, self.folder / KEY)

    # ------------------------------------------------------------------------------------------------- shared compute

    def freeze(self, data_key: str, depth: int, name: str, base: str = "") -> None:
        """Compute what is missing of the frozen model's output on some rows, with all workers.

        `base`: precision of the base that computes it; empty: the run's own.
        """
        missing = self.work.at(base).store(data_key, depth).missing()
        if not missing:
            return
        self.observer.phase(name, len(missing))
        calls = [
            self.pool.submit(Worker.fill, data_key, depth, missing[i : i + TILES_PER_CALL], base)
            for i in range(0, len(missing), TILES_PER_CALL)
        ]
        for call in as_completed(calls):
            self.observer.advance(result(call))

    def evaluate(self, state: State, version: int) -> Metrics:
        """The global state on the base of `version`: validation rows, the run's own precision, split over workers."""
        parts = np.array_split(self.validation[np.argsort(self.lengths[self.validation])], self.fixed["workers"] * 2)
        calls = [self.pool.submit(Worker.evaluate, state, part, version) for part in parts if len(part)]
        totals = sum((result(call) for call in calls), Totals())
        return Metrics(totals.mean_loss, totals.accuracy)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        lengths: np.ndarray = cached_examples(self.work.data_key).lengths
        return lengths

    def probe(self, tokens: int | None = None) -> ProbeResult | None:
        """The frozen-base linear probe on the test rows, on texts of `tokens` tokens; None for language modelling.

        By default the texts are as long as the run's own, and at least as long as suits the probe best.
        """
        if self.dataset.task != "classification":
            return None
        tokens = tokens or min(self.setup.readable, max(self.setup.tokens, PROBE_TOKENS))
        if tokens == self.setup.tokens:
            train, depth = self.work.data_key, self.work.depth
        else:
            train, depth = self.setup.tokenised(self.all_rows, tokens), 0
        test = self.setup.tokenised(self.dataset.test, tokens)
        self.freeze(train, depth, "frozen features of the training rows (kept for later runs)")
        self.freeze(test, 0, "frozen features of the test rows (kept for later runs)")
        labels, test_labels = self.all_rows.labels, self.dataset.test.labels
        assert labels is not None
        assert test_labels is not None
        rule = "one standard error, cross-validated"
        precision = self.setup.method.base_precision
        more: dict[str, str] = {"precision": precision} if precision else {}
        if self.gpus:
            more["device"] = self.work.device.partition(":")[0]
        name = cached_rows.key(
            train=train, test=test, model=self.work.model_key, dtype=self.config.dtype, probe=rule, **more
        )

        def fit() -> dict[str, np.ndarray]:
            features = self.work.store(train, depth).features(np.arange(len(labels))).numpy()
            held_out = self.work.store(test, 0).features(np.arange(len(test_labels))).numpy()
            shared, held = np.arange(len(self.train_rows)), self.validation
            self.observer.phase("linear probe", 1)
            made = linear_probe(
                (features[shared], labels[shared]), (features[held], labels[held]), (held_out, test_labels)
            )
            return {
                "accuracy": np.array(made.accuracy),
                "strength": np.array(made.strength),
                "predicted": made.predicted,
            }

        found = cached_rows.arrays("probe", name, fit)
        return ProbeResult(float(found["accuracy"]), float(found["strength"]), np.asarray(found["predicted"]))

    # ------------------------------------------------------------------------------------------------------ the rounds

    def grid(self) -> Grid:
        """How the server reaches its clients."""
        if self.outside is not None:
            return self.outside
        return CohortGrid(self.pool, self.partition.sizes, self.work.clients_per_pass)

    def server(self, records: Records) -> Server:
        """The server of this run."""
        config = self.config
        return Server(
            grid=self.grid(),
            strategy=self.setup.strategy,
            optimizer=self.setup.optimizer,
            downlink=self.setup.downlink,
            lossless=parse_codec(self.setup.lossless),
            uplink=self.setup.uplink,
            estimates=ClientStore(self.folder / "estimates"),
            sampler=self.sampler,
            schedule=Schedule(config.learning_rate, config.rounds, config.schedule),
            head=self.setup.head,
            layout=self.setup.layout,
            start=self.setup.start,
            profiles=self.profiles,
            classes=self.dataset.classes,
            predictions=1 if self.dataset.task == "classification" else self.setup.tokens,
            seed=config.seed,
            rounds=config.rounds,
            weighting="uniform" if self.setup.mechanism or config.weighting == "uniform" else "rows",
            proximal=config.proximal,
            scaffold=config.scaffold,
            evaluate=self.evaluate,
            bases=ResidualFiles(self.work.residuals),
            evaluate_every=config.evaluate_every,
            records=records,
            checkpoints=self.checkpoints,
            observer=self.observer,
            scratch=self.folder / "waiting",
            fixed=self.fixed,
            protection=self.protection,
            factoring=self.setup.factor_view,
            weight_changes=self.setup.weight_changes,
        )

    def train(self, server: Server) -> Progress:
        """All rounds."""
        if self.dataset.task == "classification":
            for base in ("", *self.setup.base_precisions):
                name = f"frozen layers{f' in {base}' if base else ''} (kept for later runs)"
                self.freeze(self.work.data_key, self.work.at(base).depth, name, base)
        release()
        if self.config.profiles and not (self.folder / PROFILES).exists():
            shutil.copyfile(self.config.profiles, self.folder / PROFILES)
        return server.run()

    # -------------------------------------------------------------------------------------------------------- the end

    def save(self, state: State, folder: Path, residual: State | None = None) -> None:
        """Write the finished adapter (or model), with what exact rules have put into the base, by module."""
        reference = self.setup.model()
        changes = self.setup.method.changes(reference, state)
        if residual:
            effective = {
                p.module: effective_weight(p, state, lora_form(self.setup.layout)) for p in self.setup.layout.pairs
            }
            changes = saved_adapter.with_residual(effective, residual)
        own = self.setup.peft if not (changes or self.setup.method.in_peft or self.setup.method.whole_model) else None
        name = origin_of(self.setup.model_name).name
        saved_adapter.save(folder, reference, state, self.dataset.label_names, changes, own, name)

    def client_state(self, client: int) -> State:
        """A client's own adapter: what is shared, and what the client keeps (its common start, if it never took part).

        Raises:
            RunError: no round is finished, or there is no such client.
            ConfigError: the strategy leaves nothing with clients.
        """
        progress = self.checkpoints.load()
        if progress is None or not 0 <= client < self.clients:
            raise RunError(
                f"{self.folder} has no finished round, or no client {client}; ids are 0 to {self.clients - 1}"
            )
        if not self.setup.personal:
            raise ConfigError(f"with {self.config.strategy} all clients have the same adapter: {self.folder}/adapter")
        store = ClientStore(self.folder / "clients")
        own = store.load(client, progress.acknowledged.get(client, 0), tidy=False) or {}
        own_state: State = progress.adapter | section(own, "private")
        return own_state

    def score(self, folder: Path, name: str, base_precision: str = "fp32") -> Score:
        """The test rows, scored once with the saved files: fixed batches, in this process with all its cores.

        `base_precision`: of the base that the files are loaded on; they and all else are fp32 (bf16 on a bf16 base).
        The workers should have ended: their memory is not needed any more.
        """
        work = dataclasses.replace(self.work.at(base_precision), device="cpu")
        torch.set_num_threads(usable_cores() if self.gpus else self.fixed["workers"])
        base = self.setup.task.base(self.setup.model_directory, DTYPES.get(base_precision, torch.float32))
        quantize(base, work.precision or self.setup.method.base_precision)
        base, test, held = self._reused(base, work, name)
        model = saved_adapter.load(folder, self.setup.task, base, self.dataset.classes)
        del base
        divisor = self._temperature(model, held)
        batches = saved_adapter.score_batches(test)
        self.observer.phase(name, len(batches))
        columns = {f.name: np.zeros(len(test)) for f in dataclasses.fields(saved_adapter.Scores)}
        for rows in batches:
            scores = saved_adapter.score(model, self.setup.task, test.batch(rows), divisor)
            for column, values in columns.items():
                values[rows] = getattr(scores, column)
            self.observer.advance()
        scores = saved_adapter.Scores(**columns)
        count = scores.count.sum()
        return Score(float(scores.correct.sum() / count), float(scores.loss.sum() / count), scores, divisor)

    def _reused(self, base: nn.Module, work: WorkPlan, name: str) -> tuple[nn.Module, Examples, Examples]:
        """What the score runs on: a base, test rows and validation rows.

        They begin at the lowest adapted block where the frozen part below it is reused and the disk has room for it.
        """
        keys = [
            self.setup.tokenised(rows, self.setup.tokens)
            for rows in (self.dataset.test, self.all_rows.take(self.validation))
        ]
        depth = 0 if work.precision or self.setup.method.base_precision else self.setup.frozen_blocks
        if depth:
            stores = [work.store(key, depth) for key in keys]
            try:
                missing = [(store, tile) for store in stores for tile in store.missing()]
            except AssetError:
                depth = 0
        if not depth:
            test, held = (cached_examples(key) for key in keys)
            return base, test, held
        if missing:
            self.observer.phase(f"{name}: frozen layers (kept for later runs)", len(missing))
        for store, tile in missing:
            store.fill(tile, base)
            self.observer.advance()
        test_rows, held_rows = (HiddenRows(store) for store in stores)
        return above(base, depth), test_rows, held_rows

    def _temperature(self, model: FederatedModel, held: Examples) -> float:
        """What logits are divided by for the best fit of the validation rows; 1 for language models."""
        labels = self.all_rows.labels
        if labels is None or not len(held):
            return 1.0
        logits = np.zeros((len(held), self.dataset.classes))
        with torch.inference_mode():
            for index in saved_adapter.score_batches(held):
                logits[index] = model(held.batch(index)).double().numpy()
        return temperature(logits, labels[self.validation])

    def forgotten(self, folder: Path) -> Forgetting | None:
        """The second task on the base and on the finished model in `folder`; None where no task was named."""
        if self.second is None:
            return None
        self.observer.phase(f"forgetting: {self.second.name} on the base and on the result", 1)

        def base() -> nn.Module:
            made = self.setup.task.base(self.setup.model_directory, torch.float32)
            quantize(made, self.setup.method.base_precision)
            return made

        second = self.second
        task = TASKS.build(second.task)  # of language models: plain text after instructions, or the reverse

        def tokenise(rows: Rows) -> Examples:
            return task.tokenise(rows, self.setup.model_directory, self.setup.tokens)

        name = cached_rows.key(
            rows=[cached_rows.rows_hash(rows) for rows in (second.train, second.test)],
            model=self.work.model_key,
            tokenizer=cached_rows.file_hash(self.setup.model_directory, cached_rows.TOKENIZER_FILES),
            tokens=self.setup.tokens,
            task=second.task,
            precision=self.setup.method.base_precision,
            used=(PROBE_ROWS, TEST_ROWS),
        )

        def untouched() -> dict[str, np.ndarray]:
            model = self.setup.task.model(base(), self.dataset.classes)
            return {"standing": np.array(standing(second, task, tokenise, model))}

        before = float(cached_rows.arrays("standing", name, untouched)["standing"])
        after = standing(
            second, task, tokenise, saved_adapter.load(folder, self.setup.task, base(), self.dataset.classes)
        )
        return compared(second, before, after)

    def centralised(self, state: State) -> tuple[Path, float]:
        """The same adapter trained on the pooled rows: same start `state`, passes and batch size.

        Returns the folder that it is saved in, and its learning rate, the best of `fedpeft.simulation.pooled.RATES`.
        """
        config = self.config
        rows = np.arange(len(self.train_rows))
        seen = [self._rows_a_round(client) for client in range(self.clients)]
        piece = max(1, round(sum(seen) / self.clients * self.sampler.size))
        shuffled = np.concatenate(
            [
                seeds.generator(config.seed, "centralised", i).permutation(rows)
                for i in range(-(-piece * config.rounds // len(rows)))
            ]
        )
        schedule = Schedule(config.learning_rate, config.rounds, config.schedule)
        training = dataclasses.replace(self.setup.training, epochs=1.0, steps=0)

        def step(states: Mapping[float, State], number: int) -> dict[float, State]:
            jobs = {
                rate: Job(
                    client=self.clients,
                    round=number,
                    seed=config.seed,
                    rows=shuffled[(number - 1) * piece : number * piece],
                    received=received,
                    trained=frozenset(self.setup.layout.names),
                    training=training,
                    learning_rate=rate * schedule.at(number),
                    form=self.setup.layout.form,
                )
                for rate, received in states.items()
            }
            calls = {rate: self.pool.submit(Worker.train, job) for rate, job in jobs.items()}
            return {rate: states[rate] | result(call).state for rate, call in calls.items()}

        self.observer.phase("the same adapter on the pooled data", config.rounds)
        best, rate = best_pooled(
            state, config.rounds, step, lambda found: self.evaluate(found, 0).loss, self.observer.advance
        )
        folder = self.folder / "centralised"
        folder.mkdir(exist_ok=True)
        self.save(best, folder)
        return folder, rate * config.learning_rate

    def _rows_a_round(self, client: int) -> float:
        """How many rows a client's local steps of one round see, repeated ones counted again."""
        rows, batch = len(self.partition.shard(client)), self.setup.training.batch_size
        steps: int = self.profiles[client].steps or self.setup.training.steps_for(rows)
        return float(steps * rows / -(-rows // batch))

    def close(self) -> None:
        """End the workers."""
        if "pool" in self.__dict__:
            self.pool.close()
