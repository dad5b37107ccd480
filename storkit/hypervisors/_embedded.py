"""What hypervisors share that keep their guests in files of their own, and run each as a process of its own."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

from storkit.core.backend import Site
from storkit.core.errors import Conflict, NotFound
from storkit.core.guest import Guest
from storkit.core.model import GuestState, GuestStatus, check_name
from storkit.hypervisors._machine import end_command, taken_disks
from storkit.hypervisors._process import GuestProcess

RECORD = "guest.json"
"""Of a guest, in its directory STATE/HYPERVISOR/NAME: without it there is none."""


class Defined(Protocol):
    """What a record says; each hypervisor's says more."""

    @property
    def guest(self) -> Guest: ...


D = TypeVar("D", bound=Defined)


class Embedded(ABC, Generic[D]):
    """Guests of one host, by their directories. `D` is what a record says."""

    site: Site
    name: ClassVar[str]

    @abstractmethod
    def find(self, guests: list[str] | None = None) -> list[GuestState]:
        """As the contract says."""

    @abstractmethod
    def _load(self, directory: Path) -> D:
        """The record in a guest's directory. Raises FileNotFoundError; Unsafe or UsageError: it is damaged."""

    @abstractmethod
    def _process(self, name: str) -> GuestProcess:
        """A guest's process, alive or not."""

    @abstractmethod
    def _status_of(self, name: str) -> GuestStatus:
        """What a guest does, as its process says."""

    def undefine(self, name: str) -> None:
        check_name("guest", name)
        here = self._process(name)
        if here.alive():
            raise Conflict(f"guest {name} has a process here", end_command(name, self._status_of(name)))
        here.forget()
        shutil.rmtree(self._directory(name), ignore_errors=True)

    def _directory(self, name: str) -> Path:
        return self.site.state.absolute() / self.name / name

    def _names(self, guests: list[str] | None) -> list[str]:
        """Those of these guests (None: all) that are defined here."""
        base = self.site.state / self.name
        if guests is None:
            guests = sorted(entry.name for entry in base.iterdir()) if base.is_dir() else []
        return [name for name in guests if (base / check_name("guest", name) / RECORD).exists()]

    def _definition(self, name: str) -> D:
        try:
            return self._load(self._directory(check_name("guest", name)))
        except FileNotFoundError:
            raise NotFound(f"guest {name} is not defined on {self.site.host}", f"storkit guest start {name}") from None

    def _one(self, name: str) -> GuestState:
        self._definition(name)
        return self.find([name])[0]

    def _taken(self, guest: Guest) -> list[str]:
        """Which disks of a guest others have that are alive on this host."""
        mine = [disk.uuid for disk in guest.disks if disk.uuid]
        found: list[str] = []
        for name in self._names(None):
            text = ""
            with suppress(OSError):
                text = (self._directory(name) / RECORD).read_text(errors="replace")
            # Hundreds of guests have nothing in common with it: only those that have are read, and asked.
            if name != guest.name and any(uuid in text for uuid in mine) and self._process(name).alive():
                found += taken_disks(guest, self._definition(name).guest, self._status_of(name))
        return found
