"""FedAvg, FedMedian and AsyncRobust in three apps written for FedAvg.

Final accuracy on the server's held-out examples of `apps/dropin_torch`, `dropin_sklearn` and
`dropin_numpy`, each run through its own ServerApp and ClientApp on a virtual clock: ten nodes that
reply within 0.5 to 2 seconds. None are Byzantine, or four send their update times -3. All
strategies get the same number of replies.
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
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from threadpoolctl import threadpool_limits

from apps.benchmarks.local_flower import REPOSITORY
from flwr_byzasync import AsyncRobust, Models, VirtualGrid
from flwr_byzasync._checks import check_integer
from flwr_byzasync.aggregators import CTMA, NNM, CoordinateWiseMedian, Mean
from flwr_byzasync.optimizers import SGD
from flwr_byzasync.simulation import VirtualNode

APPS = ("dropin_torch", "dropin_sklearn", "dropin_numpy")
STRATEGIES = {"fedavg": "FedAvg", "fedmedian": "FedMedian", "async": "AsyncRobust"}
NODES, BYZANTINE = 10, 4
SHARES = (0.15, 0.25, 0.45)
"""Values of λ for the rules."""
STEPS = ((2.0, 0.5), (1.0, 0.5), (4.0, 0.5), (1.0, 0.0), (0.5, 0.0))
"""Pairs of a step size, in 1/m per reply, and a `delay_compensation`."""


def folder_of(name: str) -> Path:
    """Return the folder of an app."""
    return REPOSITORY / "apps" / name


def load(name: str) -> tuple[ServerApp, ClientApp, dict[str, Any]]:
    """Import an app as Flower does, with its folder on the path; return it with its run-config."""
    folder = str(folder_of(name))
    if folder not in sys.path:
        sys.path.insert(0, folder)
    with (folder_of(name) / "pyproject.toml").open("rb") as file:
        config = tomllib.load(file)["tool"]["flwr"]["app"]["config"]
    server, client = (import_module(f"{name}.{part}_app").app for part in ("server", "client"))
    return server, client, dict(config)


def compute(rng: np.random.Generator) -> float:
    """Return the seconds of one reply."""
    return float(rng.uniform(0.5, 2.0))


def run(
    name: str,
    strategy: str,
    byzantine: int,
    seed: int,
    settings: Mapping[str, Any] | None = None,
    **changes: Any,
) -> str:
    """Run an app and return its output; `settings` are more arguments for AsyncRobust."""
    server, client, config = load(name)
    configured = partial(AsyncRobust, **(settings or {}))
    config |= {"strategy": strategy, "byzantine-nodes": byzantine, "seed": seed}
    config |= {key.replace("_", "-"): value for key, value in changes.items()}
    printed, nodes = io.StringIO(), [VirtualNode(compute=compute)] * NODES
    with (
        VirtualGrid(client, nodes, run_config=config, seed=seed) as grid,
        mock.patch.object(sys.modules[f"{name}.server_app"], "AsyncRobust", configured),
        warnings.catch_warnings(),
        threadpool_limits(1),
        contextlib.redirect_stdout(printed),
    ):
        # FedAvg overflows under attack.
        warnings.simplefilter("ignore")
        server(grid=grid, context=grid.context())
    return printed.getvalue()


def accuracies(printed: str) -> list[float]:
    """Return the server-side accuracy at the start and after each round, from a printed Result."""
    metrics = printed[printed.rindex("ServerApp-side Evaluate Metrics") :]
    return [float(number) for number in re.findall(r"'accuracy': '([^']+)'", metrics)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="SEED")
    parser.add_argument("--rounds", type=int, default=20, help="of ten replies each")


def main(options: argparse.Namespace) -> None:
    """Run all apps with all strategies and print a Markdown table."""
    check_integer("rounds", options.rounds, low=1, fix="pass for example --rounds 20")
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    columns: dict[str, tuple[str, dict[str, Any]]] = {
        label: (key, {}) for key, label in STRATEGIES.items()
    }
    _table(columns, options)
    print("\nAsyncRobust by its rule; the last is the default.\n")
    median = CoordinateWiseMedian()
    rules = {"mean": Mean(), f"nnm(cwmed), {SHARES[-1]:g}": NNM(median, SHARES[-1])}
    rules |= {f"ctma(cwmed), {share:g}": CTMA(median, share) for share in SHARES}
    _table({label: ("async", {"aggregator": rule}) for label, rule in rules.items()}, options)
    print("\nAsyncRobust by its step and delay_compensation; first the default.\n")
    steps = {f"{lr:g}/m, {share:g}": (SGD(lr, per_node=True), share) for lr, share in STEPS}
    steps |= {"1, 1": (SGD(1.0), 1.0), "1, 0": (SGD(1.0), 0.0)}
    settings = {
        label: {"payload": Models(delay_compensation=share), "optimizer": sgd}
        for label, (sgd, share) in steps.items()
    }
    _table({label: ("async", chosen) for label, chosen in settings.items()}, options)


def _table(
    columns: Mapping[str, tuple[str, Mapping[str, Any]]], options: argparse.Namespace
) -> None:
    """Print the accuracy of each app, with and without liars, by strategy and settings."""
    print(f"| app | liars of {NODES} | {' | '.join(columns)} |")
    print("|---|---" + "|---" * len(columns) + "|")
    for name in APPS:
        for byzantine in (0, BYZANTINE):
            cells = [_cell(name, key, byzantine, more, options) for key, more in columns.values()]
            print(f"| `{name}` | {byzantine} | {' | '.join(cells)} |", flush=True)


def _cell(
    name: str,
    strategy: str,
    byzantine: int,
    settings: Mapping[str, Any],
    options: argparse.Namespace,
) -> str:
    """Return the mean final accuracy, and that of each seed."""
    final = []
    for seed in options.seeds:
        try:
            printed = run(
                name, strategy, byzantine, seed, settings, num_server_rounds=options.rounds
            )
        except ValueError:  # scikit-learn rejects infinite coefficients
            return "diverges"
        final.append(accuracies(printed)[-1])
    return f"{statistics.mean(final):.3f} ({', '.join(f'{one:.3f}' for one in final)})"
