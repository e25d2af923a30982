"""What a client takes of its server's settings: every field is taken, left at its default, or refused."""

from __future__ import annotations

import dataclasses

import pytest

from fedpeft.deployment.client import capacity
from fedpeft.deployment.client.edge import EdgeClient, build_settings
from fedpeft.deployment.client.shared_settings import LEFT, REFUSED, TAKEN, parse_shared_settings
from fedpeft.deployment.options import EdgeOptions
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.wiring.auto_defaults import resolve_auto
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run
from tests.conftest import SilentObserver
from tests.refusals import refuses

FIELDS = {
    "clients": ("taken", 7),
    "rounds": ("taken", 3),
    "cohort": ("taken", 2),
    "dataset": ("left", "file:/etc/passwd"),
    "partition": ("left", "iid"),
    "model": ("taken", "tiny"),
    "tokens": ("taken", 32),
    "peft": ("taken", "ia3"),
    "dtype": ("taken", "fp64"),
    "head": ("taken", "zero"),
    "strategy": ("taken", "ffa_lora"),
    "server_optimizer": ("left", "adam"),
    "ranks": ("refused", "4*1,8*1"),
    "drift": ("taken", "fedprox(mu=0.5) + label_shift"),
    "attack": ("refused", "sign_flip"),
    "batch_size": ("taken", 2),
    "local_work": ("taken", "steps(5)"),
    "learning_rate": ("taken", 0.5),
    "optimizer": ("taken", "sgd(schedule=cosine)"),
    "privacy": ("taken", "local_dp(epsilon=1)"),
    "codec": ("taken", "bf16"),
    "budget_megabytes": ("left", 5.0),
    "downlink": ("taken", "bf16"),
    "safeguard": ("left", "undo"),
    "grid": ("refused", "ray(address='10.0.0.1:6379')"),
    "workers": ("left", 8),
    "measure": ("left", "validation(every=9, keep=best)"),
    "hook": ("left", "budget(seconds=60)"),
    "seed": ("taken", 5),
}
"""For each field what becomes of it, and a value that is not its default."""


def test_every_setting_has_been_thought_of():
    names = [field.name for field in dataclasses.fields(RunConfig)]
    assert list(FIELDS) == names, "a new setting: does a client take it from a server? Say so here and in the module"
    for fate, group in (("taken", TAKEN), ("left", LEFT), ("refused", REFUSED)):
        assert {name for name, (found, _) in FIELDS.items() if found == fate} == group


@pytest.mark.parametrize("name", FIELDS)
def test_a_setting_is_taken_or_left_or_refused(name):
    fate, value = FIELDS[name]
    default = RunConfig(drift="")  # a server tells what `auto` is
    assert value != getattr(default, name)
    text = dataclasses.replace(default, **{name: value}).to_toml()
    if fate == "refused":
        with refuses("FP5097", name):
            parse_shared_settings(text)
        return
    found = parse_shared_settings(text)
    assert getattr(found, name) == (value if fate == "taken" else getattr(default, name))
    assert dataclasses.replace(found, **{name: getattr(default, name)}) == default, "nothing else has changed"


def test_a_client_s_own_choices_come_first():
    told = v2.Description(config=RunConfig(model="tiny", batch_size=8, cohort=2).to_toml())
    assert build_settings(told, EdgeOptions()).config.batch_size == 8
    chosen = build_settings(told, EdgeOptions(model="minilm", batch_size=2)).config
    assert (chosen.model, chosen.batch_size, chosen.cohort, chosen.workers) == ("minilm", 2, "all", 1)


def test_a_batch_size_that_all_divide_by_is_no_client_s_own_to_choose(monkeypatch):
    options = EdgeOptions(batch_size=2)
    rates = ("", ", rate=0.5")
    runs = {
        rate: RunConfig(model="tiny", peft="lora", dtype="fp32", privacy=f"dp_sgd(epsilon=8{rate})") for rate in rates
    }
    told = {rate: v2.Description(config=config.to_toml()) for rate, config in runs.items()}
    assert build_settings(told[""], options).config.batch_size == 2
    with refuses("FP1118", "--batch-size 2"):
        build_settings(told[", rate=0.5"], options)
    monkeypatch.setattr(capacity, "get_free_memory", lambda _: 1.0)
    for rate, rows in (("", 1), (", rate=0.5", 0)):
        spec = build_settings(told[rate], EdgeOptions())
        description = v2.Description(tokens=32, task="classification")
        assert capacity.fit_to_memory(EdgeOptions(), spec, description, "cpu", SilentObserver()).batch_size == rows


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("clients = 1000001", ("FP5098", "clients", "1000001", "1000000")),
        ("rounds = 4611686018427387904", ("FP5098", "1000000")),
        ("local_work = 'epochs(1e300)'", ("FP5094", "FP1227", "passes", "1000000")),
        ("local_work = 'steps(1000001)'", ("FP5094", "FP1227", "count", "1000000")),
        ("local_work = 'os(1)'", ("FP5094", "FP1231", "amount of local work 'os")),
        ("optimizer = 'os'", ("FP5094", "FP1231", "local optimizer 'os")),
        ("drift = 'fedprox + os'", ("FP5094", "FP1231", "drift correction 'os")),
        ("clients = '/etc/passwd'", ("FP5096",)),
        ("proximal = 0.5", ("FP5094", "proximal")),
        ("seed = 9223372036854775808", ("FP5098",)),
        (f"seed = {'9' * 5000}", ("FP5094",)),
        (f"learning_rate = 1{'0' * 400}", ("FP5094", "FP1227", "learning_rate", "float")),
        (f"x = {'[' * 100_000}", ("FP5094",)),
        (f"privacy = '{'(' * 10_000}'", ("FP5094", "FP1420")),
        ("privacy = 'dp_sgd\\u0000'", ("FP5094", "FP1420")),
        ("privacy = 'none'", ("FP5099",)),
        ("privacy = 'dp_sgd(epsilon=8, audit=True)'", ("FP5099",)),
        ("privacy = 'fedpeft.audit'", ("FP5094", "FP1420")),
        ("privacy = 'os'", ("FP5094", "FP1231", "privacy mechanism 'os")),
        ("wings = 2", ("FP5094", "FP1225", "wings")),
    ],
)
def test_settings_that_no_client_takes_are_one_sentence(line, says):
    line = line.replace("'", '"')
    with refuses(*says) as refused:
        parse_shared_settings(line)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("setting", ["measure", "attack"])
def test_a_client_loads_nothing_of_its_machine_and_spoils_nothing_for_a_server(federation, observer, setting):
    """The file exists and holds good rows: it is not for want of them that it isn't read."""
    made = federation(clients=1)
    value = {"measure": f"forgetting(dataset='file:{made.folder / '0.jsonl'}')", "attack": "label_flip(fraction=1.0)"}[
        setting
    ]
    told = v2.Description.FromString(made.server.gateway.description.SerializeToString())
    told.config = dataclasses.replace(made.config, model="tiny", **{setting: value}).to_toml()
    home, ledgers = made.folder / "edge-0", made.folder / "ledgers"
    with refuses("FP5097", setting):
        EdgeClient(told, made.folder / "0.jsonl", home, ledgers, observer, EdgeOptions(device="cpu", threads=1))


def test_the_data_set_that_a_server_names_is_not_loaded(federation, observer):
    made = federation(clients=1)
    told = v2.Description.FromString(made.server.gateway.description.SerializeToString())
    changed = dataclasses.replace(made.config, model="tiny", dataset="file:/nowhere.csv", partition="natural")
    told.config = changed.to_toml()
    options = EdgeOptions(device="cpu", threads=1)
    edge = EdgeClient(told, made.folder / "0.jsonl", made.folder / "edge-0", made.folder / "ledgers", observer, options)
    assert (edge.config.dataset, edge.config.partition) == (
        RunConfig().dataset,
        resolve_auto(parse_run(RunConfig())).config.partition,
    )
    assert len(edge.rows) == 40


def test_a_server_that_is_told_nothing_of_adapters_chooses_them_before_clients_are_told(federation):
    made = federation(clients=1, peft="auto")
    assert parse_shared_settings(made.server.gateway.description.config).peft == "lora"


def test_a_server_that_says_nothing_of_drift_asks_for_nothing():
    assert parse_shared_settings('model = "tiny"\n').drift == ""
