"""What a configuration makes."""

import pickle
from collections import Counter

import numpy as np
import pytest

from fedpeft.data.partition import Partition
from fedpeft.parts import Family, name_of
from fedpeft.parts.spec import Spec
from fedpeft.reporting.workers import create_client_plan
from fedpeft.wiring.auto_defaults import resolve_auto
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.dataset_info import DatasetInfo
from fedpeft.wiring.run_spec import parse_run
from fedpeft.wiring.setup import Setup
from tests.refusals import refuses

FACTS = DatasetInfo("text", "classification", ("a", "b"), "tiny", clients=3)


def count_builds(monkeypatch) -> Counter:
    """Return the number of parts that are built from texts from here on, by group."""
    counts: Counter[str] = Counter()
    build = Family.build

    def counted(family, text):
        counts[family.group] += isinstance(text, str | Spec)
        return build(family, text)

    monkeypatch.setattr(Family, "build", counted)
    return counts


def test_each_setting_is_parsed_once(tmp_path, monkeypatch):
    counts = count_builds(monkeypatch)
    config = RunConfig(
        peft="lora(rank=2, layers=1)", head="zero", drift="fedprox", partition="iid", safeguard="none",
        privacy="user_dp(noise_multiplier=1)", attack="sign_flip(fraction=0.1)", codec="fp32", downlink="fp32",
    )  # fmt: skip
    spec = parse_run(config)
    once = {"strategies", "server_optimizers", "mechanisms", "attacks", "corrections", "heads", "peft_methods"}
    assert {counts[group] for group in once} == {1}
    counts.clear()
    setup = Setup.create(spec, FACTS)
    plan = create_client_plan(setup, Partition.from_shards([np.arange(3)]), tmp_path, 0.0, None)
    assert +counts == {"tasks": 1, "models": 1}, "the data set names the task, and the model becomes a folder"
    assert (plan.strategy, plan.head, plan.drift) == (spec.strategy, setup.head, spec.drift)
    assert pickle.loads(pickle.dumps(plan)).strategy == plan.strategy


def test_a_change_parses_only_the_changed_settings(monkeypatch):
    spec = parse_run(RunConfig())
    counts = count_builds(monkeypatch)
    changed = spec.change(strategy="krum", rounds=3)
    assert (+counts, changed.config.rounds, name_of(type(changed.strategy))) == ({"strategies": 1}, 3, "krum")
    assert changed.uplink is spec.uplink
    with refuses("FP1231", "strategy", "nothing"):
        spec.change(strategy="nothing")


@pytest.mark.parametrize(("fast", "dtype"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_settled_where_a_run_is_set_up(monkeypatch, fast, dtype):
    """A description is the same on every machine; what is set up names the precision, and keeps it elsewhere."""
    monkeypatch.setattr("fedpeft.wiring.auto_defaults.list_accelerators", list)
    monkeypatch.setattr("fedpeft.wiring.auto_defaults.has_fast_bf16", lambda device: fast)
    assert RunConfig().dtype == "auto"
    assert 'dtype = "auto"' in RunConfig().to_toml()
    assert resolve_auto(parse_run(RunConfig())).config.dtype == dtype
    assert resolve_auto(parse_run(RunConfig(dtype="fp64"))).config.dtype == "fp64"
    setup = Setup.create(parse_run(RunConfig(peft="lora(rank=2, layers=1)", head="zero")), FACTS)
    assert setup.config.dtype == dtype
    assert (
        setup.config == resolve_auto(parse_run(RunConfig(peft="lora(rank=2, layers=1)", head="zero", drift=""))).config
    )


@pytest.mark.parametrize(
    ("dataset", "given", "partition"),
    [
        ("reviews", "auto", "grouped"),
        ("sample(of='reviews(margin=1.0)', rows=500)", "auto", "grouped"),
        ("tiny", "auto", "dirichlet(alpha=0.5)"),
        ("reviews", "iid", "iid"),
    ],
)
def test_a_partition_that_is_not_given_is_the_data_set_s_own(dataset, given, partition):
    assert resolve_auto(parse_run(RunConfig(dataset=dataset, partition=given))).config.partition == partition


def test_a_setup_knows_nothing_of_where_clients_are():
    """Its parts, its layout, its start: the same for a simulation, a server and a client."""
    config = RunConfig(dtype="fp32", peft="lora(rank=2, layers=1)", head="zero", seed=3)
    one, other = (Setup.create(parse_run(config), FACTS) for _ in range(2))
    assert one.layout == other.layout
    assert one.start.keys() == set(one.layout.names)
    assert all((one.start[name] == other.start[name]).all() for name in one.start)
    assert one.clients == 3
    assert len(one.profiles) == 3
