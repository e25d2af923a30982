"""The client half of the Flower app: the worker of a simulation, behind Flower's messages.

A process loads the base model once and keeps it as long as Flower keeps the process: over all messages in Flower's
simulation, for one message at a stock SuperNode. The instruction names the client. The configured dataset is
partitioned here as it is on the server, from the same seed.

Heavy modules are imported on use. Flower's simulation loads this module in one thread while another loads the server
app, and `transformers` can't be imported by two threads at once.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

if TYPE_CHECKING:
    from fedpeft.reporting.workers import Workers
    from fedpeft.wiring.config import RunConfig

STATE = Path("~/.local/state/fedpeft/flower")
"""Folder of clients' own state between rounds, by run."""

app = ClientApp()


class _Silent:
    """An observer that shows nothing: nodes have no terminal."""

    def __getattr__(self, _: str) -> Any:
        return lambda *_args, **_kwargs: None


@functools.cache
def _get_workers(config: RunConfig, run: int) -> Workers:
    """Return the single worker of this configuration's simulation, with its activation cache computed."""
    from fedpeft.reporting.console import silence_libraries
    from fedpeft.simulation.simulation import Simulation
    from fedpeft.wiring.config import build_config

    silence_libraries()
    folder = STATE.expanduser() / str(run)
    folder.mkdir(parents=True, exist_ok=True)
    one = build_config({**vars(config), "workers": 1, "grid": "cohort"}, "the app's run config")
    workers = Simulation(one, folder, _Silent()).workers
    workers.freeze_rows()
    return workers


@app.query()
def prepare(message: Message, context: Context) -> Message:
    """Return the report with the statistics before round 1."""
    return _handle(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Return the report of a client's part in a round."""
    return _handle(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Return the report of a client's model on its own held-out examples."""
    return _handle(message, context)


def _handle(message: Message, context: Context) -> Message:
    from fedpeft.communication.flower_messages import read_instruction, write_record
    from fedpeft.communication.messages import Report
    from fedpeft.errors import FedpeftError
    from fedpeft.flower.parts import check_same_parts
    from fedpeft.flower.settings import read_config
    from fedpeft.parts import plugins

    asked = read_instruction(message)
    plugins.ignore_installed()
    try:
        check_same_parts(message.content, context.run_config)
        report = _get_workers(read_config(context.run_config), context.run_id).answer(asked)
    except FedpeftError as error:
        report = Report(asked.client, asked.round, b"", error=str(error))
    return Message(write_record(report), reply_to=message)
