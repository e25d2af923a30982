"""An adapter that was trained beside a base in few bits is loaded beside that base, by what its card says."""

from __future__ import annotations

import re

import pytest
import torch
import transformers
from peft import PeftModel

from fedpeft.commands.export import main as export
from fedpeft.models.base_model import resolve_model
from fedpeft.reporting.finished_run import FinishedRun

pytestmark = pytest.mark.slow

SETTINGS = {"dataset": "tiny_lm", "clients": 2, "cohort": "all", "rounds": 1, "tokens": 16, "dtype": "fp32",
            "learning_rate": 0.01, "local_work": "steps(2)", "safeguard": "none"}  # fmt: skip


@pytest.fixture
def card_of(finished_run, tmp_path):
    """Return a function that gives a method's run and the card of its exported adapter."""

    def make(peft, **more):
        run = finished_run(**SETTINGS | {"model": "tiny_lm", "peft": peft} | more)
        assert export([str(run), "--output", str(tmp_path / "out")]) == 0
        return FinishedRun.read(run), (tmp_path / "out" / "README.md").read_text()

    return make


def wider(folder):
    """Write tiny_lm with layers whose widths are multiples of 64, as in real models.

    For other widths, bitsandbytes 0.50 decodes rows wrongly, or refuses them on a CPU with AVX-512 bf16.
    """
    tiny = resolve_model("tiny_lm")
    config = transformers.AutoConfig.from_pretrained(tiny, hidden_size=64, head_dim=16, intermediate_size=128)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def test_the_command_of_the_card_gives_what_the_run_was_scored_with(card_of, tmp_path):
    """In fp32 it would answer otherwise."""
    run, card = card_of("qlora(rank=4)", model=wider(tmp_path / "base"))
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


def test_a_base_in_int8_is_no_other_library_s(card_of):
    _, card = card_of("qlora(rank=4, bits=8)")
    assert "BitsAndBytesConfig" not in card
    assert "scored beside a base in int8, which transformers can't rebuild: `fedpeft.open_run" in card


def test_nor_is_one_of_whose_layers_transformers_keeps_some_as_they_are(card_of):
    """T5's `wo` stays in fp32 there."""
    _, card = card_of("qlora(rank=4)", dataset="tiny_seq2seq", model="tiny_seq2seq(kind=t5)")
    assert "BitsAndBytesConfig" not in card
    assert "beside a base in nf4, which transformers can't rebuild: `fedpeft.open_run" in card
