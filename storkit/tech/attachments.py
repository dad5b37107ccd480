"""The client side of a transport, written once: volumes that others serve, at their stable paths on this host.

An attachment is made in this order, and taken away in the other, so that a path that exists leads to a verified disk:

    every offer checked (nothing has changed) - connection, identity - our record - device - stable path - a block read

A technology fills in how it connects and makes sure of the identity (`_open`), what the path leads to (`_place`), how
it lets go (`_close`), and what the kernel says of an attachment that does not work (`_broken`). The record says what
was attached; whether it still is, the kernel is asked, and no disk is read for that: one that is away would hang.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from storkit.core.backend import Site, refuse_broken
from storkit.core.errors import (
    Conflict,
    NotFound,
    ServiceUnreachable,
    StorkitError,
    UsageError,
    collected,
    raise_problems,
)
from storkit.core.model import ATTACHED, AttachedHere, Attachment, AttachmentPath, Evidence, Offer, Volume, check_name
from storkit.system import locks
from storkit.system.block import holders, reading
from storkit.system.block.fingerprint import BLOCK
from storkit.system.block.holders import Holder
from storkit.system.files import PARTIAL, make_private, point_at
from storkit.system.parallel import for_each_at_once
from storkit.system.timeouts import scaled
from storkit.tech.records import RecordFiles, damaged_findings

R = TypeVar("R")

_BUSY = scaled(60.0)
"""Seconds that a command waits for another one that works on the same attachment."""


@dataclass(slots=True)
class Attaching(Generic[R]):
    """One volume on its way to its path."""

    record: R
    known: R | None
    """The record that it had before."""
    offer: Offer | None
    """None: it is made again by its record alone, as after a reboot."""
    fresh: bool = False
    """Whether this call connected it: that is taken back if anything fails."""
    device: str = ""
    """The block device that was connected, where there is one."""
    devices: list[str] = field(default_factory=list)
    """All that lead to the one disk, where there may be several."""
    target: str = ""
    """What the stable path is to lead to."""


@dataclass(slots=True)
class Detaching(Generic[R]):
    """One volume on its way from its path."""

    volume: Volume
    record: R | None
    gone: bool = False
    """Whether nothing is left of it but the path and the record."""


class Attachments(ABC, Generic[R]):
    """The attachments of one host by one transport. `R` is what is recorded of each."""

    transport: ClassVar[str]

    def __init__(self, site: Site, records: RecordFiles[R]) -> None:
        self.site = site
        self._records = records

    # What a technology fills in

    @abstractmethod
    def _attachment(self, record: R) -> Attachment:
        """An attachment as its record has it."""

    @abstractmethod
    def _planned(self, offer: Offer) -> R:
        """The record of what an offer asks for."""

    def _refused(self, offer: Offer, known: R | None) -> Iterable[StorkitError]:
        """What this technology has against an offer; nothing has been changed yet."""
        return ()

    @abstractmethod
    def _open(self, batch: Sequence[Attaching[R]]) -> None:
        """Connect all of these, or give those that are broken a new connection, and make sure that each is the disk
        that is meant. Raises Unsafe: it is another one. Sets `fresh` of those that it connects."""

    @abstractmethod
    def _place(self, batch: Sequence[Attaching[R]]) -> None:
        """Make the devices of what is open, under whoever has them open already, and set `target`."""

    def _abandon(self, fresh: Sequence[Attaching[R]]) -> None:
        """Take back what this call connected. The error that counts has been raised: raise none."""

    @abstractmethod
    def _close(self, batch: Sequence[Detaching[R]]) -> None:
        """Disconnect, and set `gone` of what is. Raises Conflict: in use, by whom, and how to end that."""

    def _released(self, gone: Sequence[Detaching[R]]) -> None:
        """Delete what else is kept of attachments, before their records go."""

    @abstractmethod
    def _ours(self, target: str, name: str, uuid: str, record: R | None) -> bool:
        """Whether a link at a volume's stable path that leads to `target` is this transport's for that volume."""

    @abstractmethod
    def _broken(self, records: Mapping[str, R]) -> dict[str, str]:
        """By UUID, what the kernel has to say against attachments that do not work. No disk or server is asked."""

    @abstractmethod
    def _look(self, record: R, offsets: list[int] | None) -> Evidence:
        """Evidence of one attachment: see `Transport.evidence`."""

    def _below(self, record: R) -> list[str]:
        """The block devices below an attachment's own: others may grab them, who do not know that they are taken."""
        return []

    def _users(self, record: R) -> list[Holder]:
        """What others have made on an attachment's devices."""
        return holders.find([str(self.path(self._attachment(record).volume)), *self._below(record)])

    def _bare(self, volume: Volume) -> R | None:
        """What is known of an attachment whose record is lost or damaged."""
        return None

    # attach

    def attach(self, offers: list[Offer]) -> list[Attachment]:
        self._check(offers)
        with self._locked(offer.uuid for offer in offers):
            known = self._check(offers)
            batch = [Attaching(self._planned(offer), known.get(offer.uuid), offer) for offer in offers]
            self._bring(batch)
            return [replace(self._shown(one.record), paths=self._paths(one.record)) for one in batch]

    def _check(self, offers: Sequence[Offer]) -> dict[str, R]:
        """The records of what is attached, after everything that can be refused was: all problems at once."""
        known, problems = self._records.find()
        owners = {self._attachment(record).volume: uuid for uuid, record in known.items()}
        for offer in offers:
            with collected(problems):
                check_name("volume", offer.volume)
                problems += self._taken(offer, owners.get(offer.volume, ""), known.get(offer.uuid))
                problems += self._refused(offer, known.get(offer.uuid))
        raise_problems(problems)
        return known

    def _taken(self, offer: Offer, owner: str, known: R | None) -> Iterator[StorkitError]:
        """The name and the path of an offer are another's."""
        host, path = self.site.host, self.path(offer.volume)
        if known is not None and (name := self._attachment(known).volume) != offer.volume:
            # Who says so may mean another disk, and the path of the one that is in use would be changed.
            message = f"the volume with UUID {offer.uuid} is attached on {host} as {name}, and is offered as"
            yield Conflict(f"{message} {offer.volume}", f"storkit detach {name} --on {host}")
        if owner not in ("", offer.uuid):
            hint = f"storkit detach {offer.volume} --on {host}"
            yield Conflict(f"another volume {offer.volume}, {owner}, is attached on {host}", hint)
        elif (path.is_symlink() or path.exists()) and not self._leads_here(path, offer.volume, offer.uuid, known):
            yield foreign(path)

    def _bring(self, batch: Sequence[Attaching[R]]) -> None:
        """Attach all of these, or none: what was connected for it is taken back."""
        make_private(self.site.dev)
        try:
            self._open(batch)
            self._records.save({self._attachment(one.record).uuid: one.record for one in batch})
            self._place(batch)
            for one in batch:
                self._link(self._attachment(one.record).volume, one.target)
            raise_problems([problem for one in batch for problem in self._grabbed(one.record)])
            self._try([one.record for one in batch if one.offer is not None])
        except BaseException:
            # What somebody else stands on is not taken from under them: it stays attached, for them to let go.
            fresh = [one for one in batch if one.fresh and not list(self._grabbed(one.record))]
            new = [one.record for one in fresh if one.known is None]
            for record in new:
                self._unlink(self._attachment(record).volume, self._attachment(record).uuid, record)
            self._abandon(fresh)
            self._records.forget(self._attachment(record).uuid for record in new)
            raise

    def _grabbed(self, record: R) -> Iterator[StorkitError]:
        """Who has taken the device below, as multipathd may, and LVM. Users of the path are welcome."""
        if held := holders.find(self._below(record), through=False):
            yield holders.conflict(self._attachment(record).volume, self.site.host, held)

    def _try(self, records: Sequence[R]) -> None:
        """Read a block through each path that this host's kernel serves."""
        local = {each.uuid: each for each in map(self._shown, records) if each.source.kind != "network"}
        answers = reading.read_all({uuid: reading.Asked(each.path, reading.PROBE) for uuid, each in local.items()})
        raise_problems(
            [
                ServiceUnreachable(
                    f"volume {local[uuid].volume} is attached on {self.site.host}, and cannot be read: "
                    f"{answer.strerror if isinstance(answer, OSError) else answer}",
                    f"storkit detach {local[uuid].volume} --on {self.site.host}, then attach it again",
                )
                for uuid, answer in answers.items()
                if isinstance(answer, Exception)
            ]
        )

    def restore(self) -> None:
        """Make again, by their records, what a reboot or a fault took away, if it is still the same. One that cannot
        be is named, and the others go on."""
        known, problems = self._records.find()

        def again(uuid: str) -> None:
            with self._locked([uuid]):
                self._bring([Attaching(known[uuid], known[uuid], None)])

        with collected(problems):
            for_each_at_once(again, list(known))
        raise_problems(problems)

    # The stable path

    def path(self, volume: str) -> Path:
        return self.site.dev / volume

    def _leads_here(self, path: Path, name: str, uuid: str, record: R | None) -> bool:
        return path.is_symlink() and self._ours(str(path.readlink()), name, uuid, record)

    def _link(self, volume: str, target: str) -> None:
        point_at(self.path(volume), target)

    def _unlink(self, name: str, uuid: str, record: R | None) -> None:
        path = self.path(name)
        for each in (path.with_name(path.name + PARTIAL), path):
            if self._leads_here(each, name, uuid, record):
                each.unlink()

    # detach

    def detach(self, volumes: list[Volume]) -> None:
        with self._locked(volume.uuid for volume in volumes):
            known, problems = self._records.find(volume.uuid for volume in volumes)
            batch = [Detaching(volume, known.get(volume.uuid) or self._bare(volume)) for volume in volumes]
            if all(one.record for one in batch):
                problems = []  # a damaged record is no hindrance where enough is known without it
            held = {one.volume.name: users for one in batch if one.record and (users := self._users(one.record))}
            problems += [holders.conflict(name, self.site.host, users) for name, users in held.items()]
            raise_problems(problems)
            try:
                self._close(batch)
            finally:
                self._forget([one for one in batch if one.gone])

    def _forget(self, gone: Sequence[Detaching[R]]) -> None:
        for one in gone:
            name = self._attachment(one.record).volume if one.record else one.volume.name
            self._unlink(name, one.volume.uuid, one.record)
        self._released(gone)
        self._records.forget(one.volume.uuid for one in gone)

    # What is there

    def look(self, volumes: list[str] | None = None) -> AttachedHere:
        """The attachments of these volumes (None: all), each with the state that the kernel knows; and damaged
        records."""
        known, problems = self._records.find(volumes)
        known |= self._unrecorded(known, volumes)
        broken = self._faults(known)
        found = [
            replace(self._shown(record), state=state(broken.get(uuid, "")), paths=self._paths(record))
            for uuid, record in known.items()
        ]
        return AttachedHere(sorted(found, key=lambda each: (each.volume, each.uuid)), damaged_findings(problems))

    def _unrecorded(self, known: Mapping[str, R], volumes: list[str] | None) -> dict[str, R]:
        """What is attached without a record."""
        return {}

    def _paths(self, record: R) -> list[AttachmentPath]:
        """The states of an attachment's paths, where it may have several. No server is asked."""
        return []

    def _shown(self, record: R) -> Attachment:
        # By the name that this host has now: a record may be older than the inventory.
        return replace(self._attachment(record), host=self.site.host, state=ATTACHED)

    def _faults(self, records: Mapping[str, R]) -> dict[str, str]:
        """By UUID, why attachments do not work: as the technology says, or since the path is not there."""
        found = self._broken(records) if records else {}
        for uuid, record in records.items():
            name = self._attachment(record).volume
            path = self.path(name)
            if uuid not in found and not self._leads_here(path, name, uuid, record):
                found[uuid] = f"{path} leads elsewhere" if path.is_symlink() or path.exists() else f"{path} is gone"
        return found

    def evidence(self, volumes: list[Volume], offsets: list[int] | None) -> list[Evidence]:
        known, problems = self._records.find(volume.uuid for volume in volumes)
        broken = self._faults(known)
        for volume in volumes:
            with collected(problems):
                self._must_work(volume, known, broken, offsets)
        raise_problems(problems)
        found: dict[str, Evidence] = {}

        def look(volume: Volume) -> None:
            found[volume.uuid] = self._look(known[volume.uuid], offsets)

        for_each_at_once(look, volumes)
        return [found[volume.uuid] for volume in volumes]

    def _must_work(
        self, volume: Volume, known: Mapping[str, R], broken: Mapping[str, str], offsets: list[int] | None
    ) -> None:
        if volume.uuid not in known:
            hint = f"storkit attach {volume.name} --on {self.site.host}"
            raise NotFound(f"volume {volume.name} is not attached on {self.site.host}", hint)
        it = self._shown(known[volume.uuid])
        refuse_broken([replace(it, state=state(broken.get(volume.uuid, "")))])
        check_offsets(it.size, offsets)

    @contextmanager
    def _locked(self, uuids: Iterable[str]) -> Iterator[None]:
        """Keep other commands from these attachments meanwhile."""
        directory = make_private(self.site.run / f"{self.transport}-attach")
        with ExitStack() as stack:
            for uuid in sorted(set(uuids)):
                what = f"the attachment of volume {uuid}"
                lock = locks.acquire(directory / uuid, what, holder=f"process {os.getpid()}", wait=_BUSY)
                stack.callback(lock.release, remove=True)
            yield


def foreign(path: Path) -> Conflict:
    return Conflict(f"{path} exists, and storkit did not make it", f"look at it, then remove it: ls -ld {path}")


def check_offsets(size: int, offsets: Iterable[int] | None) -> None:
    """Raise UsageError for what is no place of a block in a disk of this size."""
    if any(offset % BLOCK or not 0 <= offset < size for offset in offsets or ()):
        raise UsageError(f"offsets are multiples of {BLOCK} below {size}")


def state(why: str) -> str:
    """An attachment's state: it works, or why not."""
    return f"broken: {why}" if why else ATTACHED
