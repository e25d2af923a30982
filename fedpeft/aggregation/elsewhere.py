"""What others call a strategy, and has another place here."""

from __future__ import annotations

ELSEWHERE = {
    "fedavg": "the mean that FedAvg takes is the strategy fedit",
    "fedprox": "FedProx is a penalty on clients, with any strategy: --drift 'fedprox(mu=0.01)'",
    "scaffold": "SCAFFOLD corrects the clients' drift, with any linear strategy: --drift scaffold",
    "la_lora": "LA-LoRA is what clients do in their local steps, with any strategy of both factors: --drift la_lora",
    "florist": "FLoRIST is flexlora with a share of the energy to keep: --strategy 'flexlora(energy=0.9)'",
    "fedavgm": "FedAvgM is momentum at the server: --strategy fedit --server-optimizer 'momentum(beta=0.9)'",
    "fedadam": "FedAdam is what the server does with the mean: --strategy fedit --server-optimizer adam",
    "fedyogi": "FedYogi is what the server does with the mean: --strategy fedit --server-optimizer yogi",
    "fedadagrad": "FedAdagrad is what the server does with the mean: --strategy fedit --server-optimizer adagrad",
}
"""By name in small letters, a clause about where it is."""
