"""Makes dpo_trl.json: losses of pairs by trl's own DPO, on logits that are made from a seed.

trl brings much that is not needed here, so it runs in an environment of its own:

    python -m venv trl && trl/bin/pip install trl==0.29.0
    trl/bin/python tests/golden/dpo_trl.py

A case: seed, beta, tokens of each answer (chosen, rejected); and for each pair what trl's loss of it alone is, and
whether it counts the pair as right.
"""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
from trl import DPOTrainer

VOCABULARY, PROMPT = 11, 3
CASES = [
    (0, 0.1, [(4, 6), (2, 2), (5, 1)]),
    (1, 0.5, [(1, 1), (7, 3)]),
    (2, 2.0, [(3, 4), (6, 6), (1, 5), (2, 3)]),
]


def made(seed: int, lengths: list[tuple[int, int]]) -> tuple[torch.Tensor, ...]:
    """Ids (pairs, 2, T), which tokens are an answer's, and logits of the model and of the reference, in fp64."""
    generator = torch.Generator().manual_seed(seed)
    longest = PROMPT + max(max(pair) for pair in lengths)
    shape = (len(lengths), 2, longest)
    ids = torch.randint(VOCABULARY, shape, generator=generator)
    position = torch.arange(longest)
    ends = PROMPT + torch.tensor(lengths)[..., None]
    answers = (position >= PROMPT) & (position < ends)
    model, reference = (2 * torch.randn(*shape, VOCABULARY, generator=generator, dtype=torch.float64) for _ in "12")
    return ids, answers, model, reference


def loss_of(beta: float, ids: torch.Tensor, answers: torch.Tensor, model: torch.Tensor, reference: torch.Tensor):
    """Return trl's loss of one pair (2, T), computed by its trainer's code, and its accuracy."""

    class Said(torch.nn.Module):
        is_gradient_checkpointing = False

        def __init__(self, logits):
            super().__init__()
            self.logits = logits

        def forward(self, **_):
            return SimpleNamespace(logits=self.logits)

    def same(x):
        return x

    metrics = defaultdict(list)
    trainer = SimpleNamespace(
        model=Said(model),
        ref_model=Said(reference),
        accelerator=SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same, unwrap_model=same),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        _truncate_inputs=lambda *given: given,
        _metrics={"train": metrics},
        _total_train_tokens=0,
        precompute_ref_logps=False,
        use_weighting=False,
        ld_alpha=None,
        label_smoothing=0.0,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        beta=beta,
    )
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": answers.long()}
    loss = DPOTrainer._compute_loss(trainer, trainer.model, inputs, False)
    return float(loss), metrics["rewards/accuracies"][0]


if __name__ == "__main__":
    found = []
    for seed, beta, lengths in CASES:
        pairs = [loss_of(beta, *pair) for pair in zip(*made(seed, lengths), strict=True)]
        losses, right = zip(*pairs, strict=True)
        found.append({"seed": seed, "beta": beta, "lengths": lengths, "losses": losses, "right": right})
    target = Path(__file__).with_suffix(".json")
    target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
