"""Scores of both sides' adapters on the same held-out examples: loss of the answers, and exact matches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from experiments.flowertune.settings import Settings

NEW_TOKENS = 12
"""Most new tokens of an answer; the longest correct one has fewer."""


def judge(settings: Settings, test: Path, adapter: Path | None) -> tuple[float, float]:
    """Return the loss per token of the answers and the share of exact matches, for the base with `adapter`.

    An answer counts as exact if it begins with the expected text and no letter or digit follows, since the templates
    teach no end token.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from fedpeft.data.rows import load_dataset
    from fedpeft.data.tokens import load_tokenizer
    from fedpeft.models.base_model import resolve_model
    from fedpeft.models.scoring import score, score_batches
    from fedpeft.parts.families import TASKS

    folder = resolve_model(settings.model)
    auto: Any = AutoModelForCausalLM
    base = auto.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    if adapter is not None:
        base = PeftModel.from_pretrained(base, str(adapter)).eval()
    rows = load_dataset(f"flowertune(name={str(test)!r}, clients=1, test={str(test)!r})").test
    task = TASKS.build("instruction")
    examples, model = task.tokenise(rows, folder, settings.tokens), task.model(base, None)
    scores = [score(model, task, examples.batch(index)) for index in score_batches(examples)]
    loss = sum(float(s.loss.sum()) for s in scores) / sum(float(s.count.sum()) for s in scores)
    tokenizer, right = load_tokenizer(folder), 0
    for text in rows.inputs[: settings.asked]:
        row = json.loads(str(text))
        asked = tokenizer(row["prompt"], return_tensors="pt")
        with torch.inference_mode():
            made = base.generate(**asked, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)[0]
        said = tokenizer.decode(made[asked["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        wanted = row["answer"].strip()
        right += said.startswith(wanted) and not said[len(wanted) : len(wanted) + 1].isalnum()
    return loss, right / min(settings.asked, len(rows))
