"""A model's named arrays <-> flat vectors: names, shapes, dtypes, and limits of numbers."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from math import prod

import torch
from torch import Tensor, nn

from flwr_byzasync.errors import ConfigError

MAX_NORM = 1e150
"""Largest norm whose squares, and sums of squares, stay inside float64."""


@dataclass(frozen=True)
class Entry:
    """One named array of the model."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The fixed order of some named arrays in one flat vector.

    Parameters
    ----------
    entries : tuple of Entry
        The arrays in order; entry k fills the next ``size`` elements of the vector.

    Examples
    --------
    >>> layout = Layout.of({"w": torch.ones(2, 2), "b": torch.zeros(2)})
    >>> layout.size, layout.dtype
    (6, torch.float32)
    >>> layout.flatten({"w": torch.ones(2, 2), "b": torch.zeros(2)})
    tensor([1., 1., 1., 1., 0., 0.])
    """

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Layout":
        """Return the layout of named tensors, in their order."""
        return cls(tuple(Entry(k, tuple(v.shape), v.dtype) for k, v in tensors.items()))

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(entry.size for entry in self.entries)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(entry.name for entry in self.entries)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the flat vector: float32 or wider for floating entries, int64 for others.

        Half-precision models keep float32 state on the server, because steps of 1e-4 of a
        parameter's size would be lost in their 8 to 11 bits.
        """
        if self.entries and not any(entry.dtype.is_floating_point for entry in self.entries):
            return torch.int64
        return reduce(torch.promote_types, (e.dtype for e in self.entries), torch.float32)

    def flatten(self, tensors: Mapping[str, Tensor], device: torch.device | None = None) -> Tensor:
        """Join named tensors into a new flat vector of this layout's dtype.

        Raises
        ------
        KeyError
            If a name of the layout is missing.
        """
        parts = [tensors[e.name].detach().reshape(-1).to(device, self.dtype) for e in self.entries]
        return torch.cat(parts) if parts else torch.empty(0, dtype=self.dtype, device=device)

    def as_sent(self, vector: Tensor) -> Tensor:
        """Return a flat vector as named arrays carry it: rounded where their dtypes are narrower.

        The vector itself where no entry's dtype is.
        """
        if all(entry.dtype == vector.dtype for entry in self.entries):
            return vector
        return self.flatten(self.unflatten(vector), vector.device)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Cut a flat vector into named tensors of their own shape and dtype.

        Entries of the vector's dtype are views of it: copy before writing.
        """
        parts = torch.split(vector, [entry.size for entry in self.entries])
        return {
            e.name: part.reshape(e.shape).to(e.dtype)
            for e, part in zip(self.entries, parts, strict=True)
        }


@dataclass(frozen=True)
class ModelLayout:
    """A model's arrays in three groups, because each is aggregated in its own way.

    Parameters
    ----------
    order : tuple of str
        All names as the user gave them; results come back in this order.
    parameters : Layout
        What replies update and the robust rule aggregates.
    buffers : Layout
        Floating buffers such as running means: median of the nodes' values.
    counters : Layout
        Integer and boolean buffers: never averaged, they keep a value that some node sent.
    """

    order: tuple[str, ...]
    parameters: Layout
    buffers: Layout
    counters: Layout

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], buffers: Collection[str] = ()) -> "ModelLayout":
        """Sort a model's arrays into parameters, buffers and counters.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            The initial arrays, for example a ``state_dict``.
        buffers : collection of str
            Names that are not parameters; a ``state_dict`` does not say which they are.
            Integer arrays are counters with or without being named.

        Raises
        ------
        ConfigError
            If there are no arrays, `buffers` names one that does not exist, no floating
            parameter remains, or a parameter is complex or not finite.
        """
        unknown = sorted(set(buffers) - set(tensors))
        if unknown:
            legal = f"names among {', '.join(tensors) or 'the initial arrays'}"
            raise ConfigError("buffers", unknown, legal, "take them from buffer_names(model)")
        groups: dict[str, dict[str, Tensor]] = {"parameters": {}, "buffers": {}, "counters": {}}
        for name, tensor in tensors.items():
            _check_initial(name, tensor)
            if not tensor.is_floating_point():
                groups["counters"][name] = tensor
            else:
                groups["buffers" if name in buffers else "parameters"][name] = tensor
        layouts = {group: Layout.of(members) for group, members in groups.items()}
        if layouts["parameters"].size == 0:
            raise ConfigError(
                "initial_arrays",
                list(tensors),
                "at least one non-empty floating array that is not a buffer",
                "pass for example ArrayRecord(model.state_dict())",
            )
        return cls(tuple(tensors), **layouts)

    @property
    def whole(self) -> Layout:
        """All arrays in the user's order, as in a record of the whole model."""
        groups = (self.parameters, self.buffers, self.counters)
        entries = {entry.name: entry for group in groups for entry in group.entries}
        return Layout(tuple(entries[name] for name in self.order))

    def merge(self, *groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Join named tensors of all groups in the user's order."""
        merged: dict[str, Tensor] = {}
        for group in groups:
            merged.update(group)
        return {name: merged[name] for name in self.order}


def statistics_of(names: Collection[str]) -> tuple[str, ...]:
    """Return the names of the running statistics of PyTorch's batch norms.

    They are recognised by the counter beside them, which nothing else has.

    Examples
    --------
    >>> statistics_of(["1.weight", "1.running_mean", "1.running_var", "1.num_batches_tracked"])
    ('1.running_mean', '1.running_var')
    """
    ending = "num_batches_tracked"
    prefixes = {name.removesuffix(ending) for name in names if name.endswith(ending)}
    kinds = ("running_mean", "running_var")
    statistics = {f"{prefix}{kind}" for prefix in prefixes for kind in kinds}
    return tuple(name for name in names if name in statistics)


def _check_initial(name: str, tensor: Tensor) -> None:
    if tensor.is_complex():
        fix = "split it into its real and imaginary part"
        raise ConfigError(f"initial_arrays[{name!r}]", tensor.dtype, "of a real dtype", fix)
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        fix = "start from finite values"
        raise ConfigError(f"initial_arrays[{name!r}]", "NaN or infinity", "finite", fix)


def buffer_names(model: nn.Module) -> list[str]:
    """Return the names in a model's ``state_dict`` that are buffers, in its order.

    For ``AsyncRobust(buffers=...)``. Unlike ``named_buffers`` it leaves out buffers that are not
    persistent, which a ``state_dict`` does not hold, and has every name of one that is shared.

    Raises
    ------
    ConfigError
        If it is no module.

    Examples
    --------
    >>> buffer_names(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    ['1.running_mean', '1.running_var', '1.num_batches_tracked']
    """
    if not isinstance(model, nn.Module):
        fix = "pass the module whose state_dict is passed to the strategy"
        raise ConfigError("model", type(model).__name__, "a torch.nn.Module", fix)
    named = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    return [name for name in model.state_dict() if name in named]


def norm_within_limit(vector: Tensor) -> bool:
    """Whether the norm is at most `MAX_NORM`; every element is finite then."""
    # No comparison with NaN is true. The first pass is several times as fast in float32; where
    # squares leave it, it says infinity, and the second one decides.
    norm = torch.linalg.vector_norm
    return float(norm(vector)) <= MAX_NORM or float(norm(vector, dtype=torch.float64)) <= MAX_NORM
