"""Finding what a package's files declare, so that adding one is adding a file."""

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType


def declared(package: str, attribute: str, without: tuple[str, ...] = ()) -> Mapping[str, type]:
    """Return the classes of a package's modules that declare themselves, by name.

    Parameters
    ----------
    package : str
        Import path of the package.
    attribute : str
        Class attribute that is the declaration; its ``name`` is the key.
    without : tuple of str
        Modules to leave out.

    Returns
    -------
    mapping of str to class
        Read-only, sorted by name.

    Raises
    ------
    RuntimeError
        If two classes declare the same name.
    """
    found: dict[str, type] = {}
    for module in iter_modules(import_module(package).__path__):
        if module.name in without:
            continue
        path = f"{package}.{module.name}"
        for member in vars(import_module(path)).values():
            own = isinstance(member, type) and member.__module__ == path
            name = getattr(member.__dict__.get(attribute), "name", None) if own else None
            if name is None:
                continue
            if name in found:
                raise RuntimeError(f"two classes are named {name!r}: {found[name]} and {member}")
            found[name] = member
    return MappingProxyType(dict(sorted(found.items())))
