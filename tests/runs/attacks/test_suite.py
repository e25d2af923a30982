"""The attack suite of `fedpeft attack`, against a real server and real clients on sockets, in one process.

python -m pytest tests/runs/attacks/test_suite.py -m "slow or not slow"
"""

from __future__ import annotations

import pytest
from fedpeft.clients.masking import Masking

from fedpeft.attack import hostile_clients, in_sums, unequal_instructions
from fedpeft.attack.__main__ import main
from fedpeft.attack.stage import AttackStage
from fedpeft.attack.suite import ATTACKS, attack_settings, reduce_settings
from fedpeft.deployment.client.instruction_policy import InstructionPolicy
from fedpeft.deployment.options import ServeOptions
from fedpeft.errors import RunError
from fedpeft.privacy.secure_sum.sum import sums_in
from fedpeft.wiring.config import RunConfig

COMMON = {"head": "zero", "peft": "lora(rank=2, layers=1)", "dtype": "fp32"}
SETTINGS = {
    "secure_sum": {"privacy": "secure_sum", **COMMON},
    "distributed_dp": {"privacy": "distributed_dp(noise_multiplier=1.5, rows=250, test_noise=True)", "optimizer": "sgd",
                       "local_work": "epochs(1.0)", "batch_size": 64, **COMMON},
}  # fmt: skip
PLAIN = {"none": {}, "dp_sgd": {"privacy": "dp_sgd(noise_multiplier=1.5, test_noise=True)", "optimizer": "sgd"}}
QUICK = {
    "secure_sum": (unequal_instructions.other_alpha, unequal_instructions.two_records, in_sums.as_many_as_tolerated,
                   in_sums.one_more, in_sums.restart_server, hostile_clients.false_shares),
    "distributed_dp": (unequal_instructions.other_model, in_sums.one_more, in_sums.second_sum,
                       hostile_clients.lying_norm),
}  # fmt: skip
UNPREVENTED = {
    "secure_sum": {in_sums.one_more, in_sums.void_round, hostile_clients.garbage_for_shares},
    "distributed_dp": {hostile_clients.low_order_keys, hostile_clients.garbage, hostile_clients.garbage_for_shares},
}
"""What the documentation says that nothing prevents; with noise of all clients, whoever fails voids a round."""


def cases():
    for name in SETTINGS:
        for attack in ATTACKS:
            marks = () if attack.run in QUICK[name] else pytest.mark.slow
            yield pytest.param(name, attack, marks=marks, id=f"{name}: {attack.controls}: {attack.name}")


def attacked(attack, settings, fewest=3):
    [result] = attack_settings(RunConfig(**settings), ServeOptions(), fewest, [attack])
    return result


@pytest.mark.parametrize(("name", "attack"), cases())
def test_an_attack_learns_what_the_documentation_says(name, attack):
    """Nothing is read but by one colluding client more than the bound, and no round is lost but as documented."""
    result = attacked(attack, SETTINGS[name])
    assert result.holds, result
    assert result.verdict.startswith("not prevented") == (attack.run in UNPREVENTED[name]), result
    read = result.outcome.victims
    assert read == (["edge-0"] if (name, attack.run) == ("secure_sum", in_sums.one_more) else []), result


@pytest.mark.parametrize("attack", [a for a in ATTACKS if not a.sums], ids=lambda attack: attack.name)
@pytest.mark.parametrize("name", PLAIN)
def test_settings_without_sums_are_attacked_too(name, attack):
    result = attacked(attack, PLAIN[name])
    assert result.holds, result
    if attack.run is in_sums.reading_along:
        assert result.verdict == "not prevented: the settings allow it"
        assert ("with its noise" in result.learned) == (name == "dp_sgd")
    else:
        assert result.verdict == "held"


def test_two_sums_cannot_be_subtracted_if_a_client_wants_the_whole_cohort():
    [attack] = [a for a in ATTACKS if a.run is in_sums.void_round]
    result = attacked(attack, SETTINGS["secure_sum"], fewest=5)
    assert result.verdict == "held"
    assert "a secure sum of 4 clients is announced" in result.refused


def test_a_machine_that_is_too_slow_leaves_an_attack_undecided(monkeypatch):
    monkeypatch.setattr("fedpeft.attack.stage.SECONDS", 0.01)
    [attack] = [a for a in ATTACKS if a.run is unequal_instructions.other_model]
    result = attacked(attack, PLAIN["none"])
    assert result.verdict.startswith("undecided")
    assert not result.decided


def test_a_server_stops_when_it_waits_only_for_clients_that_have_ended(tmp_path):
    """The clock has no part in it: nothing but the end of the client's process ends the round."""
    [attack] = [a for a in ATTACKS if a.run is in_sums.reading_along]
    stage = AttackStage(tmp_path, reduce_settings(RunConfig(**COMMON), attack))

    def leave(*_):
        raise RunError("FP5044 gone")

    stage.hostile["edge-3"] = leave
    outcome = attack.run(stage)
    assert not outcome.timed_out
    assert outcome.rounds == (0, 0)
    assert list(outcome.refusals) == ["edge-3"]


# --------------------------------------------------------------------------- without its defense, each attack succeeds


def undefended(tmp_path, run, clients=5, **given):
    [attack] = [a for a in ATTACKS if a.run is run]
    config = reduce_settings(RunConfig(**SETTINGS["secure_sum"] | given), attack)
    return AttackStage(tmp_path, config)


@pytest.mark.parametrize(
    "run",
    [
        unequal_instructions.other_alpha,
        unequal_instructions.no_digest,
        unequal_instructions.no_rank,
        unequal_instructions.one_step,
    ],
)
def test_a_server_reads_the_victim_if_clients_take_any_record_and_instruction(tmp_path, monkeypatch, run):
    for check in ("check_record", "check"):
        monkeypatch.setattr(InstructionPolicy, check, lambda *_: None)
    outcome = run(undefended(tmp_path, run))
    assert outcome.victims == ["edge-0"], outcome.read


def test_invented_clients_read_the_victim_if_it_pins_no_roster(tmp_path):
    stage = undefended(tmp_path, in_sums.invented_clients)
    stage.pinned = False
    assert in_sums.invented_clients(stage).victims == ["edge-0"]


def test_a_restarted_server_reads_the_victim_if_clients_forget_their_sums(tmp_path, monkeypatch):
    monkeypatch.setattr(Masking, "_check_first", lambda *_: None)
    outcome = in_sums.restart_server(undefended(tmp_path, in_sums.restart_server))
    assert outcome.victims == ["edge-0"]


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.mark.slow
def test_the_command_prints_what_each_attacker_learned(tmp_path, capsys):
    (tmp_path / "run.toml").write_text(RunConfig(clients=40, cohort=7, **SETTINGS["secure_sum"]).to_toml())
    assert main([str(tmp_path / "run.toml")]) == 0
    printed = capsys.readouterr().out
    assert f"{len(ATTACKS)} attacks, 0 succeeded that should not" in printed
    for attack in ATTACKS:
        assert attack.name in printed


def test_the_command_attacks_settings_without_sums(capsys):
    assert main(["--peft", COMMON["peft"], "--head", "zero"]) == 0
    printed = capsys.readouterr().out
    assert "each client's update" in printed
    assert "attacks on secure sums were skipped" in printed


@pytest.mark.parametrize("given", [["--privacy", "none_such"], ["--fewest", "2"], ["--strategy", "none_such"]])
def test_a_mistake_is_one_sentence(given, capsys):
    assert main(given) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_every_attack_says_what_it_does():
    assert all(attack.about.endswith((".", "read.")) for attack in ATTACKS)
    assert len({(attack.controls, attack.name) for attack in ATTACKS}) == len(ATTACKS)
    assert sums_in(SETTINGS["distributed_dp"]["privacy"]).noisy
