"""SCAFFOLD (Karimireddy et al., arXiv 1910.06378): control variates correct the direction of local steps.

    client   y <- y - eta_t (g(y) - c_k + c),     c_k <- c_k - c + (x - y) / (sum_t eta_t)       ("option II")
    server   c <- c + (1 / N) sum_k (the change of c_k), over the clients of the round, of N in all

The paper has one eta, and so steps * eta in the denominator; with warm-up the first steps are shorter. c_k estimates
the client's own gradient, c the mean over all clients. With FedProx, g includes the penalty's gradient.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from fedpeft.clients.drift import ControlVariates, compute_control_difference
from fedpeft.clients.executor import Job, Trained
from fedpeft.clients.local_training import LocalTraining

from fedpeft.aggregation.strategy import Strategy
from fedpeft.errors import ConfigError
from fedpeft.peft.adapter import AdapterShape, State


@dataclass(frozen=True)
class Scaffold(ControlVariates):
    """Control variates c (the server's) and c_k (a client's), 0 at first."""

    def check(self, strategy: Strategy, training: LocalTraining, forms: Collection[AdapterShape | None]) -> None:
        """Also refuse optimizers whose gradients can't be read off their steps.

        Raises:
            ConfigError: the base class refuses the settings, or the optimizer is not plain SGD without `max_norm`.
        """
        super().check(strategy, training, forms)
        if not training.optimizer.plain or training.optimizer.max_norm:
            raise ConfigError(
                "FP1001 scaffold reads gradients off the clients' plain SGD steps; use --optimizer sgd without max_norm"
            )

    def after(self, job: Job, result: Trained, server: State, own: State) -> State:
        """Return the next c_k: the mean gradient of the round without the correction."""
        variate, optimizer = {}, job.training.optimizer
        for name, correction in compute_control_difference(server, own).items():
            rate = optimizer.rate(name, job.learning_rate)
            if rate:
                mean_step = (job.received[name] - result.state[name]) / (
                    optimizer.count_full_steps(result.steps) * rate
                )
                variate[name] = mean_step - correction
            else:
                variate[name] = own.get(name, correction.new_zeros(correction.shape))
        return variate


part = Scaffold
