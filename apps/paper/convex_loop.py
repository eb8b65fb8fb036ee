"""One run of the convex check: a plain loop over the package's lower floor, without Flower.

Ten nodes, four of them Byzantine with 40 % of the replies. A node always has one query in
flight: it answers the point that it was last sent, so a vector is as stale as its node is slow.
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
"""Radius of the ball that iterates stay in, in units of the distance from start to solution."""
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
    """An optimizer as the paper compares them: a node's half, the server's, what is reported.

    Parameters
    ----------
    estimator : callable
        Makes the node's half.
    anytime : bool
        AnyTime-SGD in the theory's schedule, else plain SGD on the server.
    averaged : bool
        Report the average of the iterates weighted by t instead of the last one.
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
class Cell:
    """One run: everything that its result depends on.

    Parameters
    ----------
    horizon : int
        T, server steps.
    step : float
        c. SGD on the server has η = c/L. AnyTime-SGD has η = c/(L T), as the theory asks, so
        that its last step η α_T is c/L too.
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

    First each node once, the honest ones (``0 .. HONEST − 1``) first; then every reply whose
    turn it is by the share BYZ_FRACTION comes from a Byzantine node, so that these hold at most
    that share at any time. Within its group a node comes with probability ∝ its rank.
    """
    yield from range(min(count, NODES))
    # One generator a group, so that a shorter run sees the first arrivals of a longer one.
    drawn = []
    for first, size in ((0, HONEST), (HONEST, NODES - HONEST)):
        ranks = np.arange(1, size + 1)
        rng = np.random.default_rng([seed, first])
        drawn.append(iter(first + rng.choice(size, size=count, p=ranks / ranks.sum())))
    for turn in range(NODES, count):
        lies = math.floor(BYZ_FRACTION * (turn + 1)) > math.floor(BYZ_FRACTION * turn)
        yield int(next(drawn[lies]))


def batch_generator(seed: int, node: int, reply: int) -> torch.Generator:
    """Return the generator of a node's batch for one reply."""
    mixed = np.random.SeedSequence([seed, node, reply]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0] >> np.uint64(1)))


def checkpoints(horizon: int) -> list[int]:
    """Return the steps that are evaluated: evenly on the logarithmic scale, the last included."""
    octaves = math.log2(horizon)
    exponents = np.linspace(0.0, octaves, round(octaves * POINTS_PER_OCTAVE) + 1)
    return sorted({round(float(2.0**e)) for e in exponents})


def run(cell: Cell) -> Trajectory:
    """Return (t, excess loss) at the checkpoints of one run.

    Everything is drawn from generators seeded by (seed, node, reply), so a cell has one result;
    runs with one seed see the same arrivals and batches.
    """
    made, arm, attack = problem(cell.problem), ARMS[cell.optimizer], ATTACKS[cell.attack]()
    estimator, optimizer = arm.estimator(), _server(cell, made, arm)
    start = torch.zeros_like(made.solution)
    table: Table[object] = Table(
        build(cell.rule, BYZ_FRACTION), len(start), start.dtype, start.device
    )
    iterates, average = optimizer.init(start), start
    queries, counts = [start] * NODES, [0] * NODES
    memories: list[Memory] = [estimator.init() for _ in range(NODES)]
    wanted, result = set(checkpoints(cell.horizon)), []
    for node in arrivals(cell.seed, cell.horizon + NODES - 1):
        gradient = made.draw(batch_generator(cell.seed, node, counts[node]))
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
            if iterates.step in wanted:
                reported = average if arm.averaged else iterates.x
                result.append((iterates.step, made.excess(reported)))
        queries[node] = iterates.x
    return result


def _server(cell: Cell, made: Problem, arm: Arm) -> Optimizer:
    radius = RADIUS * float(torch.linalg.vector_norm(made.solution))
    lr = cell.step / made.smoothness
    if arm.anytime:
        return AnyTimeSGD(lr=lr / cell.horizon, schedule="theory", radius=radius)
    return SGD(lr=lr, radius=radius)


def _knowledge(table: Table[object], counts: list[int], seed: int, node: int) -> Knowledge:
    """Everything: honest nodes have the first rows, because they came first."""
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
    """Return the mean excess over the last octave of t: what a step size is chosen by."""
    horizon = trajectory[-1][0]
    return float(np.mean([excess for t, excess in trajectory if 2 * t > horizon]))


def best_steps(grid: Mapping[Cell, Trajectory]) -> list[Cell]:
    """Return, of the cells that differ only by the step size, the one of lowest `score`."""
    best: dict[Cell, Cell] = {}
    for cell, trajectory in grid.items():
        key = replace(cell, step=0.0)
        if key not in best or score(trajectory) < score(grid[best[key]]):
            best[key] = cell
    return list(best.values())
