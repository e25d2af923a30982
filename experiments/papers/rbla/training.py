"""A federation of clients with one to ten classes, and LoRA ranks in proportion, on a small MLP.

The MLP has two layers of 200 units with ReLU and an output layer. A client of k classes holds the leading k tenths of
the ranks: of 160 in the first layer, of 100 in the second.

    h1 = relu((W1 + B1 A1) x),   h2 = relu((W2 + B2 A2) h1),   logits = W3 h2 + b3
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedpeft.aggregation.factors import place_ranks
from fedpeft.aggregation.strategy import LinearStrategy, Strategy
from fedpeft.aggregation.update import Update
from fedpeft.conformance.cohorts import run_round
from fedpeft.data.rows import Rows
from fedpeft.machine.seeds import create_torch_generator
from fedpeft.parts.families import strategies
from fedpeft.peft.adapter import AdapterShape, Layout, State, TensorSpec, subtract_states

WIDTH = 200
RANKS = {"fc1": 160, "fc2": 100}
CLASSES = 10


@dataclass(frozen=True)
class Protocol:
    """Settings of a run.

    Attributes:
        rule: a strategy, `zero_padding`, or `equal_ranks`: all clients have all ranks, and `fedit` averages.
        base: `trained`: clients train and average W1 and W2 as well; `frozen`: they stay random.
        seed: seed of the start and of all batches.
        rounds, epochs, batch_size, learning_rate: rounds, epochs of each client per round, and plain SGD.
    """

    rule: str
    base: str
    seed: int
    rounds: int = 15
    epochs: int = 5
    batch_size: int = 64
    learning_rate: float = 0.05


@dataclass(frozen=True)
class ZeroPadding(LinearStrategy):
    """The mean of factors that are padded with zeros up to the global rank: A <- sum_k p_k pad(A_k), B alike."""

    mixed_ranks: ClassVar[bool] = True

    def contribution(self, update: Update, state: State, layout: Layout) -> State:
        """Return the padded factors minus the global ones."""
        trained = place_ranks({name: update.get_trained(name) for name in update.delta}, layout, ())
        return subtract_states(trained, state)


def build_rule(name: str) -> Strategy:
    """Build the rule that a protocol names.

    Raises:
        ConfigError: there is no such strategy.
    """
    if name == "zero_padding":
        return ZeroPadding()
    return strategies.build("fedit" if name == "equal_ranks" else name)


def create_layouts(pixels: int, base: str) -> tuple[Layout, ...]:
    """Create one layout per layer, since the layers have different ranks; only what is trained is in it."""
    layouts = []
    for layer, inputs in (("fc1", pixels), ("fc2", WIDTH)):
        rank = RANKS[layer]
        specs = [
            TensorSpec(f"{layer}.A", (rank, inputs), "lora_A", layer),
            TensorSpec(f"{layer}.B", (WIDTH, rank), "lora_B", layer),
        ]
        if base == "trained":
            specs.append(TensorSpec(f"{layer}.W", (WIDTH, inputs), "plain", f"{layer}.base"))
        layouts.append(Layout(tuple(specs), AdapterShape(rank, float(rank))))
    output = [
        TensorSpec("fc3.W", (CLASSES, WIDTH), "head", "fc3"),
        TensorSpec("fc3.b", (CLASSES,), "head", "fc3"),
    ]
    return (*layouts, Layout(tuple(output)))


def create_start(pixels: int, seed: int) -> State:
    """Create all tensors of the MLP by Xavier's uniform initialization, the output layer's bias as 0."""
    generator = create_torch_generator(seed, "start")
    state: State = {"fc3.b": torch.zeros(CLASSES)}
    for layer, inputs in (("fc1", pixels), ("fc2", WIDTH)):
        state[f"{layer}.W"] = torch.empty(WIDTH, inputs)
        state[f"{layer}.A"] = torch.empty(RANKS[layer], inputs)
        state[f"{layer}.B"] = torch.empty(WIDTH, RANKS[layer])
    state["fc3.W"] = torch.empty(CLASSES, WIDTH)
    for name in sorted(state.keys() - {"fc3.b"}):
        torch.nn.init.xavier_uniform_(state[name], generator=generator)
    return state


def partition_by_class(labels: np.ndarray) -> list[np.ndarray]:
    """Return each client's examples: class c is split among the clients c to 9, so client k has classes 0 to k."""
    clients: list[list[np.ndarray]] = [[] for _ in range(CLASSES)]
    for label in range(CLASSES):
        for client, part in enumerate(np.array_split(np.flatnonzero(labels == label), CLASSES - label), start=label):
            clients[client].append(part)
    return [np.concatenate(parts) for parts in clients]


def predict(state: Mapping[str, Tensor], x: Tensor, base: Tensor | None = None) -> Tensor:
    """Return the logits of images (examples, pixels); `base` is W1 x, if it is known."""
    for layer in ("fc1", "fc2"):
        base = functional.linear(x, state[f"{layer}.W"]) if base is None else base
        added = functional.linear(functional.linear(x, state[f"{layer}.A"]), state[f"{layer}.B"])
        x, base = functional.relu(base + added), None
    return functional.linear(x, state["fc3.W"], state["fc3.b"])


def train_client(state: State, trained: frozenset[str], x: Tensor, y: Tensor, protocol: Protocol, draw: int) -> State:
    """Return a client's tensors after its epochs of plain SGD.

    Args:
        state: all tensors of the client's model.
        trained: names of the tensors that it trains.
        x: images (examples, pixels).
        y: classes.
        protocol: the settings.
        draw: number of this training in the run, for the order of its examples.
    """
    generator = create_torch_generator(protocol.seed, "batches", draw)
    leaves = {name: tensor.clone().requires_grad_(name in trained) for name, tensor in state.items()}
    optimizer = torch.optim.SGD([leaves[name] for name in sorted(trained)], lr=protocol.learning_rate)
    frozen = None if "fc1.W" in trained else functional.linear(x, state["fc1.W"])
    for _ in range(protocol.epochs):
        for batch in torch.split(torch.randperm(len(y), generator=generator), protocol.batch_size):
            optimizer.zero_grad()
            base = None if frozen is None else frozen[batch]
            torch.autograd.backward(functional.cross_entropy(predict(leaves, x[batch], base), y[batch]))
            optimizer.step()
    return {name: tensor.detach() for name, tensor in leaves.items()}


def compute_accuracy(state: State, x: Tensor, y: Tensor) -> float:
    """Return the share of right predictions."""
    with torch.no_grad():
        return float((predict(state, x).argmax(1) == y).double().mean())


def get_form(layout: Layout, classes: int, protocol: Protocol) -> AdapterShape | None:
    """Return the LoRA shape of a client with so many classes, at scale 1."""
    if layout.form is None or protocol.rule == "equal_ranks":
        return layout.form
    rank = layout.form.rank * classes // CLASSES
    return AdapterShape(rank, float(rank))


def scale_pixels(rows: Rows) -> tuple[Tensor, Tensor]:
    """Return images as (examples, pixels) between 0 and 1, and their classes."""
    labels = torch.from_numpy(np.array(rows.labels))
    return torch.from_numpy(np.array(rows.inputs)).reshape(len(labels), -1).float() / 255, labels


def run(protocol: Protocol, train: Rows, test: Rows) -> Iterator[float]:
    """Yield the global model's accuracy on the test examples after each round."""
    (x, y), (test_x, test_y) = scale_pixels(train), scale_pixels(test)
    clients = partition_by_class(y.numpy())
    rule, layouts = build_rule(protocol.rule), create_layouts(x.shape[1], protocol.base)
    mean = strategies.build("fedit")
    state = create_start(x.shape[1], protocol.seed)
    for round_number in range(1, protocol.rounds + 1):
        updates: list[list[Update]] = [[] for _ in layouts]
        for client, examples in enumerate(clients):
            forms = [get_form(layout, client + 1, protocol) for layout in layouts]
            received = [
                rule.dispatch({name: state[name] for name in layout.names}, layout, form, round_number)
                for layout, form in zip(layouts, forms, strict=True)
            ]
            own = state | {name: tensor for sent in received for name, tensor in sent.items()}
            names = frozenset(name for sent in received for name in sent)
            draw = round_number * len(clients) + client
            after = train_client(own, names, x[examples], y[examples], protocol, draw)
            for into, form, sent in zip(updates, forms, received, strict=True):
                delta = subtract_states({name: after[name] for name in sent}, sent)
                into.append(Update(client, float(len(examples)), form, sent, delta))
        for layout, gathered in zip(layouts, updates, strict=True):
            before = {name: state[name] for name in layout.names}
            chosen = rule if layout.pairs else mean
            state |= run_round(chosen, before, layout, gathered, round_number, protocol.seed).state
        yield compute_accuracy(state, test_x, test_y)
