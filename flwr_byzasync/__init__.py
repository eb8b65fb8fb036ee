"""Asynchronous, weighted, Byzantine-robust aggregation with μ²-SGD for Flower."""

from importlib.metadata import PackageNotFoundError, version

from flwr_byzasync.aggregators.byz_fraction import byz_fraction
from flwr_byzasync.client import Gradient, Query, client_app
from flwr_byzasync.core.layout import buffer_names
from flwr_byzasync.errors import ConfigError, Reason
from flwr_byzasync.server.early_stopping import EarlyStop
from flwr_byzasync.simulation.virtual_grid import VirtualGrid
from flwr_byzasync.strategy import AsyncRobust

try:
    __version__ = version("flwr-byzasync")
except PackageNotFoundError:  # inside a Flower app bundle, which is not installed
    __version__ = "0.1.0"

__all__ = [
    "AsyncRobust",
    "ConfigError",
    "EarlyStop",
    "Gradient",
    "Query",
    "Reason",
    "VirtualGrid",
    "buffer_names",
    "byz_fraction",
    "client_app",
]
