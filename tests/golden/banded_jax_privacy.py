"""Makes banded_jax_privacy.json: banded matrices by Google's jax-privacy, their errors and their sensitivities.

jax-privacy brings JAX along, so it runs in an environment of its own:

    python -m venv jax && jax/bin/pip install jax-privacy==2.0.0
    jax/bin/python tests/golden/banded_jax_privacy.py

Each line of `errors`: rounds, bands, mean square of noise in prefix sums. Each of `sensitivities`: matrix, least rounds
from one turn of a client to the next, most turns, sensitivity.
"""

import json
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
from jax_privacy.matrix_factorization import banded, sensitivity

jax.config.update("jax_enable_x64", True)

ERRORS = [(6, 2), (12, 3), (20, 4), (20, 10), (40, 8)]
TURNS = [(2, None), (3, None), (3, 2), (4, 1), (6, None)]


def sensitivities() -> list[list[object]]:
    random = np.random.default_rng(0)
    found: list[list[object]] = []
    for separation, turns in TURNS:
        bands = min(separation, 4)
        columns = np.array([[random.normal() * (0 <= i - j < bands) for j in range(8)] for i in range(8)])
        columns = columns + 2 * np.eye(8)
        bound = sensitivity.get_sensitivity_banded(jax.numpy.asarray(columns), separation, turns)
        found.append([columns.tolist(), separation, turns, bound])
    return found


if __name__ == "__main__":
    errors = [
        [n, b, float(banded.per_query_error(banded.optimize(n, bands=b, max_optimizer_steps=500)).mean())]
        for n, b in ERRORS
    ]
    content = {"jax-privacy": version("jax-privacy"), "errors": errors, "sensitivities": sensitivities()}
    Path(__file__).with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
