"""The server half of the Flower app: `flwr run .` runs fedpeft's rounds on Flower's grid."""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.markup import escape

from fedpeft.deployment.compared_parts import WHOLE_RUN, list_part_digests
from fedpeft.errors import FedpeftError
from fedpeft.flower.grid import FlowerGrid
from fedpeft.flower.settings import read_config, read_nodes
from fedpeft.machine.terminal import Console
from fedpeft.reporting.summary import show
from fedpeft.simulate import simulate

FLOWERS_LOGGER = "flwr"

app = ServerApp()


def _shorten_record(record: logging.LogRecord) -> bool:
    """Shorten a log record: an error that the user can fix shows its sentence in place of a traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, FedpeftError):
        record.msg, record.args, record.exc_info = "%s", (str(error),), None
    return True


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federation; its files are in the folder that the run config sets as `output`."""
    logging.getLogger(FLOWERS_LOGGER).addFilter(_shorten_record)
    config, nodes = read_config(context.run_config), read_nodes(context.run_config)
    parts = list_part_digests(config, WHOLE_RUN)
    folder = Path(str(context.run_config["output"])) / f"flower-{context.run_id}"
    console = Console()

    def create_grid(clients: int) -> FlowerGrid:
        return FlowerGrid(grid, clients, nodes, parts, lambda text: console.print(escape(text), soft_wrap=True))

    show(simulate(config, folder, False, console, grid=create_grid), folder, console)
