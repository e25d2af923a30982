"""How many clients a round asks: the default, and what a user says."""

from types import SimpleNamespace

import pytest

from fedpeft.deployment.client.shared_settings import parse_shared_settings, select_client_settings
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.sampling import build_aware_sampler, compute_cohort_size
from tests.refusals import refuses


@pytest.mark.parametrize(
    ("clients", "size"),
    [(1, 1), (2, 2), (10, 10), (20, 20), (21, 10), (50, 10), (100, 10), (150, 15), (5000, 500), (1_000_000, 100_000)],
)
def test_the_default_asks_all_of_few_clients_and_a_tenth_of_many(clients, size):
    assert RunConfig().cohort == "auto"
    assert compute_cohort_size("auto", clients) == size


@pytest.mark.parametrize("clients", range(1, 40))
def test_the_default_never_asks_so_few_that_nothing_is_averaged(clients):
    assert compute_cohort_size("auto", clients) >= min(10, clients)


@pytest.mark.parametrize(("given", "size"), [(0.1, 1), (1, 1), (3, 3), (0.5, 3), ("all", 6), ("eafl(0.5)", 3)])
def test_a_cohort_that_a_user_names_stays(given, size):
    assert compute_cohort_size(given, 6) == size


def test_auto_is_no_sampler_and_a_wrong_text_names_it():
    assert build_aware_sampler("auto") is None
    with refuses("FP1506", "cohort=automatic", 6, "auto", "all"):
        compute_cohort_size("automatic", 6)


@pytest.mark.parametrize(("cohort", "told"), [("auto", 10), ("all", "all"), (0.5, 0.5), (7, 7)])
def test_real_clients_are_told_how_many_a_round_asks(cohort, told):
    """A client's ledger plans by the number, so that it must not depend on the rule of the client's version."""
    config = RunConfig(cohort=cohort, drift="")
    setup = SimpleNamespace(config=config, clients=50, model_name="tiny", peft="lora", method=None, strategy=None)
    made = select_client_settings(setup)
    assert made.cohort == told
    assert parse_shared_settings(made.to_toml()).cohort == told
