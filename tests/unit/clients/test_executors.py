"""The batched executor against the reference, and a client's independence of whom it is trained with."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from fedpeft.clients.batched import BatchedExecutor
from fedpeft.clients.drift import parse_drift
from fedpeft.clients.dropout import ClientDropout, DropoutPlan
from fedpeft.clients.executor import Job, Trained
from fedpeft.clients.local_training import LocalTraining
from fedpeft.clients.sequential import SequentialExecutor
from transformers import AutoConfig, AutoModel

from fedpeft.data.rows import load_dataset
from fedpeft.machine import cache
from fedpeft.models.base_model import resolve_model
from fedpeft.models.checkpointing import checkpoint_blocks
from fedpeft.models.dtypes import DTYPES, get_adapter_dtype
from fedpeft.models.frozen_blocks import ActivationCache, HiddenRows, can_start_at, cut_below
from fedpeft.models.layers import find_lowest_block
from fedpeft.models.pooled_rows import PooledRows, create_pass_through
from fedpeft.parts.families import LOCAL_OPTIMIZERS, LOCAL_WORK, PEFT_METHODS, TASKS
from fedpeft.peft.adapter import AdapterShape
from tests.refusals import refuses

SHARDS = [
    np.arange(0, 20),
    np.arange(20, 50),
    np.arange(50, 57),
    np.arange(57, 100),
    np.array([100]),
    np.arange(101, 130),
]


def build(tiny, spec: str, dtype: str, clients: int = 4):
    task, rows, folder, classes = tiny
    method = PEFT_METHODS.build(spec)
    reference = task.model(task.base(folder, DTYPES[dtype]), classes)
    method.attach(reference, dtype)
    layout = method.layout(reference)
    noise = torch.Generator().manual_seed(0)
    start = {
        name: (t + 0.05 * torch.randn(t.shape, generator=noise)).to(get_adapter_dtype(dtype))
        for name, t in method.start(reference, 0).items()
    }
    plain = task.model(task.base(folder, DTYPES[dtype]), classes)
    sequential = SequentialExecutor(reference, task, rows, layout)
    batched = BatchedExecutor(plain, task, method, rows, layout, clients, "native")
    return sequential, batched, layout, start


def local_training(batch_size=8, work="epochs", optimizer="adamw(head_rate=1.0)"):
    """Local training, its parts as texts."""
    return LocalTraining(batch_size, LOCAL_WORK.build(work), optimizer=LOCAL_OPTIMIZERS.build(optimizer))


def jobs(layout, start, shards=SHARDS, forms=None, **training):
    made = []
    for client, rows in enumerate(shards):
        form = forms[client] if forms else layout.form
        shapes = layout.replace_form(form).shapes
        received = {n: t[tuple(slice(0, s) for s in shapes[n])].clone() for n, t in start.items()}
        drift = parse_drift(training.get("drift", "")).select_corrections({}, {})
        local = local_training(**{"batch_size": 8, **{k: v for k, v in training.items() if k != "drift"}})
        made.append(Job(client, 1, 7, rows, received, frozenset(layout.names), local, 1e-3, form, drift))
    return made


def worst(one, other, received) -> float:
    return max(
        float((a.state[n] - b.state[n]).norm() / (a.state[n] - job.received[n]).norm().clamp(min=1e-300))
        for a, b, job in zip(one, other, received, strict=True)
        for n in a.state
    )


@pytest.mark.parametrize(
    ("spec", "training"),
    [
        ("lora(rank=4, layers=0)", {}),
        ("lora(rank=4, layers=1, targets=('query', 'value'))", {"work": "steps(5)"}),
        ("lora(rank=4, dropout=0.2)", {}),
        ("lora(rank=4)", {"drift": "fedprox(mu=0.1)"}),
        ("lora(rank=4, dropout=0.2)", {"drift": "adversarial(strength=0.1)", "work": "steps(4)"}),
        ("lora(rank=4, layers=1)", {"drift": "adversarial(strength=0.1)", "work": "steps(4)"}),
        ("lora(rank=4)", {"optimizer": "adamw(head_rate=1.0, max_norm=0.05)"}),
        ("lora(rank=4)", {"optimizer": "sgd(head_rate=1.0)", "work": "epochs(1.5)"}),
        ("lora(rank=4)", {"optimizer": "adamw(head_rate=0.1, weight_decay=0.1, warmup=3)"}),
        ("ia3(layers=0)", {}),
    ],
)
def test_batched_equals_sequential_in_fp64(tiny, spec, training):
    sequential, batched, layout, start = build(tiny, spec, "fp64")
    work = jobs(layout, start, **training)
    one, other = list(sequential.train(work)), list(batched.train(work))
    assert worst(one, other, work) < 1e-10
    assert [t.steps for t in one] == [t.steps for t in other]
    assert [t.loss for t in one] == pytest.approx([t.loss for t in other], rel=1e-12)


@pytest.mark.medium
@pytest.mark.parametrize("spec", ["lora(rank=2, dropout=0.3)", "adamix(dim=4)"])
def test_losses_of_several_passes_are_right_where_blocks_are_computed_again(tiny, spec):
    """Each pass is gone back through with the masks and experts that it had, whatever has been computed since."""
    plain, again = (build(tiny, spec, "fp64") for _ in range(2))
    work = jobs(plain[2], plain[3], SHARDS[:3], drift="adversarial(strength=0.2)", work="steps(2)")
    for one, other in zip(plain[:2], again[:2], strict=True):
        checkpoint_blocks(other.model.base)
        assert worst(list(one.train(work)), list(other.train(work)), work) < 1e-10


def test_clients_of_different_ranks_and_alphas_train_in_one_pass(tiny):
    sequential, batched, layout, start = build(tiny, "lora(rank=6, alpha=12)", "fp64")
    forms = [AdapterShape(r, a) for r, a in ((2, 4), (6, 12), (3, 1), (1, 8), (6, 3), (4, 4))]
    work = jobs(layout, start, forms=forms)
    one, other = list(sequential.train(work)), list(batched.train(work))
    assert worst(one, other, work) < 1e-10
    name = layout.pairs[0].A
    assert [t.state[name].shape[0] for t in other] == [form.rank for form in forms]


def test_first_fp32_gradient_agrees(tiny):
    sequential, batched, layout, start = build(tiny, "lora(rank=4)", "fp32")
    steps = jobs(layout, start, optimizer="sgd(head_rate=1.0)", work="steps(1)")
    work = [replace(job, learning_rate=1e3) for job in steps]  # one step is the gradient, the start is lost in it
    assert worst(list(sequential.train(work)), list(batched.train(work)), work) < 1e-5


def test_a_client_does_not_depend_on_its_neighbours(tiny):
    _, batched, layout, start = build(tiny, "lora(rank=4, dropout=0.1)", "fp64")
    work = jobs(layout, start)
    together = list(batched.train(work))
    alone = [next(iter(batched.train([job]))) for job in reversed(work)][::-1]
    assert worst(together, alone, work) < 1e-10


def test_a_client_does_not_depend_on_those_before_it(tiny):
    sequential, _, layout, start = build(tiny, "lora(rank=4, dropout=0.1)", "fp64")
    work = jobs(layout, start)
    together = list(sequential.train(work))
    alone = [next(iter(sequential.train([job]))) for job in reversed(work)][::-1]
    for a, b in zip(together, alone, strict=True):
        assert all(torch.equal(a.state[n], b.state[n]) for n in a.state)


def test_dropout_takes_no_entry_beyond_the_rows_own_for_good():
    """A longer input than the rows' tokens, as behind a prompt: what no mask is drawn for would never be trained on."""
    plan = DropoutPlan([(np.random.default_rng(0), 2, 3)])
    seen = torch.stack([ClientDropout(0.5, plan)(torch.ones(2, 5, 40, dtype=torch.float64)) for _ in range(20)])
    assert set(seen[:, :, :3].unique().tolist()) == {0.0, 2.0}
    assert (seen[:, :, 3:] == 1).all()
    assert ((seen > 0).double().mean(dim=(0, 1, 3)) > 0.4).all()


@pytest.mark.parametrize("spec", ["lora(rank=4{})", "prefix_tuning(length=3) + lora(rank=4{})"])
def test_dropout_of_next_to_nothing_is_no_dropout(spec, tiny):
    """Every token of every row counts, whatever stands beside it."""
    results = []
    for dropout in ("", ", dropout=1e-12"):
        sequential, batched, layout, start = build(tiny, spec.format(dropout), "fp64")
        work = jobs(layout, start, SHARDS[:2])
        results += [list(sequential.train(work)), list(batched.train(work))]
    assert max(worst(results[0], other, work) for other in results[1:]) < 1e-8


@pytest.mark.parametrize("prompt", ["prompt_tuning", "p_tuning"])
def test_prompts_stand_before_no_layer_with_dropout(prompt):
    """Positions before a row's own would shift its masks."""
    with refuses("FP1239"):
        PEFT_METHODS.build(f"{prompt} + lora(dropout=0.1)")


def test_only_the_named_tensors_are_trained(tiny):
    for executor, layout, start in ((e, lay, s) for *ex, lay, s in [build(tiny, "lora(rank=4)", "fp32")] for e in ex):
        factors = frozenset(p.B for p in layout.pairs)
        [job] = jobs(layout, start, SHARDS[:1])
        [trained] = executor.train([replace(job, trained=factors)])
        assert set(trained.state) == factors
        assert all(not torch.equal(trained.state[n], start[n]) for n in factors)
        [again] = executor.train([job])  # and nothing of it is left behind
        assert set(again.state) == set(layout.names)


def test_others_can_not_read_what_is_made_of_rows(tiny, tmp_path, monkeypatch):
    """Token ids and features say what the rows are; folders that an earlier version has left open are closed."""
    _, rows, _, _ = tiny
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path))
    made = []

    def compute():
        made.extend(tmp_path.glob("rows-*"))
        assert all(not path.stat().st_mode & 0o077 for path in made if path.is_dir())
        return {"ids": np.arange(3)}

    before = os.umask(0)
    try:
        cache.load_arrays("rows", "a", compute)
        ActivationCache(tmp_path / "frozen", rows, 1, 64, torch.float32).find_missing_tiles()
    finally:
        os.umask(before)
    assert made
    folders = [tmp_path / "rows-a", tmp_path / "frozen"]
    assert all(not folder.stat().st_mode & 0o077 for folder in folders)
    folders[0].chmod(0o755)
    assert cache.load_arrays("rows", "a", compute)["ids"].tolist() == [0, 1, 2]
    assert not folders[0].stat().st_mode & 0o077


def test_what_a_full_disk_has_no_room_for_leaves_nothing_behind(tiny, tmp_path, monkeypatch):
    _, rows, _, _ = tiny
    store = ActivationCache(tmp_path / "frozen", rows, 1, 64, torch.float32)
    real, sizes = os.posix_fallocate, []

    def nearly_full(file, offset, size):
        sizes.append(size)
        if len(sizes) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, offset, size)

    with monkeypatch.context() as patched:
        patched.setattr("fedpeft.models.frozen_blocks.os.posix_fallocate", nearly_full)
        with refuses("FP2038", "No space left on device"):
            store.find_missing_tiles()
    assert not list((tmp_path / "frozen").iterdir())
    assert store.find_missing_tiles(), "room has been made"


def test_reusing_the_frozen_part_changes_nothing(tiny, tmp_path):
    task, rows, folder, classes = tiny
    _, whole, layout, start = build(tiny, "lora(rank=4, layers=1)", "fp64")
    base = task.base(folder, torch.float64)
    depth = base.config.num_hidden_layers - 1
    store = ActivationCache(tmp_path / "frozen", rows, depth, base.config.hidden_size, torch.float64)
    for tile in store.find_missing_tiles():
        store.fill(tile, base)
    assert store.find_missing_tiles() == []
    model = task.model(cut_below(base, depth), classes)
    method = PEFT_METHODS.build("lora(rank=4, layers=1)")
    top = BatchedExecutor(model, task, method, HiddenRows(store), layout, 4, "native")
    work = jobs(layout, start)
    assert worst(list(whole.train(work)), list(top.train(work)), work) < 1e-10
    index = np.arange(50)
    assert top.evaluate(start, index).loss == pytest.approx(whole.evaluate(start, index).loss, rel=1e-12)
    head = task.model(task.base(folder, torch.float64), classes)
    expected = head.features(rows.batch(index)).detach()
    assert torch.allclose(store.read_features(index), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("kind", "settings", "startable"),
    [
        ("bert", {"intermediate_size": 32}, True),
        ("roberta", {"intermediate_size": 32}, True),
        ("distilbert", {"hidden_dim": 32}, True),
        ("gpt2", {}, False),  # it would add its positions once more
    ],
)
@pytest.mark.parametrize("share", [1.0, 0.05])
def test_only_models_that_can_start_from_hidden_states_do(kind, settings, startable, share):
    """Positions that are small beside the words count, too."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 30}
    torch.manual_seed(0)
    base = AutoModel.from_config(AutoConfig.for_model(kind, **sizes, **settings))
    for name, weight in base.named_parameters():
        if "position" in name or "wpe" in name:
            weight.data *= share
    assert can_start_at(base, 2) == startable
    assert base.training


def test_without_an_adapter_all_blocks_are_computed_once(tiny, tmp_path):
    task, rows, folder, classes = tiny
    base = task.base(folder, torch.float64)
    depth = find_lowest_block(base, [])
    assert depth == base.config.num_hidden_layers
    assert can_start_at(base, depth)
    store = ActivationCache(tmp_path / "frozen", rows, depth, base.config.hidden_size, torch.float64)
    for tile in store.find_missing_tiles():
        store.fill(tile, base)
    index, head = np.arange(50), task.model(cut_below(base, depth), classes)
    assert torch.allclose(head.features(HiddenRows(store).batch(index)), store.read_features(index), rtol=1e-10)


@pytest.mark.parametrize("warmup", [0, 3, 20])
def test_a_control_variate_is_the_mean_gradient_whatever_the_warmup(warmup):
    """With one gradient for all steps SCAFFOLD's variate is that gradient."""
    gradient, correction = torch.tensor([0.5, -2.0]), torch.tensor([0.25, 1.0])
    training, steps = local_training(optimizer=f"sgd(head_rate=1.0, warmup={warmup})"), 8
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer, schedule = training.optimizer.create_optimizer({"x": parameter}, 0.4)
    for _ in range(steps):
        parameter.grad = gradient + correction
        optimizer.step()
        schedule.step()
    received = {"x": torch.zeros(2)}
    drift = parse_drift("scaffold")
    acting = drift.select_corrections({"scaffold": {"x": correction}}, {})
    job = Job(0, 1, 0, np.arange(4), received, frozenset("x"), training, 0.4, corrections=acting)
    states, changes = drift.after(job, Trained(0, {"x": parameter.detach()}, 0.0, steps, 4))
    found = states["scaffold"]
    assert torch.equal(changes["scaffold"]["x"], found["x"]), "it was 0 before"
    assert torch.allclose(found["x"], gradient, rtol=1e-5)


def test_the_learning_rate_of_a_round_rises_over_the_warmup():
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer, warmup = local_training(optimizer="sgd(warmup=3)").optimizer.create_optimizer({"x": parameter}, 0.4)
    moved = []
    for _ in range(5):
        before = parameter.item()
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        warmup.step()
        moved.append(before - parameter.item())
    assert moved == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])


@pytest.mark.parametrize("size", [1, 3, 8])
def test_batches_cover_the_rows_once_per_pass_whatever_their_length(tiny, size):
    _, rows, *_ = tiny
    job = Job(3, 2, 5, np.arange(40, 77), {}, frozenset(), local_training(size, "epochs(2.0)"), 1e-3)
    batches = job.create_batches(rows.lengths)
    half = len(batches) // 2
    assert sorted(np.concatenate(batches[:half])) == sorted(np.concatenate(batches[half:])) == list(range(40, 77))
    assert all(np.array_equal(a, b) for a, b in zip(batches, job.create_batches(rows.lengths), strict=True))
    other = Job(4, 2, 5, np.arange(40, 77), {}, frozenset(), local_training(size, "epochs(2.0)"), 1e-3)
    assert any(not np.array_equal(a, b) for a, b in zip(batches, other.create_batches(rows.lengths), strict=True))


KINDS = ("tiny", "tiny_images")


@pytest.fixture(scope="module")
def tiny_images():
    """As `tiny`, of images."""
    task, folder = TASKS.build("classification"), resolve_model("tiny_vision")
    data = load_dataset("digits")
    return task, task.tokenise(data.train.take(np.arange(150)), folder, 0), folder, data.classes


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    ("name", "states", "kind"),
    [
        *((name, states, kind) for name, states in (("linear_probe", 1), ("head2toe", 0)) for kind in KINDS),
        ("whitened_probe", 1, "tiny_images"),
    ],
)
def test_a_head_alone_learns_the_same_from_pooled_features(kind, name, states, tmp_path, monkeypatch, batched, request):
    """And reads a row's width, not its tokens'."""
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path))
    given = task, rows, folder, classes = request.getfixturevalue(kind)
    method = PEFT_METHODS.build(name)
    sequential, whole, layout, start = build(given, name, "fp64")
    base = task.base(folder, DTYPES["fp64"])
    method.read(base)
    states = states or base.config.num_hidden_layers + 1
    store = ActivationCache(tmp_path / "frozen", rows, 0, 48 * states, torch.float64)
    for tile in store.find_missing_tiles():
        store.fill(tile, base)
    pooled, model = PooledRows(store), task.model(create_pass_through(base), classes)
    if batched:
        small = BatchedExecutor(model, task, method, pooled, layout, 4, "native")
    else:
        method.attach(model, "fp64")
        small = SequentialExecutor(model, task, pooled, layout)
    work = jobs(layout, start)
    plain = whole if batched else sequential
    assert worst(list(plain.train(work)), list(small.train(work)), work) < 1e-10
    totals = [executor.evaluate(start, np.arange(40)) for executor in (plain, small)]
    assert totals[0].mean_loss == pytest.approx(totals[1].mean_loss, rel=1e-12)
    assert totals[0].correct == totals[1].correct
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "frozen").iterdir()}
    assert (sizes["features.bin"], sizes["hidden.bin"]) == (len(rows) * 48 * states * 8, 0)
    tokens = base(**{k: v for k, v in rows.batch(np.arange(3)).items() if k != "labels"}).last_hidden_state
    assert tokens.shape[1] > 1, "the base is as it was"
