"""Makes epsilon_pld.json: epsilon by an independent accountant, Google's privacy loss distributions (dp-accounting).

dp-accounting pins attrs below 24, which other packages here do not stand, so it runs in an environment of its own:

    python -m venv pld && pld/bin/pip install dp-accounting==0.6.0
    pld/bin/python tests/golden/epsilon_pld.py

Each line: noise multiplier, sampling rate, releases, delta, and PLD's pessimistic and optimistic estimates.
"""

import json
from pathlib import Path

from dp_accounting import dp_event
from dp_accounting.pld import pld_privacy_accountant, privacy_loss_distribution

GRID = [
    (1.0, 0.1, 100, 1e-3),
    (1.0, 1.0, 100, 1e-3),
    (0.5, 0.05, 20, 1e-4),
    (0.6, 0.02, 200, 1e-5),
    (0.8, 0.01, 1000, 1e-5),
    (0.8, 0.5, 10, 1e-3),
    (1.0, 0.05, 1000, 1e-4),
    (1.0, 0.001, 100, 1e-6),
    (1.5, 0.25, 60, 1e-3),
    (2.0, 1.0, 4, 1e-5),
    (2.5, 0.9, 30, 1e-4),
    (4.0, 1.0, 10, 1e-5),
    (4.0, 0.2, 500, 1e-5),
    (10.0, 0.1, 100, 1e-5),
    (30.0, 1.0, 3, 1e-4),
]
INTERVAL = 5e-4


def estimate(noise: float, rate: float, count: int, delta: float, pessimistic: bool) -> float:
    one = privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=noise,
        sampling_prob=rate,
        value_discretization_interval=INTERVAL,
        use_connect_dots=pessimistic,
        pessimistic_estimate=pessimistic,
    )
    return float(one.self_compose(count).get_epsilon_for_delta(delta))


def mixed(delta: float) -> float:
    """Two kinds of releases one after the other, as when a round was charged twice on other terms."""
    accountant = pld_privacy_accountant.PLDAccountant(value_discretization_interval=INTERVAL)
    for noise, rate, count in ((1.0, 0.1, 100), (2.0, 0.05, 50), (3.0, 1.0, 2)):
        event = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise))
        accountant.compose(dp_event.SelfComposedDpEvent(event, count))
    return float(accountant.get_epsilon(delta))


if __name__ == "__main__":
    rows = [[*point, estimate(*point, True), estimate(*point, False)] for point in GRID]
    content = {"dp-accounting": "0.6.0", "grid": rows, "mixed": {"delta": 1e-3, "epsilon": mixed(1e-3)}}
    Path(__file__).with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
