"""fedpeft from Python: finished runs as objects, parts and rows as objects, and a process that is left as it was."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

import fedpeft
from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.api import _check_class
from fedpeft.config import build_config
from fedpeft.data.in_memory import convert_to_dataset
from fedpeft.parts import setting
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
