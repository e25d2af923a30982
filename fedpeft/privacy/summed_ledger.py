"""The ledger of a real client whose noise is a share of that in sums under masks.

What a sum costs depends on all who are in it, so noise multiplier, grid and rates follow from the settings that all
have in common, and a client's own limits decide how often it takes part. It relies on no word of the server's:

    noise       the grid is its own; those whose grids differ are in different sums (`SecureSum.grid_digest`)
    others      it takes masks off sums with enough survivors whose certificates it has seen (`Member.wary`)
    colluding   it counts without the noise of a share of them: the federation's, or its own if that is larger
    charges     a sum is charged when the client's rows are read for it, once: after it is sure that it is one which its
                neighbours, whose signatures it has seen, are in. What a server can still waste is one charge for each
                round that it has enough of them begin

The share of noise and the coins of rows come from the client's key (`fedpeft.privacy.noise`), which never leaves it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedpeft.communication.messages import Instruction, Report
from fedpeft.errors import PrivacyError
from fedpeft.privacy.client_engine import OWN, OwnLedger
from fedpeft.privacy.engine import LEDGER
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.ledger import Charges, terms_in
from fedpeft.privacy.lifetime_ledger import LifetimeLedger
from fedpeft.privacy.mechanisms.distributed_dp import DistributedDP
from fedpeft.privacy.remote_engine import Terms
from fedpeft.privacy.secure_sum.shared_noise import SharedNoise

VECTORS = 3
"""The step of a sum in which rows are read."""


class SummedLedger(OwnLedger):
    """A client's protection of its own rows; see `OwnLedger`.

    Args:
        mechanism: with the client's own limits, and the share of others that it takes to collude with the server.
        federation: as the settings say that it is.
        folder, identity, lifetime, seed: as `OwnLedger`'s.
        common: the mechanism as the server describes it: what noise and grid follow from.

    Attributes:
        begin_third: is told of a sum's third step before it is charged (`fedpeft.clients.masking`), and refuses it with
            a PayloadError; None: there is no such sum.

    Raises:
        PrivacyError: as `OwnLedger`.
    """

    mechanism: DistributedDP

    def __init__(
        self,
        mechanism: DistributedDP,
        federation: Exposure,
        folder: Path,
        identity: str,
        common: DistributedDP,
        lifetime: LifetimeLedger,
        seed: int,
    ) -> None:
        self.common = common
        self.begin_third: Callable[[Instruction], None] | None = None
        super().__init__(mechanism, federation, folder, identity, common, lifetime, seed)

    def _settle(self) -> tuple[float, float, float | None]:
        """Noise is all clients'; delta stays what it was when the client joined first."""
        common, federation = self.common, self.federation
        common.check(federation)
        self.mechanism.check(federation)
        begun = terms_in(self.folder / LEDGER)
        try:
            delta = self.mechanism.delta(federation) if begun is None else float(begun["dp_delta"])
        except (KeyError, TypeError, ValueError) as error:
            raise PrivacyError(
                f"FP7032 the privacy ledger {self.folder / LEDGER} lacks its terms: {error!r}"
            ) from error
        return common.multiplier(federation), delta, common.start_noise(federation)

    def _header(self) -> dict[str, Any]:
        return super()._header() | {"collude": self.mechanism.collude}

    @property
    def trains(self) -> bool:
        """Whether the start leaves anything for rounds of training."""
        return self.start is None or self.common.trains(self.federation)

    @property
    def sums(self) -> SharedNoise:
        """How sums are formed, with the noise in them."""
        return self.common.sums_of(self.federation, self.noise, self.start)

    def start_cost(self) -> Charges:
        """What the release before round 1 costs."""
        assert self.start is not None
        return self.mechanism.begun(self.federation, self.start)

    def declared(self) -> Terms:
        """What the client tells the server: the noise that it has worked out must be the server's."""
        rate = self.mechanism.rate(self.federation)
        return Terms(self.noise, rate, 1, self.delta, self.mechanism.epsilon, self.start)

    def terms(self) -> str:
        """One line for the start."""
        m = self.mechanism
        budget = f"epsilon at most {m.epsilon:g}" if m.epsilon is not None else "no budget"
        start = "" if self.start is None else f", of the start {self.start:.4g}"
        return (
            f"{m.name}, per {m.hides}, a share of the noise from this machine: {budget} against the server at dp_delta "
            f"{self.delta:.2g}, noise multiplier of a sum {self.noise:.4g}{start}; {m.dropouts:.0%} of a cohort may "
            f"drop out, {m.collude:.0%} collude with the server; {self.ledger.releases(OWN)} sums so far, in "
            f"{self.ledger.path}"
        )

    # -------------------------------------------------------------------------------------------------------- a task

    def check(self, instruction: Instruction) -> None:
        """Refuse all but steps of sums under masks.

        Raises:
            PrivacyError: says what.
        """
        if instruction.kind == "sum":
            return
        super().check(instruction)
        if instruction.step != VECTORS:
            raise PrivacyError(
                f"FP7085 the server asks a client to {instruction.kind} without masks, which its settings don't say"
            )

    def answer(
        self,
        instruction: Instruction,
        state: bytes,
        work: Callable[[Instruction], Report],
        check: Callable[[Instruction], None],
    ) -> Report:
        """The report on a step; as `OwnLedger.answer`. Whoever can't take part says so in the first step.

        Raises:
            PrivacyError: the mechanism does not cover the task, or the ledger or the answer can't be stored.
        """
        if instruction.kind != "sum":
            return super().answer(instruction, state, work, check)
        if instruction.step == 1 and not self.ledger.attempts(instruction.round) and not self._could(instruction):
            return self._refusal(instruction)
        return work(replace(instruction, attempt=0))

    def legal(self, instruction: Instruction) -> None:
        """As `OwnLedger.legal`: a third step of a sum that the client is in, and the only one of it."""
        if self.begin_third is None:
            raise PrivacyError("FP7086 the server asks for a part in a secure sum, and this client is in none")
        self.begin_third(instruction)

    def _could(self, instruction: Instruction) -> bool:
        """Whether the budgets allow the sum that is begun."""
        if instruction.round and not self.trains:
            return False
        if not instruction.round and self.start is None:
            return False
        event, count = self._cost("train" if instruction.round else "prepare", 0)
        return self._affordable(OWN, event, count) and self.lifetime.allows(event, count, self.delta)
