"""An adapter that was trained beside a base in few bits is loaded beside that base, by what its card says."""

from __future__ import annotations

import re

import pytest
import torch
import transformers
from peft import PeftModel

from fedpeft.export import main as export
from fedpeft.models.base_model import resolve_model
from fedpeft.run.finished import FinishedRun
from fedpeft.simulate import main as simulate

pytestmark = pytest.mark.slow

RUN = ["--dataset=tiny_lm", "--model=tiny_lm", "--clients=2", "--cohort=all", "--rounds=1", "--workers=1",
       "--tokens=16", "--dtype=fp32", "--learning-rate=0.01", "--local-work=steps(2)", "--safeguard=none"]  # fmt: skip


def card_of(tmp_path, peft, *words):
    run, out = tmp_path / "run", tmp_path / "out"
    assert simulate([*RUN, *words, "--peft", peft, "--output", str(run)]) == 0
    assert export([str(run), "--output", str(out)]) == 0
    return FinishedRun.read(run), (out / "README.md").read_text()


def wider(folder):
    """tiny_lm with layers whose widths are multiples of 64, as real models' are: of others bitsandbytes 0.50 decodes
    rows wrongly, or refuses them where a CPU has AVX-512 bf16."""
    tiny = resolve_model("tiny_lm")
    config = transformers.AutoConfig.from_pretrained(tiny, hidden_size=64, head_dim=16, intermediate_size=128)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def test_the_command_of_the_card_gives_what_the_run_was_scored_with(tmp_path):
    """In fp32 it would answer otherwise."""
    run, card = card_of(tmp_path, "qlora(rank=4)", f"--model={wider(tmp_path / 'base')}")
    assert "trained and scored beside a base in nf4 |" in card
    [base] = re.findall(r"from_pretrained\((AutoModelForCausalLM.*\)), \"adapter\"\)`", card)
    names = {name: getattr(transformers, name) for name in ("AutoModelForCausalLM", "BitsAndBytesConfig")}
    held = eval(base, {"torch": torch, "BASE": str(run.model_directory), **names})
    model, ids = PeftModel.from_pretrained(held, tmp_path / "out" / "adapter"), torch.tensor([[5, 6, 7, 8]])
    model.train()  # in fp32 on all CPUs; there is no dropout
    plain = names["AutoModelForCausalLM"].from_pretrained(run.model_directory, dtype=torch.float32)
    plain = PeftModel.from_pretrained(plain, tmp_path / "out" / "adapter")
    with torch.no_grad():
        own = run.model(run.base()).base(input_ids=ids).logits
        assert torch.allclose(model(input_ids=ids).logits, own, atol=1e-4)
        assert not torch.allclose(plain(input_ids=ids).logits, own, atol=1e-3)


def test_a_base_in_int8_is_no_other_library_s(tmp_path):
    _, card = card_of(tmp_path, "qlora(rank=4, bits=8)")
    assert "BitsAndBytesConfig" not in card
    assert "scored beside a base in int8, which transformers does not make as it was: `fedpeft.open_run" in card


def test_nor_is_one_of_whose_layers_transformers_keeps_some_as_they_are(tmp_path):
    """T5's `wo` stays in fp32 there."""
    words = ("--dataset=tiny_seq2seq", "--model=tiny_seq2seq(kind=t5)")
    _, card = card_of(tmp_path, "qlora(rank=4)", *words)
    assert "BitsAndBytesConfig" not in card
    assert "beside a base in nf4, which transformers does not make as it was: `fedpeft.open_run" in card
