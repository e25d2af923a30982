"""fedpeft from Python: finished runs as objects, parts and rows as objects, and a process that is left as it was."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import fedpeft
from fedpeft import plugins
from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.api import _check_class
from fedpeft.config import from_mapping
from fedpeft.data.in_memory import dataset_of
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
        """The scaled delta."""
        return {name: self.share * delta for name, delta in update.delta.items()}


def state_of_this_process():
    from transformers.utils import logging

    return (
        torch.get_num_threads(), dict(os.environ), list(warnings.filters), logging.get_verbosity(),
        logging.is_progress_bar_enabled(), plugins.named(), dict(plugins._names), threading.active_count(), os.getcwd(),
        torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A run of two rounds that a callback has ended after one, with an object for a strategy."""
    run_simulation = fedpeft.run_simulation  # with it come libraries that warn of this and that when imported
    before = state_of_this_process()
    heard = []

    def on_round(result):
        heard.append(result.round)
        return True

    folder = tmp_path_factory.mktemp("api") / "run"
    run = run_simulation(**TINY, strategy=Part(share=0.25), output=folder, on_round=on_round)
    assert heard == [1]
    assert state_of_this_process() == before
    return run


def test_a_run_is_an_object(ended):
    assert ended.accuracy == ended.summary["accuracy"]
    assert ended.summary["rounds"] == 1
    assert list(ended.rounds["round"]) == [1]
    assert sorted(ended.clients["client"].unique()) == [0, 1, 2, 3]
    assert (ended.adapter / "adapter_model.safetensors").is_file()
    assert repr(ended) == f"Run({str(ended.folder)!r}, accuracy={ended.accuracy:.4g})", "one line in a notebook"
    assert len(ended.plot().axes) == 2
    assert ended.plot()._repr_png_().startswith(b"\x89PNG"), "what a notebook shows"
    assert not ended.model().training
    assert ended.parts == {"strategies": {"Part": Part}}, "its model may need them"


def test_without_pandas_there_are_records(ended, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert [line["round"] for line in fedpeft.open_run(ended.folder).rounds] == [1]


def test_an_object_is_recorded_and_asked_for_again(ended):
    assert ended.config.strategy == "Part(share=0.25)"
    again = fedpeft.open_run(ended.folder)
    assert again.config == ended.config
    with refuses("FP1231", "Part", "given it as an object in Python"):
        fedpeft.run_simulation(resume=ended.folder, progress=False)
    plugins._state.named.clear()
    longer = fedpeft.run_simulation(resume=ended.folder, strategy=Part(share=0.25), progress=False)
    assert longer.summary["rounds"] == 2


def test_a_share_of_the_mean_is_what_was_computed(ended, tmp_path):
    whole = fedpeft.run_simulation(**TINY, output=tmp_path / "run", on_round=lambda _: True)
    norm, full = (float(run.rounds["update_norm"].iloc[0]) for run in (ended, whole))
    assert norm == pytest.approx(0.25 * full, rel=1e-3)


def test_rows_come_as_records_or_client_by_client():
    data = dataset_of(ROWS)
    assert (data.task, data.label_names) == ("classification", ("black", "blue", "green", "red"))
    assert len(data.train) + len(data.test) == len(ROWS)
    plain = dataset_of([{"text": "a b c"}] * 10)
    assert (plain.task, plain.label_names) == ("causal_lm", None)
    shards = [([row["text"] for row in ROWS[k::3]], [row["label"] for row in ROWS[k::3]]) for k in range(3)]
    assert sorted(set(dataset_of(shards).train.owners)) == ["client 0", "client 1", "client 2"]
    with refuses("FP3061", "0", "1", "2"):
        dataset_of([(["a"], ["b", "c"])])
    with refuses("FP3060", "int"):
        dataset_of(3)


def test_rows_and_a_model_in_memory(tmp_path):
    from transformers import AutoModel, AutoTokenizer

    from fedpeft.models.base_model import resolve_model

    tiny = resolve_model("tiny")
    model, tokenizer = AutoModel.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    shards = [([row["text"] for row in ROWS[k::3]], [row["label"] for row in ROWS[k::3]]) for k in range(3)]
    given = {name: value for name, value in TINY.items() if name not in ("dataset", "clients")}
    run = fedpeft.run_simulation(**given, dataset=shards, model=model, tokenizer=tokenizer, output=tmp_path / "run")
    assert run.summary["clients"] == 3
    assert run.model() is not None
    with refuses("FP1037"):
        fedpeft.run_simulation(**given, dataset=shards, model=model, output=tmp_path / "other")
    assert not (tmp_path / "other").exists()


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
    assert getattr(from_mapping(given, "Python"), name) == meant
    assert type(getattr(from_mapping(given, "Python"), name)) is type(meant)


def test_the_promise_is_kept_whatever_is_imported():
    """No public name is hidden by a module of that name, and what is not called stays light."""
    folder = Path(fedpeft.__file__).parent
    modules = {
        f"fedpeft.{'.'.join(path.relative_to(folder).with_suffix('').parts)}".removesuffix(".__init__")
        for path in folder.rglob("*.py")
        if path.stem != "__main__" and "v2_pb2" not in path.stem
    }
    code = "\n".join([
        "import sys, fedpeft",
        "assert not {'torch', 'transformers', 'numpy', 'flwr'} & sys.modules.keys(), 'import fedpeft is heavy'",
        "import importlib",
        f"for name in {sorted(modules)!r}: importlib.import_module(name)",
        "assert all(callable(getattr(fedpeft, name)) for name in fedpeft.__all__)",
        "assert set(fedpeft.__all__) <= set(dir(fedpeft))",
    ])  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
    assert not {name.partition(".")[2].partition(".")[0] for name in modules} & set(fedpeft.__all__)
    with pytest.raises(AttributeError):
        importlib.import_module("fedpeft").nothing  # noqa: B018


@pytest.mark.slow
def test_a_script_needs_no_guard_and_its_classes_reach_the_workers(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        "from dataclasses import dataclass\n"
        "import fedpeft\n"
        "from fedpeft.peft.methods.lora import Lora\n\n\n"
        '@dataclass(frozen=True)\nclass Mine(Lora):\n    """LoRA under another name."""\n\n\n'
        "print('once')\n"
        "run = fedpeft.run_simulation(dataset='tiny', clients=4, cohort='all', rounds=1, workers=2, "
        "local_work='steps(1)',\n"
        "                             tokens=32, peft=Mine(rank=2), output='run', progress=False)\n"
        "print(run.config.peft, run.model().training)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=900, check=True
    )
    assert done.stdout == "once\nMine(rank=2) False\n"


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
