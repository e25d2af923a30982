"""Made-up cohorts: random global states and updates of clients with given ranks, alphas and weights.

They serve tests and measurements of strategies; nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fedpeft.aggregation.abilities import SelectsUpdate, choose_ranks
from fedpeft.aggregation.factors import move_ranks_to_front
from fedpeft.aggregation.strategy import Aggregate, LinearStrategy, RoundStrategy, Strategy
from fedpeft.aggregation.update import Fold, Update, check_made
from fedpeft.machine.seeds import create_torch_generator
from fedpeft.peft.adapter import AdapterShape, Layout, Role, State, TensorSpec


def create_lora_layout(
    shapes: Sequence[tuple[int, int]], form: AdapterShape, head: tuple[int, int] | None = None
) -> Layout:
    """Return LoRA layers `layer.0`, `layer.1`, .. of the given (out, in), and a head of (classes, features)."""
    specs: list[TensorSpec] = []
    for i, (out, in_) in enumerate(shapes):
        module = f"layer.{i}"
        specs.append(TensorSpec(f"{module}.lora_A.weight", (form.rank, in_), "lora_A", module))
        specs.append(TensorSpec(f"{module}.lora_B.weight", (out, form.rank), "lora_B", module))
    if head is not None:
        specs.append(TensorSpec("head.weight", head, "head", "head"))
        specs.append(TensorSpec("head.bias", head[:1], "head", "head"))
    return Layout(tuple(specs), form)


def create_random_state(layout: Layout, seed: int, dtype: torch.dtype = torch.float32) -> State:
    """Return a global state as in the middle of training.

    No tensor is zero, and factors have singular values of about 1.
    """
    generator = create_torch_generator(seed, "state")
    return {
        t.name: (torch.randn(t.shape, generator=generator, dtype=torch.float64) / _get_width(t) ** 0.5).to(dtype)
        for t in layout.tensors
    }


def _get_width(t: TensorSpec) -> int:
    axis: dict[Role, int] = {"lora_A": 1, "lora_B": 0}
    return t.shape[axis.get(t.role, -1)]


@dataclass(frozen=True)
class Client:
    """A made-up client: its LoRA shape and its weight before normalization."""

    form: AdapterShape
    weight: float = 1.0


def create_random_updates(
    strategy: Strategy,
    state: State,
    layout: Layout,
    clients: Sequence[Client],
    seed: int,
    round_number: int = 1,
    size: float = 0.5,
) -> list[Update]:
    """Return the clients' updates with random deltas, `size` times as large as the state's tensors."""
    updates = []
    trained = strategy.list_trained(layout, round_number)
    private = strategy.list_private(layout)
    for i, client in enumerate(clients):
        ranks = choose_ranks(strategy, layout, client.form, seed, round_number, i) if layout.pairs else ()
        received = strategy.dispatch(move_ranks_to_front(state, layout, ranks), layout, client.form, round_number)
        noise = create_random_state(
            layout.replace_form(client.form), seed * 10_000 + i, next(iter(state.values())).dtype
        )
        delta = {name: noise[name] * size for name in layout.names if name in trained - private}
        if isinstance(strategy, SelectsUpdate):
            after = received | {name: received[name] + noise[name] * size for name in trained}
            delta = strategy.select_update(delta, received, after, layout.replace_form(client.form))
        updates.append(Update(i, client.weight, client.form, received, delta, ranks=ranks))
    return updates


def run_round(
    strategy: Strategy, state: State, layout: Layout, updates: Sequence[Update], round_number: int = 1, seed: int = 0
) -> Aggregate:
    """Return the result of one round of any strategy, with plain addition as server optimizer."""
    ordered = sorted(updates, key=lambda update: update.client)
    if isinstance(strategy, RoundStrategy):
        return strategy.aggregate(
            state, layout, lambda names: [_select_tensors(u, names) for u in ordered], round_number, seed
        )
    if not isinstance(strategy, LinearStrategy):
        raise TypeError("a strategy must be a LinearStrategy or a RoundStrategy")
    total = Fold()
    trained = strategy.list_trained(layout, round_number) - strategy.list_private(layout)
    for update in ordered:
        strategy.fold(total, update, state, layout)
        check_made(strategy, total.sums, state, trained)
    step = strategy.pseudo_gradient(total, layout)
    stepped = {name: tensor + step[name] if name in step else tensor.clone() for name, tensor in state.items()}
    return Aggregate(strategy.finish(state, stepped, layout, round_number), {})


def _select_tensors(update: Update, names: Sequence[str]) -> Update:
    received = {name: update.received[name] for name in names}
    delta = {name: update.delta[name] for name in names if name in update.delta}
    return replace(update, received=received, delta=delta)
