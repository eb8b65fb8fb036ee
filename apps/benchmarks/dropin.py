"""FedAvg, FedMedian and AsyncRobust in three apps that were written for FedAvg.

Final accuracy on the server's own examples of `apps/dropin_torch`, `dropin_sklearn` and
`dropin_numpy`, each run through its own ServerApp and ClientApp on a virtual clock: ten nodes
whose replies take half a second to two, of which none lie, or four send the opposite of their
update, three times as long. Every strategy gets the same number of replies.
"""

import argparse
import contextlib
import io
import logging
import statistics
import sys
import tomllib
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from apps.benchmarks.local_flower import REPOSITORY
from flwr_byzasync import VirtualGrid
from flwr_byzasync.scene import VirtualNode

APPS = ("dropin_torch", "dropin_sklearn", "dropin_numpy")
STRATEGIES = {"fedavg": "FedAvg", "fedmedian": "FedMedian", "async": "AsyncRobust"}
NODES, LIARS = 10, 4


def folder_of(name: str) -> Path:
    """Return the folder of an app."""
    return REPOSITORY / "apps" / name


def load(name: str) -> tuple[ServerApp, ClientApp, dict[str, Any]]:
    """Import an app as Flower does, with its folder on the path; return its run-config too."""
    folder = str(folder_of(name))
    if folder not in sys.path:
        sys.path.insert(0, folder)
    with (folder_of(name) / "pyproject.toml").open("rb") as file:
        config = tomllib.load(file)["tool"]["flwr"]["app"]["config"]
    server, client = (import_module(f"{name}.{part}_app").app for part in ("server", "client"))
    return server, client, dict(config)


def compute(rng: np.random.Generator) -> float:
    """Return how long a reply takes."""
    return float(rng.uniform(0.5, 2.0))


def run(name: str, strategy: str, liars: int, seed: int, **changes: Any) -> str:
    """Run an app, and return what it prints."""
    server, client, config = load(name)
    given: Mapping[str, Any] = {key.replace("_", "-"): value for key, value in changes.items()}
    config |= {"strategy": strategy, "byzantine-nodes": liars, "seed": seed, **given}
    printed = io.StringIO()
    nodes = [VirtualNode(compute=compute)] * NODES
    with VirtualGrid(client, nodes, run_config=config, seed=seed) as grid:
        with contextlib.redirect_stdout(printed):
            server(grid=grid, context=grid.context())
    return printed.getvalue()
