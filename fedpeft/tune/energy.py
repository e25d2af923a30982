"""Energy of a run before it trains: what the measurement `energy` will count, from the same declared numbers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import starmap

from fedpeft.rounds.energy import BYTES_PER_NUMBER, SECONDS_PER_HOUR
from fedpeft.rounds.sampling import create_population
from fedpeft.wiring.energy import EnergyModel, EnergySettings
from fedpeft.wiring.profiles import compute_chances
from fedpeft.wiring.setup import Setup


@dataclass(frozen=True)
class PredictedEnergy:
    """The energy of all clients in all rounds.

    Attributes:
        joules: their joules, with waiting, traffic and the site's overhead.
        grams: grams of CO2; 0: no setting or profile states how clean the power is.
    """

    joules: float
    grams: float


def predict_energy(setup: Setup, rows: list[int], sent: int) -> PredictedEnergy | None:
    """Predict the energy of a whole run; None: the run does not measure it.

    The cohorts are those that the run will draw. A sampler that follows batteries or power grids is not drawn ahead:
    then each round counts the clients that use most. Batteries that do not last, and `lean`, use less than this.

    Args:
        setup: the run's setup.
        rows: training examples of each client.
        sent: bytes of a client's update. The state that a client receives counts 4 bytes per number.
    """
    given = setup.measured.get(EnergySettings)
    if given is None:
        return None
    model, size = EnergyModel(given), setup.compute_cohort_size(setup.clients)
    population = create_population(setup.clients, size, compute_chances(setup.profiles), None)
    received = BYTES_PER_NUMBER * setup.layout.numel
    steps = [p.steps or setup.training.steps_for(n) for p, n in zip(setup.profiles, rows, strict=True)]
    seconds = list(starmap(model.get_seconds, zip(setup.profiles, steps, strict=True)))
    joules = grams = 0.0
    for round_number in range(1, setup.rounds + 1):
        everybody = setup.sampler is not None
        asked = range(setup.clients) if everybody else population.draw(setup.config.seed, round_number)
        slowest = min(max((seconds[k] for k in asked), default=0.0), SECONDS_PER_HOUR * given.round_hours)
        used = {k: model.compute_spent(setup.profiles[k], steps[k], slowest, sent, received).joules for k in asked}
        emitted = [model.compute_grams(setup.profiles[k], round_number, j) for k, j in used.items()]
        joules += sum(sorted(used.values(), reverse=True)[:size])
        grams += sum(sorted(emitted, reverse=True)[:size])
    return PredictedEnergy(joules, grams)
