"""A base of a user's own code that draws something in its evaluation mode is told before it is scored."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from transformers import BertConfig, BertModel

import fedpeft
from fedpeft.models.base_model import resolve_model
from fedpeft.models.determinism_check import check_repeats
from tests.refusals import refuses
from tests.runs.models.test_shared_tiles import store

MODEL = """
from dataclasses import dataclass
from pathlib import Path

from torch.nn import functional
from transformers import AutoConfig, AutoModel, BertConfig, BertModel


class DrawnConfig(BertConfig):
    model_type = "drawn_bert"


class DrawnBert(BertModel):
    config_class = DrawnConfig

    def forward(self, *given, **named):
        made = super().forward(*given, **named)
        made.last_hidden_state = functional.dropout(made.last_hidden_state, 0.1)
        return made


AutoConfig.register("drawn_bert", DrawnConfig, exist_ok=True)
AutoModel.register(DrawnConfig, DrawnBert, exist_ok=True)


@dataclass(frozen=True)
class Drawn:
    origin = ""
    license = ""

    def resolve(self):
        return Path(FOLDER)


parts = {"models": {"drawn": Drawn}}
"""


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_base_of_one_s_own_that_draws_is_named_before_anything_is_kept(workers, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in resolve_model("tiny").iterdir():
        text = file.read_bytes()
        (folder / file.name).write_bytes(text.replace(b'"bert"', b'"drawn_bert"') if file.suffix == ".json" else text)
    (tmp_path / "mine.py").write_text(MODEL.replace("FOLDER", repr(str(folder))))
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "cache"))
    settings = {"dataset": "tiny", "model": "drawn", "clients": 3, "rounds": 1, "dtype": "fp32", "workers": workers}
    with refuses("FP4041", "DrawnBert"):
        fedpeft.run_simulation(**settings, plugin=str(tmp_path / "mine.py"), progress=False, output=tmp_path / "run")
    assert not any(any(file.read_bytes()) for file in (tmp_path / "cache").glob("frozen-*/tiles.done"))


class Own(BertModel):
    """Rounding differs from pass to pass, as on some machines; with `share` so does what is left of hidden states."""

    share = 0.0

    def forward(self, *given, **named):
        made = super().forward(*given, **named)
        made.last_hidden_state = functional.dropout(made.last_hidden_state * (1 + 1e-6 * torch.rand(())), self.share)
        return made


def test_rounding_is_no_chance(tmp_path):
    rows = store(tmp_path).examples
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    own = Own(BertConfig(vocab_size=50, **sizes)).eval()
    check_repeats(own, rows)
    own.share = 0.5
    with refuses("FP4041", "Own"):
        check_repeats(own, rows)
