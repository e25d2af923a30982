"""Files in the layouts of LEAF and FedLLM-Bench, tiny and with made-up contents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedpeft.data.made_words import WORDS

USERS = ("f0001_41", "f0002_13", "f0003_07")
TRAIN, TEST = 8, 2
"""Examples of each user."""


def write_leaf(folder: Path, users: Mapping[str, list[tuple[Any, Any]]], test: int = TEST) -> Path:
    """Write the examples (x, y) of users as the folders train and test; the last `test` of each are for test."""
    for split, part in (("train", slice(None, -test)), ("test", slice(-test, None))):
        (folder / split).mkdir(parents=True, exist_ok=True)
        data = {
            user: {"x": [x for x, _ in examples[part]], "y": [y for _, y in examples[part]]}
            for user, examples in users.items()
        }
        content = {"users": list(users), "num_samples": [len(held["y"]) for held in data.values()], "user_data": data}
        (folder / split / f"all_data_0_{split}_9.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_femnist(folder: Path) -> Path:
    """Write images of noise on white paper: "3", "B" and "b", with more ink for later classes."""
    draw = np.random.default_rng(0)

    def make(label: int) -> list[float]:
        ink = draw.random(784) < (label + 1) / 100
        return [float(value) for value in np.where(ink, 0.25, 1.0)]

    classes = (3, 11, 37)
    return write_leaf(folder, {user: [(make(y), y) for y in (classes * 4)[: TRAIN + TEST]] for user in USERS})


def write_celeba(folder: Path) -> Path:
    """Write images of one brightness per class, in raw/img_align_celeba."""
    images = folder / "raw" / "img_align_celeba"
    images.mkdir(parents=True)
    users: dict[str, list[tuple[str, float]]] = {}
    for number in range(len(USERS) * (TRAIN + TEST)):
        name, label = f"{number:06d}.jpg", float(number % 2)
        Image.new("RGB", (24, 30), (100 + 100 * int(label),) * 3).save(images / name)
        users.setdefault(USERS[number % 3], []).append((name, label))
    return write_leaf(folder, users)


def write_shakespeare(folder: Path) -> Path:
    """Write texts of 80 characters with the next one."""
    users = {}
    for k, user in enumerate(USERS):
        text = " ".join(WORDS[k + 3 * i] for i in range(60))
        users[user] = [(text[i : i + 80], text[i + 80]) for i in range(30)]
    return write_leaf(folder, users, test=6)


def write_reddit(folder: Path) -> Path:
    """Write comments as sequences of ten tokens, with LEAF's marks; `num_samples` counts all splits, as LEAF's does."""
    users = {}
    for k, user in enumerate(USERS):
        users[user] = []
        for i in range(TRAIN + TEST):
            tokens = ["<BOS>", *WORDS[i : i + 8 + k], "<EOS>"]
            tokens += ["<PAD>"] * (-len(tokens) % 10)
            sequences = [tokens[at : at + 10] for at in range(0, len(tokens), 10)]
            users[user].append((sequences, {"subreddit": "made_up", "created_utc": "1", "score": 1}))
    return write_leaf(folder, users)


def write_clients(file: Path, records: list[dict[str, Any]]) -> Path:
    """Write records as a file of FedLLM-Bench with three clients."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({f"client_{k}": records[k::3] for k in range(3)}), encoding="utf-8")
    return file


def write_wildchat(folder: Path) -> Path:
    """Write conversations of two questions; the first client's begin with an answer, as some of WildChat do."""
    records = []
    for i in range(30):
        texts = [WORDS[i + n] for n in range(4)]
        turns = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]
        records.append({"conversations": [{"from": "gpt", "value": WORDS[0]}, *turns] if i % 3 == 0 else turns})
    return write_clients(folder / "multi_turn" / "wildchat_3c.json", records)


def write_chatbot_preferences(folder: Path) -> Path:
    """Write questions with a chosen and a rejected answer."""
    records = [{"prompt": WORDS[i], "chosen": WORDS[i + 1], "rejected": WORDS[i + 2]} for i in range(30)]
    return write_clients(folder / "Fed-ChatbotPA" / "chatbotPA_3c.json", records)
