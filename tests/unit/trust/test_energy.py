"""Energy: counters of a made RAPL tree, predictions by hand, batteries that empty, and who is chosen."""

import dataclasses
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from fedpeft.communication.round_plan import RoundPlan
from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.machine.energy import Meter, find_nvml_counters, find_rapl_counters
from fedpeft.machine.json_values import convert_to_plain
from fedpeft.measurements.energy import Energy
from fedpeft.parts.families import SAMPLERS
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.rounds.acceptance import ClientResult
from fedpeft.rounds.energy import AwarePopulation, EnergyTracker
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.energy import EnergyModel
from fedpeft.wiring.measurements import parse_measure
from fedpeft.wiring.profiles import Profile
from fedpeft.wiring.sampling import AwareSampler, build_aware_sampler, compute_cohort_size
from tests.refusals import pattern_of, refuses


def zone(folder, name, called, joules, turn=1000.0):
    made = folder / name
    made.mkdir(parents=True, exist_ok=True)
    (made / "name").write_text(called + "\n")
    (made / "max_energy_range_uj").write_text(f"{int(turn * 1e6)}\n")
    (made / "energy_uj").write_text(f"{int(joules * 1e6)}\n")


def test_rapl_counts_packages_and_memory_and_turns(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 990)
    zone(tmp_path, "intel-rapl:0:0", "core", 500)
    zone(tmp_path, "intel-rapl:0:1", "dram", 100)
    zone(tmp_path, "intel-rapl:1", "package-1", 10)
    zone(tmp_path, "intel-rapl:2", "psys", 5000)
    meter = Meter(find_rapl_counters(tmp_path))
    assert meter.measure_joules() == 0
    zone(tmp_path, "intel-rapl:0", "package-0", 15)  # it has begun anew: 25 J
    zone(tmp_path, "intel-rapl:0:0", "core", 600)
    zone(tmp_path, "intel-rapl:0:1", "dram", 103)
    zone(tmp_path, "intel-rapl:1", "package-1", 17)
    zone(tmp_path, "intel-rapl:2", "psys", 6000)
    assert meter.measure_joules() == pytest.approx(25 + 3 + 7)
    assert meter.measure_joules() == pytest.approx(35)


def test_a_machine_of_one_platform_domain_counts_that(tmp_path):
    zone(tmp_path, "intel-rapl:0", "psys", 1)
    assert [counter.name for counter in find_rapl_counters(tmp_path)] == ["psys"]


def test_where_nothing_counts_nothing_is_told(tmp_path):
    assert Meter(find_rapl_counters(tmp_path / "none")).measure_joules() is None
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()  # root alone may read it
    assert find_rapl_counters(tmp_path) == []


def test_what_a_round_takes_by_hand():
    model = EnergyModel(Energy(watts=5, idle_watts=1, step_seconds=2, joule_per_byte=0.001, pue=1.5, intensity=400))
    own = Profile(None, watts_train=10.0, intensity_swing=0.5, peak_hour=0.0)
    spent = model.compute_spent(own, steps=3, slowest=10.0, up=1000, down=4000)
    assert spent.to_dict() == {"train": 90.0, "idle": 6.0, "up": 1.5, "down": 6.0}
    assert model.compute_spent(own, 3, 6.0, 0, 0, measured=40.0).train == pytest.approx(60)
    assert model.get_intensity(own, 1) == pytest.approx(600)  # midnight is its peak
    assert model.get_intensity(own, 13) == pytest.approx(200)
    assert model.get_intensity(own, 25) == pytest.approx(600)
    assert model.compute_grams(own, 1, 3.6e6) == pytest.approx(600)
    assert model.predict_joules(Profile(None), 2, 500, 500) == pytest.approx(21)


@dataclasses.dataclass
class Seen:
    """What a sampler sees, by hand."""

    levels: np.ndarray
    uses: np.ndarray
    capacities: np.ndarray
    losses: np.ndarray
    rows: np.ndarray
    seconds: np.ndarray
    grid: np.ndarray

    @property
    def weights(self):
        return np.ones(len(self.levels))

    def get_intensity(self, round_number):
        return self.grid


def seen(clients=12, **given):
    plain = {
        "levels": np.full(clients, 10.0),
        "uses": np.ones(clients),
        "capacities": np.full(clients, 10.0),
        "losses": np.ones(clients),
        "rows": np.full(clients, 5.0),
        "seconds": np.ones(clients),
        "grid": np.ones(clients),
    }
    return Seen(**plain | {name: np.array(value, float) for name, value in given.items()})


@pytest.mark.parametrize("name", SAMPLERS.names)
def test_a_sampler_is_a_function_of_seed_and_round_and_asks_nobody_whose_battery_is_empty(name):
    rule = SAMPLERS.build(f"{name}(4)")
    view = seen(levels=[0.5] * 3 + [10.0] * 9)
    for round_number in range(1, 9):
        cohort = rule.choose(view, 4, 7, round_number)
        assert cohort == sorted(set(cohort)) == rule.choose(view, 4, 7, round_number)
        assert len(cohort) <= 4
        assert min(cohort, default=3) >= 3
    assert rule.choose(seen(levels=np.zeros(12)), 4, 7, 1) == []


def test_eafl_weighs_utility_and_battery():
    view = seen(levels=[10, 10, 2, 2] + [5] * 8, losses=[1, 9, 9, 1] + [1] * 8)
    assert SAMPLERS.build("eafl(1, f=1.0, a=0)").choose(view, 1, 0, 1)[0] in (1, 2)
    assert SAMPLERS.build("eafl(2, f=0.0)").choose(view, 2, 0, 1) == [0, 1]
    assert SAMPLERS.build("eafl(1, f=0.5)").choose(view, 1, 0, 1) == [1]
    slow = seen(losses=[1] * 11 + [2], seconds=[1] * 11 + [10])
    assert 11 not in SAMPLERS.build("eafl(3, f=1.0)").choose(slow, 3, 0, 1)
    new = seen(losses=[np.nan] + [1] * 11, rows=[5] + [1] * 5 + [5] * 6)
    assert 0 in SAMPLERS.build("eafl(7, f=1.0)").choose(new, 7, 0, 1)


def test_carbon_takes_the_cleanest_of_a_pool():
    view = seen(grid=range(12))
    assert SAMPLERS.build("carbon(3, pool=4)").choose(view, 3, 0, 1) == [0, 1, 2]
    taken = {
        k for round_number in range(40) for k in SAMPLERS.build("carbon(3, pool=2)").choose(view, 3, 0, round_number)
    }
    assert len(taken) > 8  # a pool leaves hardly anybody out


def test_turns_go_round():
    rule = SAMPLERS.build("cyclic(12, turns=3)")
    groups = [rule.choose(seen(), 12, 0, round_number) for round_number in (1, 2, 3, 4)]
    assert sorted(groups[0] + groups[1] + groups[2]) == list(range(12))
    assert groups[3] == groups[0]


@dataclasses.dataclass(frozen=True)
class Chosen(AwareSampler):
    ids: tuple = ()

    def choose(self, view, size, seed, round_number):
        return list(self.ids)


def test_a_sampler_of_one_s_own_names_clients_that_there_are_each_once():
    for ids, wrong in [
        ((0, 0, 1), "[0]"),
        ((*range(12), np.int64(11)), "[11]"),
        ((0, 12), "[12]"),
        ((-1, 0), "[-1]"),
        ((0.0, 1.0), "[0.0, 1.0]"),
        ((*range(12), "0"), "['0']"),
        ((True, False), "[True, False]"),
        ((0, 1, 2, 3), "4 clients"),
    ]:
        with refuses("FP1405", wrong, "round 4", 3):
            AwarePopulation(Chosen(3, ids), seen(), 3).draw(0, 4)
    cohort = AwarePopulation(Chosen(3, (2, np.int64(1))), seen(), 3).draw(0, 1)
    assert cohort == [1, 2]
    assert all(type(client) is int for client in cohort)
    assert AwarePopulation(Chosen(3), seen(), 3).draw(0, 1) == []


def test_a_cohort_is_a_number_or_a_sampler():
    assert build_aware_sampler(0.1) is None
    assert build_aware_sampler("all") is None
    assert compute_cohort_size("eafl(0.25)", 40) == 10
    assert compute_cohort_size(0.25, 40) == 10
    with refuses("FP1506", "cohort=some", 40, "eafl(0.1)"):
        compute_cohort_size("some", 40)
    with refuses("FP1231", "did you mean 'eafl"):
        compute_cohort_size("eafll(0.1)", 40)


TABLES = """
[[profile]]
count = 4
watts_train = 10
battery_wh = 0.02
intensity = 100
[[profile]]
count = 4
watts_train = 10
"""


def book_of(tmp_path, measure, **given):
    """Of 8 clients, of whom the first four run on batteries of 72 J; nothing is trained."""
    (tmp_path / "clients.toml").write_text(TABLES)
    plain = {"dataset": "tiny", "workers": 1, "tokens": 16, "head": "zero", "local_work": "steps(3)"}
    config = RunConfig(**plain | given, clients=str(tmp_path / "clients.toml"), measure=measure)
    return Simulation(config, tmp_path, ConsoleObserver(Console(quiet=True))).book


def answered(client, round_number, **other):
    given = {"rank": None, "rows": 8, "steps": 3, "loss": 1.0 + client, "seconds": 0.0, "uplink_bytes": 100}
    more = {"downlink_bytes": 300, "downlink_from": None, "base_precision": None}
    return ClientResult(round_number, client, **given | more | other)


def test_a_liar_empties_nobody_elses_battery_and_does_not_fill_its_own(tmp_path):
    """Three steps of 10 W and a second each were asked for, and those who are ready wait at 1 W."""
    book = book_of(tmp_path, "energy(watts=5, idle_watts=1)")
    liars = [
        answered(1, 1, steps=1_000_000),
        answered(2, 1, measured=math.inf, rejected="no"),
        answered(3, 1, steps=-50, measured=-1e6, rejected="no"),
    ]
    spent = book.account([answered(0, 1), *liars], 1)
    assert book.levels[:4].tolist() == [42, 42, 42, 69]  # the last one has waited for the others
    assert spent.spent.joules == 3 * 30 + 3
    book = book_of(tmp_path, "energy(watts=5, idle_watts=0.01)", local_work="epochs(1.0)")
    book.account([answered(0, 1, steps=2), answered(1, 1, rows=10**9, steps=1_000_000)], 1)
    assert book.levels[0] == pytest.approx(72 - 20 - 0.01 * (3600 - 2))  # until the next round


def test_a_loss_that_was_refused_makes_no_client_look_useful(tmp_path):
    """EAFL goes by losses: beside one of infinity all others are worth nothing, and clients.jsonl holds no infinity."""
    book = book_of(tmp_path, "energy(watts=5)")
    diverged = answered(1, 1, loss=math.inf, rejected="a training loss of inf")
    results = [answered(0, 1, loss=2.0), diverged, answered(2, 1, loss=0.0, rejected="out of memory")]
    book.account(results, 1)
    again = EnergyTracker(book.setup)
    again.replay([convert_to_plain(result.line()) for result in results], {}, 1)
    for losses in (book.losses, again.losses):
        np.testing.assert_array_equal(losses[:3], [2.0, math.nan, math.nan])


def test_steps_that_nobody_tells_are_those_of_the_local_work(tmp_path):
    book = book_of(tmp_path, "energy(watts=5)", local_work="epochs(1.5)", batch_size=4)
    book.begin(1, {0: 4, 1: 12, 2: 30})
    assert book.seconds[:3].tolist() == [2, 4, 12]  # round(1.5 x 1), of 3 and of 8 batches


def test_a_server_that_goes_on_knows_the_batteries_as_it_left_them(tmp_path):
    measure = "energy(watts=5, idle_watts=1, joule_per_byte=0.00001, pue=1.5, round_hours=0.01)"
    book, lines = book_of(tmp_path, measure), []
    for round_number in (1, 2, 3):
        book.begin(round_number, {})
        asked = book.open(RoundPlan(round_number, [0, 2, 5]))
        results = [answered(client, round_number, steps=1 + client) for client in asked.cohort]
        book.account(results, round_number)
        lines += [convert_to_plain(result.line()) for result in results]
    again = EnergyTracker(book.setup)
    again.replay(lines, {}, 3)
    assert 0 == book.levels[2] < book.levels[0] < 72  # it has dropped out of the last round
    np.testing.assert_array_equal(again.levels, book.levels)
    np.testing.assert_array_equal(again.losses, book.losses)


def test_local_work_follows_the_battery(tmp_path):
    (tmp_path / "clients.toml").write_text(TABLES)
    given = {"dataset": "tiny", "workers": 1, "tokens": 16, "head": "zero", "local_work": "steps(6)"}
    config = RunConfig(**given, clients=str(tmp_path / "clients.toml"), measure="energy(watts=5, lean=True)")
    simulation = Simulation(config, tmp_path, ConsoleObserver(Console(quiet=True)))
    book = simulation.book
    book.levels[:3] = book.capacities[:3] * np.array([1.0, 0.5, 0.01])
    assert book.compute_reduced_work([0, 1, 2, 7]) == {0: 6, 1: 3, 2: 1}
    assert book.seconds[:3].tolist() == [6, 3, 1]
    plain = EnergyTracker(dataclasses.replace(simulation.setup, measured=parse_measure("energy(watts=5)")))
    assert plain.compute_reduced_work([0, 1]) == {}


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"measure": "energy"}, ConfigError, ("FP1320",)),
        ({"cohort": "eafl(0.5)"}, ConfigError, ("FP1321",)),
        ({"measure": "energy(watts=5, lean=True)", "privacy": "dp_sgd(epsilon=8)"}, PrivacyError, ("FP7097",)),
        (
            {"cohort": "eafl(0.5)", "measure": "energy(watts=5)", "privacy": "dp_sgd(epsilon=8)"},
            PrivacyError,
            ("FP7096",),
        ),
    ],
)
def test_what_nobody_knows_is_refused(tmp_path, given, error, said):
    config = RunConfig(**{"dataset": "tiny", "clients": 4, "workers": 1, "tokens": 16, "head": "auto", **given})
    with pytest.raises(error, match=pattern_of(*said)):
        Simulation(config, tmp_path, ConsoleObserver(Console(quiet=True)))


def test_the_text_of_energy_round_trips():
    text = "energy(watts=5.0, pue=1.2)"
    assert str(parse_measure(text)) == text
    with refuses("FP1227", "at least 1"):
        parse_measure("energy(watts=5, pue=0.5)")


def test_cards_are_counted_through_nvml(monkeypatch):
    """Millijoules of two cards, by a module in the place of nvidia-ml-py."""
    told = {0: 5_000, 1: 70_000}
    cards = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetTotalEnergyConsumption=lambda i: told[i],
        NVMLError=RuntimeError,
    )
    monkeypatch.setitem(sys.modules, "pynvml", cards)
    meter = Meter(find_nvml_counters())
    told |= {0: 6_500, 1: 70_500}
    assert meter.measure_joules() == pytest.approx(2.0)
