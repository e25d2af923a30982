"""What a configuration makes."""

import pytest

from fedpeft.config import RunConfig
from fedpeft.wiring.auto_defaults import resolve_auto
from fedpeft.wiring.dataset_info import DatasetInfo
from fedpeft.wiring.run_spec import parse_run
from fedpeft.wiring.setup import Setup

FACTS = DatasetInfo("text", "classification", ("a", "b"), "tiny", clients=3)


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
