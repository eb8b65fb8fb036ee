"""FedAvg, FedMedian and AsyncRobust in three apps that were written for FedAvg.

Final accuracy, on the server's own examples, of `apps/dropin_torch`, `dropin_sklearn` and
`dropin_numpy`, each run through its own ServerApp and ClientApp on a virtual clock: ten nodes
whose replies take half a second to two. None of them lie, or four send the opposite of their
update, three times as long. Every strategy gets the same number of replies.
"""

import argparse
import contextlib
import io
import logging
import re
import statistics
import sys
import tomllib
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from threadpoolctl import threadpool_limits

from apps.benchmarks.local_flower import REPOSITORY
from flwr_byzasync import VirtualGrid
from flwr_byzasync.errors import check_integer
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
    given = {key.replace("_", "-"): value for key, value in changes.items()}
    config |= {"strategy": strategy, "byzantine-nodes": liars, "seed": seed, **given}
    printed, nodes = io.StringIO(), [VirtualNode(compute=compute)] * NODES
    with (
        VirtualGrid(client, nodes, run_config=config, seed=seed) as grid,
        warnings.catch_warnings(),
        threadpool_limits(1),
        contextlib.redirect_stdout(printed),
    ):
        # Where FedAvg is ruined, numbers overflow.
        warnings.simplefilter("ignore")
        server(grid=grid, context=grid.context())
    return printed.getvalue()


def accuracies(printed: str) -> list[float]:
    """Return the server's own accuracy at the start and after each round, from a printed Result."""
    told = printed[printed.index("ServerApp-side Evaluate Metrics") :]
    return [float(number) for number in re.findall(r"'accuracy': '([^']+)'", told)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="SEED")
    parser.add_argument("--rounds", type=int, default=20, help="of ten replies each")


def main(options: argparse.Namespace) -> None:
    """Run all apps with all strategies and print a Markdown table."""
    check_integer("rounds", options.rounds, low=1, fix="pass for example --rounds 20")
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    print(f"| app | liars of {NODES} | {' | '.join(STRATEGIES.values())} |")
    print("|---|---" + "|---" * len(STRATEGIES) + "|")
    for name in APPS:
        for liars in (0, LIARS):
            cells = [_cell(name, key, liars, options) for key in STRATEGIES]
            print(f"| `{name}` | {liars} | {' | '.join(cells)} |", flush=True)


def _cell(name: str, strategy: str, liars: int, options: argparse.Namespace) -> str:
    """Return the mean of the final accuracies, and each."""
    final = [
        accuracies(run(name, strategy, liars, seed, num_server_rounds=options.rounds))[-1]
        for seed in options.seeds
    ]
    return f"{statistics.mean(final):.3f} ({', '.join(f'{one:.3f}' for one in final)})"
