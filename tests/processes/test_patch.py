"""`fedpeft.patch`: a script with a Trainer as a client of a real server, alone and in two processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fedpeft.clients.trainer import ProcessGroup
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

import fedpeft
from fedpeft.communication.codec import parse_codec
from fedpeft.communication.decoding import decode
from fedpeft.communication.messages import Instruction
from fedpeft.data.rows import load_dataset
from fedpeft.deployment.client.shared_settings import TAKEN
from fedpeft.deployment.client.trainer_edge import TrainerEdge
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.errors import ModelError, PrivacyError, RunError
from fedpeft.machine import cache
from fedpeft.models.base_model import resolve_model
from fedpeft.wiring.config import RunConfig
from tests.refusals import has_error, pattern_of, refuses

SCRIPT = Path(__file__).parent.parent.parent / "docs" / "trainer.py"
PEFT = "lora(rank=8, targets=('q_proj', 'v_proj'), layers=0)"
SERVER = [
    "--dataset=tiny_lm", "--model=tiny_lm", f"--peft={PEFT}", "--cohort=all", "--rounds=3", "--dtype=fp32",
    "--safeguard=none", "--measure=validation(keep=last)", "--insecure",
]  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def base():
    return resolve_model("tiny_lm")


SAYS = """
def held(model):
    return int(sum(p.sum() * 1e6 for name, p in model.named_parameters() if "lora_B" in name))

"""


class Scripts:
    """A server and scripts, as users start them, in one folder."""

    def __init__(self, folder, *words):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.folder, self.processes = folder, []
        texts = load_dataset("tiny_lm(rows=20)").train.inputs
        for k, name in enumerate("ab"):
            rows = [json.dumps({"text": text}) + "\n" for text in texts[k * 40 : k * 40 + 40]]
            (folder / f"{name}.jsonl").write_text("".join(rows))
        self.server = self.start(
            "server", "-m", "fedpeft.serve", *SERVER, *words, "--listen", self.address, "--output", "run"
        )

    def start(self, log, *words, **more):
        with open(self.folder / f"{log}.log", "a") as output:
            process = subprocess.Popen(
                [sys.executable, *words], cwd=self.folder, stdout=output, stderr=subprocess.STDOUT,
                env=ENVIRONMENT | {"HOME": str(self.folder)} | more,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def client(self, name, base, *launcher, script=SCRIPT, **more):
        return self.start(name, *launcher, str(script), self.address, name, str(base), f"{name}.jsonl", **more)

    def end(self, *processes):
        logs = "\n".join(f"--- {p.name}\n{p.read_text()}" for p in self.folder.glob("*.log"))
        assert [p.wait(500) for p in processes] == [0] * len(processes), logs
        return load_file(self.folder / "run" / "adapter" / "adapter_model.safetensors")

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    monkeypatch.setitem(
        ENVIRONMENT, "FEDPEFT_CACHE", str(cache.get_cache_directory())
    )  # scripts have homes of their own
    made = []

    def start(name, *words):
        (tmp_path / name).mkdir()
        made.append(Scripts(tmp_path / name, *words))
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.mark.slow
def test_two_scripts_take_part_in_all_rounds_and_learn(base, scripts):
    made = scripts("one", "--clients=2", "--codec=ef14 | topk(fraction=0.5)", "--strategy=fedsa_lora")
    adapter = made.end(made.client("a", base), made.client("b", "tiny_lm"), made.server)
    lines = [json.loads(line) for line in (made.folder / "run" / "rounds.jsonl").read_text().splitlines()]
    assert [line["clients"] for line in lines if line["round"]] == [2, 2, 2]
    assert [line["rejected"] for line in lines] == [0] * len(lines)
    losses = [line["train_loss"] for line in lines if line["round"]]
    assert losses[2] < losses[0]
    assert any(tensor.any() for name, tensor in adapter.items() if "lora_B" in name) is False  # they stay with clients
    assert list((made.folder / ".local" / "state" / "fedpeft").glob("*/a/clients/states.sqlite"))


@pytest.mark.slow
def test_a_killed_script_goes_on_and_ends_with_the_same_adapter(base, scripts):
    straight, broken = scripts("straight", "--clients=1"), scripts("broken", "--clients=1")
    expected = straight.end(straight.client("a", base), straight.server)
    script = broken.folder / "once.py"
    script.write_text(
        SCRIPT.read_text().replace(
            "trainer.train()  #",
            "from transformers import TrainerCallback\n"
            "class Dies(TrainerCallback):\n"
            "    ends = 0\n"
            "    def on_step_end(self, *a, **k):\n"
            "        Dies.ends += 1\n"
            "        if Dies.ends == 8: __import__('os')._exit(9)\n"
            "trainer.add_callback(Dies())\n"
            "trainer.train()  #",
        )
    )
    assert broken.client("a", base, script=script).wait(500) == 9
    found = broken.end(broken.client("a", base), broken.server)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


@pytest.mark.slow
def test_of_two_processes_under_torchrun_one_speaks_to_the_server(base, scripts):
    """Half the rows each, gradients averaged: batches twice as large as those of one process."""
    made = scripts("two", "--clients=1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = made.folder / "ddp.py"
    script.write_text(
        SCRIPT.read_text()
        .replace("save_strategy=", 'use_cpu=True, ddp_backend="gloo", save_strategy=')
        .replace("trainer.train()  #", f"{SAYS}trainer.train()\nprint(held(trainer.model), 'is what it has')  #")
    )
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}")
    adapter = made.end(made.client("a", base, *launcher, script=script), made.server)
    assert any(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)
    log = (made.folder / "a.log").read_text()
    assert log.count("the federation is finished") == 1
    said = [line.split()[0] for line in log.splitlines() if "is what it has" in line]
    assert len(said) == 2
    assert said[0] == said[1]
    lines = (made.folder / "server.log").read_text().splitlines()
    assert [line for line in lines if line.startswith("connected")] == ["connected a"]


SFT = """
import json
import sys

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import fedpeft

server, name, base, rows = sys.argv[1:]
with open(rows, encoding="utf-8") as lines:
    texts = [{"text": json.loads(line)["text"]} for line in lines]
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(base),
    args=SFTConfig(
        "trainer-" + name, max_steps=5, learning_rate=4e-3, save_strategy="no", report_to=[], use_cpu=True, bf16=False,
        max_length=64, packing=PACKING, gradient_checkpointing=CHECKPOINTING,
    ),
    train_dataset=Dataset.from_list(texts),
    processing_class=AutoTokenizer.from_pretrained(base),
    peft_config=LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
)
fedpeft.patch(trainer, server=server, insecure=True, name=name)
result = trainer.train()
print("last loss", result.training_loss)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("packing", "checkpointing"), [(False, True), (True, False)])
def test_scripts_with_an_sft_trainer_of_trl_take_part_and_learn(packing, checkpointing, base, scripts):
    pytest.importorskip("trl")
    made = scripts("sft", "--clients=2")
    script = made.folder / "sft.py"
    script.write_text(SFT.replace("PACKING", str(packing)).replace("CHECKPOINTING", str(checkpointing)))
    adapter = made.end(made.client("a", base, script=script), made.client("b", base, script=script), made.server)
    lines = [json.loads(line) for line in (made.folder / "run" / "rounds.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if line["round"]]
    assert [(line["clients"], line["rejected"]) for line in rounds] == [(2, 0)] * 3
    assert rounds[2]["train_loss"] < rounds[0]["train_loss"]
    assert any(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)
    assert "SFTTrainer" in (made.folder / "a.log").read_text()
    assert "last loss" in (made.folder / "b.log").read_text()


def description(base, **settings):
    values = {"peft": PEFT, "model": "tiny_lm", "dtype": "fp32"} | settings
    config = RunConfig(**{name: value for name, value in values.items() if name in TAKEN})
    weights = cache.hash_files(base, ("*.safetensors", "config.json"))
    return v2.Description(run="0" * 16, config=config.to_toml(), task="causal_lm", weights_hash=weights, tokens=64)


def trainer_like(base, **adapter):
    settings = {"r": 8, "target_modules": ["q_proj", "v_proj"]} | adapter
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **settings))
    return SimpleNamespace(model=model, args=None, train=None, train_dataset=[1, 2], optimizer=None)


class Told:
    """An observer that keeps what it is told."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def edge(told, trainer, folder):
    return TrainerEdge(told, trainer, None, ProcessGroup(), folder, Told())


@pytest.mark.fast
@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"drift": "scaffold"}, RunError, ("FP5115",)),
        ({"privacy": "dp_sgd(epsilon=8)"}, PrivacyError, ("FP7026",)),
        ({"privacy": "secure_sum"}, PrivacyError, ("FP7025",)),
        ({"peft": "lora(rank=4, targets=('q_proj', 'v_proj'), layers=0)"}, ModelError, ("FP4018", "in another shape")),
        ({"peft": "lora(rank=8, targets=('q_proj', 'v_proj'), layers=1)"}, ModelError, ("FP4018", "also trains")),
        ({"peft": "lora(rank=8, targets=('q_proj', 'k_proj'), layers=0)"}, ModelError, ("FP4018", "lacks")),
    ],
)
def test_federations_that_a_trainer_does_not_fit_are_one_sentence(settings, error, words, base, tmp_path):
    with pytest.raises(error, match=pattern_of(*words)):
        edge(description(base, **settings), trainer_like(base), tmp_path)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("given", "said"), [({}, (1.25, 5, 2)), ({"privacy": "user_dp(noise_multiplier=1)"}, (0.0, 5, 1))]
)
def test_a_round_is_received_trained_and_sent(given, said, base, tmp_path):
    """Cover what the client's half of a round needs from a trainer, without a server.

    Measurements stay with clients that keep them private.
    """
    trainer = trainer_like(base)
    trainer.args = SimpleNamespace(learning_rate=0.1, max_steps=-1)
    trainer.state = SimpleNamespace(global_step=5)

    def train():
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if "lora_B" in name:
                    parameter.add_(0.5)
        return SimpleNamespace(training_loss=1.25)

    told = Told()
    made = TrainerEdge(description(base, **given), trainer, train, ProcessGroup(), tmp_path, told)
    assert made.create_registration().rows == said[2]
    start = {name: torch.zeros(shape) for name, shape in made.layout.shapes.items()}
    payload = parse_codec("fp32").encode(start)
    report = made.handle(Instruction("train", 1, 0, payload, learning_rate=0.1, rank=8, alpha=32.0))
    assert (report.error, told.lines) == ("", [])
    assert (report.loss, report.steps, report.rows) == said
    sent = decode(report.payload, made.layout.shapes)
    for name, tensor in sent.items():
        assert torch.allclose(tensor, torch.full_like(tensor, 0.5 if "lora_B" in name else 0.0))


@pytest.mark.fast
def test_a_server_that_asks_for_losses_under_privacy_is_refused(base, tmp_path):
    made = edge(description(base, privacy="user_dp(noise_multiplier=1)"), trainer_like(base), tmp_path)
    report = made.handle(Instruction("evaluate", 1, 0, b"", rank=8, alpha=32.0))
    assert has_error(report.error, "FP7013", "user_dp")


@pytest.mark.fast
def test_other_weights_are_refused_and_unknown_ones_told(base, tmp_path):
    told = description(base)
    assert edge(told, trainer_like(base), tmp_path).observer.lines == []
    with refuses("FP4017"):
        edge(v2.Description(**_fields(told) | {"weights_hash": "other"}), trainer_like(base), tmp_path)
    trainer = trainer_like(base)
    trainer.model.get_base_model().config._name_or_path = ""
    assert "nothing checks" in edge(told, trainer, tmp_path).observer.lines[0]
    classification = v2.Description(**_fields(told) | {"task": "classification", "labels": ["a", "b"]})
    with refuses("FP5114", "classification"):
        edge(classification, trainer_like(base), tmp_path)


def _fields(told):
    return {field.name: getattr(told, field.name) for field in told.DESCRIPTOR.fields if field.name != "labels"}


@pytest.mark.fast
def test_a_lossy_downlink_counts_from_the_seeded_start(base, tmp_path):
    made = edge(description(base, codec="small", downlink="auto"), trainer_like(base), tmp_path)
    start = made.side.plan.start
    assert start.keys() == set(made.layout.names)
    assert not any(tensor.is_meta for tensor in start.values())


@pytest.mark.fast
@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        (object(), ("FP1196", "object")),
        (SimpleNamespace(model=nn.Linear(1, 1), args=0, train=0, train_dataset=[1], optimizer=0), ("FP1197",)),
        (SimpleNamespace(model=SimpleNamespace(peft_config=1), args=0, train=0, train_dataset=iter([]), optimizer=0),
         ("FP1199",)),
        (SimpleNamespace(model=SimpleNamespace(peft_config=1), args=0, train=0, train_dataset=[1], optimizer=0,
                         is_fsdp_enabled=True), ("FP1198",)),
    ],
)  # fmt: skip
def test_what_is_no_such_trainer_is_one_sentence(trainer, words):
    with refuses(*words):
        fedpeft.patch(trainer, server="127.0.0.1:1", insecure=True, name="a")


@pytest.mark.fast
def test_wrong_words_of_patch_and_train_are_one_sentence(base):
    with refuses("FP1122"):
        fedpeft.patch(trainer_like(base), server="nowhere", insecure=True, name="a")
    with refuses("FP1201"):
        fedpeft.patch(trainer_like(base), server="127.0.0.1:1", insecure=True)
    patched = fedpeft.patch(trainer_like(base), server="127.0.0.1:1", insecure=True, name="a")
    with refuses("FP1195"):
        patched.train(resume_from_checkpoint=True)


@pytest.mark.fast
def test_a_server_that_is_not_there_is_one_sentence(base, tmp_path):
    patched = fedpeft.patch(
        trainer_like(base), server="127.0.0.1:1", insecure=True, name="a", state=tmp_path, give_up=0.1, progress=False
    )
    with refuses("FP5155", "could not be reached for 0.1 s"):
        patched.train()
