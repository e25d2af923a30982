"""Many clients in a pass over a base in few bits: the same training, and each layer is decoded once for all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fedpeft.clients.batched import BatchedExecutor
from fedpeft.clients.sequential import SequentialExecutor
from fedpeft.clients.workbench import WorkPlan

from fedpeft.models.quantized_base import QuantizedLinear, quantize
from fedpeft.parts.families import PEFT_METHODS
from tests.unit.clients.test_executors import SHARDS, jobs, worst


@pytest.fixture(params=["qlora(rank=2, layers=0, bits=8)", "rslora(rank=2, layers=2)"])
def both(request, tiny):
    """One client after another, and four at once, on equal bases; and the jobs."""
    task, rows, folder, classes = tiny
    method = PEFT_METHODS.build(request.param)
    models = []
    for _ in range(2):
        base = task.base(folder, torch.float64)
        quantize(base, "int8")
        models.append(task.model(base, classes))
    one, many = models
    method.attach(one, "fp64")
    layout = method.layout(one)
    start = {name: 0.1 * torch.randn(shape, dtype=torch.float64) for name, shape in layout.shapes.items()}
    sequential = SequentialExecutor(one, task, rows, layout)
    batched = BatchedExecutor(many, task, method, rows, layout, 4, "native")
    return sequential, batched, jobs(layout, start, SHARDS[:4], optimizer="sgd", work="steps(2)")


def test_all_at_once_train_as_one_after_another(both):
    sequential, batched, work = both
    assert worst(list(batched.train(work)), list(sequential.train(work)), work) < 1e-9


def test_a_layer_is_decoded_for_all_clients_at_once(both, monkeypatch):
    sequential, batched, work = both
    decoded, values = [], QuantizedLinear.values
    monkeypatch.setattr(QuantizedLinear, "values", lambda self: decoded.append(self) or values(self))
    list(batched.train(work))
    together = len(decoded)
    list(sequential.train(work))
    assert (len(decoded) - together) == 4 * together


def test_what_exact_rules_put_into_the_base_lies_beside_the_codes(both):
    sequential, batched, work = both
    residual = {pair.module: 0.05 * torch.randn(pair.out_features, pair.in_features) for pair in batched.layout.pairs}
    before = list(batched.train(work))
    for executor in (sequential, batched):
        executor.set_residual(residual)
    after = list(batched.train(work))
    assert worst(after, list(sequential.train(work)), work) < 1e-9
    assert worst(after, before, work) > 1e-3


def test_where_bases_are_in_few_bits_gpus_train_many_at_once_and_cpus_one():
    names = dict.fromkeys(WorkPlan.__dataclass_fields__)
    lora, ia3 = PEFT_METHODS.build("lora"), PEFT_METHODS.build("ia3")
    plan = WorkPlan(**names | {"dtype": "bf16", "executor": "batched", "precision": "", "depth": 2, "method": lora})
    assert replace(plan, device="cpu").set_precision("int8").executor == "sequential"
    assert replace(plan, device="cuda:0").set_precision("int8").executor == "batched"
    assert replace(plan, device="cuda:0").set_precision("nf4").executor == "sequential"
    assert replace(plan, device="cuda:0").set_precision("int8").depth == 0
    assert replace(plan, device="cuda:0", method=ia3).set_precision("nf4").executor == "sequential", (
        "nobody has tried it"
    )
