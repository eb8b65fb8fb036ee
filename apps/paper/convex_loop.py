"""One run of the convex check: a plain loop over rules, estimators and optimizers, no Flower.

Ten nodes, four of them Byzantine with 40 % of the replies. Each node always has one query in
flight and replies for the point in it, so staleness follows from the node's speed.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from apps.paper.problems import Problem, problem
from flwr_byzasync.aggregators import build
from flwr_byzasync.attacks import Empire, Knowledge, Little, SignFlip, VectorAttack
from flwr_byzasync.core.table import Table
from flwr_byzasync.estimators import Estimator, Memory, momentum, mu2, sgd
from flwr_byzasync.optimizers import SGD, AnyTimeSGD, Optimizer

NODES, HONEST, BYZ_FRACTION = 10, 6, 0.4
RADIUS = 2.0
"""Radius of the feasible ball, in units of the distance from start to solution."""
POINTS_PER_OCTAVE = 8

Trajectory = list[tuple[int, float]]
"""Pairs of a step t and the excess loss there, t increasing."""

ATTACKS: dict[str, Callable[[], VectorAttack | None]] = {
    "none": lambda: None,
    "sign_flip": SignFlip,
    "sign_flip_x3": partial(SignFlip, 3.0),
    "empire": Empire,
    "little": Little,
}


@dataclass(frozen=True)
class Arm:
    """An optimizer of the paper's comparison: node's half, server's half, reported point.

    Parameters
    ----------
    estimator : callable
        Constructor of the node's half.
    anytime : bool
        AnyTime-SGD with the theory's schedule on the server, instead of plain SGD.
    averaged : bool
        Report the t-weighted average of the iterates, instead of the last.
    """

    estimator: Callable[[], Estimator]
    anytime: bool = False
    averaged: bool = False


ARMS: dict[str, Arm] = {
    "mu2": Arm(partial(mu2, None), anytime=True),
    "momentum": Arm(partial(momentum, 0.9)),
    "sgd": Arm(sgd),
    "sgd_average": Arm(sgd, averaged=True),
}


@dataclass(frozen=True)
class ConvexCell:
    """All settings of one run.

    Parameters
    ----------
    horizon : int
        T, server steps.
    step : float
        c. SGD on the server has η = c/L. AnyTime-SGD has η = c/(L T), as in the theory, so its
        last step η α_T is c/L as well.
    """

    problem: str
    attack: str
    optimizer: str
    rule: str
    seed: int
    horizon: int
    step: float


def arrivals(seed: int, count: int) -> Iterator[int]:
    """Yield the node of each reply.

    First each node once, honest nodes (``0 .. HONEST − 1``) before Byzantine ones. Then Byzantine
    replies are spaced so that their share never exceeds BYZ_FRACTION. Within its group a node
    replies with probability ∝ its rank.
    """
    yield from range(min(count, NODES))
    # One generator per group, so a shorter run has the first arrivals of a longer one.
    drawn = []
    for first, size in ((0, HONEST), (HONEST, NODES - HONEST)):
        ranks = np.arange(1, size + 1)
        rng = np.random.default_rng([seed, first])
        drawn.append(iter(first + rng.choice(size, size=count, p=ranks / ranks.sum())))
    for turn in range(NODES, count):
        byzantine = math.floor(BYZ_FRACTION * (turn + 1)) > math.floor(BYZ_FRACTION * turn)
        yield int(next(drawn[byzantine]))


def batch_generator(seed: int, node: int, reply: int) -> torch.Generator:
    """Return the generator of a node's batch for one reply."""
    mixed = np.random.SeedSequence([seed, node, reply]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0] >> np.uint64(1)))


def checkpoints(horizon: int) -> list[int]:
    """Return the evaluated steps: evenly spaced on a logarithmic scale, with the last."""
    octaves = math.log2(horizon)
    exponents = np.linspace(0.0, octaves, round(octaves * POINTS_PER_OCTAVE) + 1)
    return sorted({round(float(2.0**e)) for e in exponents})


def run(cell: ConvexCell) -> Trajectory:
    """Return (t, excess loss) at the checkpoints of one run.

    All randomness is seeded by (seed, node, reply), so a cell has one result, and runs with the
    same seed have the same arrivals and batches.
    """
    task, arm, attack = problem(cell.problem), ARMS[cell.optimizer], ATTACKS[cell.attack]()
    estimator, optimizer = arm.estimator(), _server(cell, task, arm)
    start = torch.zeros_like(task.solution)
    table: Table[object] = Table(
        build(cell.rule, BYZ_FRACTION), len(start), start.dtype, start.device
    )
    iterates, average = optimizer.init(start), start
    queries, counts = [start] * NODES, [0] * NODES
    memories: list[Memory] = [estimator.init() for _ in range(NODES)]
    evaluated, result = set(checkpoints(cell.horizon)), []
    for node in arrivals(cell.seed, cell.horizon + NODES - 1):
        gradient = task.draw(batch_generator(cell.seed, node, counts[node]))
        vector, memories[node] = estimator.update(
            memories[node], queries[node], gradient, counts[node]
        )
        if attack is not None and node >= HONEST:
            vector = attack.craft(vector, _knowledge(table, counts, cell.seed, node))
        table.replace(node, vector)
        counts[node] += 1
        if len(table) == NODES:
            iterates = optimizer.step(iterates, table.direction())
            average = torch.lerp(average, iterates.x, 2.0 / (iterates.step + 2))
            if iterates.step in evaluated:
                reported = average if arm.averaged else iterates.x
                result.append((iterates.step, task.excess(reported)))
        queries[node] = iterates.x
    return result


def _server(cell: ConvexCell, task: Problem, arm: Arm) -> Optimizer:
    radius = RADIUS * float(torch.linalg.vector_norm(task.solution))
    lr = cell.step / task.smoothness
    if arm.anytime:
        return AnyTimeSGD(lr=lr / cell.horizon, schedule="theory", radius=radius)
    return SGD(lr=lr, radius=radius)


def _knowledge(table: Table[object], counts: list[int], seed: int, node: int) -> Knowledge:
    """Return full knowledge: honest nodes hold the first rows, since they replied first."""
    view = table.view()
    return Knowledge(
        rows=view.rows[:HONEST],
        weights=view.weights[:HONEST],
        honest_weight=sum(counts[:HONEST]),
        byzantine_weight=sum(counts[HONEST:]) + 1,
        reply=counts[node],
        seed=seed * NODES + node,
    )


def score(trajectory: Trajectory) -> float:
    """Return the mean excess over the last octave of t, which tuning minimises."""
    horizon = trajectory[-1][0]
    return float(np.mean([excess for t, excess in trajectory if 2 * t > horizon]))


def best_steps(grid: Mapping[ConvexCell, Trajectory]) -> list[ConvexCell]:
    """Return, among cells that differ only in step size, the one with the lowest `score`."""
    best: dict[ConvexCell, ConvexCell] = {}
    for cell, trajectory in grid.items():
        key = replace(cell, step=0.0)
        if key not in best or score(trajectory) < score(grid[best[key]]):
            best[key] = cell
    return list(best.values())
