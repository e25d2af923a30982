"""A Trainer as a client's local training: what it starts from, what it trains, what comes back."""

from __future__ import annotations

import pytest
import torch
from fedpeft.clients.executor import Job
from fedpeft.clients.local_training import LocalTraining
from fedpeft.clients.trainer import ProcessGroup, ScriptWork, TrainerBench, TrainerExecutor, TrainerPlan
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from fedpeft.models.base_model import resolve_model
from fedpeft.models.tasks.causal_lm import LanguageModel
from fedpeft.parts.families import PEFT_METHODS
from fedpeft.peft.adapter import AdapterShape
from tests.refusals import refuses

TARGETS = ["q_proj", "v_proj"]
METHOD = PEFT_METHODS.build(f"lora(rank=4, alpha=8, targets={tuple(TARGETS)}, layers=0)")


class Seen(TrainerCallback):
    """Which rows are trained on, and at which learning rate."""

    def __init__(self):
        self.rows, self.rates = [], []

    def on_step_end(self, args, state, control, optimizer=None, **more):
        self.rates.append(optimizer.param_groups[0]["lr"])


def made_trainer(folder, optimizer=None, **arguments):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(resolve_model("tiny_lm"))
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM"))
    seen = Seen()
    rows = [{"number": i, "input_ids": torch.randint(4, 90, (12,))} for i in range(20)]

    def collate(batch):
        seen.rows.append([row["number"] for row in batch])
        ids = torch.stack([row["input_ids"] for row in batch])
        return {"input_ids": ids, "labels": ids}

    settings = {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
    }
    settings |= {"save_strategy": "no", "report_to": [], "remove_unused_columns": False, "use_cpu": True}
    settings |= {"disable_tqdm": True}
    optimizers = (optimizer(model), None) if optimizer else (None, None)
    trainer = Trainer(
        model, TrainingArguments(str(folder), **settings | arguments), collate, rows, callbacks=[seen],
        optimizers=optimizers,
    )  # fmt: skip
    return trainer, seen


def executor_of(trainer):
    model = LanguageModel(trainer.model)
    return TrainerExecutor(trainer, model, trainer.train, ProcessGroup(), METHOD.layout(model), rate=1.0)


def job(executor, round_number=1, **more):
    start = METHOD.start(executor.model, 0)
    settings = {"trained": frozenset(start), "learning_rate": 1.0, "form": None} | more
    training = LocalTraining(work=ScriptWork())
    rows = torch.arange(20).numpy()
    return Job(client=0, round=round_number, seed=0, rows=rows, received=start, training=training, **settings)


def test_the_scripts_steps_are_those_of_a_plain_loop(tmp_path):
    """AdamW of torch by hand on the rows that the trainer has drawn."""
    trainer, seen = made_trainer(tmp_path, weight_decay=0.0, max_grad_norm=0.0)
    executor = executor_of(trainer)
    work = job(executor)
    [trained] = executor.train([work])
    assert trained.steps == 3
    assert trained.rows == 20
    other, _ = made_trainer(tmp_path)
    plain = executor_of(other)
    plain.load(work.received)
    optimizer = torch.optim.AdamW(plain.parameters.values(), 1e-2, weight_decay=0.0)
    losses = []
    for numbers in seen.rows[:3]:
        ids = torch.stack([other.train_dataset[i]["input_ids"] for i in numbers])
        optimizer.zero_grad()
        loss = other.model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert trained.loss == pytest.approx(sum(losses) / 3, rel=1e-5)
    for name, tensor in trained.state.items():
        assert torch.allclose(tensor, plain.parameters[name].detach(), atol=1e-6), name


def test_equal_rounds_are_equal_and_others_draw_other_rows(tmp_path):
    trainer, seen = made_trainer(tmp_path)
    executor = executor_of(trainer)
    one, again, later = (next(iter(executor.train([job(executor, round_number)]))) for round_number in (1, 1, 2))
    drawn = [seen.rows[i : i + 3] for i in range(0, len(seen.rows), len(seen.rows) // 3)]
    assert all(torch.equal(tensor, again.state[name]) for name, tensor in one.state.items())
    assert not all(torch.equal(tensor, later.state[name]) for name, tensor in one.state.items())
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_is_not_trained_stays_and_the_rate_follows_the_federations(tmp_path):
    trainer, seen = made_trainer(tmp_path)
    executor = executor_of(trainer)
    names = frozenset(name for name in executor.layout.names if "lora_B" in name)
    [trained] = executor.train([job(executor, trained=names, learning_rate=0.25)])
    assert trained.state.keys() == names
    assert seen.rates == pytest.approx([0.0025] * 3)
    assert trainer.args.learning_rate == 1e-2
    assert all(p.requires_grad for p in executor.parameters.values())
    start = METHOD.start(executor.model, 0)
    assert all(torch.equal(p.detach(), start[n]) for n, p in executor.parameters.items() if n not in names)


def test_a_given_optimizer_goes_on_and_an_own_one_starts_anew(tmp_path):
    def momentum(model):
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-2, momentum=0.9)

    for optimizer, kept in ((momentum, True), (None, False)):
        trainer, _ = made_trainer(tmp_path, optimizer)
        executor = executor_of(trainer)
        list(executor.train([job(executor)]))
        before = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        list(executor.train([job(executor, 2)]))
        assert (getattr(trainer.optimizer, "optimizer", trainer.optimizer) is before) is kept


def test_a_client_of_lower_rank_has_its_own_scale(tmp_path):
    trainer, _ = made_trainer(tmp_path)
    executor = executor_of(trainer)
    small = {
        name: tensor[:2] if "lora_A" in name else tensor[:, :2]
        for name, tensor in METHOD.start(executor.model, 0).items()
    }
    work = job(executor, form=AdapterShape(2, 6.0))
    [trained] = executor.train([Job(**vars(work) | {"received": small})])
    assert {tuple(t.shape) for t in trained.state.values()} == {tuple(t.shape) for t in small.values()}
    layer = trainer.model.get_base_model().model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == 3.0
    assert not layer.lora_A["default"].weight[2:].any()
    assert not layer.lora_B["default"].weight[:, 2:].any()


def test_steps_that_the_server_asks_for_take_the_place_of_the_scripts(tmp_path):
    trainer, _ = made_trainer(tmp_path)
    executor = executor_of(trainer)
    work = job(executor)
    training = LocalTraining(work=ScriptWork()).replace_steps(2)
    assert not training.walks
    [trained] = executor.train([Job(**vars(work) | {"training": training})])
    assert (trained.steps, trainer.args.max_steps) == (2, 3)


def test_what_needs_single_steps_is_refused(tmp_path):
    trainer, _ = made_trainer(tmp_path)
    executor = executor_of(trainer)
    with refuses("FP1010"):
        list(executor.train([job(executor, offsets=torch.zeros(2))]))
    bench = TrainerBench(TrainerPlan(executor.layout, LocalTraining(), 0, "fp32", tmp_path, "cpu"), executor)
    assert bench.set_precision("fp32") is bench.set_precision("") is bench
    with refuses("FP6019", "nf4"):
        bench.set_precision("nf4")
