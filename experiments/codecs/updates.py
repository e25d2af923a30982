"""Real LoRA updates for measuring codecs: a few AdamW steps of MiniLM on examples of 20 Newsgroups.

    python -m experiments.codecs.updates --model DIR --rows 20newsgroups-train.tab --output updates.pt

Writes, for each LoRA target set, the received state, the trained state and their difference. The first update starts
from B = 0. The second starts from a state trained on other examples, as in a later round.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import nn
from transformers import AutoModel, AutoTokenizer

from experiments import exit_on_error

TARGETS = {"qv": ["query", "value"], "linear": ["query", "key", "value", "dense"]}


def read_rows(path: Path, count: int, seed: int) -> tuple[list[str], torch.Tensor]:
    """Read `count` random texts and their class numbers from a tab-separated file with three header lines."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[3:]
    pairs = [line.split("\t", 1) for line in lines if "\t" in line]
    classes = {name: i for i, name in enumerate(sorted({label for label, _ in pairs}))}
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return [pairs[i][1] for i in order], torch.tensor([classes[pairs[i][0]] for i in order])


def copy_adapter(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of the adapter's tensors."""
    return {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(model).items()}


def main() -> None:
    """Train the adapters and write their updates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--rows", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, trust_remote_code=False)
    found = {}
    for target, modules in TARGETS.items():
        torch.manual_seed(0)
        model = get_peft_model(
            AutoModel.from_pretrained(arguments.model, trust_remote_code=False),
            LoraConfig(r=8, lora_alpha=16, target_modules=modules),
        )
        head = nn.Linear(384, 20)
        for start, (steps, seed) in {"first": (10, 1), "warm-up": (40, 2), "later": (14, 3)}.items():
            texts, labels = read_rows(arguments.rows, 8 * steps, seed)
            before = copy_adapter(model)
            optimizer = torch.optim.AdamW(
                [p for p in (*model.parameters(), *head.parameters()) if p.requires_grad], lr=arguments.learning_rate
            )
            for step in range(steps):
                batch = tokenizer(
                    texts[8 * step : 8 * step + 8], return_tensors="pt", padding=True, truncation=True, max_length=64
                )
                hidden = model(**batch).last_hidden_state
                mask = batch["attention_mask"].unsqueeze(-1)
                loss = nn.functional.cross_entropy(
                    head((hidden * mask).sum(1) / mask.sum(1)), labels[8 * step : 8 * step + 8]
                )
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            after = copy_adapter(model)
            if start != "warm-up":
                found[f"{target}-{start}"] = {
                    "received": before,
                    "trained": after,
                    "delta": {name: after[name] - before[name] for name in after},
                }
            print(target, start, f"loss {loss.item():.3f}", flush=True)
    torch.save(found, arguments.output)


if __name__ == "__main__":
    with exit_on_error():
        main()
