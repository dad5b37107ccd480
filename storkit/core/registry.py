"""Finds backends by listing the package, `storkit.hypervisors` and the entry points of `storkit.backends`.

No table names them. A technology has one face, found here under its module's name; the rest of it is a folder of its
own below storkit/tech/ or storkit/hypervisors/.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from functools import cache
from types import ModuleType
from typing import TypeVar

from storkit.core.backend import Backend, Hypervisor, Pool, Transport
from storkit.core.errors import Unsupported

B = TypeVar("B", bound=Backend)

ENTRY_POINTS = "storkit.backends"
PACKAGES = ("storkit", "storkit.hypervisors")
"""Packages whose files are backends: their faces. Here they are listed, not imported."""


def pool(name: str) -> type[Pool]:
    """The pool class of the technology `name` (`directory`, `lvm`, ...); Unsupported if there is none."""
    return _find(Pool, "pool", name)  # type: ignore[type-abstract]


def transport(name: str) -> type[Transport]:
    """The transport class of the technology `name` (`nbd`, `iscsi`, ...); Unsupported if there is none."""
    return _find(Transport, "transport", name)  # type: ignore[type-abstract]


def hypervisor(name: str) -> type[Hypervisor]:
    """The hypervisor class `name` (`qemu`, `libvirt`, ...); Unsupported if there is none."""
    return _find(Hypervisor, "hypervisor", name)  # type: ignore[type-abstract]


def names(kind: type[B]) -> list[str]:
    """The names of all backends of a kind; it imports every one of them."""
    return [name for name in _modules() if _classes(name, kind)]


@cache
def _modules() -> dict[str, str]:
    """Backend name to module path. Files of the package win over entry points of the same name."""
    from importlib.metadata import entry_points

    found = {entry.name: entry.module for entry in entry_points(group=ENTRY_POINTS)}
    return dict(sorted({**found, **_own()}.items()))


@cache
def _own() -> dict[str, str]:
    """As `_modules`, of this package alone: without importlib.metadata, which costs more than all else that
    `storkit volume list` imports."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for module in pkgutil.iter_modules(spec.submodule_search_locations if spec else None):
            if not module.ispkg and not module.name.startswith("_"):
                found[module.name] = f"{package}.{module.name}"
    return found


def _classes(name: str, kind: type[B]) -> list[type[B]]:
    return _members(importlib.import_module(_own().get(name) or _modules()[name]), kind)


@cache
def _members(module: ModuleType, kind: type[B]) -> list[type[B]]:
    return [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, kind) and not inspect.isabstract(member) and member.__module__ == module.__name__
    ]


def _find(kind: type[B], what: str, name: str) -> type[B]:
    if name in _own() or name in _modules():
        for cls in _classes(name, kind):
            return cls
    known = ", ".join(names(kind))
    raise Unsupported(f"there is no {what} {name!r}", f"known here: {known}")
