"""Requirements of every PEFT method: it declares its tensors and trains them, alone and in batches, on any base."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpeft.clients.sequential import SequentialExecutor
from fedpeft.conformance.peft_cases import (
    NAMES,
    OWN,
    SPECS,
    Case,
    create_model,
    each_method,
    find_largest_difference,
)
from fedpeft.data.rows import load_dataset
from fedpeft.errors import ConfigError, ModelError
from fedpeft.models.base_model import resolve_model
from fedpeft.models.dtypes import get_adapter_dtype
from fedpeft.models.layers import find_linear_layers
from fedpeft.models.quantized_base import PRECISIONS, quantize, round_to_quantized
from fedpeft.models.task import find_trainable
from fedpeft.parts.families import PEFT_METHODS, TASKS
from fedpeft.parts.spec import split_outside_parentheses
from fedpeft.peft.adapter import AdapterShape
from fedpeft.wiring.checks.rules import check_method


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_documented_part(name):
    part = PEFT_METHODS.part(name)
    module = inspect.getmodule(part)
    assert module.__doc__, f"{module.__file__} needs a docstring: what is computed, and its source"
    assert part.__doc__
    assert part.__dataclass_params__.frozen
    if OWN:
        assert inspect.getsource(module).rstrip().endswith(f"\n\npart = {part.__name__}")
    assert all(field.metadata.get("help") for field in dataclasses.fields(part))
    assert part().tensors


@each_method
def test_the_layout_holds_what_the_method_declares(spec, tiny):
    case = Case(spec, tiny)
    own = [t.name for t in case.layout.tensors if t.role != "head"] or case.layout.names
    assert all(name.endswith(case.method.tensors) for name in own)
    declared = [ending for ending in case.method.tensors if not ending.startswith("head.")] or case.method.tensors
    assert all(any(name.endswith(ending) for name in own) for ending in declared)
    assert {n: tuple(t.shape) for n, t in case.first.items()} == case.layout.shapes
    again = case.method.start(create_model(case.method, case.tiny, "fp64"), 0)
    assert all(torch.equal(again[n].double(), case.first[n]) for n in again)


@pytest.mark.parametrize("spec", [s for s in SPECS if len(split_outside_parentheses(s, "+")) > 1])
def test_joined_methods_train_all_that_each_trains_alone(spec, tiny):
    alone = {name for part in split_outside_parentheses(spec, "+") for name in Case(part, tiny).layout.names}
    assert set(Case(spec, tiny).layout.names) == alone


@each_method
def test_loss_falls_and_only_declared_parameters_move(spec, tiny):
    case = Case(spec, tiny, "fp32")
    fixed = {n: p.detach().clone() for n, p in case.model.named_parameters() if not p.requires_grad}
    rows = np.arange(0, 60)
    before = case.sequential.evaluate(case.first, rows).mean_loss
    [job] = case.jobs(case.first, rate=3e-3, steps=40)[:1]
    [trained] = case.sequential.train([replace(job, rows=rows)])
    after = case.sequential.evaluate(case.first | trained.state, rows).mean_loss
    assert after < before - 0.02
    assert set(trained.state) == set(case.layout.names)
    still = [n for n, t in trained.state.items() if torch.equal(t, case.first[n])]
    assert not still
    now = dict(case.model.named_parameters())
    assert all(torch.equal(now[n], p) for n, p in fixed.items())


@each_method
def test_batched_equals_sequential(spec, tiny):
    case = Case(spec, tiny)
    if not case.method.batched:
        pytest.skip("trained one client at a time")
    jobs = case.jobs()
    one, other = list(case.sequential.train(jobs)), list(case.create_batched_executor().train(jobs))
    assert find_largest_difference(one, other, jobs) < 1e-9
    assert [t.loss for t in one] == pytest.approx([t.loss for t in other], rel=1e-12)


@each_method
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_base_in_few_bits_trains_as_its_decoded_weights_do(spec, precision, tiny):
    case = Case(spec, tiny, "fp32")
    method = case.method
    if method.base_precision or not method.few_bits:
        pytest.skip("it has a precision of its own, or few bits are refused")
    executors = []
    for change in (quantize, decode_in_place):
        base = case.task.base(case.folder, torch.float32)
        change(base, precision)
        model = case.task.model(base, case.classes)
        method.attach(model, "fp32")
        executors.append(SequentialExecutor(model, case.task, case.rows, case.layout))
    jobs = case.jobs()[:1]
    one, other = (list(executor.train(jobs)) for executor in executors)
    assert find_largest_difference(one, other, jobs) < 1e-9
    assert find_largest_difference(one, list(case.sequential.train(jobs)), jobs) > 1e-4, (
        "as on the base in full precision"
    )


@each_method
def test_it_trains_on_a_bf16_base_in_fp32(spec, tiny):
    case = Case(spec, tiny, "bf16")
    assert {p.dtype for p in find_trainable(case.model).values()} == {get_adapter_dtype("bf16")}
    jobs = case.jobs()
    for trained, job in zip(case.sequential.train(jobs), jobs, strict=True):
        assert all(bool(t.isfinite().all()) for t in trained.state.values())
        assert any(not torch.equal(trained.state[n], job.received[n]) for n in trained.state)


def test_the_order_in_which_methods_are_named_makes_no_difference(tiny):
    cases = [Case(spec, tiny) for spec in ("lora(rank=4) + ia3", "ia3 + lora(rank=4)")]
    scores = [case.sequential.evaluate(cases[0].start, np.arange(20)) for case in cases]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("name", ["lora", "rslora", "prompt_tuning", "prefix_tuning"])
def test_a_client_s_own_size_is_what_is_evaluated(name, tiny):
    """A smaller adapter in a larger place is scored as on a model made for it."""
    size = "rank" if "lora" in name else "length"
    large, small = Case(f"{name}({size}=6)", tiny), Case(f"{name}({size}=2)", tiny)
    rows = np.arange(20)
    expected = small.sequential.evaluate(small.start, rows)
    for executor in (large.sequential, large.create_batched_executor()):
        found = executor.evaluate(small.start, rows, small.layout.form)
        assert found.mean_loss == pytest.approx(expected.mean_loss, rel=1e-9)


def decode_in_place(base, precision):
    for layer in find_linear_layers(base).values():
        layer.weight.data = round_to_quantized(layer.weight, precision)


def has_batched_text_form(spec):
    """Return whether the method has a batched form, on bases that read texts."""
    method = PEFT_METHODS.build(spec)
    return method.batched and not method.of_pictures


NOT_FOR_LANGUAGE = {"linear_probe", "head2toe", "bitfit", "bitfit(layers=1)"}


@pytest.fixture(scope="module")
def tiny_language():
    """Return task, examples, model folder and no classes: a decoder with rotary positions and causal attention."""
    task, folder = TASKS.build("causal_lm"), resolve_model("tiny_lm")
    return task, task.tokenise(load_dataset("tiny_lm").train.take(np.arange(60)), folder, 24), folder, 0


@pytest.mark.parametrize(
    "spec",
    [s for s in SPECS if not set(split_outside_parentheses(s, "+")) & NOT_FOR_LANGUAGE and has_batched_text_form(s)],
)
def test_batched_equals_sequential_on_a_language_model(spec, tiny_language):
    case = Case(spec, tiny_language)
    jobs = case.jobs()
    one, other = list(case.sequential.train(jobs)), list(case.create_batched_executor().train(jobs))
    assert find_largest_difference(one, other, jobs) < 1e-9
    assert not any(torch.equal(one[0].state[n], jobs[0].received[n]) for n in one[0].state)


def test_what_a_model_lacks_is_said(tiny_language):
    with pytest.raises(ModelError, match=r"^FP4060 "):
        Case("bitfit", tiny_language)
    with pytest.raises(ModelError, match=r"^FP4065 "):
        Case("linear_probe", tiny_language)


@each_method
def test_sizes_are_mixed_or_refused(spec, tiny):
    case = Case(spec, tiny)
    method = case.method
    if not method.mixed_sizes:
        with pytest.raises(ConfigError, match="one size"):
            check_method(method, case.strategy, [AdapterShape(2, 2.0)])
        return
    if case.layout.form is None or spec.startswith("lora_sb"):
        pytest.skip("alphas may differ, ranks may not")
    forms = [AdapterShape(2, 2 * case.layout.form.scale), case.layout.form, AdapterShape(3, 3 * case.layout.form.scale)]
    jobs = case.jobs(forms=forms)
    one = list(case.sequential.train(jobs))
    alone = list(case.sequential.train([jobs[2]]))
    assert find_largest_difference(one[2:], alone, jobs[2:]) == 0
    if method.batched:
        assert find_largest_difference(one, list(case.create_batched_executor().train(jobs)), jobs) < 1e-9


def test_what_can_not_be_joined_is_refused():
    for spec, words in {
        "dora + bitfit": "dora can't be combined",
        "lora + lora_fa": "train the same tensors",
        "lora + bitfut": "did you mean 'bitfit'",
    }.items():
        with pytest.raises(ConfigError, match=words):
            PEFT_METHODS.build(spec)


def test_dora_s_weights_are_those_of_the_client_s_own_scale(tiny):
    case = Case("dora(rank=4, alpha=32)", tiny)
    other = Case("dora(rank=4, alpha=8)", tiny)
    changes, expected = (c.method.weight_changes(c.model) for c in (case, other))
    found = changes(case.start, AdapterShape(4, 8.0))
    for module, change in expected(case.start, None).items():
        assert torch.allclose(found[module], change)
        assert not torch.allclose(changes(case.start, None)[module], change)
