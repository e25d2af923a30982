"""The compared runs: every part that the package lists, and combinations of parts.

All use generated datasets and the tiny models, in fp64 unless a case sets another precision. In fp64, a changed order
of sums shows in the 13th digit, and every other change before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from experiments.golden.flags import Settings
from fedpeft.communication.downlink import DOWNLINKS
from fedpeft.data.rows import load_dataset
from fedpeft.parts.families import (
    ATTACKS,
    HEADS,
    MECHANISMS,
    PARTITIONS,
    PEFT_METHODS,
    PRESETS,
    SERVER_OPTIMIZERS,
    strategies,
)
from fedpeft.parts.spec import add_settings

Kind = Literal["simulation", "real clients", "resumed"]


@dataclass(frozen=True)
class Case:
    """A run.

    Attributes:
        name: GROUP/WHAT.
        settings: the run's flags.
        kind: a simulation; a server with three clients over loopback; or a simulation that the first of two commits
            begins and the other resumes. Golden runs of this kind are killed and resumed.
        files: contents of the files that the settings name, by path in the run's folder.
    """

    name: str
    settings: Settings
    kind: Kind = "simulation"
    files: Mapping[str, str] = field(default_factory=dict)


BASE: Settings = {
    "dataset": "tiny",
    "model": "models/tiny",
    "tokens": 32,
    "clients": 6,
    "cohort": 4,
    "rounds": 3,
    "workers": 1,
    "seed": 3,
    "local_work": "steps(count=3, walk=False)",
    "peft": "lora(rank=4, layers=2)",
    "dtype": "fp64",
    "learning_rate": 3e-3,
    "measure": "validation(every=1, keep=last)",
    "safeguard": "none",
}

SEQUENTIAL: Settings = {"grid": "cohort(executor=sequential)"}

OLD_HEAD = "ridge(strength=0.001)"
"""The start of older golden runs, before the ridge strength depended on the number of examples."""

OF_STRATEGY: Mapping[str, Settings] = {
    "fed_sb": {"peft": "lora_sb(rank=4, layers=2)"},
    "florg": {"peft": "lora_gram(rank=4, width=12, layers=2)"},
    "owned_mean": {"peft": "prefix_tuning(length=4, layers=2)"},
    "fedalt": {"peft": "row_lora(rank=4, layers=2)"},
    "fedlease": {"peft": "expert_lora(rank=4, layers=2)"},
    "fedbuff": {"strategy": "fedbuff(buffer=2)"},
    "krum": {"strategy": "krum(selected=2)", "cohort": "all"},
    **{rule: {"dataset": "tasks(tiny, classes=2)"} for rule in ("inf_lora", "o_lora", "prototypes")},
}
"""Settings that a strategy needs beside its name."""

OF_PEFT: Mapping[str, Settings] = {
    "vera": {"strategy": "rolora"},
    "adalora": {"strategy": "flexlora"},
    "lora_gram": {"strategy": "florg"},
}

PIPELINES = {
    "sparse signs": "topk(fraction=0.1) | sign | rans",
    "sparse, zstd": "topk(fraction=0.25) | quantize(bits=4) | pack | zstd",
    "nf4": "nf4 | rans",
    "widths": "lowrank(share=0.5) | widths(bits=2.0) | pack",
    "adaptive rank": "lowrank(share=0.5) | adaptive(bits=1.0) | rans",
    "rotated": "rotate | quantize(bits=4) | rans",
    "difference": "delta | quantize(bits=8) | rans",
    "ef14": "ef14 | topk(fraction=0.1) | quantize(bits=4) | rans",
    "ef21": "ef21 | topk(fraction=0.1) | sign | rans",
    "rules": "over_time(high=2.0) | by_rows | by_link | small",
}
"""Codecs beside the presets: each kind of step, memory and precision rule."""

NOISY = {"noise_multiplier": 0.8, "test_noise": True}
OF_MECHANISM: Mapping[str, str] = {
    "none": "none",
    "dp_sgd": add_settings("dp_sgd", **NOISY),
    "user_dp": add_settings("user_dp", **NOISY),
    "local_dp": add_settings("local_dp", clip=0.1, **NOISY),
    "distributed_dp": add_settings("distributed_dp", unit="clients", threshold=0.5, **NOISY),
}

ADAPTIVE = {"quantile": 0.5, "count_noise": 2.0}
USER_DP: Settings = {
    "privacy": OF_MECHANISM["user_dp"],
    "codec": "unbiased",
    "server_optimizer": "adam(learning_rate=0.1)",
}
SPENT: Settings = {
    "privacy": "dp_sgd(epsilon=1.5, noise_multiplier=0.8, test_noise=True, at_budget=sit_out)",
    "rounds": 5,
}

RESUMED: Mapping[str, Settings] = {
    "fedit, small": {"codec": "small"},
    "ef14, adam": {"codec": "ef14 | topk(fraction=0.1)", "server_optimizer": "adam(learning_rate=0.1)"},
    "fedex_lora": {"strategy": "fedex_lora", "ranks": "2*3,4*3"},
    "hetlora": {"strategy": "hetlora(decay=0.75)", "ranks": "2*3,4*3"},
    "fedsa_lora": {"strategy": "fedsa_lora"},
    "scaffold": {"drift": "scaffold", "optimizer": "sgd"},
    "user_dp": {"privacy": add_settings("user_dp", noise_multiplier=0.05, test_noise=True), "head": "zero"},
}
SERVED: Mapping[str, Settings] = {
    "fedit": {},
    "fedex_lora": {"strategy": "fedex_lora"},
    "small": {"codec": "small"},
    "fedsa_lora, ef14": {"strategy": "fedsa_lora", "codec": "ef14 | topk(fraction=0.1)"},
    "scaffold": {"drift": "scaffold", "optimizer": "sgd"},
    "user_dp": {"privacy": OF_MECHANISM["user_dp"], "head": "zero"},
    "local_dp": {"privacy": OF_MECHANISM["local_dp"], "head": "zero"},
}

PROFILES = """
[[profile]]
count = 2
rank = 2
alpha = 3
local_steps = 1

[[profile]]
count = 4
participation = 0.5
link = 0.25
"""

MIXED_BASES = """
[[profile]]
count = 2
base = "int8"

[[profile]]
count = 2
base = "nf4"
adapter = "bf16"

[[profile]]
count = 2
base = "bf16"
"""


BATTERIES = """
[[profile]]
count = 3
battery_wh = 0.5
charge_watts = 1.0

[[profile]]
count = 3
"""

QUESTIONS = '{"question": "What is it?", "answer": "this", "choices": ["this", "that"]}\n'


TABLE = 'file(path="rows.csv", label=topic, owner=who)'


@cache
def write_own_rows() -> Mapping[str, str]:
    """Return files with a user's own data: a table with classes and owners, and conversations."""
    rows = load_dataset("tiny").train
    assert rows.labels is not None
    texts = [str(text) for text in rows.inputs[:120]]
    table = [f"{text},{label % 2},{i % 5}" for i, (text, label) in enumerate(zip(texts, rows.labels, strict=False))]
    halves = [(words[: len(words) // 2], words[len(words) // 2 :]) for words in map(str.split, texts[:60])]
    chats = [
        [{"role": "user", "content": " ".join(asked)}, {"role": "assistant", "content": " ".join(said)}]
        for asked, said in halves
    ]
    return {
        "rows.csv": "\n".join(["text,topic,who", *table]) + "\n",
        "chats.jsonl": "".join(json.dumps({"messages": chat}) + "\n" for chat in chats),
    }


def list_cases() -> list[Case]:
    """Return all cases in the order in which they run."""
    return [
        *_list_strategies(),
        *_list_peft_methods(),
        *_list_communication(),
        *_list_privacy(),
        *_list_clients(),
        *_list_data(),
        *_list_precisions(),
        *_list_machines(),
        *_list_features(),
    ]


def _create_case(name: str, **settings: Any) -> Case:
    """Create a simulation with these settings; `kind` and `files` are fields of the case."""
    kind: Kind = settings.pop("kind", "simulation")
    files: Mapping[str, str] = settings.pop("files", {})
    merged = {**BASE, **settings}
    own_start = merged.get("strategy") == "prototypes" or merged["peft"] == "head2toe"
    if merged["dataset"] in ("tiny", TABLE) and not own_start:
        merged = {"head": OLD_HEAD, **merged}
    return Case(name, merged, kind, files)


def _list_strategies() -> Iterator[Case]:
    for name in strategies.names:
        needs = {"strategy": name, **OF_STRATEGY.get(name, {})}
        yield _create_case(f"strategy/{name}", **needs)
        if strategies.build(name).mixed_ranks and name != "fed_sb":  # fed_sb supports mixed alphas only
            yield _create_case(f"mixed ranks/{name}", **needs, ranks="2*2,4*2,6*2")
    for name in ("fedit", "flexlora", "fedsa_lora", "fed_sb"):
        yield _create_case(f"one by one/{name}", strategy=name, **SEQUENTIAL, **OF_STRATEGY.get(name, {}))
    for rule in ("FedAvg", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan"):
        yield _create_case(f"strategy/flower {rule}", strategy=f"flower(rule={rule})")
    yield _create_case("strategy/flower Krum, one hostile", strategy="flower(rule=Krum, num_malicious_nodes=1)")
    for name in SERVER_OPTIMIZERS.names:
        text = "averaged(of=momentum)" if name == "averaged" else f"{name}(learning_rate=0.1)"
        yield _create_case(f"server optimizer/{name}", server_optimizer=text, rounds=4)
    for name in HEADS.names:
        yield _create_case(f"head/{name}", head=OLD_HEAD if name == "ridge" else name)


def _list_peft_methods() -> Iterator[Case]:
    for name in sorted({*PEFT_METHODS.names} - {"adapter_fusion"}):  # adapter_fusion combines finished runs
        text = add_settings(name, layers=2) if hasattr(PEFT_METHODS.part(name), "layers") else name
        yield _create_case(f"peft/{name}", **{"peft": text, **OF_PEFT.get(name, {})})
    yield _create_case("peft/lora and bitfit", peft="lora(rank=4, layers=2) + bitfit(layers=1)")
    yield _create_case(
        "peft/prefixes and bottlenecks", peft="prefix_tuning(length=4, layers=2) + bottleneck(dim=4, layers=2)"
    )
    yield _create_case("peft/lora with dropout, one by one", peft="lora(rank=4, layers=2, dropout=0.1)", **SEQUENTIAL)
    yield _create_case("peft/lora with dropout", peft="lora(rank=4, layers=2, dropout=0.1)")
    yield _create_case("peft/other targets", peft="lora(rank=4, layers=3, targets=qv)")


def _list_communication() -> Iterator[Case]:
    for name in PRESETS:
        yield _create_case(f"codec/{name}", codec=name)
        if name in DOWNLINKS:
            yield _create_case(f"downlink/{name} alone", downlink=name, rounds=4)
    for name, text in PIPELINES.items():
        yield _create_case(f"codec/{name}", codec=text, cohort="all" if "ef" in text else 4, rounds=4)
    yield _create_case("codec/small, of exact rules", codec="small", strategy="fedex_lora", ranks="2*3,4*3")
    yield _create_case("codec/small, of private factors", codec="small", strategy="fedsa_lora")


def _list_privacy() -> Iterator[Case]:
    private = {"head": "zero", "cohort": 3}
    for name in MECHANISMS.names:
        yield _create_case(f"privacy/{name}", privacy=OF_MECHANISM.get(name, name), **private)
    budget = add_settings("dp_sgd", epsilon=8, test_noise=True)
    yield _create_case("privacy/budget", privacy=budget, **private)
    yield _create_case("privacy/spent budget", **private, **SPENT)
    yield _create_case("privacy/adaptive clipping", **private, privacy=add_settings("user_dp", **NOISY, **ADAPTIVE))
    yield _create_case("privacy/user_dp, small, adam", **private, **USER_DP)
    yield _create_case("privacy/dp_sgd and flexlora", **private, privacy=OF_MECHANISM["dp_sgd"], strategy="flexlora")
    yield _create_case("privacy/attacked", **private, privacy=add_settings("dp_sgd", audit=True, **NOISY))


def _list_clients() -> Iterator[Case]:
    yield _create_case("clients/proximal", drift="fedprox(mu=0.5)")
    scaffold = {"optimizer": "sgd", "learning_rate": 1e-4, "rounds": 4}
    yield _create_case("clients/scaffold", drift="scaffold", **scaffold)
    yield _create_case(
        "clients/scaffold, proximal, one by one", drift="fedprox(mu=0.5) + scaffold", **scaffold, **SEQUENTIAL
    )
    yield _create_case("clients/profiles", files={"p.toml": PROFILES}, strategy="flexlora", clients="p.toml")
    for name in ATTACKS.names:
        yield _create_case(f"attack/{name}", attack=f"{name}(fraction=0.34)", cohort="all")
    yield _create_case("attack/scaled_update, norm_bound", attack="scaled_update(fraction=0.34)", strategy="norm_bound")
    for name in ("constant", "cosine"):
        yield _create_case(f"clients/{name} schedule", optimizer=f"adamw(warmup=8, schedule={name})")
    yield _create_case("clients/epochs", local_work="epochs(0.5)", batch_size=8, optimizer="adamw(weight_decay=0.1)")
    equal = {"strategy": "fedit(weighting=uniform)", "optimizer": "adamw(warmup=8, head_rate=1.0)"}
    yield _create_case("clients/equal weights", **equal)


def _list_data() -> Iterator[Case]:
    for name in PARTITIONS.names:
        yield _create_case(f"partition/{name}", partition=name, clients=0 if name == "natural" else 6)
    yield _create_case("data/the usual model", model="auto")
    yield _create_case("data/own rows", dataset=TABLE, partition="natural", clients=0)
    measure = f"{BASE['measure']} + pooled + forgetting(dataset='tiny(seed=1)')"
    yield _create_case("data/forgetting, pooled", measure=measure, learning_rate=3e-4)
    language = {"dataset": "tiny_lm(rows=12)", "partition": "natural", "clients": 0, "model": "models/tiny_lm"}
    for strategy in ("fedit", "flexlora", "fedsa_lora"):
        yield _create_case(f"language/{strategy}", **language, strategy=strategy, peft="lora(rank=4, layers=2)")
    yield _create_case("language/prefixes", **language, peft="prefix_tuning(length=4, layers=2)")
    yield _create_case(
        "language/small, one by one", **language, peft="lora(rank=4, layers=2)", codec="small", **SEQUENTIAL
    )
    chats = {"dataset": "file:chats.jsonl", "model": "models/tiny_lm", "peft": "lora(rank=4, layers=2)"}
    yield _create_case("language/instruction", **chats, partition="iid", tokens=64)


def _list_precisions() -> Iterator[Case]:
    for dtype in ("fp32", "bf16"):
        for strategy in ("fedit", "flexlora", "fedex_lora"):
            yield _create_case(f"{dtype}/{strategy}", dtype=dtype, strategy=strategy)
        yield _create_case(f"{dtype}/small", dtype=dtype, codec="small", rounds=4)
        yield _create_case(f"{dtype}/one by one", dtype=dtype, **SEQUENTIAL)
        yield _create_case(f"{dtype}/all blocks", dtype=dtype, peft="lora(rank=4, layers=3)")
        yield _create_case(f"{dtype}/dp_sgd", dtype=dtype, privacy=OF_MECHANISM["dp_sgd"], head="zero")
        yield _create_case(f"{dtype}/qlora", dtype=dtype, peft="qlora(rank=4, layers=2)")
        yield _create_case(f"{dtype}/dora", dtype=dtype, peft="dora(rank=4, layers=2)")
    yield _create_case("fp32/mixed bases", files={"p.toml": MIXED_BASES}, dtype="fp32", clients="p.toml", cohort="all")


def _list_machines() -> Iterator[Case]:
    yield _create_case("machine/two workers", workers=2, rounds=2)
    yield _create_case("machine/two workers, private factors", workers=2, rounds=2, strategy="fedsa_lora")
    yield _create_case("machine/ray", grid="ray", workers=1, rounds=2)
    for name, settings in RESUMED.items():
        yield _create_case(f"resumed/{name}", kind="resumed", **{"rounds": 12, "cohort": 3, **settings})
    for name, settings in SERVED.items():
        yield _create_case(f"real clients/{name}", kind="real clients", **{"clients": 3, "cohort": "all", **settings})


def _list_features() -> Iterator[Case]:
    """Yield what crosses the round loop: each of these touches several moments of a round."""
    yield _create_case("feature/secure_sum", privacy="secure_sum")
    rows = add_settings("distributed_dp", unit="rows", threshold=0.5, **NOISY)
    yield _create_case(
        "feature/distributed_dp of rows", privacy=rows, head="zero", cohort="all", local_work="epochs(1.0)"
    )
    energy = f"{BASE['measure']} + energy(watts=240, step_seconds=1.0, lean=True)"
    yield _create_case(
        "feature/energy", files={"p.toml": BATTERIES}, clients="p.toml", cohort="eafl(4)", measure=energy, rounds=5
    )
    undo = {"safeguard": "undo(rise=0.1)", "learning_rate": 0.03, "measure": "validation(every=1, keep=best)"}
    yield _create_case("feature/undone steps", **undo, rounds=5)
    yield _create_case("feature/undone steps, fedbuff", **undo, strategy="fedbuff(buffer=2)", rounds=5)
    yield _create_case("feature/undone steps, secure_sum", **undo, privacy="secure_sum", rounds=5)
    yield _create_case(
        "feature/patience", measure="validation(every=1, keep=best, patience=1)", learning_rate=1e-7, rounds=5
    )
    last = f"{BASE['measure']} + ensemble(last=2) + disagreement + calibration(rows=clients)"
    yield _create_case("feature/ensemble, disagreement, calibration", measure=last)
    language = {"dataset": "tiny_lm(rows=12)", "partition": "natural", "clients": 0, "model": "models/tiny_lm"}
    asked = f"{BASE['measure']} + evaluate(every=2, questions='q.jsonl', new_tokens=4)"
    yield _create_case(
        "feature/evaluate", **language, peft="lora(rank=4, layers=2)", measure=asked, files={"q.jsonl": QUESTIONS}
    )
