"""Energy: counters of a made RAPL tree, predictions by hand, batteries that empty, and who is chosen."""

import dataclasses
import json

import numpy as np
import pytest
from rich.console import Console

from fedpeft.parts import plugins
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.records import Records
from fedpeft.rounds.energy import EnergyTracker
from fedpeft.simulate import main, simulate
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig, read_config
from fedpeft.wiring.sampling import AwareSampler
from tests.unit.trust.test_energy import TABLES


def run(folder, tmp_path, *more, cohort="all"):
    (tmp_path / "clients.toml").write_text(TABLES)
    return main([
        "--dataset", "tiny", "--clients", str(tmp_path / "clients.toml"), "--cohort", cohort, "--rounds", "4",
        "--tokens", "16", "--workers", "1", "--dtype", "fp32", "--local-work", "steps(3)", "--peft",
        "lora(rank=2, layers=1)", "--output", str(folder),
        "--measure", "energy(watts=5, joule_per_byte=0.0, intensity=300)", *more,
    ])  # fmt: skip


@pytest.mark.slow
def test_batteries_empty_and_who_is_chosen_changes_it(tmp_path):
    """72 J in a battery last for two rounds of 30 J."""
    assert run(tmp_path / "plain", tmp_path) == 0
    lines = [json.loads(line) for line in (tmp_path / "plain" / "clients.jsonl").read_text().splitlines()]
    out = {(line["round"], line["client"]) for line in lines if "battery" in (line.get("rejected") or "")}
    assert out == {(round_number, client) for round_number in (3, 4) for client in range(4)}
    summary = json.loads((tmp_path / "plain" / "summary.json").read_text())
    energy = summary["trust"]["energy"]
    assert energy["dropped"] == 8
    assert energy["train"] == pytest.approx(30 * (4 * 2 + 4 * 4))
    assert energy["grams"] == pytest.approx((30 * 8 * 100 + 30 * 16 * 300) / 3.6e6)
    rounds = [json.loads(line) for line in (tmp_path / "plain" / "rounds.jsonl").read_text().splitlines()]
    assert [r["joules"] for r in rounds if r["round"]] == pytest.approx([240, 240, 120, 120])
    assert run(tmp_path / "aware", tmp_path, cohort="battery(3)") == 0
    chosen = json.loads((tmp_path / "aware" / "summary.json").read_text())["trust"]["energy"]
    assert chosen["dropped"] == 0


@pytest.mark.slow
def test_a_run_that_is_continued_knows_its_batteries(tmp_path):
    folder = tmp_path / "plain"
    assert run(folder, tmp_path, cohort="eafl(4)") == 0
    simulation = Simulation(read_config(folder / "config.toml"), folder, ConsoleObserver(Console(quiet=True)))
    lines = Records(folder).read("clients.jsonl")
    whole, half = EnergyTracker(simulation.setup), EnergyTracker(simulation.setup)
    whole.replay(lines, {}, 4)
    half.replay([line for line in lines if line["round"] <= 2], {}, 2)
    for round_number in (3, 4):
        half.begin(round_number, {})
        for line in lines:
            if line["round"] == round_number:
                half._record_use(line["client"], sum(line["joules"].values()), line["loss"], line.get("rejected"))
    np.testing.assert_array_equal(whole.levels, half.levels)
    np.testing.assert_array_equal(whole.losses, half.losses)
    simulation.close()


@dataclasses.dataclass(frozen=True)
class Unheard(AwareSampler):
    """Those who have not told their rows yet."""

    needs_energy = False

    def choose(self, view, size, seed, round_number):
        assert np.array_equal(np.isnan(view.rows), np.isnan(view.losses))
        return np.flatnonzero(np.isnan(view.rows))[:size].tolist()


@pytest.mark.slow
def test_a_sampler_by_losses_and_rows_needs_no_watts_and_knows_all_that_was_told_before_a_round(tmp_path):
    """Rows were heard of a round too late, unless the run was continued, which then chose other clients."""
    config = RunConfig(
        dataset="tiny", clients=6, cohort="unheard(2)", rounds=3, head="zero", workers=1, tokens=16, dtype="fp32",
        local_work="steps(1)", peft="lora(rank=2, layers=1)",
    )  # fmt: skip

    def stop(result):
        if result.round == 1:
            raise KeyboardInterrupt

    with plugins.use_parts({"samplers": {"unheard": Unheard}}):
        summary = simulate(config, tmp_path / "whole", False, Console(quiet=True)).to_dict()
        with pytest.raises(KeyboardInterrupt):
            simulate(config, tmp_path / "cut", False, Console(quiet=True), on_round=stop)
        assert main(["--resume", str(tmp_path / "cut")]) == 0
    for name in ("whole", "cut"):
        lines = Records(tmp_path / name).read("clients.jsonl")
        assert [(line["round"], line["client"]) for line in lines] == [(1, 0), (1, 1), (2, 2), (2, 3), (3, 4), (3, 5)]
        assert not any(line.get("joules") for line in lines)
    assert summary["trust"] is None
