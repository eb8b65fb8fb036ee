"""Asynchronous, weighted, Byzantine-robust aggregation with μ²-SGD for Flower."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from flwr_byzasync.aggregators.byz_fraction import byz_fraction
from flwr_byzasync.checkpoints import Checkpoints
from flwr_byzasync.client import Gradient, Query, client_app
from flwr_byzasync.core.contribution import (
    CorrectedGradients,
    Gradients,
    Models,
    Momenta,
    Payload,
)
from flwr_byzasync.core.layout import buffer_names
from flwr_byzasync.core.policy import Liveness, Quorum
from flwr_byzasync.core.statistics import Statistics
from flwr_byzasync.errors import ConfigError, Reason
from flwr_byzasync.presets import momentum_sgd, mu2_sgd
from flwr_byzasync.server.early_stopping import EarlyStop
from flwr_byzasync.server.metrics_aggregation import mean_metrics
from flwr_byzasync.strategy import AsyncRobust

if TYPE_CHECKING:
    from flwr_byzasync.simulation import VirtualGrid

try:
    __version__ = version("flwr-byzasync")
except PackageNotFoundError:  # inside a Flower app bundle, which is not installed
    __version__ = "0.1.0"

__all__ = [
    "AsyncRobust",
    "Checkpoints",
    "ConfigError",
    "CorrectedGradients",
    "EarlyStop",
    "Gradient",
    "Gradients",
    "Liveness",
    "Models",
    "Momenta",
    "Payload",
    "Query",
    "Quorum",
    "Reason",
    "Statistics",
    "VirtualGrid",
    "buffer_names",
    "byz_fraction",
    "client_app",
    "mean_metrics",
    "momentum_sgd",
    "mu2_sgd",
]


def __getattr__(name: str) -> Any:
    # A deployment needs neither the simulator nor the attacks that it knows.
    if name == "VirtualGrid":
        from flwr_byzasync.simulation import VirtualGrid

        return VirtualGrid
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
