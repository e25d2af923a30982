"""The client's half of privacy: local training that protects examples, and measures that stay on the client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fedpeft.clients.executor import RowPrivacy
from fedpeft.clients.stages import ClientRound, ClientStage, TrainedRound
from fedpeft.clients.workbench import WorkPlan

from fedpeft.aggregation.head_start import HeadStart, require_variation
from fedpeft.aggregation.whitening import Whitening
from fedpeft.communication.decoding import decode_whole
from fedpeft.communication.messages import Instruction
from fedpeft.errors import PrivacyError
from fedpeft.privacy.abilities import is_whitened
from fedpeft.privacy.example_sampling import ExampleSampling
from fedpeft.privacy.guard import Guard
from fedpeft.privacy.sum_mechanism import SumMechanism


class PrivacyStage(ClientStage):
    """Removes what a client measures on its examples from its report."""

    def __init__(self, guard: Guard) -> None:
        """Hold the guard's mechanism."""
        self.mechanism = guard.mechanism

    def finish(self, client_round: TrainedRound) -> TrainedRound:
        """Return the round without the number of used examples and, if the mechanism is silent, without measures."""
        result = client_round.result
        if self.mechanism.silent:
            result = replace(result, loss=0.0, rows=1)
        return replace(client_round, result=result, used=0)


class RowPrivacyStage(ClientStage):
    """Has local training clip the gradient of each example.

    Args:
        guard: the mechanism, its noise and its key.
        sampling: how examples join a step.
        rate: returns the probability with which an example joins a step, given the client's own one.
        work: names the executor that trains.
        head: chooses the directions in which features are whitened.
    """

    def __init__(
        self,
        guard: Guard,
        sampling: ExampleSampling,
        rate: Callable[[float], float],
        work: WorkPlan,
        head: HeadStart,
    ) -> None:
        """Hold the parts that the settings of DP-SGD come from."""
        self.guard, self.mechanism, self.sampling = guard, guard.mechanism, sampling
        self.rate, self.work, self.head = rate, work, head

    def begin(self, client_round: ClientRound) -> ClientRound:
        """Return the round with the settings of DP-SGD.

        Raises:
            PayloadError: the server sends other whitening directions than the head has.
            PrivacyError: the server asks for a loss, or the settings for an executor, that protects no example.
        """
        asked, job, mechanism = client_round.instruction, client_round.job, self.mechanism
        told = asked.told if asked.kind == "train" else b""
        if told and not is_whitened(mechanism):
            raise PrivacyError(
                "FP7003 the server asks for a loss in which one example changes the loss of others, which the "
                "mechanism does not protect"
            )
        if self.work.executor != "private":
            raise PrivacyError(f"FP7004 {mechanism.name} needs the executor with gradients per example")
        size, rows = job.training.batch_size, len(job.rows)
        privacy = RowPrivacy(
            clip=mechanism.clip,
            noise=self.guard.noise,
            rate=self.rate(self.sampling.rate_of(size, rows)),
            key=self.guard.key(),
            attempt=asked.attempt,
            summed=isinstance(mechanism, SumMechanism),
            expected=self.sampling.divisor(size, rows),
            whitening=self._decode_whitening(asked),
        )
        return replace(client_round, job=replace(job, privacy=privacy))

    def _decode_whitening(self, asked: Instruction) -> Whitening | None:
        """Return how features are whitened; None: they are not."""
        if not is_whitened(self.mechanism) or asked.kind != "train":
            return None
        width = self.work.layout.shapes["head.weight"][1]
        directions = require_variation(self.head).whitened_directions(width)
        return Whitening.from_state(decode_whole(asked.told, Whitening.shapes(directions), agreed=()), width)
