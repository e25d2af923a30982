"""What a client chooses for its machine, by given memory."""

from __future__ import annotations

import itertools

import pytest

from fedpeft.deployment.client.capacity import ModelSize, choose, parse_device
from fedpeft.models.base_model import resolve_model
from fedpeft.models.dtypes import DTYPES
from fedpeft.models.layers import find_linear_layers
from fedpeft.parts.families import TASKS
from tests.refusals import refuses

SEVEN_B = ModelSize(linear=6_500_000_000, other=300_000_000, hidden=4096, intermediate=11008, blocks=32, heads=32,
                    vocabulary=32000)  # fmt: skip
GB = 1e9


def chosen(free, dtype="bf16", batch=8, few=("int8", "nf4"), language=True, whole=False):
    choice = choose(SEVEN_B, free * GB, dtype, batch, 512, language, few, whole)
    return choice.precision, choice.batch_size, choice.fits


@pytest.mark.parametrize("text", ["meta", "mps", "xpu", "cuda:x", "", "gpu"])
def test_what_is_neither_the_cpu_nor_a_gpu_of_cuda_is_no_device(text):
    assert parse_device("cpu") == parse_device("cpu:0") == "cpu"
    with refuses("FP5020"):
        parse_device(text)


def test_a_gpu_is_called_as_it_was_given(monkeypatch):
    """PyTorch itself takes cuda:300 for cuda:44, and cuda:256 for the first one."""
    with refuses("FP5019", "cuda:300"):
        parse_device("cuda:300")
    monkeypatch.setattr("fedpeft.deployment.client.capacity.list_accelerators", lambda: ["cuda:0"])
    assert [parse_device(text) for text in ("auto", "cuda", "cuda:0", "cpu:0")] == ["cuda:0", "cuda", "cuda:0", "cpu"]
    with refuses("FP5019", "cuda:256", "--device cuda:0"):
        parse_device("cuda:256")


def test_the_runs_own_settings_stay_where_they_fit():
    assert chosen(100) == ("", 8, True)
    assert chosen(120, dtype="fp32") == ("", 8, True)


def test_fewer_rows_then_fewer_bits():
    """The estimate for 7 B parameters in bf16: 13.6 GB to load, 4.8 GB a row of 512 tokens."""
    assert chosen(40) == ("", 4, True)
    assert chosen(28) == ("", 2, True)
    assert chosen(22) == ("int8", 2, True)
    assert chosen(16) == ("nf4", 2, True)
    assert chosen(16, few=()) == ("", 1, False)


def test_what_can_not_even_be_loaded_does_not_fit():
    """Weights pass through memory in the run's precision before they are quantized."""
    assert chosen(10) == ("nf4", 1, False)
    assert chosen(10, few=()) == ("", 1, False)


def test_where_all_divide_alike_no_memory_changes_the_rows():
    assert chosen(60, whole=True) == ("", 8, True)
    assert chosen(52, whole=True) == ("int8", 8, True)
    assert chosen(48, whole=True) == ("nf4", 8, True)
    assert chosen(10, whole=True) == ("nf4", 8, False)


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 8, 100])
def test_less_memory_never_means_more_rows(batch):
    order = ["", "int8", "nf4"]
    ladder = [chosen(free, batch=batch) for free in range(8, 400, 4)]
    ranks = [(order.index(precision), -rows) for precision, rows, fits in ladder if fits]
    assert all(less >= more for less, more in itertools.pairwise(ranks))
    assert all(1 <= rows <= batch for _, rows, _ in ladder)


def test_the_size_is_read_off_the_files():
    folder = resolve_model("tiny")
    size = ModelSize.from_folder(folder)
    base = TASKS.build("classification").base(folder, DTYPES["fp32"])
    assert size.linear + size.other >= sum(p.numel() for p in base.parameters())
    assert size.linear == sum(layer.weight.numel() for layer in find_linear_layers(base).values())
    assert size.blocks == base.config.num_hidden_layers
