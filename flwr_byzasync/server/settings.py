"""The settings of a strategy that both of its loops need: defaults, checks, and the endpoint."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord

from flwr_byzasync._checks import check_call, check_key, check_names, usable_device
from flwr_byzasync.aggregators import CTMA, Aggregator, CoordinateWiseMedian
from flwr_byzasync.core.contribution import PAYLOADS, Models, Momenta, Payload
from flwr_byzasync.core.layout import statistics_of
from flwr_byzasync.core.policy import Liveness, Policy, Quorum
from flwr_byzasync.core.state import initial_state
from flwr_byzasync.errors import ConfigError
from flwr_byzasync.optimizers import SGD, Optimizer
from flwr_byzasync.server.endpoint import Endpoint
from flwr_byzasync.server.evaluation import EvaluationSettings
from flwr_byzasync.server.metrics_aggregation import MetricsFn
from flwr_byzasync.weights import WeightPolicy, weight_policy
from flwr_byzasync.wire.arrays import tensors_of
from flwr_byzasync.wire.keys import BUFFERS, METRICS, PREVIOUS, MessageFormat


@dataclass(frozen=True)
class StrategySettings:
    """Checked settings of `AsyncRobust`.

    Parameters
    ----------
    aggregator, optimizer, weights, policy, device
        What `initial_state` takes.
    buffers : tuple of str
        Names of arrays that are not parameters, beside batch-norm statistics, which are detected.
    message_format : MessageFormat
        What messages look like.
    evaluation : EvaluationSettings
        Which nodes evaluate.
    train_metrics_aggr_fn : callable or None
        See `aggregate_metrics`.
    """

    aggregator: Aggregator
    optimizer: Optimizer
    weights: WeightPolicy
    policy: Policy
    device: torch.device
    buffers: tuple[str, ...]
    message_format: MessageFormat
    evaluation: EvaluationSettings
    train_metrics_aggr_fn: MetricsFn | None

    @classmethod
    def checked(
        cls,
        aggregator: Aggregator | None,
        optimizer: Optimizer | None,
        payload: Payload | None,
        weights: str | WeightPolicy | None,
        quorum: Quorum,
        liveness: Liveness,
        device: str | torch.device,
        buffers: Iterable[str] | None,
        record_keys: tuple[str, str],
        evaluate: tuple[float | None, int, MetricsFn | None],
        train_metrics_aggr_fn: MetricsFn | None,
    ) -> "StrategySettings":
        """Return the settings of `AsyncRobust`'s arguments, None replaced by defaults.

        Parameters
        ----------
        record_keys : tuple of str
            ``arrayrecord_key`` and ``configrecord_key``.
        evaluate : tuple
            ``fraction_evaluate``, ``min_evaluate_nodes`` and ``evaluate_metrics_aggr_fn``.

        Raises
        ------
        ConfigError
            If an argument is out of range.
        """
        if payload is None:
            payload = Models() if optimizer is None else Momenta()
        _check_payload(payload)
        drop_in = isinstance(payload, Models)
        if aggregator is None:
            aggregator = CTMA(CoordinateWiseMedian(), 0.45)
        if optimizer is None and drop_in:
            optimizer = SGD(lr=2.0, per_node=True)
        if weights is None:
            weights = "uniform" if drop_in else "counts"
        _check_type("quorum", quorum, Quorum, "pass for example Quorum(nodes=9)")
        fix = "pass for example Liveness(reply_timeout=60.0)"
        _check_type("liveness", liveness, Liveness, fix)
        check_call("train_metrics_aggr_fn", train_metrics_aggr_fn)
        fraction, min_nodes, function = evaluate
        fraction = float(drop_in) if fraction is None else fraction
        return cls(
            _checked_rule(aggregator),
            _checked_optimizer(optimizer),
            weight_policy(weights),
            Policy(quorum, liveness, payload),
            usable_device(device),
            () if buffers is None else check_names("buffers", buffers),
            _message_format(payload, *record_keys),
            EvaluationSettings(fraction, min_nodes, function),
            train_metrics_aggr_fn,
        )

    def endpoint(self, initial_arrays: ArrayRecord, clock: Callable[[], float]) -> Endpoint:
        """Return the endpoint of a new run.

        Raises
        ------
        ConfigError
            If the arrays are no usable model.
        """
        if not isinstance(initial_arrays, ArrayRecord):
            fix = "pass for example ArrayRecord(model.state_dict())"
            raise ConfigError("initial_arrays", type(initial_arrays), "an ArrayRecord", fix)
        tensors = tensors_of(initial_arrays)
        state = initial_state(
            tensors,
            (*statistics_of(tensors), *self.buffers),
            self.aggregator,
            self.optimizer,
            self.policy,
            self.device,
            self.weights,
        )
        return Endpoint(state, self.message_format, self.device, clock)


def check_not_fedavg(fraction_train: object, weighted_by_key: object) -> None:
    """Refuse two of FedAvg's arguments that mean nothing here, and name what does."""
    if fraction_train != 1.0:
        legal = "1.0: every connected node is queried as soon as it has replied"
        fix = "leave it out; Liveness(max_rate=...) bounds how often a node is queried"
        raise ConfigError("fraction_train", fraction_train, legal, fix)
    if weighted_by_key is not None:
        legal = "None: nothing that a client reports becomes a weight"
        fix = "leave it out; weights='counts' or 'uniform' say what a node weighs"
        raise ConfigError("weighted_by_key", weighted_by_key, legal, fix)


def _checked_rule(aggregator: Aggregator) -> Aggregator:
    if not callable(aggregator) or isinstance(aggregator, type):
        fix = "pass for example CTMA(GeometricMedian(), byz_fraction=0.4)"
        raise ConfigError("aggregator", aggregator, "a rule called as rule(rows, weights)", fix)
    return aggregator


def _checked_optimizer(optimizer: Optimizer | None) -> Optimizer:
    fix = "pass for example AnyTimeSGD(lr=0.01, gamma=0.1)"
    if optimizer is None:
        raise ConfigError("optimizer", None, "an optimizer unless replies are models", fix)
    if not isinstance(optimizer, Optimizer) or isinstance(optimizer, type):
        raise ConfigError("optimizer", optimizer, "an object with init and step", fix)
    return optimizer


def _check_payload(payload: object) -> None:
    if not isinstance(payload, Payload):
        kinds = {"model": "Models()", "momentum": "Momenta()", "gradient": "Gradients()"}
        named = kinds.get(payload) if isinstance(payload, str) else None
        legal = ", ".join(f"{kind.__name__}()" for kind in PAYLOADS[:-1])
        legal = f"{legal} or {PAYLOADS[-1].__name__}()"
        raise ConfigError("payload", payload, legal, f"pass payload={named or 'Models()'}")


def _check_type(name: str, value: object, kind: type, fix: str) -> None:
    if not isinstance(value, kind):
        raise ConfigError(name, value, f"a {kind.__name__}", fix)


def _message_format(payload: Payload, arrays: str, config: str) -> MessageFormat:
    taken = (BUFFERS, PREVIOUS, METRICS)
    return MessageFormat(
        payload.NAME,
        check_key("arrayrecord_key", arrays, taken),
        check_key("configrecord_key", config, (*taken, arrays)),
    )
