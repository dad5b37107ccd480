"""What a hypervisor's hook on another host can have done, at the manager of the volumes (storkit.hosts.admitted).

Who asks is never an argument: it is the host that the key of the connection is bound to (`storkit agent --for HOST`).
A verb changes that host's own right and nothing else; each takes the lock of its volumes, and is refused while a plan
of a coordinator is under way. All volumes of a call, or none; everything that refuses one is raised at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from storkit.core.identities import GuestName, Line, MaybeUuid, Uuid, VolumeName
from storkit.core.model import Offer

EnterReason = Literal["start", "arrive", "wake"]
"""start: a guest is to run. arrive: one comes by live migration. wake: one whose memory was saved."""
LeaveReason = Literal["moved", "ended", "failed", "unknown"]
"""moved: the guest runs elsewhere. ended: it was shut down, or sleeps. failed: it never ran here.
unknown: it may be to run here again; then it is left to another host that has been let in, or to nobody."""


@dataclass(frozen=True, slots=True)
class Entered:
    """What a host was let in to."""

    offers: list[Offer]
    """In the order of the names, with the credentials."""
    given: list[VolumeName]
    """What the host had not before: to be given back if it cannot be attached."""
    writers: list[Line]
    """All who may write them now."""


class HookVerbs(ABC):
    """The verbs of a hook."""

    @abstractmethod
    def enter(
        self, names: list[VolumeName], guest: GuestName, uuid: MaybeUuid, why: EnterReason, read_only: bool = False
    ) -> Entered:
        """Let the host in to a guest's volumes: as a writer, unless `read_only`. Called again, it changes nothing.

        Args:
            names: the volumes of one manager.
            guest: the guest's name.
            uuid: its UUID; empty: not known, then it cannot `wake`.
            why: `start`: nobody else may be a writer. `arrive`: one other host may. `wake`: nobody else, and the guest
                sleeps on the volumes; the hold stays until `woken`.
            read_only: the guest only reads them.

        Raises:
            NotAllowed: the host's policy at the manager does not have a volume, or there is none of that name.
            Conflict: others write it, a guest sleeps on it or, to wake, none does, or a plan is under way.
            Unsafe: the host is fenced, or nobody may write the volume.
        """

    @abstractmethod
    def woken(self, names: list[VolumeName], uuid: Uuid) -> None:
        """End the sleep of this guest on volumes that the host alone may write; one that has ended is fine."""

    @abstractmethod
    def may_leave(self, names: list[VolumeName], why: LeaveReason) -> list[VolumeName]:
        """Say which of these volumes the host may leave for that reason, and change nothing.

        Raises:
            Conflict: a plan is under way, and leaves what is to be left.
        """

    @abstractmethod
    def leave(self, names: list[VolumeName], why: LeaveReason) -> None:
        """Take the host's own right and export. What it has not is fine."""

    @abstractmethod
    def hold(self, names: list[VolumeName], guest: GuestName, uuid: Uuid, file: Line) -> None:
        """Keep volumes for a guest whose memory was saved into `file` of the host: nobody gains a right to write them
        until it wakes up. The host must be their only writer, and keeps its right until it leaves.

        Raises:
            Conflict: others write them, the host does not, or another guest sleeps on them.
        """
