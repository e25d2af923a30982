"""The claims page: Holm's correction, verdicts, and that the page is as the committed results are."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from experiments.claims.__main__ import main
from experiments.claims.records import Claim, collect_evidence, read_claims
from experiments.claims.verdicts import (
    FAILS,
    HOLDS,
    OPEN,
    Evidence,
    compute_probability,
    correct_holm,
    count_needed_seeds,
    decide_verdict,
    open_factor,
)
from fedpeft.errors import RunError


def test_holms_correction_is_the_textbooks():
    assert correct_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert correct_holm([0.5, 0.9]) == [1.0, 1.0]


def test_holm_rejects_what_stepping_down_by_hand_rejects():
    draw = np.random.default_rng(0)
    for _ in range(50):
        probabilities = draw.uniform(0, 0.1, size=6)
        rejected = set()
        for rank, index in enumerate(np.argsort(probabilities)):
            if probabilities[index] >= 0.05 / (6 - rank):
                break
            rejected.add(int(index))
        assert {i for i, p in enumerate(correct_holm(list(probabilities))) if p < 0.05} == rejected


def test_the_probability_is_of_seeds_and_rows_at_once():
    by_seed, by_row = np.array([1.0, 1.2, 0.9, 1.1, 0.8]), np.array([5.0, -4.0, 3.0, -0.0, 1.0])
    found = compute_probability(Evidence(by_seed, by_row), None)
    assert found >= stats.ttest_1samp(by_row, 0.0).pvalue
    alone = compute_probability(Evidence(by_seed), None)
    assert alone == pytest.approx(stats.ttest_1samp(by_seed, 0.0).pvalue)
    assert alone < found


def test_a_loss_is_tested_on_both_sides():
    """A method that is said to be no worse, or to be worse, is one of two things that may be wrong."""
    by_seed = np.array([1.0, 1.2, 0.9, 1.1, 0.8])
    assert compute_probability(Evidence(by_seed), 0.5) == pytest.approx(stats.ttest_1samp(by_seed, -0.5).pvalue)


@pytest.mark.parametrize(
    ("by_seed", "margin", "word"),
    [
        ([1.0, 1.2, 0.9, 1.1, 0.8], None, HOLDS),
        ([-1.0, -1.2, -0.9, -1.1, -0.8], None, FAILS),
        ([-0.3, -0.2, -0.4, -0.3, -0.3], 1.0, HOLDS),
        ([-3.0, -3.2, -2.9, -3.1, -2.8], 1.0, FAILS),
        ([-1.3, -0.7, -0.9, -1.1, -1.0], 1.0, OPEN),
        ([5.0, 5.1, 5.2], None, OPEN),
        ([0.0, 0.0, 0.0, 0.0, 0.0], None, OPEN),
        ([0.0, 0.0, 0.0, 0.0, 0.0], 1.0, HOLDS),
    ],
)
def test_verdicts(by_seed, margin, word):
    evidence = Evidence(np.array(by_seed))
    assert decide_verdict(evidence, margin, compute_probability(evidence, margin)).word == word


@pytest.mark.parametrize("margin", [None, 0.5])
@pytest.mark.parametrize("member", [0, 1, 2])
def test_so_many_seeds_would_do(margin, member):
    """With that many seeds of the same mean and variance, Holm's correction rejects an open claim.

    With one seed less it does not, whichever open claim of the family it is.
    """
    family = [
        np.array([1.0, 3.0, -1.0, 2.0, 0.0]),
        np.array([1.0, 3.4, -1.4, 2.0, 0.0]),
        np.array([1.0, 3.8, -1.8, 2.0, 0.0]),
        np.array([5.0, 5.1, 5.2, 4.9, 5.0]),
    ]

    def corrected(seeds=None):
        samples = list(family)
        if seeds:
            spread = np.resize([1.0, -1.0], seeds)
            of = family[member]
            samples[member] = (spread - spread.mean()) / spread.std(ddof=1) * of.std(ddof=1) + of.mean()
        return correct_holm([compute_probability(Evidence(own), margin) for own in samples])

    now = corrected()
    assert open_factor(now) == 3
    needed = decide_verdict(Evidence(family[member]), margin, now[member], open_factor(now)).needed
    assert needed > len(family[member])
    assert corrected(needed)[member] < 0.05 <= corrected(needed - 1)[member]


def test_seeds_that_would_not_do_are_not_said():
    assert count_needed_seeds(Evidence(np.array([1.0, -1.0])), 0.0, 1) is None
    assert count_needed_seeds(Evidence(np.array([10.0, -9.9])), 0.05, 1) is None, "a hundred would not do"
    few = Evidence(np.array([1.0, 1.2, 0.9, 1.1, 0.8]), np.array([20.0, -18.0, 1.0]))
    said = decide_verdict(few, None, compute_probability(few, None))
    assert (said.word, said.needed, said.of_rows) == (OPEN, None, True)


def test_a_claim_about_a_method_that_no_study_has_is_refused():
    claim = Claim("", "", "communication", {"method": "unheard of"}, {"method": "fedit"}, {})
    with pytest.raises(RunError, match="0 methods"):
        collect_evidence(claim)


@pytest.mark.medium
def test_the_page_its_figure_and_data_are_as_the_results_are(capsys):
    assert len(read_claims()) >= 20
    assert main([]) == 0, capsys.readouterr().out + "run: python -m experiments.claims --write"
