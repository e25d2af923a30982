"""The same step in peer libraries: a plain loop over a peft model, and trl's SFTTrainer.

Each has its own base and adapter, loaded as their users load them. A step is the loss and its gradient; neither side
takes an optimizer step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from fedpeft.data.examples import Batch

Step = Callable[[], float]
PLAIN, SFT = "plain peft loop", "trl SFTTrainer"
PLAIN_RAGGED = "plain peft loop, rows padded"


def load_adapted(model: str, dtype: str) -> Any:
    """Load the base with transformers and attach LoRA to all blocks."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from fedpeft.models.base_model import resolve_model
    from fedpeft.models.dtypes import DTYPES

    base = AutoModelForCausalLM.from_pretrained(resolve_model(model), dtype=DTYPES[dtype], trust_remote_code=False)
    config = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(base, config)


def create_plain_step(model: str, dtype: str, batch: Batch) -> Step:
    """Create a step with `model(**batch).loss.backward()`, where transformers computes the loss from all logits."""
    made = load_adapted(model, dtype)

    def step() -> float:
        loss = made(**batch, use_cache=False).loss
        loss.backward()
        made.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def create_sft_step(model: str, dtype: str, batch: Batch) -> Step:
    """Create a step with `SFTTrainer.training_step` and trl's default loss, without gradient checkpointing.

    Raises:
        ImportError: trl or one of its dependencies is missing.
    """
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from fedpeft.models.base_model import resolve_model

    settings = SFTConfig(
        tempfile.mkdtemp(), report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, save_strategy="no"
    )
    trainer = SFTTrainer(
        model=load_adapted(model, dtype),
        args=settings,
        train_dataset=Dataset.from_list([{"input_ids": [1, 2, 3]}]),
        processing_class=AutoTokenizer.from_pretrained(resolve_model(model), trust_remote_code=False),
    )

    trainer.current_gradient_accumulation_steps = 1  # `train` sets this before its first step

    def step() -> float:
        loss = trainer.training_step(trainer.model, dict(batch))
        trainer.model.zero_grad(set_to_none=True)
        return float(loss)

    return step


def list_steps(
    model: str, dtype: str, batch: Batch, padded: Batch, say: Callable[[str], object]
) -> dict[str, Callable[[], Step]]:
    """Return a factory for each step, including trl's if it is installed.

    `padded` contains short examples as a collator pads them, for the plain loop.
    """
    found: dict[str, Callable[[], Step]] = {
        PLAIN: lambda: create_plain_step(model, dtype, batch),
        PLAIN_RAGGED: lambda: create_plain_step(model, dtype, padded),
    }
    try:
        import datasets  # noqa: F401
        import trl  # noqa: F401
    except ImportError:
        say(f"{SFT}: left out, since trl and datasets are not installed")
        return found
    return found | {SFT: lambda: create_sft_step(model, dtype, batch)}
