"""The kit for a CUDA machine: what it measures, on the CPU with tiny models; and how it stops and goes on."""

from __future__ import annotations

import json

import pytest

from experiments.gpu.__main__ import Settings, main, parse_device, run_steps
from experiments.gpu.assets import MODEL, ROWS, check_folder, collect
from experiments.gpu.kit import Kit
from experiments.gpu.page import format_value, plot
from experiments.gpu.record import Outcome, Record
from experiments.gpu.shapes import MINILM, SMALLER, SMOLLM2
from experiments.gpu.steps import CURVE, list_steps
from fedpeft.errors import AssetError, ConfigError, RunError
from fedpeft.models.base_model import resolve_model
from tests.experiments.few_steps import few

MACHINE = {"device": "a GPU", "tiny": True}


def kit(folder):
    return Kit("cpu", folder, tiny=True)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_weights_that_are_drawn_layer_by_layer_are_all_there(precision):
    shape = SMALLER[SMOLLM2.name]
    base = shape.base("cpu", precision)
    tensors = [*base.named_parameters(), *base.named_buffers()]
    assert not [name for name, tensor in tensors if tensor.device.type == "meta"]
    assert base.get_input_embeddings().weight is base.get_output_embeddings().weight
    again = dict(shape.base("cpu", precision).named_parameters())
    assert all(tensor.equal(again[name]) for name, tensor in base.named_parameters())


def test_random_weights_are_a_folder_that_loads(tmp_path):
    from fedpeft.data.tokens import load_tokenizer
    from fedpeft.models.tasks.classification import Classification

    folder = SMALLER[MINILM.name].write_folder(tmp_path / "encoder")
    assert resolve_model(str(folder)) == folder
    assert load_tokenizer(folder)
    import torch

    assert sum(p.numel() for p in Classification().base(folder, torch.float32).parameters()) > 10_000


def test_it_goes_on_where_it_was_stopped(tmp_path):
    class Told:
        """Says what it is asked, and has no time for the second step at first."""

        kit = Kit("cpu", tmp_path)
        asked: list[str] = []  # noqa: RUF012

        def run(self, step, left):
            self.asked.append(step.name)
            return None if self.asked == ["quick", "slow"] else Outcome(step.section, "done", 1.0, {"x": 1})

    file, told = tmp_path / "found.json", Told()
    steps = few()[:4]
    run_steps(Record.from_file(file, MACHINE), steps, told, 100, lambda *_: "", lambda _: None)
    assert told.asked == ["quick", "slow"]
    run_steps(Record.from_file(file, MACHINE), steps, told, 0, lambda *_: "", lambda _: None)
    assert told.asked == ["quick", "slow"], "no step is begun without time for it"
    run_steps(Record.from_file(file, MACHINE), steps, told, 100, lambda *_: "", lambda _: None)
    assert told.asked == ["quick", "slow", "slow", "wrong", "dies"]
    assert Record.from_file(file, MACHINE).outcomes["wrong"].row == {"x": 1}


def test_a_record_is_of_one_machine(tmp_path):
    file = tmp_path / "found.json"
    Record(file, MACHINE).put("quick", Outcome("first", "done", 1.0, {"nan": float("nan")}))
    assert json.loads(file.read_text())["steps"]["quick"]["row"] == {"nan": None}
    with pytest.raises(RunError, match=r"begun with device = 'a GPU', and here it is 'another'"):
        Record.from_file(file, MACHINE | {"device": "another"})
    for damaged in ("{", "[]", '{"machine": {}, "steps": {"a": 1}}', '{"machine": {}, "steps": {"a": {"b": 1}}}'):
        file.write_text(damaged)
        with pytest.raises(RunError, match="is no record of this kit"):
            Record.from_file(file, MACHINE)


# --------------------------------------------------------------------------------------------- assets, settings, page


def test_what_is_taken_along(tmp_path):
    assert 0 < collect(tmp_path, "tiny", "tiny") < 1_000_000
    assert check_folder(tmp_path) == tmp_path
    from fedpeft.data.rows import load_dataset

    data = load_dataset(f"file:{tmp_path / ROWS}")
    assert len(data.train) + len(data.test) == 600
    assert resolve_model(str(tmp_path / MODEL))
    (tmp_path / MODEL / "model.safetensors").unlink()
    with pytest.raises(AssetError, match=r"lacks encoder/model.safetensors; fill it .* --collect --assets"):
        check_folder(tmp_path)


def test_wrong_settings_are_one_sentence(tmp_path):
    for settings, says in (
        (Settings(collect=True), "name it with --assets"),
        (Settings(device="cuda:9"), "torch finds no such device"),
        (Settings(device="cpu", output=tmp_path / "x.txt"), "must end in .json"),
        (Settings(device="cpu", output=tmp_path / "x.json", only="nothing"), "no step is called so"),
    ):
        with pytest.raises(ConfigError, match=says):
            main(settings)
    assert parse_device("cpu") == "cpu"


def test_names_are_unique_and_every_shape_has_a_small_one():
    names = [step.name for step in list_steps()]
    assert len(set(names)) == len(names) > 40


def test_numbers_are_shown_short():
    assert [format_value(v) for v in (None, 3e-7, 1234.5, 1.23456, 4096, "nf4", 0.0)] == [
        "", "3.0e-07", "1,234", "1.235", "4,096", "nf4", "0",
    ]  # fmt: skip


def test_the_curve_is_drawn():
    rows = [
        {"model": m, "tokens of a client's step": t, "plain / batched": 100 / t, "batched, tokens/s": 1.0 * t}
        for m in ("a", "b")
        for t in (32, 64, 128)
    ]
    assert plot(CURVE, rows).startswith("<svg")
