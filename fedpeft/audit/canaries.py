"""Canaries in the pipeline of real rounds: a mechanism's actual privacy against its claim.

An audit runs several rounds of the real pipeline: ledger and key, `releasing.release` with clipping, noise and codec,
and the server's decoding, checks and aggregation. Its units are as visible as clipping allows. Canary i contributes ten
times the clipping norm along coordinate i, and a coin decides whether it is in the data.

The contribution changes sign each round. A canary's score is the alternating sum of its coordinate over the released
rounds. Noise that is used twice cancels in this sum, while fresh noise is as strong as in a plain sum. The ledger's
epsilon must not be below what the scores refute (`fedpeft.audit.bounds`).

If clients take turns (`fedpeft.privacy.server_noise`), the noise of rounds is correlated. An attacker who knows the
correlation first whitens the noise. The score is then the part of a canary's entry that has the shape of its turns.

If cohorts are secret, the released data of a round must not depend on the cohort's size (`fedpeft.audit.cohorts`).

With DP-SGD, a canary is an example with several entries, and its gradient passes through dropout. Its effect on the
contributions of other examples is not noise, so scores can't reveal it. It is measured separately: under one key, the
sums over all examples and over all but one must not differ by more than one clipping norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from fedpeft.aggregation.abilities import SelectsUpdate
from fedpeft.aggregation.aggregator import create_aggregator
from fedpeft.aggregation.strategy import Strategy
from fedpeft.audit.bounds import Bounds, compute_bounds
from fedpeft.audit.canary import CanaryExecutor
from fedpeft.audit.canary_audit import CanaryAudit
from fedpeft.audit.cohorts import compute_size_epsilon, is_size_revealed
from fedpeft.clients import releasing
from fedpeft.clients.executor import Job, RowPrivacy
from fedpeft.clients.local_training import LocalTraining
from fedpeft.communication.downlink import Package, SentState
from fedpeft.communication.messages import Instruction, Report
from fedpeft.communication.round_plan import RoundPlan
from fedpeft.communication.uplink import parse_uplink
from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.machine import seeds
from fedpeft.parts.families import LOCAL_OPTIMIZERS, PEFT_METHODS, SERVER_OPTIMIZERS, strategies
from fedpeft.peft.adapter import AdapterShape, Layout, State, TensorSpec, subtract_states
from fedpeft.privacy.abilities import RelatesNoise
from fedpeft.privacy.engine import make_engine
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.mechanism import CohortForm, Mechanism
from fedpeft.privacy.secure_sum.sum import parse_privacy
from fedpeft.privacy.sum_mechanism import SumMechanism
from fedpeft.rounds.acceptance import ReportReceiver
from fedpeft.rounds.progress import ServerState
from fedpeft.rounds.sampling import TurnTaking

VISIBLE = 10.0
"""Size of a canary's contribution, in clipping norms, so that clipping must reduce it."""


FORM = AdapterShape(2, 4.0)


ENTRIES = 16
"""Most entries of the adapter that an example's gradient covers."""


NEIGHBORS = 4
"""Number of examples that are left out of the sum, one at a time."""


@dataclass(frozen=True)
class Verdict:
    """Result of an audit.

    Attributes:
        claimed: epsilon by the ledger.
        delta: the delta of all epsilons.
        bounds: lower bounds on epsilon from the scores.
        distance: largest difference between sums over neighboring data, in clipping norms; None: canaries are clients.
        sizes: epsilon of the released sizes of secret cohorts, which no ledger charges.
    """

    claimed: float
    delta: float
    bounds: Bounds
    distance: float | None = None
    sizes: float = 0.0

    @property
    def has_passed(self) -> bool:
        """Whether nothing refutes the claim."""
        apart = self.distance is not None and self.distance > 1 + 1e-4
        return self.bounds.largest <= self.claimed and not apart and not self.sizes


def run(audit: CanaryAudit, folder: Path) -> Verdict:
    """Run the audit with the ledger and key in `folder`, and return its verdict.

    Raises:
        FedpeftError: settings contradict each other.
    """
    mechanism = parse_privacy(audit.privacy)
    if not isinstance(mechanism, Mechanism) or not mechanism.protects:
        raise PrivacyError(f"FP7010 {audit.privacy} makes no privacy claim to audit; give user_dp, dp_sgd or local_dp")
    if isinstance(mechanism, SumMechanism):
        raise PrivacyError(
            f"FP7011 the audit needs single updates, which {mechanism.name} hides in a sum; audit user_dp, "
            "dp_sgd or local_dp instead (tests check the bounds of sums)"
        )
    included = seeds.create_generator(audit.seed, "canaries").random(audit.canaries) < 0.5
    if mechanism.per_example:
        return _Rows(audit, mechanism, folder, included).compute_verdict()
    return _Clients(audit, mechanism, folder, included).compute_verdict()


def create_layout(canaries: int) -> Layout:
    """Return a small layer, and a head with one entry per canary."""
    return Layout(
        (
            TensorSpec("layer.lora_A.weight", (FORM.rank, 5), "lora_A", "layer"),
            TensorSpec("layer.lora_B.weight", (7, FORM.rank), "lora_B", "layer"),
            TensorSpec("head.weight", (1, canaries), "head", "head"),
        ),
        FORM,
    )


class _Pipeline:
    """Common base of both types of canaries: parts, ledger and alternating score."""

    def __init__(self, audit: CanaryAudit, mechanism: Mechanism, folder: Path, included: np.ndarray) -> None:
        self.audit, self.mechanism, self.included = audit, mechanism, included
        self.strategy: Strategy = strategies.build(audit.strategy)
        self.optimizer = SERVER_OPTIMIZERS.build("sgd")
        self.uplink = parse_uplink(audit.codec)
        self.layout = create_layout(audit.canaries)
        self.strategy.check(self.layout, [FORM])
        self.start: State = {name: torch.zeros(shape) for name, shape in self.layout.shapes.items()}
        self.start["layer.lora_A.weight"] = torch.eye(FORM.rank, 5)
        self.folder = folder
        self.protection = make_engine(mechanism, self._create_federation(), folder, str(audit), audit.seed)
        self.protection.open(resumed=False)

    def _create_federation(self) -> Exposure:
        raise NotImplementedError

    def _create_exposure(self, clients: int, rows: int, cohort: int) -> Exposure:
        audit = self.audit
        return Exposure(
            strategy=self.strategy,
            method=PEFT_METHODS.build("lora"),
            layout=self.layout,
            rows=np.full(clients, rows),
            steps=np.full(clients, audit.steps),
            participations=np.full(clients, audit.rounds),
            batch_size=max(1, round(audit.rate * rows)),
            rounds=audit.rounds,
            cohort=cohort,
            even=True,
        )

    def draw_cohort(self, round_number: int) -> list[int]:
        """Return the clients of a round, for cohorts that are not secret."""
        federation = self.protection.exposure
        if self.mechanism.cohort_form is CohortForm.TURNS:
            return TurnTaking(federation.clients, federation.cohort).draw(self.audit.seed, round_number)
        return list(range(federation.clients))

    def create_canary(self, index: int, sign: float) -> State:
        """Return a canary's contribution, along its own entry of the head."""
        head = torch.zeros(self.layout.shapes["head.weight"])
        head[0, index] = sign * VISIBLE * self.mechanism.clip
        return {**{name: torch.zeros_like(t) for name, t in self.start.items()}, "head.weight": head}

    def sign(self, round_number: int) -> float:
        """Return the sign of a canary's contribution in a round."""
        return 1.0 if round_number % 2 else -1.0

    def create_acceptance(
        self, strategy: Strategy, layout: Layout, progress: ServerState, plan: RoundPlan
    ) -> ReportReceiver:
        """Return the receiver of a round's reports, as the server creates it."""
        state, round_number = progress.adapter, plan.number
        private = self.protection.aggregator(
            strategy, self.optimizer, layout, state, round_number, plan.attempt, progress.clip
        )
        plain = create_aggregator(
            strategy, self.optimizer, layout, state, round_number, self.audit.seed, self.folder / "waiting"
        )
        shared = strategy.list_trained(layout, round_number) - strategy.list_private(layout)
        return ReportReceiver(
            round_number,
            layout,
            shared,
            strategy,
            self.uplink,
            private or plain,
            note_report=self.protection.record_report,
            confidential=True,
            silent=self.protection.mechanism.silent,
        )

    def release(self, update: State, received: State, layout: Layout, ids: tuple[int, int, int], seed: int) -> bytes:
        """Return a client's released payload for an update; `ids` are round, attempt and client."""
        own = releasing.LocalUpdate(update, received, received | update, layout)
        encoding = releasing.Encoding(memory={}, bits=0.0, seed=seed, turn=ids[0] + ids[2])
        left: tuple[bytes, State] = releasing.release(own, self.uplink, self.protection.guard, ids, encoding)
        return left[0]

    def decode_canary(self, acceptance: ReportReceiver, payload: bytes, canary: int, received: State) -> State:
        """Return the server's decoded update of a canary's payload.

        Raises:
            PrivacyError: the server rejects it.
        """
        form = acceptance.layout.form
        assert form is not None
        asked = Instruction("train", acceptance.round, canary, b"", rank=form.rank, alpha=form.alpha)
        report = Report(canary, acceptance.round, payload, rows=1)
        update = acceptance.add(report, SentState(asked, Package(b"", received, None)))
        if update is None:
            reason = acceptance.results[-1].rejected
            raise PrivacyError(f"FP7012 the server rejects a canary's update ({reason}); audit it with a smaller clip")
        return update.delta

    def judge(self, scores: np.ndarray, distance: float | None = None) -> Verdict:
        """Return the verdict: the ledger's claim and the bounds of the scores."""
        claimed, _ = self.protection.epsilons()
        delta, federation, sizes = self.protection.delta, self.protection.exposure, 0.0
        if self.mechanism.secret_cohort and is_size_revealed(federation.cohort):
            rate = federation.cohort / federation.clients
            sizes = compute_size_epsilon(federation.clients, rate, self.audit.rounds, delta)
        return Verdict(claimed, delta, compute_bounds(scores, self.included, delta), distance, sizes)


class _Clients(_Pipeline):
    """Canaries that are clients.

    A canary in the data is in the population (user_dp), or sends one update instead of its opposite.
    """

    def _create_federation(self) -> Exposure:
        m = self.audit.canaries
        return self._create_exposure(m, 1, max(1, math.floor(self.audit.rate * m + 1e-9)))

    def compute_verdict(self) -> Verdict:
        """Release all rounds; a canary's score is the movement of its entry, with alternating signs."""
        progress = ServerState(round=0, adapter=self.start)
        moves, turns = np.zeros((2, self.audit.rounds, self.audit.canaries))
        for round_number in range(1, self.audit.rounds + 1):
            plan = self.protection.enter(round_number, progress.compute_digest(), self.draw_cohort(round_number))
            assert plan is not None
            acceptance = self.create_acceptance(self.strategy, self.layout, progress, plan)
            for member in plan.cohort:
                payload = self.create_payload(member, plan, progress.adapter)
                if payload is not None:
                    delta = self.decode_canary(acceptance, payload, member, progress.adapter)
                    if self.mechanism.noises_updates:  # the attacker sees the update itself
                        moves[round_number - 1, member] = float(delta["head.weight"][0, member])
            takes_turns = self.mechanism.cohort_form is CohortForm.TURNS
            turns[round_number - 1, plan.cohort if takes_turns else slice(None)] = self.sign(round_number)
            outcome = acceptance.aggregator.finish(progress.memory)
            if not self.mechanism.noises_updates:
                moved = outcome.state["head.weight"] - progress.adapter["head.weight"]
                moves[round_number - 1] = moved[0].double().numpy()
            progress = replace(
                progress, round=round_number, adapter=outcome.state, memory=outcome.memory, clip=outcome.clip
            )
        return self.judge(self._compute_scores(moves, turns))

    def _compute_scores(self, moves: np.ndarray, turns: np.ndarray) -> np.ndarray:
        """Return the canaries' scores.

        If the noise of rounds is correlated, both arguments are first multiplied by the factor that whitens it.

        Args:
            moves: movement of each canary's entry in each round, (rounds, canaries).
            turns: signs of the rounds in which a canary takes its turn, otherwise 0, (rounds, canaries).
        """
        mechanism, exposure = self.mechanism, self.protection.exposure
        factor = mechanism.noise_factor(exposure) if isinstance(mechanism, RelatesNoise) else None
        if factor is not None:
            moves, turns = factor @ moves, factor @ turns
        scores: np.ndarray = (moves * turns).sum(0) / np.maximum(1e-9, np.linalg.norm(turns, axis=0))
        return scores

    def create_payload(self, client: int, plan: RoundPlan, received: State) -> bytes | None:
        """Return a client's payload, or None if it is not in the data."""
        inside, round_number = bool(self.included[client]), plan.number
        if self.mechanism.noises_updates:
            update = self._create_update(client, round_number if inside else round_number + 1)
            return self.release(update, received, self.layout, (round_number, plan.attempt, client), client)
        return self._encode_canary(client, round_number % 2) if inside else None

    def _create_update(self, client: int, round_number: int) -> State:
        """Return a canary's update in a round; the next round has its opposite."""
        trained = self.strategy.list_trained(self.layout, round_number)
        update = {name: t for name, t in self.create_canary(client, self.sign(round_number)).items() if name in trained}
        if not isinstance(self.strategy, SelectsUpdate):
            return update
        after = self.start | {name: self.start[name] + tensor for name, tensor in update.items()}
        return self.strategy.select_update(update, self.start, after, self.layout)

    @cache  # noqa: B019 - lives as long as the audit
    def _encode_canary(self, client: int, odd: int) -> bytes:
        """Return a canary's payload if the server adds the noise; rounds of equal parity share it."""
        return self.release(self._create_update(client, 2 - odd), self.start, self.layout, (2 - odd, 0, client), client)


class _Rows(_Pipeline):
    """Canaries that are examples of one client, which trains with DP-SGD; each gradient has entries of its own."""

    def _create_federation(self) -> Exposure:
        return self._create_exposure(1, self.audit.canaries, 1)

    def compute_verdict(self) -> Verdict:
        """Train all rounds; a canary's score is the movement of its entries in the submitted updates."""
        executor = _create_executor(self)
        rule = strategies.build("fedit")  # aggregation after the noise costs no privacy
        progress = ServerState(round=0, adapter=executor.start)
        scores = np.zeros(self.audit.canaries)
        plain = LOCAL_OPTIMIZERS.build("sgd(head_rate=1.0)")
        local = LocalTraining(self.protection.exposure.batch_size, optimizer=plain).replace_steps(self.audit.steps)
        for round_number in range(1, self.audit.rounds + 1):
            plan = self.protection.enter(round_number, progress.compute_digest(), self.draw_cohort(round_number))
            assert plan is not None
            executor.sign = self.sign(round_number)
            privacy = RowPrivacy(
                self.mechanism.clip,
                self.protection.noise_multiplier,
                self.audit.rate,
                self.protection.key,
                plan.attempt,
            )
            job = Job(
                client=0,
                round=round_number,
                seed=self.audit.seed,
                rows=np.flatnonzero(self.included),
                received=progress.adapter,
                trained=frozenset(executor.layout.names),
                training=local,
                learning_rate=1.0,
                form=executor.layout.form,
                privacy=privacy,
            )
            [trained] = executor.train([job])
            update = subtract_states(trained.state, job.received)
            payload = self.release(update, job.received, executor.layout, (round_number, plan.attempt, 0), round_number)
            acceptance = self.create_acceptance(rule, executor.layout, progress, plan)
            delta = self.decode_canary(acceptance, payload, 0, job.received)
            scores -= self.sign(round_number) * _flatten(delta, executor.layout)[executor.entries].sum(1)
            outcome = acceptance.aggregator.finish(progress.memory)
            progress = replace(progress, round=round_number, adapter=outcome.state, memory=outcome.memory)
        return self.judge(scores, self._measure_distance(executor, job))

    def _measure_distance(self, executor: CanaryExecutor, job: Job) -> float:
        """Return the largest distance between sums over all examples and over all but one, in clipping norms a step."""
        assert job.privacy is not None
        quiet = replace(job, training=job.training.replace_steps(2), privacy=replace(job.privacy, noise=0.0, rate=1.0))

        def compute_sum(rows: np.ndarray) -> np.ndarray:
            [trained] = executor.train([replace(quiet, rows=rows)])
            return len(rows) * _flatten(subtract_states(trained.state, quiet.received), executor.layout)

        rows = np.arange(self.audit.canaries)
        whole = compute_sum(rows)
        apart = (float(np.linalg.norm(whole - compute_sum(np.delete(rows, row)))) for row in range(NEIGHBORS))
        return max(apart) / float(quiet.training.steps_for(self.audit.canaries) * self.mechanism.clip)


def _flatten(state: State, layout: Layout) -> np.ndarray:
    """Return all tensors as one vector."""
    return torch.cat([state[name].flatten() for name in layout.names]).double().numpy()


def _create_executor(pipeline: _Pipeline) -> CanaryExecutor:
    """Return the executor with the tiny model; each example's gradient has entries of its own."""
    from fedpeft.data.rows import load_dataset
    from fedpeft.models.base_model import resolve_model
    from fedpeft.parts.families import TASKS

    data = load_dataset("tiny")
    task, folder = TASKS.build(data.task), resolve_model("tiny")
    method = PEFT_METHODS.build("lora(layers=1)")
    model = task.model(task.base(folder, torch.float32), data.classes)
    method.attach(model, "fp32")
    layout, canaries = method.layout(model), pipeline.audit.canaries
    if canaries > layout.numel:
        raise ConfigError(
            f"FP1041 {canaries} canaries exceed the audited adapter's {layout.numel} parameters; give at most that many"
        )
    rows = task.tokenise(data.train.take(np.arange(canaries) % len(data.train)), folder, 32)
    executor = CanaryExecutor(model, task, rows, layout, method.privacy)
    spread = layout.numel // canaries
    executor.entries = spread * np.arange(canaries)[:, None] + np.arange(min(spread, ENTRIES))
    executor.length = VISIBLE * pipeline.mechanism.clip
    executor.start = method.start(model, pipeline.audit.seed)
    return executor
