"""Checkpoints of a run: what they hold, how it is encoded, and the files."""

from flwr_byzasync.checkpoints.files import Checkpoints

__all__ = ["Checkpoints"]
