"""What every PEFT method must do; of our own, some that are joined, too."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpeft.aggregation.aggregator import collector
from fedpeft.aggregation.exactness import Changes, Measured
from fedpeft.aggregation.server_optimizer import SERVER_OPTIMIZERS
from fedpeft.aggregation.strategy import strategies
from fedpeft.aggregation.update import Update
from fedpeft.clients.batched import BatchedExecutor
from fedpeft.clients.executor import Job
from fedpeft.clients.local_optimizer import LOCAL_OPTIMIZERS
from fedpeft.clients.local_training import LocalTraining
from fedpeft.clients.sequential import SequentialExecutor
from fedpeft.communication.codec import PRESETS, parse_codec
from fedpeft.communication.decoding import decode
from fedpeft.conformance import under_test
from fedpeft.data.rows import load_dataset
from fedpeft.errors import ConfigError, ModelError
from fedpeft.models.base_model import resolve_model
from fedpeft.models.layers import linear_layers
from fedpeft.models.quantized import PRECISIONS, dequantized, quantize
from fedpeft.models.task import DTYPES, TASKS, adapter_dtype, trainable
from fedpeft.peft import saved_adapter
from fedpeft.peft.adapter import ClientForm, difference
from fedpeft.peft.family import PEFT_METHODS
from fedpeft.run.checks import check_method

SMALL = {
    "adalora": "adalora(rank=4, target_rank=2, shrink_rounds=2)",
    "lora": "lora(rank=4)",
    "rslora": "rslora(rank=4)",
    "dora": "dora(rank=4)",
    "qlora": "qlora(rank=4)",
    "lora_fa": "lora_fa(rank=4)",
    "lora_sb": "lora_sb(rank=4)",
    "lora_gram": "lora_gram(rank=4, width=12)",
    "vera": "vera(rank=16)",
    "bottleneck": "bottleneck(dim=6)",
    "prefix_tuning": "prefix_tuning(length=5)",
    "prompt_tuning": "prompt_tuning(length=5)",
    "p_tuning": "p_tuning(length=5, hidden=12)",
}
MORE = [
    "bottleneck(dim=6, place=houlsby, layers=0)",
    "bottleneck(dim=6, place=parallel, activation=gelu)",
    "lora(rank=4) + bitfit",
    "prefix(length=5) + bottleneck(dim=6)",
    "bottleneck(dim=6) + bitfit(layers=1) + lora(rank=4, layers=1) + ia3",
    "lora_fa(rank=4) + prefix(length=7) + bitfit",
    "lora(rank=4) + ia3 + bitfit",
    "ia3 + lora_fa(rank=4)",
]
NAMES = under_test(PEFT_METHODS)
OWN = PEFT_METHODS.own_names == NAMES
SPECS = [*(SMALL.get(name, name) for name in NAMES), *(MORE if OWN else [])]
RULE = {"vera": "rolora", "adalora": "flexlora", "lora_gram": "florg"}
"""The strategy of methods whose plain mean is wrong."""

SHARDS = [np.arange(0, 20), np.arange(20, 50), np.arange(50, 57)]


def model_with(method, tiny, dtype):
    task, _, folder, classes = tiny
    base = task.base(folder, DTYPES[dtype])
    quantize(base, method.base_precision)
    model = task.model(base, classes)
    method.attach(model, dtype)
    return model


class Case:
    """A method on the tiny model, with a start that is away from zero."""

    def __init__(self, spec, tiny, dtype="fp64"):
        self.task, self.rows, self.folder, self.classes = tiny
        self.spec = spec
        self.method = PEFT_METHODS.build(spec)
        self.dtype = dtype
        self.model = model_with(self.method, tiny, dtype)
        self.layout = self.method.layout(self.model)
        noise = torch.Generator().manual_seed(0)
        self.first = {n: t.to(adapter_dtype(dtype)) for n, t in self.method.start(self.model, 0).items()}
        self.start = {n: t + 0.05 * torch.randn(t.shape, generator=noise, dtype=t.dtype) for n, t in self.first.items()}
        self.sequential = SequentialExecutor(self.model, self.task, self.rows, self.layout)

    def batched(self):
        plain = self.task.model(self.task.base(self.folder, DTYPES[self.dtype]), self.classes)
        return BatchedExecutor(plain, self.task, self.method, self.rows, self.layout, 2, "native")

    def jobs(self, start=None, forms=None, rate=1e-3, steps=3, optimizer="adamw(head_rate=1.0)"):
        made = []
        for client, rows in enumerate(SHARDS):
            form = forms[client] if forms else self.layout.form
            shapes = self.layout.with_form(form).shapes
            received = {n: t[tuple(slice(0, s) for s in shapes[n])].clone() for n, t in (start or self.start).items()}
            local = LocalTraining(optimizer=LOCAL_OPTIMIZERS.build(optimizer)).of_steps(steps)
            made.append(Job(client, 1, 7, rows, received, frozenset(self.layout.names), local, rate, form=form))
        return made

    @property
    def strategy(self):
        return strategies.build(RULE.get(self.method.name, "fedit"))


@pytest.fixture(params=SPECS)
def spec(request):
    return request.param


def worst(one, other, jobs) -> float:
    return max(
        float((a.state[n] - b.state[n]).norm() / (a.state[n] - job.received[n]).norm().clamp(min=1e-300))
        for a, b, job in zip(one, other, jobs, strict=True)
        for n in a.state
    )


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_documented_part(name):
    part = PEFT_METHODS.part(name)
    module = inspect.getmodule(part)
    assert module.__doc__
    assert part.__doc__
    assert part.__dataclass_params__.frozen
    if OWN:
        assert inspect.getsource(module).rstrip().endswith(f"\n\npart = {part.__name__}")
    assert all(field.metadata.get("help") for field in dataclasses.fields(part))
    assert part().tensors


def test_the_layout_holds_what_the_method_declares(spec, tiny):
    case = Case(spec, tiny)
    own = [t.name for t in case.layout.tensors if t.role != "head"]
    assert own
    assert all(name.endswith(case.method.tensors) for name in own)
    assert all(any(name.endswith(ending) for name in own) for ending in case.method.tensors)
    assert {n: tuple(t.shape) for n, t in case.first.items()} == case.layout.shapes
    again = case.method.start(model_with(case.method, tiny, "fp64"), 0)
    assert all(torch.equal(again[n].double(), case.first[n]) for n in again)


@pytest.mark.parametrize("spec", [s for s in SPECS if "+" in s])
def test_joined_methods_train_all_that_each_trains_alone(spec, tiny):
    alone = {name for part in spec.split(" + ") for name in Case(part, tiny).layout.names}
    assert set(Case(spec, tiny).layout.names) == alone


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


def test_batched_equals_sequential(spec, tiny):
    case = Case(spec, tiny)
    if not case.method.batched:
        pytest.skip("trained one client at a time")
    jobs = case.jobs()
    one, other = list(case.sequential.train(jobs)), list(case.batched().train(jobs))
    assert worst(one, other, jobs) < 1e-9
    assert [t.loss for t in one] == pytest.approx([t.loss for t in other], rel=1e-12)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_base_in_few_bits_trains_as_its_decoded_weights_do(spec, precision, tiny):
    method = PEFT_METHODS.build(spec)
    if method.base_precision or not method.few_bits:
        pytest.skip("it has a precision of its own, or few bits are refused")
    coded, decoded = Case(spec, tiny, "fp32"), Case(spec, tiny, "fp32")
    executors = []
    for case, change in ((coded, quantize), (decoded, decode_in_place)):
        base = case.task.base(case.folder, torch.float32)
        change(base, precision)
        model = case.task.model(base, case.classes)
        method.attach(model, "fp32")
        executors.append(SequentialExecutor(model, case.task, case.rows, case.layout))
    jobs = coded.jobs()
    one, other = (list(executor.train(jobs)) for executor in executors)
    assert worst(one, other, jobs) < 1e-9
    assert worst(one, list(coded.sequential.train(jobs)), jobs) > 1e-4, "as on the base in full precision"


def test_it_trains_on_a_bf16_base_in_fp32(spec, tiny):
    case = Case(spec, tiny, "bf16")
    assert {p.dtype for p in trainable(case.model).values()} == {adapter_dtype("bf16")}
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
    for executor in (large.sequential, large.batched()):
        found = executor.evaluate(small.start, rows, small.layout.form)
        assert found.mean_loss == pytest.approx(expected.mean_loss, rel=1e-9)


def decode_in_place(base, precision):
    for layer in linear_layers(base).values():
        layer.weight.data = dequantized(layer.weight, precision)


@pytest.fixture(scope="module")
def tiny_language():
    """Task, rows, model folder and no classes: a decoder with rotary positions and causal attention."""
    task, folder = TASKS.build("causal_lm"), resolve_model("tiny_lm")
    return task, task.tokenise(load_dataset("tiny_lm").train.take(np.arange(60)), folder, 24), folder, 0


@pytest.mark.parametrize("spec", [s for s in SPECS if "bitfit" not in s and PEFT_METHODS.build(s).batched])
def test_batched_equals_sequential_on_a_language_model(spec, tiny_language):
    case = Case(spec, tiny_language)
    jobs = case.jobs()
    one, other = list(case.sequential.train(jobs)), list(case.batched().train(jobs))
    assert worst(one, other, jobs) < 1e-9
    assert not any(torch.equal(one[0].state[n], jobs[0].received[n]) for n in one[0].state)


def test_what_a_model_lacks_is_said(tiny_language):
    with pytest.raises(ModelError, match="no biases that bitfit could train"):
        Case("bitfit", tiny_language)


def test_sizes_are_mixed_or_refused(spec, tiny):
    case = Case(spec, tiny)
    method = case.method
    if not method.mixed_sizes:
        with pytest.raises(ConfigError, match="one size"):
            check_method(method, case.strategy, RULE.get(method.name, "fedit"), [ClientForm(2, 2.0)])
        return
    if case.layout.form is None or spec.startswith("lora_sb"):
        pytest.skip("alphas may differ, ranks may not")
    forms = [ClientForm(2, 2 * case.layout.form.scale), case.layout.form, ClientForm(3, 3 * case.layout.form.scale)]
    jobs = case.jobs(forms=forms)
    one = list(case.sequential.train(jobs))
    alone = list(case.sequential.train([jobs[2]]))
    assert worst(one[2:], alone, jobs[2:]) == 0
    if method.batched:
        assert worst(one, list(case.batched().train(jobs)), jobs) < 1e-9


@pytest.mark.parametrize("codec", sorted(PRESETS))
def test_updates_pass_through_every_codec(spec, tiny, codec):
    case = Case(spec, tiny, "fp32")
    noise = torch.Generator().manual_seed(1)
    update = {t.name: 0.01 * torch.randn(t.shape, generator=noise) for t in case.layout.tensors}
    made = parse_codec(codec)
    back, plain = (
        decode(c.encode(update, seed=1, shapes=case.layout.shapes), case.layout.shapes)
        for c in (made, made.without_gain())
    )
    assert {n: tuple(t.shape) for n, t in back.items()} == case.layout.shapes
    sent, arrived, short = (torch.cat([x[n].flatten() for n in update]) for x in (update, back, plain))
    torch.testing.assert_close(arrived * short.norm(), short * arrived.norm())
    assert float(arrived @ sent) > 0.2 * float(sent @ sent), "small as it is, it arrives"
    error = sum(float((plain[n] - update[n]).square().sum()) for n in update)
    assert error <= 1.001 * sum(float(t.square().sum()) for t in update.values())


def test_aggregation_is_the_weighted_mean_of_what_it_should_be(spec, tiny, tmp_path):
    """Plain tensors and products against sums written out, in a layer's own weights; exact where it is declared."""
    case = Case(spec, tiny)
    strategy = case.strategy
    trained = list(case.sequential.train(case.jobs()))
    if spec.startswith("vera"):  # in odd rounds b alone is trained
        names = strategy.trained(case.layout, 1)
        trained = [replace(t, state={n: x for n, x in t.state.items() if n in names}) for t in trained]
    factoring = case.method.factoring(case.layout)
    sgd = SERVER_OPTIMIZERS.build("sgd")
    total = collector(strategy, sgd, case.layout, case.start, 1, 0, tmp_path, factoring)
    weights = [20.0, 30.0, 7.0]
    changes = case.method.weight_changes(case.model)
    total = Measured(total, Changes(changes)) if changes else total
    for t, weight in zip(trained, weights, strict=True):
        total.add(Update(t.client, weight, case.layout.form, case.start, difference(t.state, case.start)))
    outcome = total.finish({})
    after = outcome.state
    shares = [w / sum(weights) for w in weights]
    if spec.startswith("adalora"):
        means = [
            sum(p * changes(t.state, None)[m] for p, t in zip(shares, trained, strict=True))
            for m in changes(after, None)
        ]
        kept = int((2 + 2 * 0.125) * len(means))  # a cubic from 4 to 2, half way
        singular = torch.cat([torch.linalg.svdvals(M)[:4] for M in means]).sort(descending=True).values
        ours = (
            torch.cat([torch.linalg.svdvals(M)[:4] for M in changes(after, None).values()]).sort(descending=True).values
        )
        assert torch.allclose(ours[:kept], singular[:kept], rtol=1e-6)
        assert int((ours > 1e-9).sum()) == kept
        return
    if spec.startswith("lora_gram"):  # the Gram matrices have this mean, of which the read-back keeps a part
        assert 0 < outcome.error < 0.9
        after = {name: tensor for name, tensor in after.items() if name.startswith("head.")}
    for name, tensor in after.items():
        expected = torch.zeros_like(tensor)
        for p, t in zip(shares, trained, strict=True):
            expected += p * t.state.get(name, case.start[name])
        assert torch.allclose(tensor, expected, rtol=1e-10, atol=1e-12), name
    if changes:
        measured = outcome.error
        assert measured < 1e-9 if spec.startswith("vera") else 0 < measured < 0.5


def saved_and_loaded(case, tiny, folder):
    """The model of `case.start`, from its files."""
    method = case.method
    changes = method.changes(case.model, case.start)
    own = case.spec if not (changes or method.in_peft or method.whole_model) else None
    labels = [str(i) for i in range(case.classes)]
    saved_adapter.save(folder, model_with(method, tiny, "fp32"), case.start, labels, changes, own)
    base = case.task.base(case.folder, torch.float32)
    quantize(base, method.base_precision)
    return saved_adapter.load(folder, case.task, base, case.classes)


def test_a_saved_adapter_reloads_to_equal_logits(spec, tiny, tmp_path):
    case = Case(spec, tiny, "fp32")
    case.sequential.load(case.start)
    again = saved_and_loaded(case, tiny, tmp_path)
    batch = case.rows.batch(np.arange(12))
    with torch.no_grad():
        expected = case.model.eval()(batch)
        assert torch.allclose(again(batch), expected, atol=2e-5)
    plain = case.task.model(case.task.base(case.folder, torch.float32), case.classes)
    assert trainable(again) == {}
    plain.load_state_dict({n: t for n, t in case.start.items() if n.startswith("head.")}, strict=False)
    with torch.no_grad():
        assert not torch.allclose(plain(batch), expected, atol=1e-3), "the adapter makes no difference"


def test_a_merged_model_is_the_plain_base_with_equal_logits(spec, tiny, tmp_path):
    case = Case(spec, tiny, "fp32")
    if not case.method.merges:
        pytest.skip("can't be merged exactly")
    model, batch = saved_and_loaded(case, tiny, tmp_path), case.rows.batch(np.arange(12))
    with torch.no_grad():
        expected = model(batch)
        model.base = case.method.merged(model)
        assert torch.allclose(model(batch), expected, atol=1e-5)
    plain = case.task.base(case.folder, torch.float32)
    assert {n: type(m) for n, m in model.base.named_modules()} == {n: type(m) for n, m in plain.named_modules()}
    assert model.base.state_dict().keys() == plain.state_dict().keys()


def test_what_can_not_be_joined_is_refused():
    for spec, words in {
        "dora + bitfit": "dora can't be combined",
        "lora + lora_fa": "train the same tensors",
        "lora + bitfut": "did you mean 'bitfit'",
    }.items():
        with pytest.raises(ConfigError, match=words):
            PEFT_METHODS.build(spec)


@pytest.mark.parametrize(
    ("method", "strategy", "words"),
    [
        ("vera", "fedit", "take --strategy rolora or ffa_lora or flexlora"),
        ("adalora", "fedit", "take --strategy flexlora"),
        ("dora", "flora", "does not allow"),
    ],
)
def test_wrong_rules_are_refused_by_name(method, strategy, words):
    made = PEFT_METHODS.build(method)
    with pytest.raises(ConfigError, match=words):
        check_method(made, strategies.build(strategy), strategy, [made.form])


def test_dora_s_weights_are_those_of_the_client_s_own_scale(tiny):
    case = Case("dora(rank=4, alpha=32)", tiny)
    other = Case("dora(rank=4, alpha=8)", tiny)
    changes, expected = (c.method.weight_changes(c.model) for c in (case, other))
    found = changes(case.start, ClientForm(4, 8.0))
    for module, change in expected(case.start, None).items():
        assert torch.allclose(found[module], change)
        assert not torch.allclose(changes(case.start, None)[module], change)
