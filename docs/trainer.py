"""A client that trains with its own Trainer.

    python docs/trainer.py HOST:PORT NAME MODEL ROWS.jsonl

MODEL is a name such as tiny_lm, a folder, or ORG/NAME on the hub; each line of ROWS.jsonl is {"text": "..."}:
python docs/trainer.py 127.0.0.1:8470 edge-1 tiny_lm rows.jsonl
The server, with the same base and adapter, says who is asked and what becomes of the updates:
fedpeft serve --dataset tiny_lm --model tiny_lm --peft "lora(rank=8, targets=('q_proj', 'v_proj'), layers=0)"
    --clients 2 --cohort all --rounds 3 --safeguard none --measure "validation(keep=last)" --insecure
"""

import json
import sys

from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

import fedpeft
from fedpeft.models.base_model import resolve_model

server, name, model, rows = sys.argv[1:]
base = resolve_model(model)
tokenizer = AutoTokenizer.from_pretrained(base)
with open(rows, encoding="utf-8") as lines:
    texts = [json.loads(line)["text"] for line in lines]
adapter = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
trainer = Trainer(
    model=get_peft_model(AutoModelForCausalLM.from_pretrained(base), adapter),
    args=TrainingArguments("trainer-" + name, max_steps=5, learning_rate=4e-3, save_strategy="no", report_to=[]),
    train_dataset=[tokenizer(text) for text in texts],
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
fedpeft.patch(trainer, server=server, insecure=True, name=name)
trainer.train()  # all rounds of the federation
