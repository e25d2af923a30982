"""fedpeft from Python: finished runs as objects, parts and rows as objects, and a process that is left as it was."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

import fedpeft
from fedpeft.aggregation.server_optimizer import ServerOptimizer
from fedpeft.aggregation.server_optimizers.averaged import Averaged
from fedpeft.aggregation.server_optimizers.momentum import Momentum
from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.api import _check_class
from fedpeft.data.datasets.sample import Sample
from fedpeft.data.datasets.tasks import Tasks
from fedpeft.data.in_memory import convert_to_dataset
from fedpeft.parts import setting
from fedpeft.parts.families import (
    ATTACKS,
    CORRECTIONS,
    DATASETS,
    GRIDS,
    HEADS,
    LOCAL_OPTIMIZERS,
    LOCAL_WORK,
    MEASUREMENTS,
    MECHANISMS,
    MODELS,
    PARTITIONS,
    PEFT_METHODS,
    SAFEGUARDS,
    SAMPLERS,
    SERVER_OPTIMIZERS,
    codecs,
    strategies,
)
from fedpeft.wiring.catalogue import FLAGS, find_flag
from fedpeft.wiring.config import build_config
from tests.refusals import refuses

TINY = {"dataset": "tiny", "clients": 4, "cohort": "all", "rounds": 2, "dtype": "fp32", "workers": 1, "tokens": 32,
        "local_work": "steps(1)", "head": "zero", "progress": False}  # fmt: skip
WORDS = ("red", "green", "blue", "black")
ROWS = [{"text": f"{WORDS[i % 4]} number {i}", "label": WORDS[i % 4]} for i in range(120)]


@dataclass(frozen=True)
class Part(LinearStrategy):
    """A share of the mean."""

    needs_lora = False
    share: float = setting(0.5, "of each update that counts", above=0, high=1)

    def contribution(self, update, state, layout):
        """Return the scaled delta."""
        return {name: self.share * delta for name, delta in update.delta.items()}


def test_rows_come_as_records_or_client_by_client():
    data = convert_to_dataset(ROWS)
    assert (data.task, data.label_names) == ("classification", ("black", "blue", "green", "red"))
    assert len(data.train) + len(data.test) == len(ROWS)
    plain = convert_to_dataset([{"text": "a b c"}] * 10)
    assert (plain.task, plain.label_names) == ("causal_lm", None)
    shards = [([row["text"] for row in ROWS[k::3]], [row["label"] for row in ROWS[k::3]]) for k in range(3)]
    assert sorted(set(convert_to_dataset(shards).train.owners)) == ["client 0", "client 1", "client 2"]
    with refuses("FP3061", "0", "1", "2"):
        convert_to_dataset([(["a"], ["b", "c"])])
    with refuses("FP3060", "int"):
        convert_to_dataset(3)


def test_a_mistake_is_one_sentence():
    with refuses("FP1225", "run_simulation", "round", "did you mean 'rounds"):
        fedpeft.run_simulation(round=3)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"strategy": Part},
            ("FP1035", "Part", "strategy", "Part"),
        ),
        ({"dataset": Part}, ("FP1035", "dataset", "Part")),
        (
            {"strategy": object()},
            ("FP1036", "strategy", "fedit"),
        ),
        ({"privacy": 3}, ("FP1036", "privacy", "privacy", "distributed_dp", "3")),
        ({"codec": ["fp32"]}, ("FP1036", "codec", "or a list of them", "['fp32']")),
    ],
)
def test_what_is_no_part_is_told_how_one_is_given(given, says):
    with refuses(*says):
        fedpeft.run_simulation(**TINY | given)


def settle_settings(monkeypatch, **given):
    """Return the settings that a run of these parts would have; nothing is trained."""

    class EndedError(Exception):
        pass

    def end(config, *_, **__):
        raise EndedError(config)

    monkeypatch.setattr("fedpeft.api.simulate", end)
    with pytest.raises(EndedError) as ended:
        fedpeft.run_simulation(**given, progress=False)
    return ended.value.args[0]


OBJECTS = {
    "dataset": (DATASETS, "tiny(rows=50)"),
    "partition": (PARTITIONS, "dirichlet(alpha=0.3)"),
    "model": (MODELS, "tiny(seed=1)"),
    "cohort": (SAMPLERS, "eafl(size=0.5)"),
    "peft": (PEFT_METHODS, "lora(rank=2)", "bottleneck(dim=4)"),
    "head": (HEADS, "ridge(scale=1.0)"),
    "strategy": (strategies, "krum(attackers=0.3)"),
    "server_optimizer": (SERVER_OPTIMIZERS, "adam(learning_rate=0.1)"),
    "safeguard": (SAFEGUARDS, "undo(rate=0.5)"),
    "drift": (CORRECTIONS, "fedprox(mu=0.1)"),
    "attack": (ATTACKS, "sign_flip(fraction=0.2)"),
    "local_work": (LOCAL_WORK, "steps(count=3)"),
    "optimizer": (LOCAL_OPTIMIZERS, "sgd(warmup=2)"),
    "codec": (codecs, "rotate", "quantize(bits=4)"),
    "downlink": (codecs, "grid(bits=4.0)", "rans"),
    "privacy": (MECHANISMS, "user_dp(noise_multiplier=4.0)"),
    "grid": (GRIDS, "cohort(executor=sequential)"),
    "measure": (MEASUREMENTS, "validation(every=1)", "pooled"),
}
"""By setting, a family and texts of its parts."""


@pytest.mark.parametrize("setting_name", OBJECTS)
def test_every_setting_that_takes_a_text_takes_its_part(setting_name, monkeypatch):
    family, *texts = OBJECTS[setting_name]
    parts = [family.build(text) for text in texts]
    config = settle_settings(monkeypatch, **{setting_name: parts if len(parts) > 1 else parts[0]})
    joined = find_flag(setting_name).joined
    assert getattr(config, setting_name) == joined.join(texts)


def test_every_setting_of_parts_is_tried():
    assert {name.replace("-", "_") for name in FLAGS} | {"downlink"} == {*OBJECTS, "hook"}, "hooks come from plugins"


@dataclass(frozen=True)
class Halves(ServerOptimizer):
    """A server optimizer of a user's own that averages what another one makes."""

    learning_rate: float = setting(0.5, "eta", above=0)

    def step(self, state, direction, memory):
        """Step by the rate of this optimizer."""
        return state | {name: state[name] + self.learning_rate * d for name, d in direction.items()}, memory


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"server_optimizer": Averaged(of=Momentum(beta=0.5))}, "averaged(of='momentum(beta=0.5)')"),
        ({"server_optimizer": Averaged(of=Halves(learning_rate=0.25))}, "averaged(of='Halves(learning_rate=0.25)')"),
        ({"dataset": Sample(of=DATASETS.build("tiny"), rows=30)}, "sample(of=tiny, rows=30)"),
        ({"dataset": Tasks(sets=(DATASETS.build("tiny"), "digits"))}, "tasks(sets=('tiny', 'digits'))"),
    ],
)
def test_a_part_takes_parts_in_its_settings(given, text, monkeypatch):
    [name] = given
    assert getattr(settle_settings(monkeypatch, **given), name) == text


def test_a_setting_of_a_part_refuses_what_is_no_part():
    with refuses("FP1520", "server optimizer", "3"):
        Averaged(of=3)


@pytest.mark.parametrize(
    ("given", "meant"),
    [({"cohort": "10"}, 10), ({"cohort": "0.5"}, 0.5), ({"cohort": "all"}, "all"), ({"cohort": "inf"}, "inf"),
     ({"clients": "20"}, 20), ({"clients": "0.5"}, "0.5")],
)  # fmt: skip
def test_numbers_as_texts_are_the_numbers_that_the_command_line_takes(given, meant):
    [name] = given
    assert getattr(build_config(given, "Python"), name) == meant
    assert type(getattr(build_config(given, "Python"), name)) is type(meant)


def test_a_model_whose_class_would_be_another_s_once_loaded_is_refused(tmp_path):
    from transformers import AutoTokenizer, BertConfig, BertModel

    from fedpeft.models.base_model import resolve_model

    class Mine(BertModel):
        pass

    model = Mine(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("tiny"))
    with refuses("FP1038", "Mine", "BertModel or"):
        fedpeft.run_simulation(
            dataset="tiny", model=model, tokenizer=tokenizer, output=tmp_path / "run", progress=False
        )
    assert not (tmp_path / "run").exists()


def test_a_config_that_leads_to_one_of_several_classes_names_them():
    from transformers import FunnelConfig, FunnelModel

    class Mine(FunnelModel):
        pass

    with refuses("FP1038", "FunnelModel or FunnelBaseModel"):
        _check_class(Mine(FunnelConfig(vocab_size=8, d_model=8, n_head=1, d_head=8, d_inner=8, block_sizes=[1])))
