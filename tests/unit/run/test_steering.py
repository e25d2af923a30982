"""What validation rows may decide."""

from __future__ import annotations

import pytest
from rich.console import Console

from fedpeft.aggregation.safeguards.undo import Undo
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run
from fedpeft.wiring.training_control import TrainingControl, build_training_control
from tests.refusals import refuses

TINY = {"dataset": "tiny", "tokens": 32, "clients": 6, "cohort": 3, "rounds": 3, "workers": 1}
QUIET = ConsoleObserver(Console(quiet=True))


PRIVATE = {"privacy": "dp_sgd(noise_multiplier=4)"}


def decided(personal=False, rows=True, **given):
    return build_training_control(parse_run(RunConfig(**given)), personal, rows)


def test_auto_decides_as_much_as_is_right():
    assert decided() == TrainingControl(Undo(), True, 0)
    assert decided(safeguard="none", measure="validation(every=1, keep=last)") == TrainingControl()
    assert decided(measure="validation(every=1, patience=3)", safeguard="none") == TrainingControl(None, True, 3)
    for case in ({"personal": True}, {"rows": False}):
        assert decided(**case) == TrainingControl()
    assert decided(**PRIVATE) == decided(**PRIVATE, personal=True) == TrainingControl(fits=False)
    assert decided(**PRIVATE, measure="validation(every=1, public=True)") == TrainingControl(Undo(), True, 0)


def test_under_noise_that_stays_as_large_steps_are_undone_at_the_same_rate(tmp_path):
    public = {"privacy": "user_dp(noise_multiplier=4)", "measure": "validation(every=1, public=True)"}
    assert decided(**public).safeguard == decided(**public, safeguard="undo(rate=1)").safeguard == Undo(rate=1)
    assert decided(**public, safeguard="none").safeguard is None
    with refuses("FP1393"):
        decided(**public, safeguard="undo")
    for privacy, rate in (("user_dp(noise_multiplier=4)", 1), ("dp_sgd(noise_multiplier=4)", 0.25)):
        given = {"privacy": privacy, "head": "zero", "measure": "validation(every=1, public=True)"}
        simulation = Simulation(RunConfig(**TINY | given), tmp_path, QUIET)
        assert simulation.setup.training_control.safeguard == Undo(rate=rate)
        simulation.close()


@pytest.mark.parametrize(
    "asked",
    [
        {"safeguard": "undo"},
        {"measure": "validation(every=1, keep=best)"},
        {"measure": "validation(every=1, patience=2)"},
    ],
)
def test_what_can_not_or_may_not_be_decided_is_refused(asked):
    with refuses("FP7116"):
        decided(**PRIVATE, **asked)
    with refuses("FP1390"):
        decided(personal=True, **asked)
    with refuses("FP1391"):
        decided(rows=False, **asked)
    public = asked.get("measure", "validation(every=1)")[:-1] + ", public=True)"
    decided(**PRIVATE, **asked | {"measure": public})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"measure": "validation(every=1, keep=last, patience=2)"}, ("FP1394",)),
        ({"measure": "validation(every=1, public=True)"}, ("FP1389",)),
        ({"safeguard": "undoo"}, ("FP1231", "undoo")),
        ({"safeguard": "undo(rise=-1)"}, ("FP1227", "at least 0")),
        ({"safeguard": "undo(rate=0)"}, ("FP1227", "above 0")),
    ],
)
def test_what_makes_no_sense_is_refused(given, words):
    with refuses(*words):
        decided(**given)


def test_a_private_run_with_keep_best_is_refused_before_anything_is_trained(tmp_path):
    given = TINY | {
        "privacy": "user_dp(noise_multiplier=4)",
        "head": "zero",
        "measure": "validation(every=1, keep=best)",
    }
    with refuses("FP7116"):
        Simulation(RunConfig(**given), tmp_path, QUIET)
