"""A head that reads all blocks: what it reads, on which models, and what keeps as it was."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from rich.console import Console

from fedpeft.data.rows import load_dataset
from fedpeft.models.base_model import resolve_model
from fedpeft.models.frozen_blocks import can_start_at, cut_below
from fedpeft.models.packed_tokens import PackedTokens, can_pack_tokens
from fedpeft.models.pooled_rows import create_pass_through
from fedpeft.models.readout import AllBlocks, get_plain_base, get_width, read_all_blocks
from fedpeft.parts.families import PEFT_METHODS, TASKS
from fedpeft.peft import saved_adapter
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulation.forgetting import measure_forgetting
from fedpeft.simulation.probe import begin_probe
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.refusals import refuses

CLASSES = {"tiny": "tiny", "tiny_vision": "digits"}


def base_and_batch(name, rows=6):
    """Return a base in fp32 and a batch of examples for it."""
    task, folder = TASKS.build("classification"), resolve_model(name)
    examples = task.tokenise(load_dataset(CLASSES[name]).test.take(np.arange(rows)), folder, 24)
    batch = examples.batch(np.arange(rows))
    return task.base(folder, torch.float32), {n: t for n, t in batch.items() if n != "labels"}


def states_of(base, batch):
    """Return transformers' own states: the input of the first block and each block's output, the last one normed."""
    with torch.no_grad():
        output = base(**batch, output_hidden_states=True)
    states = [*output.hidden_states[:-1], output.last_hidden_state]
    return torch.cat([state / state.norm(dim=-1, keepdim=True) for state in states], dim=-1)


@pytest.mark.parametrize("name", CLASSES)
def test_it_reads_what_enters_the_first_block_and_leaves_each(name):
    base, batch = base_and_batch(name)
    wanted, names = states_of(base, batch), list(base.state_dict())
    signature, kind = inspect.signature(base.forward), type(base).__name__
    read_all_blocks(base)
    read_all_blocks(base)  # once is enough
    with torch.no_grad():
        found = base(**batch).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert found.shape[-1] == get_width(base) == 48 * (base.config.num_hidden_layers + 1)
    assert list(base.state_dict()) == names
    assert inspect.signature(base.forward) == signature
    assert type(base).__name__ == kind


def test_the_plain_base_is_given_back():
    base, batch = base_and_batch("tiny")
    with torch.no_grad():
        wanted = base(**batch).last_hidden_state
        read_all_blocks(base)
        last = get_plain_base(base)
        assert torch.equal(last(**batch).last_hidden_state, wanted)
    assert isinstance(base, AllBlocks)
    assert not isinstance(last, AllBlocks)
    assert get_width(last) == 48


def test_packed_rows_come_out_as_padded_ones():
    base, batch = base_and_batch("tiny")
    read_all_blocks(base)
    assert can_pack_tokens(base)
    with torch.no_grad():
        usual = base(**batch).last_hidden_state
        with PackedTokens(base, worth=-100) as passes:
            packed = base(**batch).last_hidden_state
    assert passes.packing is not None
    seen = batch["attention_mask"].bool()
    torch.testing.assert_close(packed[seen], usual[seen], rtol=1e-4, atol=1e-5)


def test_no_pass_starts_above_a_block_that_is_read():
    base, _ = base_and_batch("tiny")
    assert can_start_at(base, 1)
    read_all_blocks(base)
    assert not can_start_at(base, 1)
    features = torch.rand(6, 1, get_width(base))
    assert torch.equal(
        create_pass_through(base)(inputs_embeds=features, attention_mask=None).last_hidden_state, features
    )
    assert isinstance(cut_below(base, 1), AllBlocks)


def test_blocks_that_are_passed_several_times_are_refused():
    from transformers import AlbertConfig, AlbertModel

    base = AlbertModel(AlbertConfig(hidden_size=8, num_attention_heads=1, intermediate_size=8, num_hidden_layers=3))
    with refuses("FP4039"):
        read_all_blocks(base)


def test_blocks_that_pass_states_of_other_shapes_are_refused():
    from transformers import XLNetConfig, XLNetModel

    base = XLNetModel(XLNetConfig(d_model=8, n_head=2, n_layer=3, d_inner=8, vocab_size=20))
    read_all_blocks(base)
    with refuses("FP4040", "XLNetModel"):
        base(input_ids=torch.ones(2, 3, dtype=torch.long))


def test_a_task_without_a_head_is_refused():
    task, folder = TASKS.build("causal_lm"), resolve_model("tiny_lm")
    with refuses("FP4063"):
        PEFT_METHODS.build("head2toe").attach(task.model(task.base(folder, torch.float32), 0), "fp32")


@pytest.mark.parametrize("model", CLASSES)
@pytest.mark.parametrize("peft", ["head2toe", "linear_probe"])
def test_a_run_reads_rows_as_their_features_of_texts_and_of_images(model, peft, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "cache"))
    config = RunConfig(
        dataset=CLASSES[model], model=model, clients=4, peft=peft, workers=1, dtype="fp32", head="ridge", rounds=1
    )
    simulation = Simulation(config, tmp_path / "run", ConsoleObserver(Console(quiet=True)))
    setup, work = simulation.setup, simulation.workers.work
    simulation.close()
    assert work.pooled
    assert work.depth == 0
    assert work.width == setup.width == setup.layout.shapes["head.weight"][1]


@pytest.mark.medium
def test_the_probe_of_all_blocks_is_kept_under_a_name_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "cache"))
    names = set()
    for peft in ("linear_probe", "head2toe"):
        config = RunConfig(dataset="tiny", clients=4, peft=peft, workers=1, dtype="fp32", rounds=1, tokens=16)
        simulation = Simulation(config, tmp_path / peft, ConsoleObserver(Console(quiet=True)))
        with begin_probe(simulation.setup, simulation.rows, simulation.workers, tokens=16, beside=False) as begun:
            names.add(begun._name)
        simulation.close()
    assert len(names) == 2


@pytest.mark.medium
def test_a_head_on_all_blocks_forgets_nothing(tmp_path, monkeypatch):
    """The base is what it was, and is probed as the finished model is: by all blocks."""
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "cache"))
    config = RunConfig(dataset="tiny", clients=4, peft="head2toe", workers=1, dtype="fp32", rounds=1, tokens=16)
    simulation = Simulation(config, tmp_path / "run", ConsoleObserver(Console(quiet=True)))
    setup, model_key = simulation.setup, simulation.workers.work.model_key
    simulation.close()
    model = setup.task.model(setup.task.base(setup.model_directory, torch.float32), setup.facts.classes)
    setup.method.attach(model, "fp32")
    saved_adapter.save(tmp_path, model, setup.start, setup.facts.label_names, own="head2toe")
    found = measure_forgetting(setup, load_dataset("tiny"), tmp_path, model_key)
    assert found.before == found.after


@pytest.mark.parametrize(("peft", "send"), [("head2toe", "factor"), ("lora + head2toe", "factor"), ("lora", "moments")])
def test_a_wide_head_starts_from_factors(peft, send):
    from fedpeft.wiring.auto_defaults import resolve_auto
    from fedpeft.wiring.run_spec import parse_run

    settings = RunConfig(dataset="tiny", peft=peft)
    assert ("send=factor" in resolve_auto(parse_run(settings)).config.head) == (send == "factor")
    assert (
        "factor" not in resolve_auto(parse_run(RunConfig(dataset="tiny", peft=peft, privacy="secure_sum"))).config.head
    )


def test_methods_that_do_not_compose_stay_apart():
    with refuses("FP1239", "dora"):
        PEFT_METHODS.build("dora + head2toe")
