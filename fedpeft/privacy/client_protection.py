"""The protection of a real client's own examples: its ledger, on its own disk, under a key that never leaves it.

Epsilon depends on nothing that the server must be trusted with. The client chooses its noise for its own examples, or
takes the multiplier in the settings and computes its cost. It counts the steps that the server asks for, and refuses
what its mechanism does not cover. Every charge is written and synced before any example is read:

    asked before, and answered    the stored answer, bit for bit; no charge
    the last charge, unanswered   a kill came between charge and answer, so nothing left: the same noise, no new charge
    anything else                 a charge and new noise, or a refusal if the budget does not allow it

Training is charged. So is the single release of sums over examples for a private start: the client refuses a second
one, whatever the budget. An evaluation is free if the settings let clients report losses (raw_metrics, which epsilon
does not cover). The client refuses every other task, known or not.

So three events can only make the ledger overstate the spending: a kill between any two steps, a server that goes back
in time, and a server that asks almost the same twice. Noise is never used for two inputs.

In sums under masks each client adds a share of the noise, so the cost of a sum depends on all of its clients. Then
noise multiplier, grid and rates follow from the common settings, and a client's own limits decide how often it takes
part. It does not rely on the server:

    noise       each client computes the grid; clients with different grids are in different sums
                (`SecureSum.grid_digest`)
    others      it takes masks off sums with enough survivors whose certificates it has seen (`Member.wary`)
    colluding   it counts without the noise of a share of them: the federation's, or its own if that is larger
    charges     a sum is charged once, when the client's examples are read for it: after the client is sure that
                neighbors whose signatures it has seen are in the same sum. A server can still waste one charge for
                each round that it makes enough clients begin

The client's key gives its share of the noise and the coins of its examples (`fedpeft.privacy.noise`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.communication.messages import PAYLOADS, Instruction, Report
from fedpeft.errors import PrivacyError, RunError
from fedpeft.machine.files import parse_json, read
from fedpeft.machine.files import replace as replace_file
from fedpeft.privacy.accountant import Event, epsilon
from fedpeft.privacy.accounts import CommonAccounts
from fedpeft.privacy.declared_terms import DeclaredTerms
from fedpeft.privacy.engine import KEY, LEDGER, PrivacyEngine
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.ledger import terms_in
from fedpeft.privacy.lifetime_ledger import LifetimeLedger
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.privacy.noise_sources import (
    DrawnNoise,
    NoiseLevels,
    NoiseShares,
    check_mechanism,
    describe_dropouts,
    settle_levels,
)
from fedpeft.privacy.secure_sum.member import VECTORS
from fedpeft.privacy.sum_mechanism import SumMechanism

ANSWER = "answer"
"""The file of the last answer, in the folder of the ledger."""

OWN = 0
"""The only account."""

FAILED = "training failed here; the client's own log contains the reason"
"""The error that the server receives if a library fails: the library's own message might reveal examples or paths."""


def plan_participations(rounds: int, share: float) -> int:
    """Return how many rounds a client should expect to take part in: the mean plus two standard deviations.

    A client that the server asks more often stops when its budget is spent.

    Args:
        rounds: rounds of the run.
        share: share of the clients that a round draws, 0 to 1.
    """
    mean = rounds * share
    return max(1, min(rounds, math.ceil(mean + 2 * math.sqrt(mean * (1 - share)))))


def limit_mechanism(given: Mechanism, units: int, max_epsilon: float | None, max_delta: float) -> Mechanism:
    """Return the federation's mechanism with a client's own limits.

    Args:
        given: the mechanism as the server describes it.
        units: the number that delta must be small against.
        max_epsilon: the client's own budget, if the federation's is larger or missing; None: the federation's.
        max_delta: the largest delta that the client accepts.

    Raises:
        PrivacyError: the federation's delta is larger.
    """
    if given.dp_delta is not None and given.dp_delta > max_delta:
        raise PrivacyError(
            f"FP7029 the federation states epsilon at dp_delta={given.dp_delta:g}, and this client accepts "
            f"{max_delta:g} at most; give a larger --max-delta to accept that"
        )
    budgets = [budget for budget in (given.epsilon, max_epsilon) if budget is not None]
    delta = given.dp_delta if given.dp_delta is not None else min(0.1 / units, max_delta)
    return replace(given, epsilon=min(budgets, default=None), dp_delta=delta)


@dataclass(frozen=True)
class Answers:
    """The last released answer, in one file: a repeated question gets the same answer again."""

    file: Path

    def keep(self, fingerprint: str, report: Report) -> None:
        """Store an answer before it is sent.

        Raises:
            PrivacyError: the disk is full, say; then the answer must not be sent.
        """
        fields = {name: value for name, value in asdict(report).items() if name not in PAYLOADS}
        head = {"fingerprint": fingerprint, "report": fields, "payload": len(report.payload)}
        try:
            replace_file(self.file, json.dumps(head).encode() + b"\n" + report.payload, private=True)
        except OSError as error:
            raise PrivacyError(f"FP7030 the answer can't be kept in {self.file}: {error.strerror}") from error

    def find(self, fingerprint: str) -> Report | None:
        """Return the stored answer to this question; None: the last answer was to another one, or there is none.

        Raises:
            PrivacyError: the file can't be read.
        """
        try:
            head, _, payload = read(self.file).partition(b"\n")
            found: dict[str, Any] = parse_json(head)
            if found["fingerprint"] != fingerprint or found["payload"] != len(payload):
                return None
            return Report(payload=payload, **found["report"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PrivacyError(f"FP7031 the last answer in {self.file} can't be read: {error}") from error


class ClientProtection:
    """A client's protection of its own examples.

    Args:
        engine: the spending of this run and the cost of a task; opened here.
        lifetime: the ledger of all runs on these examples, which the client's own limit applies to.

    Attributes:
        begin_third: called with a sum's third step before that is charged (`fedpeft.clients.masking`); it rejects the
            step with a PayloadError. None: the client takes part in no sum.

    Raises:
        PrivacyError: the ledger was begun on other terms, or earlier runs on these examples have spent the client's own
            budget.
    """

    def __init__(self, engine: PrivacyEngine, lifetime: LifetimeLedger) -> None:
        """Open the ledger, add its charges to the lifetime ledger, and check that a first round is affordable."""
        self.engine, self.lifetime = engine, lifetime
        self.begin_third: Callable[[Instruction], None] | None = None
        self.answers = Answers(engine.folder / ANSWER)
        engine.open(resumed=(engine.folder / KEY).exists() or (engine.folder / ANSWER).exists())
        self.mechanism, self.delta, self.ledger = engine.mechanism, engine.delta, engine.ledger
        self.in_sums = isinstance(engine.mechanism, SumMechanism)
        lifetime.carry(self.ledger, known_noise=self.mechanism.test_noise)
        if not self.ledger.releases(OWN):
            lifetime.check(*self.compute_cost("train" if engine.start is None else "prepare"), self.delta)

    def compute_cost(self, kind: str = "train", steps: int = 0) -> tuple[Event, int]:
        """Return what a task costs that is charged.

        Args:
            kind: "train" or "prepare".
            steps: local steps; 0: the client's own number.
        """
        accounts = self.engine.accounts
        assert isinstance(accounts, CommonAccounts)
        if kind == "prepare":
            return accounts.cost_of_start()[OWN]
        if steps:
            exposure = replace(accounts.exposure, steps=np.full(accounts.exposure.clients, steps))
            accounts = replace(accounts, exposure=exposure)
        return accounts.cost_of_round([OWN])[OWN]

    def declare_terms(self) -> DeclaredTerms:
        """Return the terms that the client declares to the server; in sums, the noise must equal the server's."""
        engine, mechanism = self.engine, self.mechanism
        if isinstance(mechanism, SumMechanism):
            noise, rate, releases = engine.noise_multiplier, mechanism.rate(engine.exposure), 1
        else:
            (noise, rate, *_), releases = self.compute_cost()
        return DeclaredTerms(noise, rate, releases, self.delta, mechanism.epsilon, engine.start)

    def compute_epsilon(self) -> float:
        """Return epsilon so far."""
        return epsilon(self.ledger.spent.get(OWN, {}), self.delta)

    def warnings(self) -> list[str]:
        """Return what the user should know before the run starts."""
        return self.engine.warnings()

    def describe(self) -> str:
        """Return one line for the start."""
        m, engine = self.mechanism, self.engine
        budget = f"epsilon at most {m.epsilon:g}" if m.epsilon is not None else "no budget"
        start = "" if engine.start is None else f", of the start {engine.start:.4g}"
        so_far = f"so far, in {self.ledger.path}"
        if not isinstance(m, SumMechanism):
            return (
                f"{m.name} on this machine, per {m.privacy_unit}: {budget} at dp_delta {self.delta:.2g}, noise "
                f"multiplier {engine.noise_multiplier:.4g}{start}; {self.ledger.releases(OWN)} releases {so_far}"
            )
        return (
            f"{m.name}, per {m.privacy_unit}, a share of the noise from this machine: {budget} against the server at "
            f"dp_delta {self.delta:.2g}, noise multiplier of a sum {engine.noise_multiplier:.4g}{start}; "
            f"{describe_dropouts(m.sums(), engine.exposure.cohort)}, {m.collude:.0%} collude with the server; "
            f"{self.ledger.releases(OWN)} sums {so_far}"
        )

    # -------------------------------------------------------------------------------------------------------- a task

    def check(self, instruction: Instruction) -> None:
        """Reject all tasks but those that the mechanism covers.

        It covers training, a private start, and evaluations if clients may report losses. A client in sums rejects
        everything but steps of sums.

        Raises:
            PrivacyError: the mechanism does not cover the task; the message names the task.
        """
        kind = instruction.kind
        if kind == "sum" and self.in_sums:
            return
        if kind == "train":
            if instruction.round < 1 or instruction.correction or instruction.steps < 0:
                raise PrivacyError("FP7033 the server asks for what the settings of the federation do not include")
        elif kind == "prepare" and self.engine.start is not None:
            if instruction.round or instruction.payload:
                raise PrivacyError("FP7033 the server asks for what the settings of the federation do not include")
        elif kind != "evaluate" or self.mechanism.silent:
            unprotected = {"prepare": "sums over its examples", "evaluate": "losses on its examples"}
            what = unprotected.get(kind, f"something called {kind[:40]!r}")
            raise PrivacyError(f"FP7034 the server asks for {what}, which {self.mechanism.name} does not protect")
        if self.in_sums and instruction.step != VECTORS:
            raise PrivacyError(f"FP7085 the server asks a client to {kind} without masks, which the settings forbid")

    def answer(
        self,
        instruction: Instruction,
        state: bytes,
        work: Callable[[Instruction], Report],
        check: Callable[[Instruction], None],
    ) -> Report:
        """Return the report on a task. A charged task is checked, charged, done and stored, in this order.

        If a client can't take part in a sum, its answer to the first step reports that.

        Args:
            instruction: the task; its attempt is the server's own and is ignored here.
            state: a digest of the part of the client's state that the answer depends on.
            work: does the work, given the instruction with the client's own attempt.
            check: rejects tasks that can't be done, and changes nothing.

        Raises:
            PrivacyError: the mechanism does not cover the task, or the ledger or the answer can't be stored.
        """
        self.check(instruction)
        if instruction.kind == "sum":
            can_begin = instruction.step != 1 or self.ledger.attempts(instruction.round) or self._can_join(instruction)
            return work(replace(instruction, attempt=0)) if can_begin else self._make_refusal(instruction)
        if instruction.kind == "evaluate":  # free: `check` lets it pass only if clients may report losses
            return work(replace(instruction, attempt=0))
        asked = self._digest_task(instruction, state)
        if (known := self.answers.find(asked)) is not None:
            return known
        attempt = self.charge(instruction, asked, check)
        if attempt is None:
            return self._make_refusal(instruction)
        report = work(replace(instruction, attempt=attempt))
        if report.correction:
            raise PrivacyError("FP7036 the states of a drift correction would leave the client without protection")
        # The number of steps reveals the number of examples, which is private if the unit is the whole client.
        steps = 0 if self.mechanism.privacy_unit == "client" else report.steps
        report = replace(report, steps=steps, charged=self.ledger.releases(OWN))
        if not report.error:
            self.answers.keep(asked, report)
        return report

    def charge(self, instruction: Instruction, asked: str, check: Callable[[Instruction], None]) -> int | None:
        """Charge a task in the lifetime ledger and in the run's, before any example is read.

        A task that was charged last and not answered keeps its charge. A new one is checked first.

        Args:
            instruction: a training or a private start.
            asked: the digest of the task.
            check: rejects tasks that can't be done, and changes nothing.

        Returns:
            The attempt, which determines the noise. None: a budget does not allow the task.

        Raises:
            PrivacyError: the server asks for a second start, or a ledger can't be stored.
        """
        if instruction.kind == "train" and not self.engine.trains:
            return None
        event, count = self.compute_cost(instruction.kind, instruction.steps)
        fingerprint = self.ledger.newest
        if fingerprint.partition("/")[0] != asked:
            if instruction.kind == "prepare" and self.ledger.releases(OWN):
                raise PrivacyError(
                    "FP7035 the server asks for the start a second time, and this client answers that once"
                )
            if not self.engine.is_affordable(OWN, event, count):
                return None
            check(instruction)
            self._begin_third(instruction)
            fingerprint = f"{asked}/{self.ledger.releases(OWN)}"
        # Test noise counts as none in the lifetime ledger: everybody who knows the seed can subtract it.
        kept = event._replace(noise=0.0) if self.mechanism.test_noise else event
        if not self.lifetime.charge(instruction.round, fingerprint, kept, count, self.delta):
            return None
        return self.ledger.charge(instruction.round, fingerprint, {OWN: (event, count)})

    def _begin_third(self, instruction: Instruction) -> None:
        """Reject a sum's third step, before its charge, if it would fail afterwards.

        Raises:
            PayloadError: the sum refuses the step.
            PrivacyError: the client takes part in no sum.
        """
        if not self.in_sums:
            return
        if self.begin_third is None:
            raise PrivacyError("FP7086 the server asks for a part in a secure sum, and this client is in none")
        self.begin_third(instruction)

    def _can_join(self, instruction: Instruction) -> bool:
        """Return whether the budgets allow the sum that is begun."""
        if not (self.engine.trains if instruction.round else self.engine.start is not None):
            return False
        event, count = self.compute_cost("train" if instruction.round else "prepare")
        return self.engine.is_affordable(OWN, event, count) and self.lifetime.allows(event, count, self.delta)

    def _digest_task(self, instruction: Instruction, state: bytes) -> str:
        """Return a digest of all that the answer depends on."""
        engine = self.engine
        digest = hashlib.sha256(f"{engine.identity} {engine.key.name} {engine.noise_multiplier} ".encode() + state)
        for name, value in sorted(vars(replace(instruction, attempt=0)).items()):
            content = value if isinstance(value, bytes) else repr(value).encode()
            digest.update(f"{name} {len(content)} ".encode() + content)
        return digest.hexdigest()

    def _make_refusal(self, instruction: Instruction) -> Report:
        """Return the report of a client whose budget does not allow the task."""
        epsilon_so_far = self.compute_epsilon()
        reason = f"its privacy budget is spent: epsilon {epsilon_so_far:.3g} in this run, at dp_delta {self.delta:.2g}"
        charged = self.ledger.releases(OWN)
        return Report(instruction.client, instruction.round, b"", error=reason, charged=charged, spent=True)


def make_client_engine(
    mechanism: Mechanism, common: Mechanism, exposure: Exposure, folder: Path, identity: str, seed: int
) -> PrivacyEngine:
    """Return the engine of a client that adds noise to its releases.

    Args:
        mechanism: with the client's own limits (`limit_mechanism`), and the share of colluding clients that it assumes.
        common: the mechanism as the server describes it, which must not change within a run.
        exposure: as if all clients were like this one; in sums, the exposure of the federation in the settings.
        folder: folder of the client's state in this federation.
        identity: what else an answer depends on (settings, examples, model, machine, versions), in any form.
        seed: seed of the run, for test noise.

    Raises:
        PrivacyError: the settings would not protect, or the ledger was begun on other terms.
    """
    terms: dict[str, Any] = {"federation": [common.epsilon, common.noise_multiplier, common.dp_delta]}
    noise_source: DrawnNoise | NoiseShares
    if isinstance(mechanism, SumMechanism) and isinstance(common, SumMechanism):
        noise_source = NoiseShares(common, exposure, _settle_share(mechanism, common, exposure, folder / LEDGER))
        terms["collude"] = mechanism.collude
    else:
        noise_source = DrawnNoise(mechanism, _settle_own(mechanism, exposure, folder / LEDGER))
    return PrivacyEngine(
        mechanism,
        exposure,
        folder,
        identity,
        seed,
        accounts=CommonAccounts(mechanism, exposure, noise_source.levels),
        noise_source=noise_source,
        more_terms=terms,
    )


def _settle_own(mechanism: Mechanism, exposure: Exposure, ledger: Path) -> NoiseLevels:
    """Return noise and delta as they were when the client first joined, whatever its limits and examples are now."""
    begun = terms_in(ledger)
    if begun is None:
        return settle_levels(mechanism, exposure)
    check_mechanism(mechanism)
    noise, delta = _read_number(begun, "noise_multiplier", ledger), _read_number(begun, "dp_delta", ledger)
    start = _read_number(begun, "start_noise_multiplier", ledger) if exposure.start else None
    replace(mechanism, dp_delta=delta).check(exposure)
    return NoiseLevels(noise, delta, start, None, start is None or mechanism.trains(exposure))


def _settle_share(mechanism: Mechanism, common: Mechanism, exposure: Exposure, ledger: Path) -> NoiseLevels:
    """Return the noise of all clients; delta stays as it was when the client first joined."""
    check_mechanism(mechanism)
    common.check(exposure)
    mechanism.check(exposure)
    begun = terms_in(ledger)
    delta = mechanism.delta(exposure) if begun is None else _read_number(begun, "dp_delta", ledger)
    noise, start = common.multiplier(exposure), common.start_noise(exposure)
    return NoiseLevels(noise, delta, start, None, start is None or common.trains(exposure))


def _read_number(begun: Mapping[str, Any], name: str, ledger: Path) -> float:
    """Return a number of the first line of a ledger.

    Raises:
        PrivacyError: there is no such number.
    """
    try:
        return float(begun[name])
    except (KeyError, TypeError, ValueError) as error:
        raise PrivacyError(f"FP7032 the privacy ledger {ledger} lacks its terms: {error!r}") from error


def compute_state_digest(state: bytes | None, *files: Path) -> bytes:
    """Return a digest of a client's stored state, if there is one, and of the files that exist."""
    digest = hashlib.sha256(f"state {state is None} {len(state or b'')} ".encode() + (state or b""))
    for file in files:
        try:
            content = read(file)
        except FileNotFoundError:
            content = b"missing"
        except OSError as error:
            raise RunError(f"FP5160 the client's state {file} can't be read: {error.strerror}") from error
        digest.update(f"{file.name} {len(content)} ".encode() + content)
    return digest.digest()
