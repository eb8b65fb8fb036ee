"""Honest nodes pull the model to 1, with a buffer and a counter; a client mod attacks on node 0."""

import torch
from flwr.app import Context

from flwr_byzasync import Gradient, Query, client_app
from flwr_byzasync.adversary import attack_mod
from flwr_byzasync.attacks import SignFlip
from flwr_byzasync.estimators import mu2


def gradient(query: Query) -> Gradient:
    """Return the gradient of ‖w − 1‖²/2 with a little noise."""
    noise = 0.01 * torch.randn(3, generator=query.generator)
    buffers = {"mean": query.buffers["mean"] + 0.5, "batches": query.buffers["batches"] + 1}
    w = query.parameters["w"]
    return Gradient({"w": w - 1.0 + noise}, buffers, {"loss": float((w - 1.0).square().sum()) / 2})


def attack(context: Context) -> SignFlip | None:
    """Return the attack of node 0."""
    return SignFlip() if context.node_config["partition-id"] == 0 else None


app = client_app(gradient, estimator=mu2(beta=0.25), mods=[attack_mod(attack)])
