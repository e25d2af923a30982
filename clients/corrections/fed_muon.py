"""FedMuon (Takezawa et al., ICLR 2026, arXiv 2509.26337): the orthogonalized momentum of each client is corrected.

Orthogonalization is not linear, so the mean of the clients' steps is not the step of their mean momentum, and local
Muon steps do not converge to a stationary point. Hence control variates, as in SCAFFOLD, but of momenta:

    client   M <- (1 - a) M + a g,   X <- X - eta orthogonal(M - C_k + C),   then C_k <- M
    server   C <- C + (1 / N) sum_k (the change of C_k), over the clients of the round, of N in all

M continues from the client's last round, where it was C_k, so M - C_k + C begins as C. Adding C - C_k to each gradient
keeps the difference (`CarriesMomentum`). So clients start from the server's mean momentum, as in the momentum
aggregation of the other FedMuon (Liu et al., arXiv 2510.27403), and move their gradients toward it.

    --optimizer "muon" --drift "fed_muon"

We read the abstract and the introduction of the first paper, and its algorithm 1 in an independent reproduction.
Deviations: only LoRA factors have control variates; other tensors, such as the head, take AdamW steps, and zeros travel
for them. The paper's server moves by the share S / N of the mean step of S clients; here it moves by the mean step, or
by that of `--server-optimizer`. Liu et al. also mix the last global step into each local one, which is left out.
The uplink and the downlink carry a second tensor for each factor.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.clients.drift import ControlVariates, compute_control_difference
from fedpeft.clients.executor import Job, Trained
from fedpeft.clients.local_optimizer import CarriesMomentum
from fedpeft.clients.local_training import LocalTraining

from fedpeft.aggregation.strategy import Strategy
from fedpeft.errors import ConfigError
from fedpeft.peft.adapter import AdapterShape, State


@dataclass(frozen=True)
class FedMuon(ControlVariates):
    """Control variates of the momenta of LoRA factors."""

    needs: ClassVar[tuple[str, ...]] = (".lora_A.weight", ".lora_B.weight")

    def check(self, strategy: Strategy, training: LocalTraining, forms: Collection[AdapterShape | None]) -> None:
        """Also refuse optimizers without a momentum.

        Raises:
            ConfigError: the base class refuses the settings, the optimizer has no momentum, or it clips gradients.
        """
        super().check(strategy, training, forms)
        if not isinstance(training.optimizer, CarriesMomentum) or training.optimizer.max_norm:
            raise ConfigError(
                "FP1523 fed_muon corrects the momentum of the clients' Muon steps; use --optimizer muon without "
                "max_norm"
            )

    def choose_momentum(self, server: State, own: State) -> State:
        """Return C for the factors, which is C_k - C_k + C."""
        return {name: c for name, c in server.items() if name.endswith(self.needs)}

    def after(self, job: Job, result: Trained, server: State, own: State) -> State:
        """Return the next C_k: the last momentum without the correction; 0 for other tensors than factors."""
        return {
            name: result.momentum[name] - difference
            if name in result.momentum
            else difference.new_zeros(difference.shape)
            for name, difference in compute_control_difference(server, own).items()
        }


part = FedMuon
