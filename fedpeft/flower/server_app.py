"""The server half of the Flower app: `flwr run .` runs fedpeft's rounds on Flower's grid."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from fedpeft.deployment.compared_parts import WHOLE_RUN, told_parts
from fedpeft.flower.grid import FlowerGrid
from fedpeft.flower.settings import config_of
from fedpeft.run.summary import show
from fedpeft.simulate import simulate

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One federation; its files are in the folder that the run config calls `output`."""
    config = config_of(context.run_config)
    parts = told_parts(config, WHOLE_RUN)
    folder = Path(str(context.run_config["output"])) / f"flower-{context.run_id}"
    nodes = int(context.run_config["nodes"])
    console = Console()
    summary = simulate(config, folder, False, console, grid=lambda clients: FlowerGrid(grid, clients, nodes, parts))
    show(summary, folder, console)
