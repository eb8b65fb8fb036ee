"""ClientApps in this process on a virtual clock, the same bits every time."""

from flwr_byzasync.simulation.arrivals import ArrivalProcess, PaperArrivals
from flwr_byzasync.simulation.federation import Churn, VirtualNode
from flwr_byzasync.simulation.virtual_grid import VirtualGrid

__all__ = ["ArrivalProcess", "Churn", "PaperArrivals", "VirtualGrid", "VirtualNode"]
