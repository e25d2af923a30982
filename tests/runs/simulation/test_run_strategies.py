"""Every strategy through the main job: found by listing, both executors, mixed ranks, resumes, the base's residual."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fedpeft.clients.drift import flatten_states
from rich.console import Console
from safetensors.torch import load_file

from fedpeft.communication.base_residual import Residual, receive
from fedpeft.communication.codec import parse_codec
from fedpeft.communication.uplink import Uplink
from fedpeft.machine import activation_cache_limit
from fedpeft.models.quantized_base import quantize
from fedpeft.parts.families import ATTACKS, strategies
from fedpeft.peft.adapter import AdapterShape, LoraPair
from fedpeft.peft.low_rank import LowRank
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.final_score import save
from fedpeft.reporting.records import Records
from fedpeft.rounds.progress import Checkpoints
from fedpeft.simulate import main
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.refusals import has_error

TINY = {"dataset": "tiny", "tokens": 32, "clients": 6, "cohort": 3, "rounds": 2, "workers": 1, "seed": 3,
        "head": "zero", "local_work": "steps(2)", "peft": "lora(rank=4, layers=1)",
        "optimizer": "adamw", "learning_rate": 3e-3}  # fmt: skip
QUIET = Console(quiet=True)


def settings(strategy: str, **more) -> dict:
    needs = {
        "fed_sb": {"peft": "lora_sb(rank=4, layers=1)"},
        "florg": {"peft": "lora_gram(rank=4, width=12, layers=1)"},
        "owned_mean": {"peft": "prefix_tuning(length=4)"},
        "fedalt": {"peft": "row_lora(rank=4, layers=1)"},
        "fedlease": {"peft": "expert_lora(rank=4, experts=3, layers=1)"},
        **{rule: {"dataset": "tasks(tiny, classes=2)"} for rule in ("inf_lora", "o_lora", "prototypes")},
    }
    return {**TINY, **needs.get(strategy.partition("(")[0], {}), "strategy": strategy, **more}


def flags(folder: Path, **given) -> list[str]:
    words = []
    for name, value in given.items():
        flag = "--" + name.replace("_", "-")
        words += [flag] if value is True else [flag, str(value)]
    return [*words, "--output", str(folder)]


def trained(folder: Path, **given):
    """Return simulation, server and server state after all rounds, without the final scoring."""
    simulation = Simulation(RunConfig(**given), folder, ConsoleObserver(QUIET))
    folder.mkdir(parents=True, exist_ok=True)
    server = simulation.server(Records(folder))
    return simulation, server, simulation.train(server)


@pytest.mark.parametrize("name", strategies.names)
def test_executors_agree_for_every_strategy(name, tmp_path):
    states = []
    for executor in ("batched", "sequential"):
        _, _, progress = trained(
            tmp_path / executor, **settings(name, dtype="fp64", grid=f"cohort(executor={executor})")
        )
        states.append({**progress.adapter, **{f"base {m}": R for m, R in progress.residual.total.items()}})
        assert progress.round == 2
    one, other = states
    assert one.keys() == other.keys()
    assert any(bool(t.any()) for t in one.values())
    for tensor in one:
        assert torch.allclose(one[tensor], other[tensor], rtol=1e-7, atol=1e-9), tensor


def test_executors_agree_on_local_rules(tmp_path):
    rules = {"drift": "fedprox(mu=0.1) + scaffold", "optimizer": "sgd", "learning_rate": 0.1}
    one, other = (
        trained(tmp_path / e, **settings("fedit", dtype="fp64", grid=f"cohort(executor={e})", cohort="all", **rules))[2]
        for e in ("batched", "sequential")
    )
    assert any(bool(t.any()) for t in one.drift["scaffold"].values())
    for name in one.adapter:
        assert torch.allclose(one.adapter[name], other.adapter[name], rtol=1e-7, atol=1e-9)
        assert torch.allclose(one.drift["scaffold"][name], other.drift["scaffold"][name], rtol=1e-7, atol=1e-9)


def test_the_first_control_variate_is_the_mean_gradient_of_the_round(tmp_path):
    """With all variates 0 the clients take plain SGD steps, whose mean is minus the mean delta over steps * rate."""
    rules = {"drift": "scaffold", "optimizer": "sgd", "learning_rate": 0.1}
    given = settings("fedit(weighting=uniform)", dtype="fp64", cohort="all", rounds=1, **rules)
    simulation, _, progress = trained(tmp_path / "run", **given)
    for name, variate in progress.drift["scaffold"].items():
        mean_delta = progress.adapter[name] - progress.started[name]
        rate = simulation.setup.training.optimizer.rate(name, 0.1)
        assert torch.allclose(variate, -mean_delta / (2 * rate), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["fedit", "flora", "fed_sb", "fedsa_lora"])
def test_the_whole_command(name, tmp_path, monkeypatch):
    held = {}
    monkeypatch.setattr(activation_cache_limit, "_held", held)
    assert main(flags(tmp_path / "run", **settings(name, dtype="fp32"))) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert held == {}
    assert summary["rejected"] == 0
    assert 0 < summary["accuracy"] <= 1
    assert (summary["worst_accuracy"] is not None) == (name == "fedsa_lora")
    last = json.loads((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()[-1])
    assert 0 < last["aggregation_seconds"] < last["seconds"]
    error = last["aggregation_error"]
    assert error is None if name in ("fed_sb", "fedsa_lora") else (error > 1e-4) == (name == "fedit")


class StopError(Exception):
    pass


@pytest.mark.slow
def test_the_runs_of_each_kind_resume_to_the_identical_state(tmp_path, monkeypatch):
    kinds = [
        settings("fedit", server_optimizer="adam(learning_rate=0.01)"),
        settings("fedex_lora", ranks="2*3,4*3"),
        settings("fedsa_lora"),
        settings("hetlora(decay=0.75)"),
        settings("flexlora(energy=0.8)", ranks="2*3,4*3"),
        settings("florg"),
        settings("fslora", ranks="1*2,2*2,4*2", server_optimizer="adam(learning_rate=0.01)"),
        settings("fed_plora", ranks="1*2,2*2,4*2", server_optimizer="adam(learning_rate=0.01)"),
        settings("fedalt"),
        settings("fedlease(warmup=1, clear=-1)"),
        settings("rank_budget(share=0.4)", ranks="2*3,4*3"),
        settings("owned_mean", peft="adamix(dim=4, layers=1)"),
        settings("fedit", drift="scaffold", optimizer="sgd"),
    ]
    for i, given in enumerate(kinds):
        given |= {"dtype": "fp32", "rounds": 3, "cohort": 4}
        _, _, whole = trained(tmp_path / f"{i} whole", **given)

        def stop(_self, result):
            if result.round == 2:
                raise StopError

        with monkeypatch.context() as patch:
            patch.setattr(ConsoleObserver, "round_done", stop)
            with pytest.raises(StopError):
                trained(tmp_path / f"{i} cut", **given)
        _, _, cut = trained(tmp_path / f"{i} cut", **given)
        assert cut.forms == whole.forms
        for kind, a, b in (
            ("adapter", whole.adapter, cut.adapter),
            ("learned", whole.learned, cut.learned),
            ("residual", whole.residual.to_tensors(), cut.residual.to_tensors()),
            ("drift", flatten_states(whole.drift), flatten_states(cut.drift)),
        ):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[n], b[n]) for n in a), (given["strategy"], kind)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_model_with_a_residual_reloads_to_the_same_logits(method, tmp_path):
    peft = f"{method}(rank=4, layers=1)"
    given = settings("fedex_lora", dtype="fp32", peft=peft, ranks="1*2,2*2,4*2", cohort=6, head="ridge")
    simulation, _, progress = trained(tmp_path / "run", **given)
    assert progress.residual.total
    save(simulation.setup, progress.adapter, tmp_path / "run", progress.residual.total)
    reloaded = simulation.workers.pool.submit(lambda worker: worker).result()
    from fedpeft.data.cached_rows import load_cached_examples
    from fedpeft.peft import saved_adapter

    base = simulation.setup.task.base(simulation.setup.model_directory, torch.float32)
    quantize(base, simulation.setup.method.base_precision)
    model = saved_adapter.load(tmp_path / "run", simulation.setup.task, base, simulation.setup.facts.classes)
    bench = reloaded.bench
    bench.rebase(progress.residual.version)
    bench.executor.load(progress.adapter)
    rows = list(range(20))
    with torch.no_grad():
        there = model(load_cached_examples(simulation.workers.work.data_key).batch(rows))
        here = bench.executor.model(bench.executor.examples.batch(rows))
        bench.rebase(0)
        plain = bench.executor.model(bench.executor.examples.batch(rows))
    assert torch.allclose(there, here, atol=1e-5)
    assert not torch.allclose(there, plain, atol=1e-3), "the residual makes no difference"


@pytest.mark.fast
def test_clients_of_a_residual_hold_it_bit_for_bit_whatever_they_were_sent():
    pairs = [LoraPair("a", "a.A", "a.B", 12, 7), LoraPair("b", "b.A", "b.B", 5, 9)]
    codec = parse_codec("fp32")
    residual = Residual()
    noise = torch.Generator().manual_seed(0)
    held = {0: {}}
    for round_number in range(1, 9):
        made = {
            p.module: LowRank(
                torch.randn(p.out_features, 1, generator=noise), torch.randn(1, p.in_features, generator=noise)
            )
            for p in pairs
            if round_number % 2 or p.module == "a"
        }
        residual = residual.after(round_number, made, torch.float32)
        held[round_number] = dict(residual.total)
        for version, total in held.items():
            payload = residual.encode_payload(version, pairs, codec)
            assert bool(payload) == (version < round_number)
            received = receive(total, payload, pairs)
            assert received.keys() == residual.total.keys()
            assert all(torch.equal(received[m], residual.total[m]) for m in received)
            assert len(payload) < 4 * sum(p.out_features * p.in_features for p in pairs) + 200
        again = Residual.from_tensors(residual.to_tensors())
        assert again.encode_payload(round_number - 1, pairs, codec) == residual.encode_payload(
            round_number - 1, pairs, codec
        )


def test_what_clients_are_sent_follows_their_rank_and_their_last_round(tmp_path):
    given = settings("flora", dtype="fp32", ranks="1*3,4*3", cohort="all", rounds=3)
    trained(tmp_path / "run", **given)
    lines = Records(tmp_path / "run").read("clients.jsonl")
    first = [line["downlink_bytes"] for line in lines if line["round"] == 1]
    second = [line["downlink_bytes"] for line in lines if line["round"] == 2]
    up = [line["uplink_bytes"] for line in lines if line["round"] == 1]
    assert first[0] == first[2] < first[3] == first[5]
    assert up[0] == up[2] < up[3]
    assert len({b - a for a, b in zip(first, second, strict=True)}) == 1
    assert second[0] > first[0]


def test_clients_of_one_rank_are_given_ranks_of_their_own(tmp_path):
    given = settings("fslora", dtype="fp64", ranks="2*5,4*1", cohort="all", rounds=1)
    _, server, _ = trained(tmp_path / "run", **given)
    sent = [
        server.setup.strategy.choose_ranks(server.setup.layout, AdapterShape(2, 8.0), 3, 1, client)
        for client in range(5)
    ]
    assert len(set(sent)) > 1
    lines = Records(tmp_path / "run").read("clients.jsonl")
    assert [line["rank"] for line in lines] == [2] * 5 + [4]
    assert len({line["downlink_bytes"] for line in lines[:5]}) == 1


def test_clients_may_hold_all_ranks_and_send_their_own(tmp_path):
    states = []
    for executor in ("batched", "sequential"):
        given = settings("fed_plora", dtype="fp64", ranks="1*3,2*2,4*1", cohort="all", rounds=2)
        given |= {"grid": f"cohort(executor={executor})", "head": "ridge"}
        states.append(trained(tmp_path / executor, **given)[2].adapter)
    assert all(torch.allclose(states[0][n], states[1][n], rtol=1e-7, atol=1e-9) for n in states[0])
    lines = Records(tmp_path / "batched").read("clients.jsonl")
    assert [line["rank"] for line in lines] == [1, 1, 1, 2, 2, 4] * 2
    assert len({(line["round"], line["downlink_bytes"]) for line in lines}) == 2, "all are sent the same"
    assert lines[0]["uplink_bytes"] < 0.6 * lines[3]["uplink_bytes"] < 0.6 * 0.6 * lines[5]["uplink_bytes"]
    errors = [line["aggregation_error"] for line in Records(tmp_path / "batched").read("rounds.jsonl")]
    assert all(error > 0.1 for error in errors[1:]), "a rank is its owners' alone, where dW* has it diluted"


def test_a_clients_own_adapter_is_exported(tmp_path):
    from fedpeft.commands.export import main as export

    assert main(flags(tmp_path / "run", **settings("fedsa_lora", dtype="fp32"))) == 0
    progress = Checkpoints(tmp_path / "run" / "checkpoint").load()
    assert progress is not None
    client = next(iter(progress.acknowledged))
    assert export([str(tmp_path / "run"), "--client", str(client), "--output", str(tmp_path / "own")]) == 0
    own = load_file(tmp_path / "own" / "adapter" / "adapter_model.safetensors")
    shared = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    for name, tensor in own.items():
        assert torch.equal(tensor, shared[name]) == ("lora_A" in name)
    assert export([str(tmp_path / "run"), "--client", "99", "--output", str(tmp_path / "other")]) == 2


@pytest.mark.parametrize("name", ATTACKS.names)
def test_attacks_are_made_and_impossible_updates_left_out(name, tmp_path):
    honest = trained(tmp_path / "honest", **settings("fedit", dtype="fp32", cohort="all", rounds=1))[2]
    attack = settings("fedit", dtype="fp32", cohort="all", rounds=1, attack=f"{name}(fraction=0.34)")
    _, _, attacked = trained(tmp_path / "attacked", **attack)
    assert attacked.counters.rejected == (2 if name == "not_a_number" else 0)
    assert all(bool(t.isfinite().all()) for t in attacked.adapter.values())
    assert any(not torch.equal(honest.adapter[n], attacked.adapter[n]) for n in honest.adapter)


def test_an_absurd_update_is_left_out(tmp_path):
    given = settings("fedit", dtype="fp32", cohort="all", attack="scaled_update(fraction=0.34, factor=1e12)")
    _, _, progress = trained(tmp_path / "run", **given)
    assert progress.counters.rejected == 4
    assert sorted(progress.rejections.values()) == [2, 2]
    assert Checkpoints(tmp_path / "run" / "checkpoint").load().rejections == progress.rejections
    assert all(float(t.abs().max()) < 10 for t in progress.adapter.values())


def test_profiles_say_what_clients_hold_and_do(tmp_path):
    file = tmp_path / "profiles.toml"
    file.write_text(
        "[[profile]]\ncount = 2\nrank = 2\nalpha = 3\nlocal_steps = 1\n\n[[profile]]\ncount = 4\nparticipation = 0.5\n"
    )
    given = settings("flexlora", dtype="fp32", clients=str(file), cohort="all")
    simulation, _, _ = trained(tmp_path / "run", **given)
    lines = Records(tmp_path / "run").read("clients.jsonl")
    assert [(line["rank"], line["steps"]) for line in lines[:6]] == [(2, 1), (2, 1), (4, 2), (4, 2), (4, 2), (4, 2)]
    assert [p.participation for p in simulation.setup.profiles] == [1, 1, 0.5, 0.5, 0.5, 0.5]
    assert simulation.setup.profiles[0].form.alpha == 3
    assert (tmp_path / "run" / "profiles.toml").exists()


def test_weight_decay_of_clients_that_train_all_ranks_at_another_alpha_is_none_of_held_ones(tmp_path):
    file = tmp_path / "profiles.toml"
    file.write_text("[[profile]]\ncount = 6\nrank = 4\nalpha = 3\n")
    given = settings("fed_plora", clients=str(file), optimizer="adamw(weight_decay=0.01)", rounds=1)
    trained(tmp_path / "run", **given)


def test_segments_take_turns_among_the_rounds_that_train_the_same(tmp_path, monkeypatch):
    """In B's rounds, every other one, a client would else send the same half of B again and again."""
    turns, encode = {}, Uplink.encode

    def noted(self, delta, memory, **more):
        turns.setdefault(frozenset(delta), []).append(more["turn"])
        return encode(self, delta, memory, **more)

    monkeypatch.setattr(Uplink, "encode", noted)
    codec = "segments(count=2) | cast"
    trained(tmp_path / "run", **settings("rolora", dtype="fp32", cohort="all", rounds=4, codec=codec))
    turns_of_b, turns_of_a = ([sorted(made[:6]), sorted(made[6:])] for made in turns.values())
    assert turns_of_b == [[*range(0, 6)], [*range(1, 7)]]
    assert turns_of_a == [[*range(1, 7)], [*range(2, 8)]]


REFUSED = {
    "counts that are not the clients": ({"strategy": "flexlora", "ranks": "4*3"}, ("FP1387", 3, 6)),
    "ranks of another form": ({"strategy": "flexlora", "ranks": "4x3"}, ("FP1381", "ranks='4x3'", "RANK*CLIENTS")),
    "mixed ranks for a rule of one rank": ({"strategy": "fedit", "ranks": "2*3,4*3"}, ("FP1024", "flexlora")),
    "ranks without LoRA": ({"peft": "ia3(layers=0)", "ranks": "2*6"}, ("FP1378", "lora")),
    "gather rule with an optimizer": ({"strategy": "flexlora", "server_optimizer": "adam"}, ("FP1335", "fedit")),
    "gather rule with a rate": (
        {"strategy": "krum", "server_optimizer": "sgd(learning_rate=0.5)"},
        ("FP1335", "fedit"),
    ),
    "moments of turned factors": (
        {"strategy": "fedsvd", "server_optimizer": "adam"},
        ("FP1337", "--server-optimizer sgd"),
    ),
    "scaffold with a gather rule": (
        {"strategy": "flora", "drift": "scaffold", "optimizer": "sgd"},
        ("FP1004", "ffa_lora"),
    ),
    "scaffold with AdamW": ({"drift": "scaffold"}, ("FP1001", "--optimizer sgd")),
    "fed_sb without R": ({"strategy": "fed_sb"}, ("FP1483", "lora_R")),
    "a downlink of ranks that move": (
        {"strategy": "fslora", "ranks": "2*3,4*3", "codec": "small"},
        ("FP1330", "FSLoRA", "--downlink fp32"),
    ),
    "a memory of ranks that move": (
        {"strategy": "fslora", "ranks": "2*3,4*3", "codec": "ef14 | small", "downlink": "fp32"},
        ("FP1329", "FSLoRA", "--codec 'adaptive(bits=0.99) | rans'"),
    ),
    "weight decay of ranks that a client only holds": (
        {"strategy": "fed_plora", "ranks": "2*3,4*3", "optimizer": "adamw(weight_decay=0.01)"},
        ("FP1331", "fed_plora", "--optimizer"),
    ),
    "variates of what nobody shares": (
        {"strategy": "fedalt", "peft": "row_lora", "drift": "scaffold", "optimizer": "sgd"},
        ("FP1340", "fedalt"),
    ),
    "a grid behind a transform": ({"codec": "rotate | grid | rans"}, ("FP1051",)),
    "variates of ranks that move": (
        {"strategy": "fslora", "ranks": "2*3,4*3", "drift": "scaffold", "optimizer": "sgd"},
        ("FP1005",),
    ),
    "florg without G": ({"strategy": "florg"}, ("FP1492", "lora_gram")),
    "a mean of G": ({"strategy": "fedit", "peft": "lora_gram"}, ("FP1332", "lora_gram", "--strategy florg")),
    "a memory in frames that turn": (
        {"strategy": "florg", "peft": "lora_gram", "codec": "ef14 | topk | quantize | rans"},
        ("FP1338", "FLoRG", "--codec 'topk | quantize | rans'"),
    ),
    "noise on what florg reads back": (
        {"strategy": "florg", "peft": "lora_gram", "privacy": "user_dp(epsilon=8)"},
        ("FP7067", "florg"),
    ),
    "profiles of another form": ({"strategy": "flexlora", "clients": "wrong.toml"}, ("FP1383", "wrong.toml")),
    "unknown attack": ({"attack": "sign_flop"}, ("FP1231", "'sign_flop'", "did you mean 'sign_flip'")),
}


@pytest.mark.fast
@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused(case, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    given, words = REFUSED[case]
    if "clients" in given:
        (tmp_path / "wrong.toml").write_text("rounds = 3\n")
        given = given | {"clients": str(tmp_path / "wrong.toml")}
    assert main(flags(tmp_path / "run", **(TINY | given))) == 2
    said = "".join(capfd.readouterr())
    assert has_error(said, *words)
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_factors_that_stay_with_clients_are_scored_by_several_workers(tmp_path):
    given = settings("fedsa_lora", rounds=1) | {"workers": 2, "dtype": "fp32"}
    assert main(flags(tmp_path / "run", **given)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["accuracy_of"].startswith("mean over clients")
