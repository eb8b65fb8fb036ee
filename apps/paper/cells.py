"""One cell of a figure: all settings of one run."""

import hashlib
import json
from dataclasses import asdict, dataclass
from types import MappingProxyType

import torch

from apps.train import tasks
from apps.train.settings import check_batch_size
from apps.train.tasks import partitions
from flwr_byzasync import ConfigError, aggregators, attacks, estimators
from flwr_byzasync._checks import check_byz_fraction, check_choice, check_integer, check_number
from flwr_byzasync.attacks import TimedAttack, VectorAttack
from flwr_byzasync.simulation.arrivals import POWERS

NO_ATTACK = "none"
SHARED = "shared"
ADDED_FIELDS = MappingProxyType({"partition": SHARED, "told": -1.0})
"""Fields added later, with their defaults. A cell that has the defaults keeps its older name."""
ARRIVALS = {"paper": "code", "faithful": "faithful"}
"""``--arrivals`` -> `turns` of `PaperArrivals`."""


@dataclass(frozen=True)
class Cell:
    """One run. The defaults are the paper's settings of figure 2.

    Parameters
    ----------
    figure : str
        The figure that it belongs to.
    dataset, model : str
        A task of ``apps/train/tasks`` and one of its models.
    rule, attack, optimizer : str
        As in a run-config: ``"ctma(cwmed)"``, ``"sign_flip"``, ``"mu2"``.
    byz_fraction : float
        λ: the Byzantine share of the arrivals, also passed to the rule.
    nodes, byzantine : int
        All nodes; the Byzantine ones among them.
    within : {"id2", "id", "uniform"}
        How often each node of a group replies.
    arrivals : {"paper", "faithful"}
        "paper": as the published code; "faithful": the true share λ.
    seed : int
        Of arrivals, batches and initial values; with one seed all rules get the same arrivals.
    batch_size, replies, evaluate_every : int
        Examples per gradient; accepted replies; replies between evaluations.
    lr, beta, gamma : float
        η; β, or -1 for the optimizer's own (0.25 for μ², 0.9 for momentum); γ.
    partition : str
        "shared": all nodes draw batches from one stream, as in the paper; "iid" or
        "dirichlet(ALPHA)": each node draws from its own examples.
    told : float
        The λ passed to the rule, or -1 for `byz_fraction`.

    Raises
    ------
    ConfigError
        If a setting is out of range.
    """

    figure: str
    dataset: str
    rule: str
    attack: str
    optimizer: str
    byz_fraction: float
    seed: int
    nodes: int = 17
    byzantine: int = 8
    within: str = "id2"
    arrivals: str = "paper"
    model: str = "cnn"
    batch_size: int = 16
    replies: int = 3750
    evaluate_every: int = 250
    lr: float = 0.01
    beta: float = -1.0
    gamma: float = 0.1
    partition: str = SHARED
    told: float = -1.0

    def __post_init__(self) -> None:
        known = tasks.discover()
        check_choice("dataset", self.dataset, known, fix="pass for example 'fashion-mnist'")
        models = known[self.dataset].models
        check_choice("model", self.model, models, fix=f"pass for example {next(iter(models))!r}")
        check_byz_fraction("byz_fraction", self.byz_fraction)
        aggregators.build(self.rule, self.rule_fraction)
        if self.attack != NO_ATTACK:
            _check_attack(self.attack)
        estimators.build(self.optimizer, self.chosen_beta)
        for name in ("nodes", "batch_size", "replies", "evaluate_every"):
            check_integer(name, getattr(self, name), low=1, fix=f"pass for example {name}=16")
        if self.replies % self.evaluate_every:
            legal, fix = "a divisor of replies", "pass for example replies=3750 evaluate_every=250"
            raise ConfigError("evaluate_every", self.evaluate_every, legal, fix)
        if self.evaluate_every <= self.nodes:
            legal = f"more than the {self.nodes} nodes: the first step needs a reply of each"
            raise ConfigError("evaluate_every", self.evaluate_every, legal, "evaluate less often")
        check_batch_size(self.dataset, self.model, self.batch_size, self.seed)
        check_integer("seed", self.seed, low=0, high=2**32 - 1, fix="pass for example 1")
        fix = "pass fewer, or more nodes"
        check_integer("byzantine", self.byzantine, low=0, high=self.nodes, fix=fix)
        if self.byzantine == self.nodes:
            raise ConfigError("byzantine", self.byzantine, "fewer than nodes", fix)
        if self.partition != SHARED:
            partitions.build(self.partition)
        check_choice("within", self.within, POWERS, fix="pass for example 'id2'")
        check_choice("arrivals", self.arrivals, ARRIVALS, fix="pass 'paper' or 'faithful'")
        check_number("lr", self.lr, low=0, closed="neither", fix="pass for example lr=0.01")
        fix = "pass for example gamma=0.1"
        check_number("gamma", self.gamma, low=0, high=1, closed="right", fix=fix)

    @property
    def chosen_beta(self) -> float | None:
        """β, or None for the optimizer's own."""
        return None if self.beta == -1.0 else self.beta

    @property
    def rule_fraction(self) -> float:
        """The λ passed to the rule."""
        return self.byz_fraction if self.told == -1.0 else self.told

    @property
    def name(self) -> str:
        """Hash of all settings, which identifies a finished cell."""
        items = asdict(self).items()
        settings = {key: value for key, value in items if ADDED_FIELDS.get(key) != value}
        text = json.dumps(settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _check_attack(text: str) -> None:
    """Reject attacks that have no effect here, or that prevent the first step."""
    attack = attacks.build(text)
    fix = "pass for example sign_flip"
    if isinstance(attack, TimedAttack):
        legal = "an attack on vectors or labels: the arrivals leave no time to attack"
        raise ConfigError("attack", text, legal, fix)
    if isinstance(attack, VectorAttack) and not attack.craft(torch.ones(1)).isfinite().all():
        legal = "an attack whose replies are accepted: the first step needs a reply of each node"
        raise ConfigError("attack", text, legal, fix)
