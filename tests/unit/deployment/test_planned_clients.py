"""Training under a privacy budget as a server of real clients plans it: by the numbers of rows that all may know."""

from __future__ import annotations

import dataclasses

import pytest

from fedpeft.deployment.options import ServeOptions
from fedpeft.deployment.server.privacy_plan import UNPLANNED
from fedpeft.parts import format_part
from fedpeft.serve import parse
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring import catalogue
from fedpeft.wiring.config import RunConfig, read_config
from fedpeft.wiring.private_plan import LEFT
from tests.here import TINY, Federation
from tests.refusals import refuses

UNSAID = {name: RunConfig.__dataclass_fields__[name].default for name in LEFT} | {"head": "auto", "rounds": 6}
TEXTS = UNSAID | {"peft": "lora(rank=2, layers=1)", "clients": 3}
LIKELY = ServeOptions(client_rows=180)


def told(config):
    """Return the training settings that clients receive."""
    return {name: getattr(config, name) for name in (*LEFT, "peft", "head", "cohort")}


def heard(made):
    """Return the training settings that the first client received."""
    return told(made.server.edges[0].setup.config)


def said(made):
    """Return the server's notes on its plan."""
    return " ".join(made.server.setup.notes)


@pytest.mark.medium
@pytest.mark.parametrize(
    "privacy",
    ["dp_sgd(epsilon=200)", "dp_sgd(epsilon=2)", "dp_sgd(epsilon=50, start=0.2)", "user_dp(epsilon=2000)",
     "local_dp(epsilon=2000)"],
)  # fmt: skip
@pytest.mark.parametrize("peft", ["lora(rank=2, layers=1)", "linear_probe"])
def test_the_plan_is_that_of_a_simulation_of_such_clients(privacy, peft, tmp_path, observer):
    given = TEXTS | {"privacy": privacy, "peft": peft}
    simulated = Simulation(RunConfig(**{**TINY, **given, "partition": "iid"}), tmp_path, observer)
    assert set(simulated._compute_exposure().rows) == {LIKELY.client_rows}
    made = Federation(tmp_path, observer, serve=LIKELY, **given)
    assert heard(made) == told(simulated.setup.config)
    share = simulated.setup.mechanism.start_share(simulated._compute_exposure())
    mechanism = made.server.edges[0].setup.mechanism
    assert mechanism == dataclasses.replace(simulated.setup.mechanism, start=share)
    assert made.server.config.privacy == format_part(mechanism)
    assert ("for clients of 180 examples" in said(made)) is ("user_dp" not in privacy)


def test_a_server_that_is_started_again_stays_with_its_plan(tmp_path, observer):
    made = Federation(tmp_path, observer, serve=LIKELY, **TEXTS, privacy="dp_sgd(epsilon=200)")
    text, before = catalogue.format_setup_toml(made.server.setup), heard(made)
    assert before["batch_size"] == 45
    (tmp_path / "server" / "config.toml").write_text(text)
    made.config = read_config(tmp_path / "server" / "config.toml")
    made.start()
    assert told(made.server.setup.config) == before
    assert made.server.setup.mechanism.start == 0.5


@pytest.mark.medium
@pytest.mark.parametrize(
    "privacy", ["distributed_dp(epsilon=300, rows=540)", "dp_sgd(epsilon=200)", "dp_sgd(epsilon=2)"]
)
def test_a_federation_of_before_is_not_planned_anew(privacy, tmp_path, observer):
    """Its clients have been told of other settings, and have begun their ledgers with these."""
    (tmp_path / "server").mkdir()
    text = RunConfig(**{**TINY, **TEXTS, "privacy": privacy}).to_toml()
    (tmp_path / "server" / "config.toml").write_text(text)
    made = Federation(
        tmp_path, observer, serve=ServeOptions() if "rows" in privacy else LIKELY, **TEXTS, privacy=privacy
    )
    assert {name: heard(made)[name] for name in LEFT} == {name: UNSAID[name] for name in LEFT}
    assert (made.server.config.privacy, said(made)) == (privacy, "")


def test_rows_that_are_held_out_are_not_trained_on(tmp_path, observer):
    given = TEXTS | {"privacy": "dp_sgd(epsilon=200, raw_metrics=True)"}
    made = Federation(tmp_path, observer, serve=ServeOptions(client_rows=200, held_out=0.1), **given)
    assert "for clients of 180 examples" in said(made)
    assert heard(made)["batch_size"] == 45


@pytest.mark.parametrize(
    ("privacy", "rows", "words"),
    [("distributed_dp(epsilon=8, rows=500, collude=0.9, dropouts=0.2)", 0, ("FP7058",)),
     ("distributed_dp(epsilon=8, rows=9000000)", 0, ("FP1143", "1,800,000", "5", "1,000,000")),
     ("dp_sgd(epsilon=8, dp_delta=0.5)", 50, ("FP7050",)),
     ("", 180, ("FP1141",)),
     ("distributed_dp(epsilon=8, rows=500, mask_neighbours=2)", 0,
      ("FP7024", "fewer --clients: all are asked for their start")),
     ("distributed_dp(epsilon=300, rows=540)", 180, ("FP1142", "--client-rows 180", "distributed_dp", "540"))],
)  # fmt: skip
def test_what_no_client_would_take_is_refused_at_once(privacy, rows, words, tmp_path, observer):
    with refuses(*words):
        Federation(
            tmp_path, observer, serve=ServeOptions(client_rows=rows), **TEXTS | {"privacy": privacy, "clients": 5}
        )


@pytest.mark.medium
def test_a_plan_is_asked_for_only_where_there_is_one(tmp_path, observer):
    plain = "dp_sgd(noise_multiplier=1)"
    for i, privacy in enumerate(("local_dp(epsilon=2000)", "dp_sgd(epsilon=200, start=1)", plain)):
        (folder := tmp_path / str(i)).mkdir()
        made = Federation(folder, observer, **TEXTS | {"privacy": privacy})
        assert said(made) == ""
    made = Federation(tmp_path, observer, serve=LIKELY, **TEXTS | {"privacy": plain})
    assert (said(made), made.server.config.privacy) == ("", plain)


def test_a_server_that_goes_on_takes_no_other_number(tmp_path):
    (tmp_path / "config.toml").write_text(RunConfig(**TINY).to_toml())
    (tmp_path / "serve.toml").write_text("client_rows = 100\n")
    begun = ["--resume", str(tmp_path)]
    assert parse(begun)[1].client_rows == parse([*begun, "--client-rows", "100"])[1].client_rows == 100
    with refuses("FP1402", "100"):
        parse([*begun, "--client-rows", "200"])


def test_rows_that_nobody_tells_are_no_plan_and_it_is_said(tmp_path, observer):
    made = Federation(tmp_path, observer, **TEXTS, privacy="dp_sgd(epsilon=200)")
    assert said(made) == UNPLANNED
    assert {name: heard(made)[name] for name in LEFT} == {name: UNSAID[name] for name in LEFT}
    assert made.server.setup.mechanism.start is None
    for known, more in ((LIKELY, {"batch_size": 16}), (ServeOptions(), {"learning_rate": 0.01})):
        made = Federation(tmp_path, observer, serve=known, **TEXTS | more, privacy="dp_sgd(epsilon=200)")
        assert heard(made)["batch_size"] == more.get("batch_size", UNSAID["batch_size"])
        assert said(made) != UNPLANNED


def test_noise_that_is_shared_is_planned_for_by_the_rows_of_all(tmp_path, observer):
    given = TEXTS | {"privacy": "distributed_dp(epsilon=300, rows=540)"}
    made = Federation(tmp_path, observer, **given)
    assert heard(made)["learning_rate"] != UNSAID["learning_rate"]
    assert said(made) == ""  # the book says it
    assert "of the budget is for the start" in made.server.protection.describe_plan()


FEW = {"clients": 3, "rounds": 6, "privacy": "distributed_dp(epsilon=8, unit=clients, clip=0.2, plan=False)"}


def test_of_few_clients_rounds_are_planned_at_the_delta_that_they_count_at(tmp_path, observer):
    made = Federation(tmp_path, observer, **FEW)
    made.server.wait_for_present()
    book = made.server.protection
    assert {book.delta, *(terms.delta for terms in made.server._get_declared_terms().values())} == {0.001}
    assert "the budget counts at dp_delta 0.001, the largest that clients accept" in said(made)
    assert book.accounts.describe_shortfall() == ""


def test_a_federation_of_before_goes_on_at_its_delta_and_says_how_far_its_clients_come(tmp_path, observer):
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "config.toml").touch()  # it has begun
    made = Federation(tmp_path, observer, **FEW)
    assert made.server.protection.delta == pytest.approx(0.1 / 3)
    made.server.wait_for_present()
    assert (
        "budgets of 3 of 3 clients pay for 3 rounds, and 6 are planned"
        in made.server.protection.accounts.describe_shortfall()
    )
