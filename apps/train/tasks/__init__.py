"""Data sets with their models, one in each module; a module that defines TASK is discovered."""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType

from apps.train.tasks.task import Split, Task

__all__ = ["Split", "Task", "discover"]


@cache
def discover() -> Mapping[str, Task]:
    """Return every task by name.

    Examples
    --------
    >>> discover()["digits"].classes
    10
    """
    modules = [import_module(f"{__name__}.{info.name}") for info in iter_modules(__path__)]
    found = [module.TASK for module in modules if hasattr(module, "TASK")]
    return MappingProxyType({task.name: task for task in found})
