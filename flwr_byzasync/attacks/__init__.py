"""Byzantine attacks, one per file, for tests and simulations."""

from flwr_byzasync.attacks.attack import (
    ALONE,
    AttackInfo,
    Knowledge,
    LabelAttack,
    Needs,
    TimedAttack,
    VectorAttack,
    memory_of,
    needs_of,
    needs_rule,
)
from flwr_byzasync.attacks.empire import Empire
from flwr_byzasync.attacks.flood import Flood
from flwr_byzasync.attacks.gaussian import Gaussian
from flwr_byzasync.attacks.huge_norm import HugeNorm
from flwr_byzasync.attacks.label_flip import LabelFlip
from flwr_byzasync.attacks.little import Little
from flwr_byzasync.attacks.mimic import Mimic
from flwr_byzasync.attacks.min_max import MinMax, MinSum
from flwr_byzasync.attacks.non_finite import Infinite, NotANumber
from flwr_byzasync.attacks.one_coordinate import OneCoordinate
from flwr_byzasync.attacks.random_direction import RandomDirection
from flwr_byzasync.attacks.registry import build, discover
from flwr_byzasync.attacks.sign_flip import SignFlip
from flwr_byzasync.attacks.sleeper import Sleeper
from flwr_byzasync.attacks.slow_down import SlowDown
from flwr_byzasync.attacks.stale_replay import StaleReplay
from flwr_byzasync.attacks.zero import Zero

ALIE, IPM = Little, Empire  # the names that they have in most papers

__all__ = [
    "ALIE",
    "ALONE",
    "IPM",
    "AttackInfo",
    "Empire",
    "Flood",
    "Gaussian",
    "HugeNorm",
    "Infinite",
    "Knowledge",
    "LabelAttack",
    "LabelFlip",
    "Little",
    "Mimic",
    "MinMax",
    "MinSum",
    "Needs",
    "NotANumber",
    "OneCoordinate",
    "RandomDirection",
    "SignFlip",
    "Sleeper",
    "SlowDown",
    "StaleReplay",
    "TimedAttack",
    "VectorAttack",
    "Zero",
    "build",
    "discover",
    "memory_of",
    "needs_of",
    "needs_rule",
]
