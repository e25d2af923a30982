"""The protection of a real client's own examples: its ledger, on its own disk, under a key that never leaves it.

The server is not trusted with anything that epsilon depends on. The client chooses its noise for its own examples, or
takes the multiplier that the settings name and computes its cost. It counts the steps that it is asked for, and refuses
what its mechanism does not cover. Whatever is asked is charged, and synced, before any row is read for it:

    asked before, and answered    the stored answer, bit for bit; no charge
    the last charge, unanswered   a kill came between charge and answer, so nothing left: the same noise, no new charge
    anything else                 a charge and new noise, or, where the budget does not allow it, a refusal

Training is charged, and so is the one release of sums over rows that a private start asks
for: a second one is refused, whatever the budget. An evaluation is free where the settings let clients tell losses
(raw_metrics, which epsilon does not cover). Every other kind is refused, known or not.

So a kill between any two steps, a server that goes back in time, or one that asks twice what is almost the same, can
only make the ledger say too much. Noise is never used for two inputs.

If a client's noise is a share of that in sums under masks, what a sum costs depends on all who are in it. So noise
multiplier, grid and rates follow from the settings that all have in common, and a client's own limits decide how often
it takes part. It relies on no word of the server's:

    noise       the grid is its own; those whose grids differ are in different sums (`SecureSum.grid_digest`)
    others      it takes masks off sums with enough survivors whose certificates it has seen (`Member.wary`)
    colluding   it counts without the noise of a share of them: the federation's, or its own if that is larger
    charges     a sum is charged when the client's examples are read for it, once: after it is sure that it is one which
                its neighbours, whose signatures it has seen, are in. What a server can still waste is one charge for
                each round that it has enough of them begin

The share of noise and the coins of examples come from the client's key (`fedpeft.privacy.noise`).
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
from fedpeft.privacy.noise_sources import DrawnNoise, NoiseLevels, NoiseShares, check_mechanism, settle_levels
from fedpeft.privacy.sum_mechanism import SumMechanism

ANSWER = "answer"
"""The file of the last answer, in the folder of the ledger."""

OWN = 0
"""The only account."""

VECTORS = 3
"""The step of a sum in which examples are read."""

FAILED = "training has failed here; the client's own log says why"
"""What the server learns where a library has failed: its message may tell something of the rows, or of the machine."""


def plan_participations(rounds: int, share: float) -> int:
    """How often a client should expect to be asked in `rounds` rounds that draw a `share` of the clients (0 to 1).

    The mean and two standard deviations; who is asked more often stops when its budget is spent.
    """
    mean = rounds * share
    return max(1, min(rounds, math.ceil(mean + 2 * math.sqrt(mean * (1 - share)))))


def limit_mechanism(given: Mechanism, units: int, max_epsilon: float | None, max_delta: float) -> Mechanism:
    """The federation's mechanism with a client's own limits.

    Args:
        given: as the server describes it.
        units: the number that delta must be small against.
        max_epsilon: the client's own budget, where the federation's is larger or missing; None: the federation's.
        max_delta: the largest delta that the client accepts.

    Raises:
        PrivacyError: the federation's delta is larger.
    """
    if given.dp_delta is not None and given.dp_delta > max_delta:
        raise PrivacyError(
            f"FP7029 the federation states epsilon at dp_delta={given.dp_delta:g}, and this client accepts "
            f"{max_delta:g} at most; say --max-delta to accept more"
        )
    budgets = [budget for budget in (given.epsilon, max_epsilon) if budget is not None]
    delta = given.dp_delta if given.dp_delta is not None else min(0.1 / units, max_delta)
    return replace(given, epsilon=min(budgets, default=None), dp_delta=delta)


@dataclass(frozen=True)
class Answers:
    """The last answer that was released, in one file: it is given again to whoever asks the same again."""

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
        """The answer that was given to this; None: another one, or none, was the last."""
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
        engine: what it has spent in this run, and what a task costs; opened here.
        lifetime: the ledger of all runs on these examples, which the client's own limit is for.

    Attributes:
        begin_third: is told of a sum's third step before it is charged (`fedpeft.clients.masking`), and refuses it with
            a PayloadError; None: the client is in no sum.

    Raises:
        PrivacyError: the ledger was begun on other terms, or earlier runs on these examples have spent the client's own
            budget.
    """

    def __init__(self, engine: PrivacyEngine, lifetime: LifetimeLedger) -> None:
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
        """Return what the client tells the server; the noise of a sum must be the server's."""
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
            f"{m.dropouts:.0%} of a cohort may drop out, {m.collude:.0%} collude with the server; "
            f"{self.ledger.releases(OWN)} sums {so_far}"
        )

    # -------------------------------------------------------------------------------------------------------- a task

    def check(self, instruction: Instruction) -> None:
        """Reject all but what the mechanism covers: training, a private start, evaluations if losses may be told.

        A client in sums rejects all but steps of sums.

        Raises:
            PrivacyError: says what.
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
            unprotected = {"prepare": "sums over its rows", "evaluate": "losses on its rows"}
            what = unprotected.get(kind, f"something called {kind[:40]!r}")
            raise PrivacyError(f"FP7034 the server asks for {what}, which {self.mechanism.name} does not protect")
        if self.in_sums and instruction.step != VECTORS:
            raise PrivacyError(f"FP7085 the server asks a client to {kind} without masks, which its settings don't say")

    def answer(
        self,
        instruction: Instruction,
        state: bytes,
        work: Callable[[Instruction], Report],
        check: Callable[[Instruction], None],
    ) -> Report:
        """Return the report on a task; one that is charged is checked, charged, done, kept, in this order.

        A client that can't take part in a sum says so in its first step.

        Args:
            instruction: what is asked; its attempt is the server's, and nobody here sees it.
            state: a digest of what of the client's own state the answer depends on.
            work: does the work, given the instruction with the client's own attempt.
            check: refuses what can't be done, and leaves nothing behind.

        Raises:
            PrivacyError: the mechanism does not cover the task, or the ledger or the answer can't be stored.
        """
        self.check(instruction)
        if instruction.kind == "sum":
            can_begin = instruction.step != 1 or self.ledger.attempts(instruction.round) or self._can_join(instruction)
            return work(replace(instruction, attempt=0)) if can_begin else self._refusal(instruction)
        if instruction.kind == "evaluate":  # free: `check` lets it pass only where it may tell what it measures
            return work(replace(instruction, attempt=0))
        asked = self._asked(instruction, state)
        if (known := self.answers.find(asked)) is not None:
            return known
        if instruction.kind == "train" and not self.engine.trains:
            return self._refusal(instruction)
        event, count = self.compute_cost(instruction.kind, instruction.steps)
        fingerprint = self.ledger.newest
        if fingerprint.partition("/")[0] != asked:
            if instruction.kind == "prepare" and self.ledger.releases(OWN):
                raise PrivacyError(
                    "FP7035 the server asks for the start a second time, and this client answers that once"
                )
            if not self.engine.is_affordable(OWN, event, count):
                return self._refusal(instruction)
            check(instruction)
            self._begin_third(instruction)
            fingerprint = f"{asked}/{self.ledger.releases(OWN)}"
        kept = event._replace(noise=0.0) if self.mechanism.test_noise else event  # whoever knows the seed takes it off
        if not self.lifetime.charge(instruction.round, fingerprint, kept, count, self.delta):
            return self._refusal(instruction)
        attempt = self.ledger.charge(instruction.round, fingerprint, {OWN: (event, count)})
        report = work(replace(instruction, attempt=attempt))
        if report.correction:
            raise PrivacyError("FP7036 the states of a drift correction would leave the client without protection")
        # The number of steps tells how many rows there are, which is private where the whole client is.
        steps = 0 if self.mechanism.privacy_unit == "client" else report.steps
        report = replace(report, steps=steps, charged=self.ledger.releases(OWN))
        if not report.error:
            self.answers.keep(asked, report)
        return report

    def _begin_third(self, instruction: Instruction) -> None:
        """Reject, before the charge, what would fail after it: a third step of no sum, or the second of one.

        Raises:
            PayloadError: the sum refuses the step.
            PrivacyError: the client is in no sum.
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

    def _asked(self, instruction: Instruction, state: bytes) -> str:
        """Return a digest of all that the answer depends on."""
        engine = self.engine
        digest = hashlib.sha256(f"{engine.identity} {engine.key.name} {engine.noise_multiplier} ".encode() + state)
        for name, value in sorted(vars(replace(instruction, attempt=0)).items()):
            content = value if isinstance(value, bytes) else repr(value).encode()
            digest.update(f"{name} {len(content)} ".encode() + content)
        return digest.hexdigest()

    def _refusal(self, instruction: Instruction) -> Report:
        """Return the report of a client whose budget does not allow the task."""
        epsilon_so_far = self.compute_epsilon()
        reason = f"its privacy budget is spent: epsilon {epsilon_so_far:.3g} in this run, at dp_delta {self.delta:.2g}"
        charged = self.ledger.releases(OWN)
        return Report(instruction.client, instruction.round, b"", error=reason, charged=charged, spent=True)


def make_client_engine(
    mechanism: Mechanism, common: Mechanism, exposure: Exposure, folder: Path, identity: str, seed: int
) -> PrivacyEngine:
    """Return the engine of a client that adds noise to what it releases.

    Args:
        mechanism: with the client's own limits (`limit_mechanism`), and the share of others that it takes to collude.
        common: the mechanism as the server describes it; what it says must not change within a run.
        exposure: as if all clients were like this one; in sums, that of the federation in the settings.
        folder: of the client's state in this federation.
        identity: what else an answer depends on (settings, examples, model, machine, versions), in any form.
        seed: of the run, for test noise.

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
    """Return noise and delta as when the client joined first, whatever its limits and examples are now."""
    begun = terms_in(ledger)
    if begun is None:
        return settle_levels(mechanism, exposure)
    check_mechanism(mechanism)
    noise, delta = _read_number(begun, "noise_multiplier", ledger), _read_number(begun, "dp_delta", ledger)
    start = _read_number(begun, "start_noise_multiplier", ledger) if exposure.start else None
    replace(mechanism, dp_delta=delta).check(exposure)
    return NoiseLevels(noise, delta, start, None, start is None or mechanism.trains(exposure))


def _settle_share(mechanism: Mechanism, common: Mechanism, exposure: Exposure, ledger: Path) -> NoiseLevels:
    """Return the noise of all clients; delta stays as it was when the client joined first."""
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


def state_digest(state: bytes | None, *files: Path) -> bytes:
    """A digest of a client's stored state, if it has one, and of the files that are there."""
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
