"""Gradients per example, clipping and noise: every PEFT method, against one example at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fedpeft.clients.drift import parse_drift
from fedpeft.clients.example_gradients import (
    ExampleGradients,
    check,
    compute_row_means,
    set_empty_gradients,
    zero_nonfinite_gradients,
)
from fedpeft.clients.executor import Job, RowPrivacy
from fedpeft.clients.private import PrivateExecutor, SecretNoise
from fedpeft.clients.sequential import SequentialExecutor

from fedpeft.conformance.peft_cases import create_finished_runs
from fedpeft.data.examples import LENGTH_STEP
from fedpeft.data.rows import load_dataset
from fedpeft.errors import ConfigError, ModelError
from fedpeft.models.base_model import resolve_model
from fedpeft.models.dtypes import DTYPES, get_adapter_dtype
from fedpeft.models.task import find_trainable
from fedpeft.parts.families import PEFT_METHODS, TASKS
from fedpeft.peft.adapter import AdapterShape
from fedpeft.privacy.noise import RunKey
from tests.refusals import refuses
from tests.unit.clients.test_executors import local_training

KEY = RunKey(b"0123456789abcdef0123456789abcdef")
SPECS = {"lora": "lora(rank=3, layers=2)", "full": "full"}


def build(dataset: str, name: str, dtype: str = "fp64"):
    """Return a model with the method, its parameters moved off their start, and examples of unequal length."""
    data = load_dataset(dataset)
    task, folder = TASKS.build(data.task), resolve_model(data.default_model)
    rows = task.tokenise(data.train.take(np.arange(40)), folder, 32)
    spec = SPECS.get(name, name)
    if name == "adapter_fusion":
        spec = f"adapter_fusion(runs=('{create_finished_runs(folder, task, data.classes)}/0'), width=3)"
    method = PEFT_METHODS.build(spec)
    model = task.model(task.base(folder, DTYPES[dtype]), data.classes)
    method.attach(model, dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in find_trainable(model).values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return task, method, model, rows


def one_by_one(task, model, batch, chosen):
    found = []
    for i in range(len(batch["labels"])):
        one = {name: tensor[i : i + 1] for name, tensor in batch.items()}
        loss = compute_row_means(task.losses(model(one), one)).sum()
        gradients = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True, materialize_grads=True)
        found.append(gradients)
    return {name: torch.stack([g[k] for g in found]) for k, name in enumerate(chosen)}


LSTM = "p_tuning(length=3, hidden=4, encoder=lstm)"
JOINED = ["lora(rank=3) + bitfit", "ia3 + lora(rank=3)", "prefix(length=4) + bottleneck(dim=5)"]


@pytest.mark.parametrize("dataset", ["tiny", "tiny_lm"])
@pytest.mark.parametrize("name", [*PEFT_METHODS.names, *JOINED, LSTM])
def test_gradients_are_those_of_one_example_at_a_time(name, dataset, recwarn):
    try:
        task, method, model, rows = build(dataset, name)
    except (ConfigError, ModelError) as error:
        pytest.skip(f"{name} does not fit {dataset}: {error}")
    chosen = find_trainable(model)
    if method.privacy == "refused":
        with refuses("FP7005"):
            ExampleGradients(model, task, method.privacy)
        return
    per_example = ExampleGradients(model, task, method.privacy)
    for size in (1, 7):
        batch = rows.batch(np.arange(size))
        expected = one_by_one(task, model, batch, chosen)
        with per_example.attach_hooks(chosen):
            losses = per_example.fill(batch, chosen)
            check(chosen, size)
            found = {n: p.grad_sample.clone() for n, p in chosen.items()}
        assert torch.allclose(losses, compute_row_means(task.losses(model(batch), batch)), rtol=1e-9)
        for tensor in chosen:
            # Where the true gradient is zero (a key's bias does not move a softmax) only rounding is left.
            assert torch.allclose(found[tensor], expected[tensor], rtol=1e-7, atol=1e-11), tensor
    assert not [warning for warning in recwarn if "performance drop" in str(warning.message)]
    set_empty_gradients(chosen)
    check(chosen, 0)
    assert not any(
        getattr(p, "grad_sample", None) is not None for p in model.parameters() if p not in set(chosen.values())
    )


def test_no_two_parameters_share_their_gradients():
    """In fp32, both biases of an LSTM's layer get one tensor from torch; Opacus refuses the second as used already."""
    task, method, model, rows = build("tiny_lm", LSTM, "fp32")
    chosen = find_trainable(model)
    private = SecretNoise(torch.optim.SGD(chosen.values()), RowPrivacy(1.0, 0.0, 0.5, KEY, 0), 4.0, KEY.stream("test"))
    with ExampleGradients(model, task, method.privacy).attach_hooks(chosen) as per_example:
        per_example.fill(rows.batch(np.arange(5)), chosen)
        assert len({p.grad_sample.untyped_storage().data_ptr() for p in chosen.values()}) == len(chosen)
        private.pre_step()
    assert all(p.grad.any() for p in chosen.values())


def test_hooks_leave_nothing_behind_and_frozen_factors_alone():
    """FFA-LoRA trains B alone: A stays without gradients, in lower layers, too."""
    task, method, model, rows = build("tiny", "lora")
    parameters = find_trainable(model)
    chosen = {name: p for name, p in parameters.items() if "lora_A" not in name}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in chosen)
    per_example = ExampleGradients(model, task, method.privacy)
    batch = rows.batch(np.arange(5))
    expected = one_by_one(task, model, batch, chosen)
    modes = {n: m.training for n, m in model.named_modules()}
    for _ in range(2):
        with per_example.attach_hooks(chosen):
            per_example.fill(batch, chosen)
            check(chosen, 5)
            assert all(torch.allclose(chosen[n].grad_sample, g, rtol=1e-7, atol=1e-12) for n, g in expected.items())
    assert {n: m.training for n, m in model.named_modules()} == modes
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


def test_a_bf16_base_gives_gradients_per_example():
    task, method, model, rows = build("tiny", "lora", "bf16")
    chosen, batch = find_trainable(model), rows.batch(np.arange(7))
    expected = one_by_one(task, model, batch, chosen)
    with ExampleGradients(model, task, method.privacy).attach_hooks(chosen) as per_example:
        per_example.fill(batch, chosen)
        for name, gradient in expected.items():
            error = (chosen[name].grad_sample - gradient).norm() / gradient.norm()
            assert error < 0.03, name  # bf16 rounds products of other sizes differently


def test_a_parameter_that_the_hooks_miss_is_refused():
    """(IA)3 multiplies by its vectors without a module of their own: hooks see nothing."""
    task, _, model, rows = build("tiny", "ia3")
    chosen = find_trainable(model)
    per_example = ExampleGradients(model, task, "hooks")
    with per_example.attach_hooks(chosen):
        per_example.fill(rows.batch(np.arange(7)), chosen)
        with refuses("FP7007", "7"):
            check(chosen, 7)


# ------------------------------------------------------------------------------------------------- clipping and noise


@pytest.mark.parametrize("size", [0, 1, 7])
@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_clipped_sums_are_those_of_a_slow_reference(name, size):
    """Both routes: each row's gradient by itself, clipped by hand."""
    task, method, model, rows = build("tiny", name)
    chosen = find_trainable(model)
    clip, expected_rows = 0.05, 4.0
    privacy = RowPrivacy(clip, 0.0, 0.5, KEY, 0)
    private = SecretNoise(torch.optim.SGD(chosen.values()), privacy, expected_rows, KEY.stream("test"))
    gradients = one_by_one(task, model, rows.batch(np.arange(size)), chosen) if size else {}
    with ExampleGradients(model, task, method.privacy).attach_hooks(chosen) as per_example:
        if size:
            per_example.fill(rows.batch(np.arange(size)), chosen)
        else:
            set_empty_gradients(chosen)
        private.pre_step()
    reference = {n: torch.zeros_like(p) for n, p in chosen.items()}
    clipped = 0
    for i in range(size):
        length = sum(float(g[i].square().sum()) for g in gradients.values()) ** 0.5
        clipped += length > clip
        for name, gradient in gradients.items():
            reference[name] += gradient[i] * min(1.0, clip / (length + 1e-6)) / expected_rows
    assert clipped == size, "the clipping norm of this test clips nothing"
    for name, parameter in chosen.items():
        assert torch.allclose(parameter.grad, reference[name], rtol=1e-7, atol=1e-12), name


def test_a_gradient_that_is_not_finite_counts_as_none():
    """A state that makes one row overflow must not tell that the row is there."""
    task, method, model, rows = build("tiny", "lora")
    chosen = find_trainable(model)
    private = SecretNoise(torch.optim.SGD(chosen.values()), RowPrivacy(1.0, 0.0, 0.5, KEY, 0), 4.0, KEY.stream("test"))
    with ExampleGradients(model, task, method.privacy).attach_hooks(chosen) as per_example:
        per_example.fill(rows.batch(np.arange(5)), chosen)
        for parameter in chosen.values():
            parameter.grad_sample[2] = float("nan")
            parameter.grad_sample[3].view(-1)[0] = float("inf")
        zero_nonfinite_gradients(chosen)
        assert all(torch.isfinite(p.grad_sample).all() for p in chosen.values())
        assert not any(p.grad_sample[2].any() for p in chosen.values())
        private.pre_step()
    length = sum(float(p.grad.square().sum()) for p in chosen.values()) ** 0.5
    assert 0 < length <= 4 * 1.0 / 4.0


def test_the_noise_of_an_empty_step_has_the_stated_scale():
    parameter = torch.nn.Parameter(torch.zeros(300, 200, dtype=torch.float64))
    clip, noise, expected_rows = 0.7, 1.3, 8.0
    private = SecretNoise(
        torch.optim.SGD([parameter]), RowPrivacy(clip, noise, 0.1, KEY, 0), expected_rows, KEY.stream("test")
    )
    set_empty_gradients({"x": parameter})
    private.pre_step()
    assert float(parameter.grad.std()) == pytest.approx(noise * clip / expected_rows, rel=0.02)
    assert float(parameter.grad.mean()) == pytest.approx(0, abs=0.002)


# -------------------------------------------------------------------------------------------------------- whole jobs


def executors(dataset="tiny", name="lora"):
    task, method, model, rows = build(dataset, name)
    layout = method.layout(model)
    plain = SequentialExecutor(build(dataset, name)[2], task, rows, layout)
    private = PrivateExecutor(model, task, rows, layout, method.privacy)
    received = {n: p.detach().clone().to(get_adapter_dtype("fp64")) for n, p in find_trainable(model).items()}
    return plain, private, layout, received


def job(layout, received, rows, privacy=None, **training):
    local = local_training(**{"batch_size": 4, **training})
    names = frozenset(layout.names)
    return Job(5, 2, 7, rows, received, names, local, 1e-3, form=layout.form, privacy=privacy)


def test_without_clipping_and_noise_a_private_job_is_the_plain_one():
    """At q = 1 every step takes all rows, as a plain one with as large a batch does."""
    plain, private, layout, received = executors()
    rows = np.arange(12)
    settings = {"batch_size": 12, "work": "epochs(3.0)", "optimizer": "adamw(warmup=2, head_rate=0.5)"}
    one = next(plain.train([job(layout, received, rows, **settings)]))
    privacy = RowPrivacy(1e9, 0.0, 1.0, KEY, 0)
    other = next(private.train([job(layout, received, rows, privacy, **settings)]))
    assert one.steps == other.steps == 3
    assert one.loss == pytest.approx(other.loss, rel=1e-9)
    for name in one.state:
        assert torch.allclose(one.state[name], other.state[name], rtol=1e-7, atol=1e-9), name
        assert not torch.equal(one.state[name], received[name])


def test_sums_are_divided_by_what_is_expected_of_all_clients_where_that_is_given():
    """With twice the divisor a step of SGD is half as long, whatever the client's own number of rows."""
    _, private, layout, received = executors()
    given = {"work": "steps(1)", "optimizer": "sgd(head_rate=1.0)"}
    moved = {}
    for expected in (None, 6.0, 12.0):
        privacy = RowPrivacy(0.05, 0.0, 1.0, KEY, 0, expected=expected)
        state = next(private.train([job(layout, received, np.arange(6), privacy, **given)])).state
        moved[expected] = {n: state[n] - received[n] for n in state}
    for name in received:
        assert torch.allclose(moved[None][name], moved[6.0][name], atol=1e-15)
        assert torch.allclose(moved[6.0][name], 2 * moved[12.0][name], atol=1e-15)


def test_fedprox_acts_after_the_noise():
    plain, private, layout, received = executors()
    rows = np.arange(6)
    given = {"batch_size": 6, "work": "epochs(3.0)", "optimizer": "sgd(head_rate=1.0)"}
    more = {"corrections": parse_drift("fedprox(mu=5.0)").select_corrections({}, {}), "learning_rate": 0.05}
    one = next(plain.train([replace(job(layout, received, rows, **given), **more)]))
    privacy = RowPrivacy(1e9, 0.0, 1.0, KEY, 0)
    other = next(private.train([replace(job(layout, received, rows, privacy, **given), **more)]))
    assert all(torch.allclose(one.state[n], other.state[n], rtol=1e-7, atol=1e-9) for n in one.state)


def test_noise_belongs_to_client_round_and_attempt():
    _, private, layout, received = executors()
    privacy = RowPrivacy(0.5, 1.0, 0.3, KEY, 0)
    base = job(layout, received, np.arange(10), privacy, work="steps(2)")
    others = [
        base,
        replace(base, client=6),
        replace(base, round=3),
        replace(base, privacy=replace(privacy, attempt=1)),
        replace(base, privacy=replace(privacy, key=RunKey(bytes(32)))),
    ]
    states = [next(private.train([one])).state for one in others]
    again = next(private.train([base])).state
    name = layout.names[0]
    assert all(torch.equal(states[0][n], again[n]) for n in again)
    for i, state in enumerate(states):
        for other in states[:i]:
            assert not torch.allclose(state[name], other[name], rtol=1e-6, atol=0)


def clipped_sums(private, work, monkeypatch):
    """Return the sums of clipped gradients, (steps, parameters), from one state: the job's rate must be 0."""
    sums = []
    plain = SecretNoise.add_noise

    def add_noise(self):
        sums.append(torch.cat([p.summed_grad.flatten() for p in self.params]))
        plain(self)

    with monkeypatch.context() as patch:
        patch.setattr(SecretNoise, "add_noise", add_noise)
        next(private.train([work]))
    return torch.stack(sums)


@pytest.mark.parametrize("dataset", ["tiny", "tiny_lm"])
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_neighbouring_sums_differ_by_one_clipped_row_with_dropout_too(dataset, rate, monkeypatch):
    """A row more moves nobody's mask: not in its step, not later, not by making the batch longer."""
    _, private, layout, received = executors(dataset, "lora(rank=3, dropout=0.4)")
    clip, steps = 1e-3, 12
    privacy = RowPrivacy(clip, 0.0, rate, KEY, 0)
    lengths = private.examples.lengths
    rows = np.append(np.flatnonzero(lengths <= LENGTH_STEP), lengths.argmax())  # the longest is the one that joins
    assert len(rows) > 5
    assert lengths[rows[-1]] > LENGTH_STEP
    work = replace(
        job(layout, received, rows, privacy, work=f"steps({steps})", optimizer="sgd(head_rate=1.0)"), learning_rate=0.0
    )
    whole = clipped_sums(private, work, monkeypatch)
    without = clipped_sums(private, replace(work, rows=rows[:-1]), monkeypatch)
    moved = (whole - without).norm(dim=1)
    joined = moved > clip / 2
    assert len(moved) == steps
    assert int(joined.sum()) == steps if rate == 1 else 0 < int(joined.sum()) < steps
    assert float(moved.max()) <= clip * (1 + 1e-6)
    assert float(moved[~joined].sum()) < 1e-6 * clip  # rounding: the batch is longer


def test_dropout_masks_belong_to_the_secret_key_the_step_and_the_row(monkeypatch):
    """The run's seed, which everyone may know, has no say in them."""
    _, private, layout, received = executors("tiny", "lora(rank=3, dropout=0.4)")
    privacy = RowPrivacy(1e9, 0.0, 1.0, KEY, 0)
    work = job(layout, received, np.arange(5), privacy, work="steps(3)", optimizer="sgd(head_rate=1.0)")
    work = replace(work, learning_rate=0.0)
    sums = clipped_sums(private, work, monkeypatch)
    assert torch.equal(sums, clipped_sums(private, replace(work, seed=8), monkeypatch))
    others = [replace(privacy, key=RunKey(bytes(32))), replace(privacy, attempt=1)]
    for other in (replace(work, round=3), *(replace(work, privacy=p) for p in others)):
        assert not torch.allclose(sums, clipped_sums(private, other, monkeypatch))
    assert not torch.allclose(sums[0], sums[1])


def test_dropout_is_refused_where_rows_can_have_no_masks_of_their_own():
    with refuses("FP7008"):
        executors("tiny", "dora(dropout=0.1)")


def test_rows_join_by_poisson_sampling(monkeypatch):
    """Batches of all sizes, the empty one included, and each step is counted."""
    _, private, layout, received = executors()
    sizes = []

    def fill(rows, chosen):
        sizes.append(len(rows))
        for parameter in chosen.values():
            parameter.grad_sample = parameter.new_zeros(len(rows), *parameter.shape)
        return torch.zeros(1)

    monkeypatch.setattr(private, "_fill", fill)
    rows, rate, steps = np.arange(20), 0.08, 150
    privacy = RowPrivacy(0.5, 1.0, rate, KEY, 0)
    result = next(private.train([job(layout, received, rows, privacy, work=f"steps({steps})")]))
    assert result.steps == len(sizes) == steps
    assert min(sizes) == 0
    mean, variance = np.mean(sizes), np.var(sizes)
    assert mean == pytest.approx(20 * rate, abs=4 * (20 * rate * (1 - rate) / steps) ** 0.5)
    assert variance == pytest.approx(20 * rate * (1 - rate), rel=0.5)


def test_a_client_of_lower_rank_gets_no_noise_beyond_its_ranks():
    """Noise in the padding would be trained along: it gives the client a rank that it does not hand in."""
    _, private, layout, received = executors("tiny", "lora(rank=3)")
    small = layout.replace_form(AdapterShape(1, 4.0))
    own = {n: t[tuple(slice(0, k) for k in small.shapes[n])].clone() for n, t in received.items()}
    work = job(small, own, np.arange(8), RowPrivacy(0.5, 1.0, 0.5, KEY, 0), work="steps(3)")
    result = next(private.train([work]))
    for name, parameter in private.parameters.items():
        assert result.state[name].shape == own[name].shape
        inside = torch.zeros(parameter.shape, dtype=torch.bool)
        inside[tuple(slice(0, k) for k in own[name].shape)] = True
        assert not parameter.detach()[~inside].any(), name
        assert not torch.equal(result.state[name], own[name])


def test_training_that_moves_nothing_is_refused(monkeypatch):
    _, private, layout, received = executors()
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: None)
    with refuses("FP7009"):
        next(private.train([job(layout, received, np.arange(8), RowPrivacy(0.5, 1.0, 0.5, KEY, 0), work="steps(1)")]))


def test_a_job_without_privacy_trains_plainly():
    plain, private, layout, received = executors()
    work = job(layout, received, np.arange(9))
    one, other = next(plain.train([work])), next(private.train([work]))
    assert all(torch.equal(one.state[n], other.state[n]) for n in one.state)


def test_language_models_weigh_each_row_alike():
    """The private loss of a row is its own mean: a long row does not count for more."""
    _, private, layout, received = executors("tiny_lm", "lora")
    privacy = RowPrivacy(1e9, 0.0, 1.0, KEY, 0)
    rows = np.arange(5)
    result = next(
        private.train(
            [job(layout, received, rows, privacy, batch_size=5, work="steps(1)", optimizer="sgd(head_rate=1.0)")]
        )
    )
    private.load(received)
    batch = private.batch(rows)
    loss = compute_row_means(private.task.losses(private.model(batch), batch)).mean()
    gradients = torch.autograd.grad(loss, list(private.parameters.values()))
    for (name, _), gradient in zip(private.parameters.items(), gradients, strict=True):
        step = result.state[name] - received[name]
        assert (step + 1e-3 * gradient).norm() < 1e-6 * step.norm(), name  # rotary positions are fp32
