"""Simulate pages of claims without any effect to find, and count those with a false verdict.

python -m experiments.decide.simulation --pages 4000

Each page has as many claims as the study, on three tasks. The claims of a task share a baseline, seeds and test
examples, as in the study. An arm's prediction of example i with seed s is correct if

    t + sum of normal effects of seed, example, arm and seed, arm and example, and a single prediction > 0

Arms with the same t have the same accuracy in the population of seeds and examples. Three truths are simulated: no arm
differs from its baseline, each arm differs by exactly the margin, and half of the arms do. A verdict is false if it
rejects a true hypothesis, or if it has the wrong sign.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats  # type: ignore[import-untyped, unused-ignore]

from experiments.claims.decisions import ALPHA, BETTER, EQUIVALENT, WORSE, PValues, compute_tests, correct, decide
from experiments.claims.verdicts import Evidence
from fedpeft.study.statistics import POINTS, Array, TestCounts, pair_runs

EFFECTS = {"seed": 0.05, "example": 0.8, "arm and seed": 0.04, "arm and example": 0.3}
"""Standard deviations, in units of the scatter of a single prediction; about those of the pilots."""

TRUTHS = ("no difference", "the margin", "half and half")


@dataclass(frozen=True)
class Pages:
    """The pages that are simulated.

    Attributes:
        claims: number of claims on each of three tasks.
        seeds: number of seeds.
        examples: number of test examples.
        margin: in points.
        accuracy: accuracy of all baselines, 0 to 1.
        corrected: whether the page is corrected; False shows what happens without it.
    """

    claims: int = 8
    seeds: int = 8
    examples: int = 300
    margin: float = 12.0
    accuracy: float = 0.8
    corrected: bool = True

    def count_false(self, truth: str, pages: int, seed: int) -> int:
        """Return the number of pages with at least one false verdict."""
        draw = np.random.default_rng(seed)
        return sum(self._is_false(truth, draw) for _ in range(pages))

    def _is_false(self, truth: str, draw: np.random.Generator) -> bool:
        differences, evidence = [], []
        for _ in range(3):
            wanted = [self._draw_difference(truth, claim) for claim in range(self.claims)]
            differences += wanted
            evidence += self._simulate_task(wanted, draw)
        tests = [compute_tests(one, self.margin) for one in evidence]
        page: list[PValues] = correct(tests) if self.corrected else tests
        judged = zip(differences, evidence, page, strict=True)
        return any(self._is_wrong(wanted, decide(one.difference, p)) for wanted, one, p in judged)

    def _draw_difference(self, truth: str, claim: int) -> float:
        differs = truth == "the margin" or (truth == "half and half" and claim % 4 < 2)
        return (self.margin if claim % 2 else -self.margin) if differs else 0.0

    def _is_wrong(self, difference: float, words: Sequence[str]) -> bool:
        if difference == 0.0:
            return BETTER in words or WORSE in words
        return EQUIVALENT in words or (WORSE if difference > 0 else BETTER) in words

    def _simulate_task(self, differences: Sequence[float], draw: np.random.Generator) -> list[Evidence]:
        """Return the evidence of a task's claims, which share a baseline."""
        shape = (self.seeds, self.examples)
        shared = EFFECTS["seed"] * draw.standard_normal((self.seeds, 1))
        shared = shared + EFFECTS["example"] * draw.standard_normal((1, self.examples))
        spread = float(np.sqrt(1 + sum(value**2 for value in EFFECTS.values())))

        def predict(accuracy: float) -> dict[int, TestCounts]:
            own = EFFECTS["arm and seed"] * draw.standard_normal((self.seeds, 1))
            own = own + EFFECTS["arm and example"] * draw.standard_normal((1, self.examples))
            latent: Array = spread * stats.norm.ppf(accuracy) + shared + own + draw.standard_normal(shape)
            correct = (latent > 0).astype(np.float64)
            return {s: TestCounts(row, np.ones(self.examples)) for s, row in enumerate(correct)}

        baseline = predict(self.accuracy)
        found = []
        for difference in differences:
            paired = pair_runs(predict(self.accuracy + difference / POINTS), baseline)
            assert paired is not None
            found.append(Evidence(paired.by_seed, paired.by_row, paired.rest))
        return found


def main() -> None:
    """Print the share of pages with a false verdict, for each truth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=4000, help="pages of each truth")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulation")
    options = parser.parse_args()
    for truth in TRUTHS:
        share = Pages().count_false(truth, options.pages, options.seed) / options.pages
        error = float(np.sqrt(share * (1 - share) / options.pages))
        print(
            f"{truth}: {100 * share:.2f} % (standard error {100 * error:.2f} %) of {options.pages}, limit {ALPHA:.0%}"
        )


if __name__ == "__main__":
    main()
