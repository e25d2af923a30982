"""The FlowerTune template's procedure in Flower's own simulation.

In each call, a client loads the base again, trains on the examples that seed 42 selects first, always the same ones,
and sends each tensor in fp32. The server loads the base once more for each adapter that it saves. This file follows the
template's procedure without trl and bitsandbytes: a plain AdamW loop, and the base in bf16.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from experiments.flowertune.settings import Settings
from experiments.speed.flower import QUIET
from fedpeft.communication.flower_grid import FIRST_CLIENT, OwnGrid, get_node_id

FIRST = 42
"""The seed of every call's sampling and of the partition."""


def load_adapted(model: str, rank: int) -> Any:
    """Load the base again and attach LoRA with the template's settings."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from fedpeft.models.base_model import resolve_model

    base = AutoModelForCausalLM.from_pretrained(resolve_model(model), dtype=torch.bfloat16, trust_remote_code=False)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.075, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    made = get_peft_model(base, config)
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return made


def tokenize_rows(file: str, model: str, clients: int, tokens: int) -> Any:
    """Return all examples as tokens of the template's prompts, and their owners."""
    from fedpeft.data.rows import load_dataset
    from fedpeft.models.base_model import resolve_model
    from fedpeft.parts.families import TASKS

    dataset = load_dataset(f"flowertune(name={file!r}, clients={clients}, test={file!r})")
    return TASKS.build(dataset.task).tokenise(dataset.train, resolve_model(model), tokens), dataset.train.owners


client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train one client in a Ray actor."""
    return train_client(message, int(context.node_config["partition-id"]))


def train_client(message: Message, client: int) -> Message:
    """Train one client for a round."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    torch.set_num_threads(1)
    given: Any = message.content["config"]
    examples, owners = tokenize_rows(given["rows"], given["model"], given["clients"], given["tokens"])
    own = (owners == client).nonzero()[0]
    model = load_adapted(given["model"], given["rank"])
    received: Any = message.content["arrays"]
    set_peft_model_state_dict(model, received.to_torch_state_dict())
    order = torch.randperm(len(own), generator=torch.Generator().manual_seed(FIRST)).tolist()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], given["rate"], weight_decay=0.0)
    torch.manual_seed(FIRST)
    model.train()
    total, size = 0.0, given["batch"]
    used: set[int] = set()
    for step in range(given["steps"]):
        rows = [own[order[i % len(own)]] for i in range(step * size, (step + 1) * size)]
        used.update(map(int, rows))
        optimizer.zero_grad()
        loss = model(**examples.batch(rows), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += float(loss.detach())
    metrics = {"train_loss": total / given["steps"], "num-examples": len(own), "used": len(used)}
    content = {"arrays": ArrayRecord(get_peft_model_state_dict(model)), "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)  # type: ignore[arg-type]


@client_app.query()
def which(message: Message, context: Context) -> Message:
    """Return a reply with the client number of a node."""
    found = MetricRecord({"client": int(context.node_config["partition-id"])})
    return Message(RecordDict({"is": found}), reply_to=message)


def sort_nodes(grid: Grid, clients: int) -> list[int]:
    """Return the nodes by client, since Flower gives them new, unordered ids in each simulation."""
    while len(nodes := list(grid.get_node_ids())) < clients:
        time.sleep(0.1)
    asked = [Message(RecordDict(), dst_node_id=node, message_type="query") for node in nodes]
    found = {int(r.content["is"]["client"]): r.metadata.src_node_id for r in grid.send_and_receive(asked)}  # type: ignore[arg-type]
    return [found[client] for client in range(clients)]


class SequentialGrid(OwnGrid):
    """A grid that trains clients one after another in this process, for machines on which Ray does not start."""

    def __init__(self, clients: int) -> None:
        """Prepare a grid of this many clients without replies."""
        super().__init__()
        self._clients = clients
        self._replies: list[Message] = []

    def get_node_ids(self) -> Iterable[int]:
        """Return one node per client."""
        return [get_node_id(client) for client in range(self._clients)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Train the clients that the messages address, and keep their replies."""
        asked = list(messages)
        identifiers = [self._stamp(message) for message in asked]
        self._replies += [train_client(message, message.metadata.dst_node_id - FIRST_CLIENT) for message in asked]
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return all replies."""
        replies, self._replies = self._replies, []
        return replies


def create_messages(
    strategy: FedAvg, seed: int, number: int, arrays: ArrayRecord, given: ConfigRecord, grid: Grid
) -> list[Message]:
    """Create the messages of a round, with a fresh random state for seed and round.

    Flower draws its nodes from Python's global generator, which other code in this process uses too.
    """
    random.seed(f"{seed} {number}")
    return list(strategy.configure_train(number, arrays, given, grid))


def run_federation(grid: Grid, settings: Settings, seed: int, rows: Path, folder: Path) -> dict[str, Any]:
    """Run the template's server, and return its traffic, loads and trained examples.

    The adapter is in `folder`/peft.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    torch.manual_seed(seed)
    seen: dict[int, int] = {}
    traffic = 0
    arrays = ArrayRecord(get_peft_model_state_dict(load_adapted(settings.model, settings.rank)))
    loads = 0
    strategy = FedAvg(fraction_train=2 / settings.clients, fraction_evaluate=0.0)
    for number in range(1, settings.rounds + 1):
        messages = create_messages(strategy, seed, number, arrays, _create_config(settings, number, rows), grid)
        replies = list(grid.send_and_receive(messages))
        if failed := [reply.error for reply in replies if reply.has_error()]:
            raise RuntimeError(f"a client has failed: {failed[0]}")
        for message in (*messages, *replies):
            traffic += sum(record.count_bytes() for record in message.content.array_records.values())
        for reply in replies:
            metrics: Any = reply.content["metrics"]
            seen[reply.metadata.src_node_id] = int(metrics["used"])
        loads += len(replies)
        after, _ = strategy.aggregate_train(number, replies)
        assert after is not None, "all have answered"
        arrays = after
    model = load_adapted(settings.model, settings.rank)
    set_peft_model_state_dict(model, arrays.to_torch_state_dict())
    model.save_pretrained(folder / "peft")
    return {"worker_loads": loads, "server_loads": 2, "traffic": traffic, "distinct_rows": sum(seen.values())}


def _create_config(settings: Settings, number: int, rows: Path) -> ConfigRecord:
    share = 0.5 * (1 + math.cos(math.pi * number / settings.rounds))
    return ConfigRecord(
        {
            "rows": str(rows),
            "model": settings.model,
            "clients": settings.clients,
            "tokens": settings.tokens,
            "rank": settings.rank,
            "rate": settings.learning_rate * (0.02 + 0.98 * share),
            "batch": settings.batch,
            "steps": settings.steps,
        }
    )


def run(settings: Settings, seed: int, rows: Path, folder: Path) -> dict[str, Any]:
    """Run the template in Flower's simulation, or without Ray (`run_federation`)."""
    if not settings.ray:
        return run_federation(SequentialGrid(settings.clients), settings, seed, rows, folder)
    os.environ.update(QUIET)
    found: dict[str, Any] = {}
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        nodes = sort_nodes(grid, settings.clients)
        grid.get_node_ids = lambda: nodes  # type: ignore[method-assign]
        found.update(run_federation(grid, settings, seed, rows, folder))

    ray: dict[str, Any] = {"num_cpus": settings.workers, "log_to_driver": False, "address": "local"}
    backend: Any = {"client_resources": {"num_cpus": 1}, "init_args": ray}
    run_simulation(server_app, client_app, settings.clients, backend_config=backend)
    return found
