"""The reference app, server and nodes, on a virtual clock."""

import json
import tomllib
from pathlib import Path
from typing import Any

from apps.train import client_app, server_app
from flwr_byzasync import VirtualGrid
from flwr_byzasync.simulation import ArrivalProcess

ROOT = Path(__file__).parents[2]


def defaults() -> dict[str, Any]:
    """Return the run-config of pyproject.toml."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return dict(tomllib.load(file)["tool"]["flwr"]["app"]["config"])


def run_app(
    folder: Path, nodes: Any, arrivals: ArrivalProcess | None = None, **changes: Any
) -> dict[str, Any]:
    """Run the app as `flwr run` would and return its result.json."""
    changed = {key.replace("_", "-"): value for key, value in changes.items()}
    config = {**defaults(), "device": "cpu", **changed, "output-dir": str(folder)}
    with VirtualGrid(client_app.app, nodes, run_config=config, arrivals=arrivals) as grid:
        server_app.app(grid=grid, context=grid.context())
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result
