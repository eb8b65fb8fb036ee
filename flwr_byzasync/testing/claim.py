"""What is claimed of a rule, and the error that refutes it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flwr_byzasync.aggregators.rule import Aggregator, Law
from flwr_byzasync.testing.cases import Weighted

CPU = torch.device("cpu")


class LawError(AssertionError):
    """A rule does not keep what is claimed of it.

    Parameters
    ----------
    law : str
        Name of a `Law`, or of what every rule must keep; docs/testing.md lists them.
    expected : str
        What should have been true.
    case : Weighted
        The smallest input found.
    numbers : mapping of str to object
        What was seen on it.
    """

    def __init__(
        self, law: str, expected: str, case: Weighted, numbers: Mapping[str, object]
    ) -> None:
        self.law, self.expected, self.case, self.numbers = law, expected, case, dict(numbers)
        rows = f"{shown(case.rows)} ({case.rows.dtype}, {tuple(case.rows.shape)})"
        lines = {"rows": rows, "weights": shown(case.weights), **self.numbers}
        width = max(map(len, lines))
        body = "".join(f"\n  {name:{width}}  {value}" for name, value in lines.items())
        super().__init__(f"{law} is broken: {expected}.{body}")

    def __reduce__(self) -> tuple[type["LawError"], tuple[object, ...]]:
        return type(self), (self.law, self.expected, self.case, self.numbers)


@dataclass(frozen=True)
class Claim:
    """A rule and what is claimed of it.

    Parameters
    ----------
    rule : Aggregator
        The rule.
    laws : frozenset of Law
        Laws that it should keep.
    bound : callable
        λ -> c or None.
    trusted : tuple of int
        Rows that must be honest for the bound.
    max_rows : int or None
        Rows that it can take at most.
    tolerance : float
        How far two results that should be equal may be apart, per unit of the rows' spread.
    device : torch.device
        Where it is called.
    """

    rule: Aggregator
    laws: frozenset[Law] = frozenset()
    bound: Callable[[float], float | None] = field(default=lambda _: None)
    trusted: tuple[int, ...] = ()
    max_rows: int | None = None
    tolerance: float = 1e-9
    device: torch.device = CPU

    def covers(self, rows: int) -> bool:
        """Whether inputs of so many rows are in the rule's domain."""
        least = max(self.trusted, default=0) + 1
        return least <= rows <= (rows if self.max_rows is None else self.max_rows)

    def call(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the result on the host, having looked at its shape, dtype and device."""
        # Copies: a rule that writes them must not confuse the law that is looked at.
        given = (t.to(self.device, copy=True) for t in (rows, weights))
        return self.raw(*given).detach().cpu()

    def raw(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the rule's own result for inputs on its device."""
        case = Weighted(rows, weights)
        try:
            result = self.rule(rows, weights)
        except Exception as error:
            seen = {"raised": f"{type(error).__name__}: {error}"}
            raise LawError("DEFINED", "a rule has a result for every input", case, seen) from error
        expected = (rows.dtype, rows.device, rows.shape[1:])
        if not isinstance(result, Tensor):
            seen = {"result": f"{type(result).__name__}"}
            raise LawError("DTYPE", "the result is a tensor", case, seen)
        actual = (result.dtype, result.device, result.shape)
        if actual != expected:
            seen = {"result": _described(*actual), "expected": _described(*expected)}
            raise LawError("DTYPE", "shape, dtype and device are the rows'", case, seen)
        return result


def shown(tensor: Tensor) -> str:
    """Return all numbers of a small tensor, and the first of a large one."""
    if tensor.numel() <= 200:
        return str(tensor.tolist())
    return f"{str(tensor.flatten()[:20].tolist())[:-1]}, ...]"


def _described(dtype: torch.dtype, device: torch.device, shape: torch.Size) -> str:
    return f"{dtype} on {device}, shape {tuple(shape)}"
