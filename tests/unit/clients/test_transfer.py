"""Copies between devices, and passes that a GPU's memory does not hold."""

from __future__ import annotations

import pytest
import torch
from fedpeft.clients.transfer import copy_to_cpu, move_tensor, put

from tests.elsewhere import DEVICE, Elsewhere
from tests.unit.clients.test_executors import SHARDS, build, jobs, worst


def mixed():
    return [torch.randn(2, 3), torch.randn(4).double(), torch.randn(()), torch.randn(0, 5), torch.randn(3, 2).t()]


@pytest.mark.parametrize("device", ["cpu", DEVICE])
def test_all_come_back(device):
    values = mixed()
    targets = [torch.zeros(v.shape, dtype=v.dtype).to(device) for v in values]
    with torch.no_grad():
        put(targets, values)
    found = copy_to_cpu(targets)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, values, strict=True))
    assert not any(isinstance(tensor, Elsewhere) for tensor in found)
    assert len({tensor.untyped_storage().data_ptr() for tensor in found if tensor.numel()}) == 4, "safetensors asks so"


def test_what_is_taken_is_a_copy():
    [tensor] = values = [torch.zeros(3)]
    [copy] = copy_to_cpu(values)
    tensor += 1
    assert not copy.any()


def test_none_is_none():
    put([], [])
    assert copy_to_cpu([]) == []
    assert move_tensor(torch.ones(2), torch.device("cpu")).tolist() == [1, 1]


def test_a_pass_that_does_not_fit_is_made_of_fewer_clients(tiny, monkeypatch):
    """A GPU with room for two of the four: the same results, and no further pass is tried with more."""
    _, whole, layout, start = build(tiny, "lora(rank=2, layers=1)", "fp64")
    _, batched, *_ = build(tiny, "lora(rank=2, layers=1)", "fp64")
    work = jobs(layout, start, SHARDS, optimizer="sgd")
    tried, train = [], batched._train

    def short_of_memory(some, plans):
        tried.append(len(some))
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        if len(some) > 2:
            torch.use_deterministic_algorithms(True, warn_only=False)  # as in fused attention, whose hooks never came
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train(some, plans)

    monkeypatch.setattr(batched, "_train", short_of_memory)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        found = list(batched.train(work))
    finally:
        torch.use_deterministic_algorithms(False)
    assert tried == [4, 2, 2, 2]
    assert [trained.client for trained in found] == [job.client for job in work]
    assert worst(found, list(whole.train(work)), work) < 1e-9


def test_one_client_that_does_not_fit_is_an_error(tiny, monkeypatch):
    _, batched, layout, start = build(tiny, "lora(rank=2, layers=1)", "fp64")

    def nothing_fits(some, plans):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(batched, "_train", nothing_fits)
    with pytest.raises(torch.OutOfMemoryError):
        list(batched.train(jobs(layout, start)[:3]))
