"""The privacy ledger of a real client: the first book, on its own disk, under a key that never leaves it.

The server is not trusted with anything that epsilon depends on. The client chooses its noise for its own rows (or takes
the multiplier that the settings name, and knows what that costs), counts the steps that it is asked for, and refuses
what its mechanism does not cover. Whatever is asked is charged, and synced, before any row is read for it:

    asked before, and answered    the stored answer, bit for bit; no charge
    the last charge, unanswered   a kill came between charge and answer, so nothing left: the same noise, no new charge
    anything else                 a charge and new noise, or, where the budget does not allow it, a refusal

Of the kinds of instruction, training is charged, and so is the one release of sums over rows that a private start asks
for: a second one is refused, whatever the budget. An evaluation is free where the settings let clients tell losses
(raw_metrics, which epsilon does not cover). Every other kind is refused, known or not.

So a kill between any two steps, a server that goes back in time, or one that asks twice what is almost the same, can
only make the ledger say too much. Noise is never used for two inputs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.communication.messages import PAYLOADS, Instruction, Report
from fedpeft.errors import PrivacyError, RunError
from fedpeft.machine.files import parse_json, read
from fedpeft.machine.files import replace as replace_file
from fedpeft.privacy.accountant import Event, epsilon
from fedpeft.privacy.engine import KEY, LEDGER, PrivacyEngine
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.ledger import terms_in
from fedpeft.privacy.lifetime_ledger import LifetimeLedger
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.privacy.remote_engine import Terms

ANSWER = "answer"
"""The file of the last answer, in the folder of the ledger."""

OWN = 0
"""The only account."""

FAILED = "training has failed here; the client's own log says why"
"""What the server learns where a library has failed: its message may tell something of the rows, or of the machine."""


def planned_participations(rounds: int, share: float) -> int:
    """How often a client should expect to be asked in `rounds` rounds that draw a `share` of the clients (0 to 1).

    The mean and two standard deviations; who is asked more often stops when its budget is spent.
    """
    mean = rounds * share
    return max(1, min(rounds, math.ceil(mean + 2 * math.sqrt(mean * (1 - share)))))


def own_mechanism(given: Mechanism, units: int, max_epsilon: float | None, max_delta: float) -> Mechanism:
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


class OwnLedger(PrivacyEngine):
    """A client's protection of its own rows.

    Args:
        mechanism: with the client's own limits (`own_mechanism`).
        federation: as if all clients were like this one.
        folder: of the client's state in this federation.
        identity: what else an answer depends on (settings, rows, model, machine, versions), in any form.
        common: the mechanism as the server describes it; what it says must not change within a run.
        lifetime: the book of all runs on these rows, which the client's own limit is for.
        seed: of the run, for test noise.

    Raises:
        PrivacyError: the settings would not protect, the ledger was begun on other terms, or earlier runs on these rows
            have spent the client's own budget.
    """

    def __init__(
        self,
        mechanism: Mechanism,
        federation: Exposure,
        folder: Path,
        identity: str,
        common: Mechanism,
        lifetime: LifetimeLedger,
        seed: int,
    ) -> None:
        self._common = [common.epsilon, common.noise_multiplier, common.dp_delta]
        super().__init__(mechanism, federation, folder, identity, seed)
        self.sits_out = False  # who is asked for too much says so
        self.answers = Answers(folder / ANSWER)
        self.open(resumed=(folder / KEY).exists() or (folder / ANSWER).exists())
        self.lifetime = lifetime
        lifetime.carry(self.ledger, known_noise=mechanism.test_noise)
        if not self.ledger.releases(OWN):
            lifetime.check(*self._cost("train" if self.start is None else "prepare", 0), self.delta)

    def _settle(self) -> tuple[float, float, float | None]:
        """Noise and delta stay what they were when the client joined first, whatever its limits and rows are now."""
        begun = terms_in(self.folder / LEDGER)
        if begun is None:
            return super()._settle()
        try:
            noise, delta = float(begun["noise_multiplier"]), float(begun["dp_delta"])
            start = float(begun["start_noise_multiplier"]) if self.federation.start else None
        except (KeyError, TypeError, ValueError) as error:
            raise PrivacyError(
                f"FP7032 the privacy ledger {self.folder / LEDGER} lacks its terms: {error!r}"
            ) from error
        replace(self.mechanism, dp_delta=delta).check(self.federation)
        return noise, delta, start

    def _header(self) -> dict[str, Any]:
        return super()._header() | {"federation": self._common}

    def _charge(self, steps: int) -> tuple[Event, int]:
        federation = self.federation
        if steps:
            federation = replace(federation, steps=np.full(federation.clients, steps))
        return self.mechanism.charges(federation, [OWN], self.noise)[OWN]

    def _cost(self, kind: str, steps: int) -> tuple[Event, int]:
        """What a task of a kind that is charged costs."""
        return self.start_cost()[OWN] if kind == "prepare" else self._charge(steps)

    def declared(self) -> Terms:
        """What the client tells the server."""
        event, releases = self._charge(0)
        return Terms(event.noise, event.rate, releases, self.delta, self.mechanism.epsilon, self.start)

    def spent(self) -> float:
        """Epsilon so far."""
        return epsilon(self.ledger.spent.get(OWN, {}), self.delta)

    def terms(self) -> str:
        """One line for the start."""
        m = self.mechanism
        budget = f"epsilon at most {m.epsilon:g}" if m.epsilon is not None else "no budget"
        start = "" if self.start is None else f", of the start {self.start:.4g}"
        return (
            f"{m.name} on this machine, per {m.hides}: {budget} at dp_delta {self.delta:.2g}, noise multiplier "
            f"{self.noise:.4g}{start}; {self.ledger.releases(OWN)} releases so far, in {self.ledger.path}"
        )

    # -------------------------------------------------------------------------------------------------------- a task

    def check(self, instruction: Instruction) -> None:
        """Refuse all but what the mechanism covers: training, a private start, evaluations where losses may be told.

        Raises:
            PrivacyError: says what.
        """
        kind = instruction.kind
        if kind == "train":
            if instruction.round < 1 or instruction.correction or instruction.steps < 0:
                raise PrivacyError("FP7033 the server asks for what the settings of the federation do not include")
        elif kind == "prepare" and self.start is not None:
            if instruction.round or instruction.payload:
                raise PrivacyError("FP7033 the server asks for what the settings of the federation do not include")
        elif kind != "evaluate" or self.mechanism.silent:
            unprotected = {"prepare": "sums over its rows", "evaluate": "losses on its rows"}
            what = unprotected.get(kind, f"something called {kind[:40]!r}")
            raise PrivacyError(f"FP7034 the server asks for {what}, which {self.mechanism.name} does not protect")

    def answer(
        self,
        instruction: Instruction,
        state: bytes,
        work: Callable[[Instruction], Report],
        check: Callable[[Instruction], None],
    ) -> Report:
        """The report on a task; on one that is charged checked, charged, done, kept, in this order.

        Args:
            instruction: what is asked; its attempt is the server's, and nobody here sees it.
            state: a digest of what of the client's own state the answer depends on.
            work: does the work, given the instruction with the client's own attempt.
            check: refuses what can't be done, and leaves nothing behind.

        Raises:
            PrivacyError: the mechanism does not cover the task, or the ledger or the answer can't be stored.
        """
        self.check(instruction)
        if instruction.kind == "evaluate":  # free: `check` lets it pass only where it may tell what it measures
            return work(replace(instruction, attempt=0))
        asked = self._asked(instruction, state)
        if (known := self.answers.find(asked)) is not None:
            return known
        if instruction.kind == "train" and not self.trains:
            return self._refusal(instruction)
        event, count = self._cost(instruction.kind, instruction.steps)
        fingerprint = self.ledger.newest
        if fingerprint.partition("/")[0] != asked:
            if instruction.kind == "prepare" and self.ledger.releases(OWN):
                raise PrivacyError(
                    "FP7035 the server asks for the start a second time, and this client answers that once"
                )
            if not self._affordable(OWN, event, count):
                return self._refusal(instruction)
            check(instruction)
            self.legal(instruction)
            fingerprint = f"{asked}/{self.ledger.releases(OWN)}"
        kept = event._replace(noise=0.0) if self.mechanism.test_noise else event  # whoever knows the seed takes it off
        if not self.lifetime.charge(instruction.round, fingerprint, kept, count, self.delta):
            return self._refusal(instruction)
        attempt = self.ledger.charge(instruction.round, fingerprint, {OWN: (event, count)})
        report = work(replace(instruction, attempt=attempt))
        if report.correction:
            raise PrivacyError("FP7036 the states of a drift correction would leave the client without protection")
        # The number of steps tells how many rows there are, which is private where the whole client is.
        steps = 0 if self.mechanism.hides == "client" else report.steps
        report = replace(report, steps=steps, charged=self.ledger.releases(OWN))
        if not report.error:
            self.answers.keep(asked, report)
        return report

    def legal(self, instruction: Instruction) -> None:
        """Refuse, before the charge, what would fail after it; by default nothing: whatever is asked may be trained.

        Raises:
            PayloadError: says what.
        """

    def _asked(self, instruction: Instruction, state: bytes) -> str:
        digest = hashlib.sha256(f"{self.identity} {self.key.name} {self.noise} ".encode() + state)
        for name, value in sorted(vars(replace(instruction, attempt=0)).items()):
            content = value if isinstance(value, bytes) else repr(value).encode()
            digest.update(f"{name} {len(content)} ".encode() + content)
        return digest.hexdigest()

    def _refusal(self, instruction: Instruction) -> Report:
        reason = f"its privacy budget is spent: epsilon {self.spent():.3g} in this run, at dp_delta {self.delta:.2g}"
        charged = self.ledger.releases(OWN)
        return Report(instruction.client, instruction.round, b"", error=reason, charged=charged, spent=True)


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
