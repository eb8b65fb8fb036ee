"""The claims made about a rule, and the error raised when one is refuted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flwr_byzasync.aggregators.rule import Aggregator, Law
from flwr_byzasync.testing.cases import Weighted

CPU = torch.device("cpu")


class LawError(AssertionError):
    """A rule breaks a law that is claimed for it.

    Parameters
    ----------
    law : str
        Name of a `Law`, or of a check that every rule must pass; docs/testing.md lists them.
    expected : str
        The property that should hold.
    case : Weighted
        The smallest input found.
    numbers : mapping of str to object
        Observed values.
    """

    def __init__(
        self, law: str, expected: str, case: Weighted, numbers: Mapping[str, object]
    ) -> None:
        self.law, self.expected, self.case, self.numbers = law, expected, case, dict(numbers)
        rows = f"{shown(case.rows)} ({case.rows.dtype}, {tuple(case.rows.shape)})"
        entries = {"rows": rows, "weights": shown(case.weights), **self.numbers}
        width = max(map(len, entries))
        body = "".join(f"\n  {name:{width}}  {value}" for name, value in entries.items())
        super().__init__(f"{law} is broken: {expected}.{body}")

    def __reduce__(self) -> tuple[type["LawError"], tuple[object, ...]]:
        return type(self), (self.law, self.expected, self.case, self.numbers)


@dataclass(frozen=True)
class Claim:
    """A rule and the properties claimed for it.

    Parameters
    ----------
    rule : Aggregator
        The rule.
    laws : frozenset of Law
        Laws that it should satisfy.
    bound : callable
        λ -> c or None.
    trusted : tuple of int
        Rows that must be honest for the bound.
    max_rows : int or None
        Largest number of rows it accepts.
    tolerance : float
        Allowed difference of two results that should be equal, relative to the rows' spread.
    device : torch.device
        Device on which it is called.
    """

    rule: Aggregator
    laws: frozenset[Law] = frozenset()
    bound: Callable[[float], float | None] = field(default=lambda _: None)
    trusted: tuple[int, ...] = ()
    max_rows: int | None = None
    tolerance: float = 1e-9
    device: torch.device = CPU

    def covers(self, rows: int) -> bool:
        """Whether inputs with this many rows are in the rule's domain."""
        least = max(self.trusted, default=0) + 1
        return least <= rows <= (rows if self.max_rows is None else self.max_rows)

    def call(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the result on the host, after checking its shape, dtype and device."""
        # Copies, so that a rule that writes its inputs does not disturb the check.
        copies = (t.to(self.device, copy=True) for t in (rows, weights))
        return self.raw(*copies).detach().cpu()

    def raw(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the rule's result itself, for inputs on its device."""
        case = Weighted(rows, weights)
        try:
            result = self.rule(rows, weights)
        except Exception as error:
            observed = {"raised": f"{type(error).__name__}: {error}"}
            raise LawError(
                "DEFINED", "a rule has a result for every input", case, observed
            ) from error
        required = (rows.dtype, rows.device, rows.shape[1:])
        if not isinstance(result, Tensor):
            observed = {"result": f"{type(result).__name__}"}
            raise LawError("DTYPE", "the result is a tensor", case, observed)
        actual = (result.dtype, result.device, result.shape)
        if actual != required:
            observed = {"result": _described(*actual), "expected": _described(*required)}
            raise LawError("DTYPE", "shape, dtype and device are the rows'", case, observed)
        return result


def shown(tensor: Tensor) -> str:
    """Return all values of a small tensor, or the first ones of a large tensor."""
    if tensor.numel() <= 200:
        return str(tensor.tolist())
    return f"{str(tensor.flatten()[:20].tolist())[:-1]}, ...]"


def _described(dtype: torch.dtype, device: torch.device, shape: torch.Size) -> str:
    return f"{dtype} on {device}, shape {tuple(shape)}"
