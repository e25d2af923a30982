"""One federated LoRA run in plain torch and peft, from a table to an adapter.

    python examples/minimal.py examples/shops.csv --text comment --label verdict --owner shop

`fedpeft simulate` with the settings below computes the same adapter, as does a run with real clients.
"""

import argparse
import csv
import zlib
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel, AutoTokenizer

SEED, ROUNDS = 0, 3
RANK, ALPHA = 8, 32
BATCH_SIZE, LEARNING_RATE, HEAD_LEARNING_RATE = 4, 2e-3, 2e-4
MAX_TOKENS = 128
WINDOW = 8  # batches in a window, whose examples are sorted by length, so that little padding is computed


def draw_seed(purpose, *ids):
    """Return the seed of one draw. A client's batches depend on nothing but the run's seed, the round and its id."""
    return np.random.SeedSequence([SEED, zlib.crc32(purpose.encode()), *ids])


class Classifier(nn.Module):
    """A frozen encoder with LoRA, the mean over its last hidden states, and a linear head that starts at zero."""

    def __init__(self, model, classes):
        """Load the encoder, attach LoRA to the linear layers of its blocks, and add the head."""
        super().__init__()
        encoder = AutoModel.from_pretrained(model, dtype=torch.float64, trust_remote_code=False).eval()
        layers = [name for name, m in encoder.named_modules() if isinstance(m, nn.Linear) and ".layer." in name]
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=layers)
        self.base = get_peft_model(encoder, config)
        self.head = nn.Linear(encoder.config.hidden_size, classes, dtype=torch.float64)

    def forward(self, tokens):
        """Return logits, (examples, classes)."""
        hidden = self.base(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None].to(hidden.dtype)
        return self.head((hidden * mask).sum(1) / mask.sum(1))

    def get_trainable(self):
        """Return the parameters that clients train and exchange, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def load(self, state):
        """Set the trainable parameters."""
        with torch.no_grad():
            for name, parameter in self.get_trainable().items():
                parameter.copy_(state[name])


def draw_start(model):
    """Return the adapter of round 0: A is uniform in +-1/sqrt(inputs), B and the head are zero."""
    start = {}
    for index, (name, parameter) in enumerate(model.get_trainable().items()):
        start[name] = torch.zeros_like(parameter)
        if "lora_A" in name:
            seed = int(draw_seed("lora_A", index).generate_state(1, np.uint64)[0] >> np.uint64(1))
            draw = torch.rand(parameter.shape, generator=torch.Generator().manual_seed(seed))
            start[name] = ((2 * draw - 1) * parameter.shape[1] ** -0.5).double()
    return start


def draw_batches(rows, lengths, round_number, client):
    """Return the batches of one pass over a client's examples, each an array of row indices."""
    random = np.random.default_rng(draw_seed("batches", round_number, client))
    order = rows[random.permutation(len(rows))]
    batches = []
    for start in range(0, len(order), BATCH_SIZE * WINDOW):
        window = order[start : start + BATCH_SIZE * WINDOW]
        window = window[np.argsort(-lengths[window], kind="stable")]
        batches += [window[i : i + BATCH_SIZE] for i in range(0, len(window), BATCH_SIZE)]
    return [batches[i] for i in random.permutation(len(batches))]


def train_client(model, received, batches, tokenize, labels):
    """Train from the received state for one pass, with a new optimizer; return the update."""
    model.load(received)
    parameters = model.get_trainable()
    groups = [
        {"params": [p for name, p in parameters.items() if not name.startswith("head.")], "lr": LEARNING_RATE},
        {"params": [p for name, p in parameters.items() if name.startswith("head.")], "lr": HEAD_LEARNING_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    for batch in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokenize(batch)), labels[batch]).backward()
        optimizer.step()
    return {name: parameter.detach() - received[name] for name, parameter in parameters.items()}


def compute_mean(updates, weights):
    """Return the mean of the updates, weighted by the number of examples (FedAvg)."""
    total = sum(weights)
    return {name: sum(w * update[name] for update, w in zip(updates, weights, strict=True)) / total
            for name in updates[0]}  # fmt: skip


def compute_accuracy(model, state, rows, tokenize, labels):
    """Return the share of examples that the model classifies correctly."""
    model.load(state)
    with torch.no_grad():
        correct = sum(int((model(tokenize(rows[i : i + 32])).argmax(1) == labels[rows[i : i + 32]]).sum())
                      for i in range(0, len(rows), 32))  # fmt: skip
    return correct / len(rows)


def run(table, is_test, text, label, owner, model_name):
    """Train on all owners' examples; return the state after the last round and the accuracy after each."""
    texts, answers, owners = zip(*((row[text], row[label], row[owner]) for row in table), strict=True)
    classes = sorted(set(answers))
    labels = torch.tensor([classes.index(answer) for answer in answers])
    clients = [np.flatnonzero((np.array(owners) == name) & ~is_test) for name in sorted(set(owners))]

    tokenizer = AutoTokenizer.from_pretrained(model_name, trust_remote_code=False)
    ids = tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
    lengths = np.array([len(row) for row in ids])

    def tokenize(rows):
        return tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")

    model = Classifier(model_name, len(classes))
    state = draw_start(model)
    accuracies = []
    for round_number in range(1, ROUNDS + 1):
        updates = []
        for client, rows in enumerate(clients):  # on the clients' machines
            batches = draw_batches(rows, lengths, round_number, client)
            updates.append(train_client(model, state, batches, tokenize, labels))
        mean = compute_mean(updates, [len(rows) for rows in clients])  # on the server
        state = {name: tensor + mean[name] for name, tensor in state.items()}
        if is_test.any():
            accuracies.append(compute_accuracy(model, state, np.flatnonzero(is_test), tokenize, labels))
            print(f"round {round_number}: accuracy {accuracies[-1]:.3f} on {is_test.sum()} test examples")
    return state, accuracies


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    table = argparse.FileType("r", encoding="utf-8")
    parser.add_argument("table", type=table, help="a CSV file with a text, a class and an owner in each row")
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="label")
    parser.add_argument("--owner", default="owner")
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="a BERT encoder")
    parser.add_argument("--output", type=Path, default=Path("adapter.safetensors"))
    given = parser.parse_args()
    rows = list(csv.DictReader(given.table))
    every_fifth = np.arange(len(rows)) % 5 == 4
    adapter, _ = run(rows, every_fifth, given.text, given.label, given.owner, given.model)
    save_file(adapter, given.output)
