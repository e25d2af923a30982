"""Short rows in one sequence: what they learn is what they learn alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fedpeft.clients.batched import BatchedExecutor
from fedpeft.clients.executor import Job
from fedpeft.clients.local_training import LocalTraining
from fedpeft.clients.sequential import SequentialExecutor
from transformers import BloomConfig, BloomForCausalLM, MistralConfig, MistralForCausalLM

from fedpeft.data.examples import TokenRows
from fedpeft.data.packing import find_places, pack_clients, pack_rows
from fedpeft.data.tagged_words import IGNORED
from fedpeft.data.tokens import build_token_rows
from fedpeft.models.base_model import resolve_model
from fedpeft.models.dtypes import DTYPES, get_adapter_dtype
from fedpeft.models.tasks.causal_lm import LanguageModel
from fedpeft.parts.families import LOCAL_OPTIMIZERS, LOCAL_WORK, PEFT_METHODS, TASKS

TASK = TASKS.build("causal_lm")
LENGTHS = (30, 3, 11, 17, 8, 2, 1, 29, 5, 14, 9, 9)


def made_rows(vocabulary, targets=False) -> TokenRows:
    random = np.random.default_rng(3)
    rows = [random.integers(4, vocabulary, size=n).tolist() for n in LENGTHS]
    counted = [(random.random(n) < 0.6).tolist() for n in LENGTHS] if targets else None
    if counted:
        counted = [[*c[:-1], True] for c in counted]
    return build_token_rows(rows, 0, None, counted)


def executors(spec, dtype="fp64", rows=None, clients=3, folder=None):
    folder = folder or resolve_model("tiny_lm")
    method = PEFT_METHODS.build(spec)
    reference = TASK.model(TASK.base(folder, DTYPES[dtype]), None)
    rows = made_rows(reference.base.config.vocab_size) if rows is None else rows
    plain = TASK.model(TASK.base(folder, DTYPES[dtype]), None)
    method.attach(reference, dtype)
    layout = method.layout(reference)
    noise = torch.Generator().manual_seed(0)
    start = {
        name: (t + 0.1 * torch.randn(t.shape, generator=noise)).to(get_adapter_dtype(dtype))
        for name, t in method.start(reference, 0).items()
    }
    made = [SequentialExecutor(reference, TASK, rows, layout)]
    if method.batched:
        made.append(BatchedExecutor(plain, TASK, method, rows, layout, clients, "native"))
    return made, layout, start


def jobs(layout, start, work="epochs(2.0)", optimizer="sgd(head_rate=1.0)"):
    local = LocalTraining(4, LOCAL_WORK.build(work), optimizer=LOCAL_OPTIMIZERS.build(optimizer))
    shards = [np.arange(0, 6), np.arange(6, 11), np.arange(11, 12)]
    return [
        Job(client, 1, 7, rows, {n: t.clone() for n, t in start.items()}, frozenset(layout.names), local, 0.05)
        for client, rows in enumerate(shards)
    ]


def trained(executor, work, packs):
    executor.__dict__["packs"] = packs
    return list(executor.train(work))


def apart(one, other, received) -> float:
    """Return the largest difference between two updates, relative to the norm."""
    return max(
        float((a.state[n] - b.state[n]).norm() / (a.state[n] - job.received[n]).norm().clamp(min=1e-12))
        for a, b, job in zip(one, other, received, strict=True)
        for n in a.state
    )


@pytest.mark.parametrize(
    "spec",
    [
        "lora(rank=2, layers=0)",
        "lora(rank=2, layers=0, dropout=0.3)",
        "ia3(layers=0)",
        "bottleneck(dim=4, layers=0)",
        "prefix_tuning(length=3, layers=0)",
        "dora(rank=2, layers=0)",
        "full",
    ],
)
def test_packed_rows_train_as_rows_apart(spec):
    made, layout, start = executors(spec)
    work = jobs(layout, start)
    for executor in made:
        executor.try_packing(work)
        assert executor.packs != (executor.packed is not None)
        both, each = (trained(executor, work, packs) for packs in (True, False))
        assert apart(both, each, work) < 1e-9
        assert [t.loss for t in both] == pytest.approx([t.loss for t in each], rel=1e-10)
        assert [t.steps for t in both] == [t.steps for t in each]


def test_in_fp32_losses_are_equal_to_1e_5():
    made, layout, start = executors("lora(rank=2, layers=0)", "fp32")
    work = jobs(layout, start, work="epochs(1.0)")
    for executor in made:
        both, each = (trained(executor, work, packs) for packs in (True, False))
        assert [t.loss for t in both] == pytest.approx([t.loss for t in each], rel=1e-5)
        assert apart(both, each, work) < 1e-4


def test_a_step_on_rows_of_one_token_changes_nothing():
    """They predict nothing; a mean over no predictions would be no number, and with it the client's update."""
    made, layout, start = executors("lora(rank=2, layers=0)")
    for executor in made:
        [job] = jobs(layout, start)[:1]
        [result] = executor.train([replace(job, rows=np.array([6]))])
        assert result.loss == 0
        assert all(torch.equal(result.state[name], start[name]) for name in start)


def test_packing_makes_fewer_sequences_and_keeps_every_label():
    rows = made_rows(90, targets=True)
    made, *_ = executors("lora(rank=2, layers=0)", rows=rows)
    made[0].__dict__["packs"] = True
    chosen = np.array([0, 1, 2, 3])
    packed_batch, real, lie = made[0].create_step_batch([chosen])
    plain = rows.batch(chosen)
    assert packed_batch["input_ids"].shape[0] < 4
    assert real.all()
    assert lie
    for labels, ids in (("labels", "input_ids"), ("labels", "labels")):
        own, other = (b[ids][b[labels] != IGNORED].sort().values for b in (packed_batch, plain))
        assert torch.equal(own, other)
    for row, (sequence, start, length) in zip(chosen, lie[0], strict=True):
        span = slice(start, start + length)
        assert packed_batch["input_ids"][sequence, span].tolist() == rows.ids[rows.offsets[row] :][:length].tolist()
        assert packed_batch["position_ids"][sequence, span].tolist() == list(range(length))
        assert packed_batch["labels"][sequence, start] == IGNORED, "nothing predicts a row's first token"


def test_rows_that_would_not_be_fewer_stay_apart():
    made, *_ = executors("lora(rank=2, layers=0)")
    made[0].__dict__["packs"] = True
    batch, _, lie = made[0].create_step_batch([np.array([0, 7])])
    assert "attention_mask" in batch
    assert lie == []


def test_a_client_does_not_depend_on_its_neighbours():
    (_, batched), layout, start = executors("lora(rank=2, layers=0, dropout=0.3)")
    work = jobs(layout, start)
    together_, alone = list(batched.train(work)), [next(iter(batched.train([job]))) for job in work]
    assert apart(together_, alone, work) < 1e-9


def test_positions_of_a_prompt_belong_to_a_row_so_that_such_rows_are_not_packed():
    for spec in ("prompt_tuning(length=3)", "p_tuning(length=3)"):
        made, layout, start = executors(spec)
        for executor in made:
            executor.try_packing(jobs(layout, start))
            assert not executor.packs


SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def test_sliding_windows_count_from_a_rows_own_begin():
    torch.manual_seed(0)
    config = MistralConfig(**SIZES, intermediate_size=48, num_key_value_heads=2, sliding_window=4, pad_token_id=0)
    model = LanguageModel(MistralForCausalLM(config).double().eval())
    assert TASK.packs(model)
    rows = made_rows(96)
    found = TASK.row_losses(model, rows.pack_batch([[0], [2, 3], [1, 4, 5]], 32))
    expected = TASK.row_losses(model, rows.batch([0, 2, 3, 1, 4, 5]))
    sums = torch.stack([part.sum() for part in expected.sums.split([1, 2, 3])])
    assert torch.allclose(found.sums, sums, rtol=1e-10)


def test_a_model_that_counts_positions_itself_is_found_out():
    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4)).double().eval()
    assert not TASK.packs(LanguageModel(model))


def test_first_fit():
    assert pack_rows([5, 9, 4, 1], 10) == [[1, 3], [0, 2]]
    assert pack_rows([], 10) == []
    assert pack_clients([np.array([9, 9]), np.array([2, 2])], 10) is None
    assert pack_clients([np.array([5, 5, 5]), np.array([2])], 10) == [[[0, 1], [2]], [[0], []]]
    assert find_places([[1, 3], [0, 2]], [5, 9, 4, 1]) == [(1, 0, 5), (0, 0, 9), (1, 5, 4), (0, 9, 1)]


def test_lengths_at_random_are_packed_within_the_bound():
    random = np.random.default_rng(0)
    for _ in range(50):
        lengths = random.integers(1, 65, size=40)
        bins = pack_rows(lengths, 64)
        assert sorted(row for rows in bins for row in rows) == list(range(40))
        assert all(lengths[rows].sum() <= 64 for rows in bins)
        assert len(bins) <= 11 / 9 * np.ceil(lengths.sum() / 64) + 2
