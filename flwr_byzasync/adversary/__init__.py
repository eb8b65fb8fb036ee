"""Byzantine nodes for tests and simulations: client mods, and a grid that rewrites replies."""

from flwr_byzasync.adversary.client_mods import attack_mod, delay_mod
from flwr_byzasync.adversary.omniscient_grid import OmniscientGrid

__all__ = ["OmniscientGrid", "attack_mod", "delay_mod"]
