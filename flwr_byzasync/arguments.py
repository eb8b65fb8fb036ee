"""Checks of what a user passes: each names the argument, its value, what is legal and a way out."""

from collections.abc import Iterable
from contextlib import suppress

import torch

from flwr_byzasync.checkpoint import Checkpoints
from flwr_byzasync.errors import ConfigError, check_integer
from flwr_byzasync.optimizers import SGD, Optimizer
from flwr_byzasync.reading import Reading
from flwr_byzasync.stopping import EarlyStop


def check_parts(aggregator: object, optimizer: object) -> None:
    """Make sure that a rule can be called, that an optimizer steps, and that both are made."""
    if not callable(aggregator) or isinstance(aggregator, type):
        fix = "pass for example CTMA(GeometricMedian(), byz_fraction=0.4)"
        raise ConfigError("aggregator", aggregator, "a rule called as rule(rows, weights)", fix)
    if not isinstance(optimizer, Optimizer) or isinstance(optimizer, type):
        fix = "pass for example AnyTimeSGD(lr=0.01, gamma=0.1)"
        raise ConfigError("optimizer", optimizer, "an object with init and step", fix)


def check_not_fedavg(fraction_train: object, weighted_by_key: object) -> None:
    """Refuse two of FedAvg's arguments that mean nothing here, and say what does."""
    if fraction_train != 1.0:
        legal = "1.0: every connected node is asked as soon as it has replied"
        fix = "leave it out; max_pace bounds how often a node is asked"
        raise ConfigError("fraction_train", fraction_train, legal, fix)
    if weighted_by_key is not None:
        legal = "None: nothing that a client reports becomes a weight"
        fix = "leave it out; weights='counts' or 'uniform' say what a node weighs"
        raise ConfigError("weighted_by_key", weighted_by_key, legal, fix)


def default_optimizer(reading: Reading) -> Optimizer:
    """Return the server's step where none is given, which is spread over the nodes' replies.

    Together with a delay compensation of one half; docs/migration.md has the reasons.
    """
    if reading.payload != "model":
        fix = "pass for example AnyTimeSGD(lr=0.01, gamma=0.1)"
        raise ConfigError("optimizer", None, "an optimizer where replies are no models", fix)
    return SGD(lr=2.0, per_node=True)


def check_count(name: str, count: int | None) -> int | None:
    """Return a positive whole number, or None."""
    fix = "pass a positive number, or None"
    return None if count is None else check_integer(name, count, low=1, fix=fix)


def check_least(available: int | None, train: int | None, quorum: int | None) -> int:
    """Return how many nodes must be connected before the first query; FedAvg takes 2."""
    given = [
        check_count("min_available_nodes", available),
        check_count("min_train_nodes", train),
    ]
    return max((count for count in given if count is not None), default=quorum or 2)


def check_stop(stop: object) -> EarlyStop | None:
    """Return when to stop early, or None for not at all."""
    if stop is not None and not isinstance(stop, EarlyStop):
        fix = "pass for example EarlyStop('accuracy', at_least=0.95)"
        raise ConfigError("early_stop", stop, "an EarlyStop or None", fix)
    return stop


def usable_device(device: str | torch.device) -> torch.device:
    """Return the device if rules can compute on it: the CPU, or a CUDA card that is there."""
    # Rules compute in float64, which other accelerators lack.
    legal = "'cpu' or a CUDA device of this machine"
    fix = "pass 'cpu', or 'cuda' where torch.cuda.is_available()"
    try:
        usable = torch.device(device)
    except (RuntimeError, TypeError, ValueError, OverflowError):
        raise ConfigError("device", device, legal, fix) from None
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    on_card = usable.type == "cuda" and (usable.index or 0) < cards
    if usable.type != "cpu" and not on_card:
        raise ConfigError("device", str(device), legal, fix)
    return usable


def check_resume(checkpoints: object, resume: object) -> tuple[Checkpoints | None, bool]:
    """Return where a run is written down and whether it goes on from there."""
    if checkpoints is not None and not isinstance(checkpoints, Checkpoints):
        fix = "pass for example Checkpoints('/data/run1')"
        raise ConfigError("checkpoints", checkpoints, "a Checkpoints or None", fix)
    if not isinstance(resume, bool):
        raise ConfigError("resume", resume, "True or False", "pass True to go on with a run")
    if resume and checkpoints is None:
        fix = "pass for example checkpoints=Checkpoints('/data/run1')"
        raise ConfigError("resume", resume, "False without checkpoints", fix)
    return checkpoints, resume


def check_call(name: str, call: object) -> None:
    """Make sure that something is a function, or left out."""
    if call is not None and not callable(call):
        raise ConfigError(name, call, "a function, or None", "leave it out")


def check_key(name: str, key: object, reserved: Iterable[str]) -> str:
    """Return a record's name if no other record has it."""
    others = tuple(reserved)
    if not isinstance(key, str) or not key or key in others:
        legal = f"a name other than {', '.join(repr(other) for other in others)}"
        raise ConfigError(name, key, legal, "leave it out or pass a name of its own")
    return key


def check_names(name: str, names: object) -> tuple[str, ...]:
    """Return names as a tuple; one string is no collection of names."""
    given: tuple[object, ...] | None = None
    with suppress(TypeError):  # of what has no parts, or looks as if it had, as an array of NumPy
        given = None if isinstance(names, str) else tuple(names)  # type: ignore[arg-type]
    told = None if given is None else tuple(each for each in given if isinstance(each, str))
    if told is None or told != given:
        fix = "pass for example buffer_names(model)"
        raise ConfigError(name, names if given is None else given, "a collection of names", fix)
    return told
