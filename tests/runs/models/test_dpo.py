"""Preferences: the loss by the formula and by trl, the reference without a second model, both executors, whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fedpeft.clients.batched import BatchedExecutor
from fedpeft.clients.executor import Job
from fedpeft.clients.local_training import LocalTraining
from fedpeft.clients.sequential import SequentialExecutor
from torch.nn import functional

from fedpeft.data.cached_rows import convert_to_arrays, restore_examples
from fedpeft.data.examples import PairRows
from fedpeft.data.made_words import WORDS
from fedpeft.data.rows import load_dataset
from fedpeft.data.tagged_words import IGNORED
from fedpeft.models.adapters_off import disable_adapters
from fedpeft.models.base_model import resolve_model
from fedpeft.models.dtypes import DTYPES, get_adapter_dtype
from fedpeft.models.task import find_trainable
from fedpeft.models.tasks.dpo import compute_preference_losses
from fedpeft.parts.families import LOCAL_OPTIMIZERS, LOCAL_WORK, PEFT_METHODS, TASKS
from fedpeft.simulate import main
from tests.refusals import has_error, refuses

GOLDEN = json.loads((Path(__file__).parent.parent.parent / "golden" / "dpo_trl.json").read_text())

LAYERED = [
    "lora(rank=3)",
    "lora(rank=3, dropout=0.2)",
    "dora(rank=3)",
    "vera",
    "ia3",
    "lora_fa",
    "lora_sb",
    "lora_gram",
    "bottleneck(place='parallel')",
    "lora(rank=3) + ia3",
]


def pair(i: int) -> dict[str, str]:
    """People prefer answers of the even words; lengths differ."""
    question = " ".join(WORDS[i % 50 : i % 50 + 3])
    good, bad = WORDS[100:130:2], WORDS[101:131:2]
    return {
        "prompt": question,
        "chosen": " ".join(good[i % 7 : i % 7 + 2 + i % 3]),
        "rejected": " ".join(bad[i % 5 : i % 5 + 1 + i % 4]),
    }


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "preferences.jsonl"
    path.write_text("".join(json.dumps(pair(i)) + "\n" for i in range(60)))
    return path


def tokenised(file, folder, tokens=64, template="chat") -> PairRows:
    data = load_dataset(f"file(path='{file}', template='{template}')")
    return TASKS.build(data.task).tokenise(data.train, folder, tokens)


def made(seed, lengths, vocabulary=11, prompt=3):
    """As tests/golden/dpo_trl.py makes them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), 2, prompt + max(max(two) for two in lengths))
    ids = torch.randint(vocabulary, shape, generator=generator)
    position = torch.arange(shape[2])
    answers = (position >= prompt) & (position < prompt + torch.tensor(lengths)[..., None])
    model, reference = (2 * torch.randn(*shape, vocabulary, generator=generator, dtype=torch.float64) for _ in "12")
    return ids, answers, model, reference


@pytest.mark.fast
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"beta {case['beta']}")
def test_losses_are_those_of_trl_on_the_same_logits(case):
    ids, answers, model, reference = made(case["seed"], case["lengths"])
    labels = ids.masked_fill(~answers, IGNORED)
    task = TASKS.build("causal_lm")
    batch = {"labels": labels.flatten(0, 1)}
    sums = [task.losses(logits.flatten(0, 1)[:, :-1], batch).sums for logits in (model, reference)]
    found = compute_preference_losses(*sums, case["beta"])
    assert found.sums.tolist() == pytest.approx(case["losses"], rel=1e-12)
    assert found.correct.tolist() == case["right"]
    assert found.counts.tolist() == [1.0] * len(labels)


def adapted(spec, folder, dtype="fp64"):
    task, method = TASKS.build("dpo(beta=0.5)"), PEFT_METHODS.build(spec)
    model = task.model(task.base(folder, DTYPES[dtype]), 0)
    method.attach(model, dtype)
    layout = method.layout(model)
    noise = torch.Generator().manual_seed(3)
    start = {
        name: (t + 0.1 * torch.randn(t.shape, generator=noise)).to(get_adapter_dtype(dtype))
        for name, t in method.start(model, 0).items()
    }
    return task, method, model, layout, start


def set_state(model, state):
    with torch.no_grad():
        for name, parameter in find_trainable(model).items():
            parameter.copy_(state[name].reshape(parameter.shape))


@pytest.mark.fast
@pytest.mark.parametrize("spec", LAYERED)
def test_with_adapters_off_the_base_speaks(chat_model, file, spec):
    task, _, model, _, start = adapted(spec, chat_model)
    set_state(model.eval(), start)
    task.check(model)
    batch = {name: t.flatten(0, 1) for name, t in tokenised(file, chat_model).batch(range(3)).items()}
    plain = task.model(task.base(chat_model, torch.float64), 0)
    with torch.no_grad():
        expected, on = plain(batch), model(batch)
        with disable_adapters(model):
            off = model(batch)
        again = model(batch)
    assert (off - expected).abs().max() < 1e-12
    assert (on - expected).abs().max() > 1e-4
    assert torch.equal(again, on)


@pytest.mark.fast
def test_the_loss_of_a_pair_is_the_formula(chat_model, file):
    task, _, model, _, start = adapted("lora(rank=3)", chat_model)
    set_state(model, start)
    rows = tokenised(file, chat_model)
    plain = task.model(task.base(chat_model, torch.float64), 0)

    def likelihood(of, ids, labels):
        """Of the counted tokens, one after the other."""
        logits = of.base(input_ids=ids[None]).logits[0].log_softmax(-1)
        return sum(logits[t - 1, ids[t]] for t in range(1, len(ids)) if labels[t] != IGNORED)

    expected = []
    for row in range(4):
        margins = []
        for side in range(2):
            one = rows.answers.batch([2 * row + side])
            ids, labels = (one[name][0][: rows.answers.lengths[2 * row + side]] for name in ("input_ids", "labels"))
            margins.append(likelihood(model, ids, labels) - likelihood(plain, ids, labels))
        expected.append(-functional.logsigmoid(0.5 * (margins[0] - margins[1])))
    found = task.row_losses(model, rows.batch(np.arange(4)))
    assert found.sums.tolist() == pytest.approx([x.item() for x in expected], rel=1e-10)
    one, other = (
        torch.autograd.grad(x, list(find_trainable(model).values())) for x in (found.sums.sum(), sum(expected))
    )
    for a, b in zip(one, other, strict=True):
        assert (a - b).norm() <= 1e-8 * b.norm().clamp(min=1e-12)


@pytest.mark.fast
@pytest.mark.parametrize("spec", ["lora(rank=3)", "lora(rank=3, dropout=0.2)", "ia3"])
def test_batched_equals_sequential(chat_model, file, spec):
    task, method, model, layout, start = adapted(spec, chat_model)
    rows = tokenised(file, chat_model)
    local = LocalTraining(3, LOCAL_WORK.build("steps(3)"), optimizer=LOCAL_OPTIMIZERS.build("adamw"))
    work = [
        Job(k, 1, 7, shard, start, frozenset(layout.names), local, 1e-2, layout.form)
        for k, shard in enumerate((np.arange(0, 7), np.arange(7, 20), np.arange(20, 24)))
    ]
    plain = task.model(task.base(chat_model, torch.float64), 0)
    sequential = SequentialExecutor(model.train(), task, rows, layout)
    batched = BatchedExecutor(plain.train(), task, method, rows, layout, 2, "native")
    for one, other in zip(sequential.train(work), batched.train(work), strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-10)
        for name, tensor in one.state.items():
            assert (tensor - other.state[name]).norm() < 1e-9 * tensor.norm().clamp(min=1e-9)


@pytest.mark.fast
def test_pairs_survive_the_cache(chat_model, file):
    rows = tokenised(file, chat_model, 6)
    back = restore_examples(convert_to_arrays(rows))
    assert isinstance(back, PairRows)
    assert 0 < back.cut == rows.cut <= len(rows) == len(back)
    for name, tensor in rows.batch([4, 1]).items():
        assert torch.equal(back.batch([4, 1])[name], tensor)


def words(file, chat_model, folder, *more):
    return [
        *("--dataset", f"file:{file}", "--model", str(chat_model), "--clients=3", "--cohort=3", "--partition=iid"),
        *("--workers=1", "--dtype=fp32", "--learning-rate=0.02", "--output", str(folder), *more),
    ]


@pytest.mark.parametrize("grid", ["cohort(executor='batched')", "cohort(executor='sequential')"])
def test_a_federation_learns_what_people_prefer(chat_model, file, tmp_path, grid):
    more = ["--rounds=3", "--grid", grid, "--local-work=steps(6)", "--peft=lora"]
    assert main(words(file, chat_model, tmp_path / "run", *more)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["task"] == "dpo(beta=0.1)"
    assert (summary["metric"], summary["perplexity"]) == ("accuracy", None)
    assert summary["accuracy"] == 1.0
    assert summary["loss"] < 0.6  # log 2 before


@pytest.mark.fast
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--privacy=dp_sgd(epsilon=8)"], ("FP7090", "dpo reads two sequences for each example")),
        (["--peft=prompt_tuning"], ("FP1204", "dpo")),
        (["--peft=full"], ("FP1204", "dpo")),
        (["--strategy=fedex_lora"], ("FP1308", "dpo", "fedex_lora")),
    ],
)
def test_what_has_no_reference_is_refused(chat_model, file, tmp_path, capsys, more, said):
    assert main(words(file, chat_model, tmp_path / "run", "--rounds=1", *more)) == 2
    assert has_error(capsys.readouterr().err, *said)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rejected": None}, ("FP3062", "broken.jsonl", "1 row has no answer in the column 'rejected' (line 2)")),
        ({"chosen": " "}, ("FP3062", "broken.jsonl", "1 row has no answer in the column 'chosen' (line 2)")),
        ({"chosen": "same", "rejected": "same"}, ("FP3096", "broken.jsonl")),
        ({"chosen": [{"role": "user", "content": "x"}]}, ("FP3099", "broken.jsonl", "chosen")),
        (
            {"chosen": [{"role": "user", "content": "another"}, {"role": "assistant", "content": "x"}]},
            ("FP3100", "broken.jsonl", "chosen"),
        ),
        ({"prompt": 3}, ("FP3097", "broken.jsonl", "prompt")),
    ],
)
def test_a_broken_pair_is_one_sentence(tmp_path, change, said):
    path = tmp_path / "broken.jsonl"
    path.write_text(json.dumps(pair(0)) + "\n" + json.dumps({**pair(1), **change}) + "\n")
    with refuses(*said):
        load_dataset(f"file:{path}")


@pytest.mark.fast
def test_a_missing_column_and_a_model_without_template_are_one_sentence(tmp_path, file):
    path = tmp_path / "short.jsonl"
    path.write_text(json.dumps(pair(0)) + "\n" + json.dumps({"prompt": "x", "chosen": "y", "rejectd": "z"}) + "\n")
    with refuses("FP3095", "rejected", "did you mean 'rejectd"):
        load_dataset(f"file:{path}")
    with refuses("FP4001"):
        tokenised(file, resolve_model("tiny_lm"))
    with refuses("FP3170", "--tokens 3"):
        tokenised(file, resolve_model("tiny_lm"), 3, "alpaca")
