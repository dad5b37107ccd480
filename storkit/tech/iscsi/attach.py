"""iSCSI exports on the host that uses them: logged in to, verified, and only then at their stable paths.

An attachment is a session of its own, its logical unit 0, a device-mapper node over that, and a symbolic link to the
node. They are made in this order, so that a path that exists leads to a verified disk, and taken away in the other:

    open-iscsi's record, session, disk (identity, size), reservation if writable, our record, node, path

Our record is the offer without its secrets, which open-iscsi's own record has. Where the target has several portals,
there is a session, and a disk, for each that answers (storkit.tech.iscsi.paths.sessions).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from storkit.core.backend import Site
from storkit.core.errors import (
    Conflict,
    NotFound,
    ServiceUnreachable,
    StorkitError,
    Unsafe,
    raise_problems,
)
from storkit.core.model import AttachmentPath, Evidence, Offer, Volume
from storkit.system.block import devmapper, reading, reservations
from storkit.system.block.devmapper import MappedNode, Wanted, node_name
from storkit.system.block.fingerprint import digests, wanted
from storkit.system.openers import only_killed
from storkit.system.parallel import for_each_at_once
from storkit.tech import portals
from storkit.tech.attachments import Attaching, Detaching
from storkit.tech.iscsi import attached, chap, initiator, sessiondisk
from storkit.tech.iscsi.initiator import IscsiSession
from storkit.tech.iscsi.names import (
    PORT,
    IscsiSettings,
    identity,
    initiator_iqn,
    is_target,
    path_iqn,
    portal,
    target_iqn,
)
from storkit.tech.iscsi.paths import proving, watch
from storkit.tech.iscsi.paths import sessions as paths
from storkit.tech.mapped import FILL, ROLE, MappedAttachments, claimed, flush
from storkit.tech.records import RecordFiles


@dataclass(frozen=True, slots=True)
class _Here:
    """What the kernel has of an attachment."""

    record: Offer
    node: MappedNode | None
    sessions: list[IscsiSession]

    @property
    def alive(self) -> bool:
        return any(session.alive for session in self.sessions)


class IscsiAttachments(MappedAttachments):
    """The iSCSI attachments of one host."""

    transport = "iscsi"

    def __init__(self, site: Site, settings: IscsiSettings) -> None:
        super().__init__(site, RecordFiles(site.state / "iscsi-attached", Offer, "the attachment"))
        self.settings = settings
        self._until = 0.0
        """Until when a restore waits for sessions that are being recovered."""

    def _planned(self, offer: Offer) -> Offer:
        return replace(offer, credential=None)

    def _bare(self, volume: Volume) -> Offer:
        name = target_iqn(self.settings.prefix, volume.uuid)
        return Offer(volume.name, volume.uuid, volume.size, self.site.host, "iscsi", name, "", False)

    def _below(self, record: Offer) -> list[str]:
        return [disk for session in attached.sessions(record) if (disk := sessiondisk.find(session))]

    def _nodes(self) -> dict[str, MappedNode]:
        """The nodes of volumes that are attached over iSCSI, by UUID."""
        ours, targets = set(self._records.uuids()), {session.target for session in initiator.find_sessions()}
        nodes = devmapper.of_role(ROLE).items()
        return {uuid: node for uuid, node in nodes if uuid in ours or self._target(uuid) in targets}

    def _target(self, uuid: str) -> str:
        return target_iqn(self.settings.prefix, uuid)

    def _unrecorded(self, known: Mapping[str, Offer], volumes: list[str] | None) -> dict[str, Offer]:
        return {
            uuid: replace(self._bare(Volume(node.volume, uuid, node.size)), writable=not node.readonly)
            for uuid, node in self._nodes().items()
            if uuid not in known and (volumes is None or uuid in volumes)
        }

    def _refused(self, offer: Offer, known: Offer | None) -> Iterator[StorkitError]:
        yield from self._refused_name(offer)
        if not is_target(offer.name, offer.uuid) or offer.identity != identity(offer.uuid):
            message = f"the offer of volume {offer.volume} is for another target or disk: {offer.name}"
            yield Unsafe(f"{message}, {offer.identity}", "leave it alone until you know what it is")
        yield from self._refused_portals(offer, PORT)

    # attach

    def restore(self) -> None:
        """As everywhere; the time for sessions that are being recovered is one for all: a host that was cut off has
        many that will not come back."""
        if self._records.uuids():
            initiator.check_daemon()
        self._until = _patience()
        try:
            super().restore()
        finally:
            self._until = 0.0

    def _open(self, batch: Sequence[Attaching[Offer]]) -> None:
        initiator.check_daemon()
        nodes, deadline = self._nodes(), self._until or _patience()
        for_each_at_once(lambda one: self._connect(one, nodes.get(one.record.uuid), deadline), batch)
        for one in batch:
            if one.offer is None:
                self._heed_target(one)
        raise_problems([problem for one in batch for problem in self._duplicates(one.record)])
        for_each_at_once(lambda one: self._take_right(one), [one for one in batch if one.record.writable])

    def _connect(self, one: Attaching[Offer], node: MappedNode | None, deadline: float) -> None:
        """Have sessions, and in them the disk that the offer speaks of. Where the volume has a node, that keeps the new
        sessions, whatever fails: whoever has the node open needs them."""
        record = one.record
        there = attached.sessions(record)
        if there and not there[0].alive:
            if node is not None and node.opens and not only_killed(node.device):
                self._wait_for(record, there, deadline)
            else:
                # The target may have other secrets by now, which a session that exists never learns.
                paths.hang_up(record)
        one.fresh = one.fresh or (node is None and not attached.sessions(record))
        if attached.several(record):
            devmapper.prepare_paths()
            paths.log_in(record, lambda number: self._login_node(one, number), one.offer is not None, deadline)
            one.devices = paths.disks(record, self._must_answer)
            one.device = one.devices[0]
            return
        if not any(session.alive for session in attached.sessions(record)):
            self._log_in(one)
        elif path := sessiondisk.find(attached.sessions(record)[0]):
            self._must_answer(record, path)
        (session,) = attached.alive(record, self.site.host)
        if node is not None:  # it may have had several, or be a copy that became the disk, which nobody waited for
            initiator.give_up_after(session, self.settings.replacement_timeout)
        one.device = sessiondisk.attach(session, record.volume, record.identity, record.size).path
        one.devices = [one.device]

    def _wait_for(self, record: Offer, sessions: Sequence[IscsiSession], deadline: float) -> None:
        """The sessions of a disk in use go on by themselves, soon after their target is back; nothing else may end
        them. One is enough.

        Raises ServiceUnreachable: the target is still away.
        """
        reasons = [portals.probe(*portal(session.portal)) for session in sessions]
        if not all(reasons):
            reasons = [] if initiator.recovered(record.name, deadline) else ["its port is open, and no session goes on"]
        if reasons:
            where = " and ".join(session.portal for session in sessions)
            raise ServiceUnreachable(
                f"volume {record.volume} is in use on {self.site.host}, and its target {record.name} at "
                f"{where} is away ({'; '.join(reasons)})",
                "it goes on when the target is back: storkit status",
            )

    def _heed_target(self, one: Attaching[Offer]) -> None:
        """After a reboot this host writes only what it wrote before and the target still lets it write."""
        if one.record.writable:
            for device in one.devices:
                sessiondisk.rescan(device)
            if all(map(sessiondisk.readonly, one.devices)):
                one.record = replace(one.record, writable=False)

    def _log_in(self, one: Attaching[Offer]) -> None:
        """With the secrets of the offer, or with those of open-iscsi's record: our own has none. At the first portal
        where anybody answers: trying costs milliseconds here, and minutes in iscsid."""
        record = one.record
        if one.offer is not None:
            places = [portal(text) for text in one.offer.portals]
        elif not (places := initiator.find_records(record.name)):
            raise NotFound(
                f"the record of volume {record.volume} is gone from {initiator.database()}",
                f"storkit attach {record.volume} --on {self.site.host}",
            )
        silent = []
        for place in places:
            if reason := portals.probe(*place):
                silent.append(f"{portals.name(*place)}: {reason}")
                continue
            node = self._node(one, place)
            if one.offer is not None:
                initiator.write_record(node)
            return initiator.login(node)
        message = f"no portal of volume {record.volume} answers ({'; '.join(silent)})"
        raise ServiceUnreachable(message, "storkit host check")

    def _node(self, one: Attaching[Offer], place: tuple[str, int]) -> initiator.InitiatorRecord:
        offer = one.offer or one.record
        address, port = place
        return initiator.InitiatorRecord(
            offer.name,
            address,
            port,
            initiator_iqn(offer.name.removesuffix(f":{offer.uuid.lower()}"), self.site.host),
            chap.of_offer(offer),
            self.settings.login_timeout,
            self.settings.replacement_timeout,
        )

    def _login_node(self, one: Attaching[Offer], number: int) -> initiator.InitiatorRecord:
        """How to log in at the portal of this number, of several."""
        node = self._node(one, portal(one.record.portals[number]))
        name = path_iqn(node.initiator, number)
        return replace(node, initiator=name, replacement_timeout=self.settings.path_given_up, ping=initiator.PATH_PING)

    def _table(self, one: Attaching[Offer]) -> str:
        node = devmapper.of_role(ROLE).get(one.record.uuid)
        # A node that had several stays one of that target, with a single path: the kernel takes no other in its place.
        if not attached.several(one.record) and not (node and devmapper.of_paths(node)):
            return super()._table(one)
        return devmapper.multipath_over(one.devices, one.record.size, self.settings.queues)

    def _place(self, batch: Sequence[Attaching[Offer]]) -> None:
        super()._place(batch)
        nodes = devmapper.of_role(ROLE)
        for one in batch:
            if attached.several(one.record):
                paths.give_up_after(one.record, self.settings.path_given_up)
            paths.reinstate(nodes[one.record.uuid], one.devices)
        if any(attached.several(one.record) for one in batch):
            watch.start(self.site, self.settings)

    def _duplicates(self, record: Offer) -> Iterator[StorkitError]:
        if others := sessiondisk.others(record.uuid.lower(), record.name):
            yield Unsafe(
                f"the serial number of volume {record.volume} is also that of {', '.join(others)} on "
                f"{self.site.host}, which comes from elsewhere: one of the two is another disk",
                f"find out which, and give it another serial number: lsblk --scsi -o NAME,SERIAL,TRAN /dev/{others[0]}",
            )

    def _take_right(self, one: Attaching[Offer], writers: list[str] | None = None) -> None:
        """As a writer: be registered, by every path, and see to it that the unregistered cannot write."""
        uuid, own = one.record.uuid, reservations.key_for(one.record.uuid, self.site.host)
        for device in one.devices:
            sessiondisk.rescan(device)
        if any(map(sessiondisk.readonly, one.devices)):
            raise Conflict(
                f"the target of volume {one.record.volume} lets host {self.site.host} read only", "storkit status"
            )
        keys = None if writers is None else [reservations.key_for(uuid, host) for host in writers]
        reservations.hold(one.devices, own, keys, only=len(attached.sessions(one.record)) == 1)

    def _abandon(self, fresh: Sequence[Attaching[Offer]]) -> None:
        with suppress(StorkitError):
            devmapper.remove([node_name(one.record.volume, role) for one in fresh for role in (ROLE, FILL)])
        with suppress(StorkitError):
            for_each_at_once(lambda one: paths.hang_up(one.record), fresh)
        for one in fresh:
            if one.offer is not None:
                initiator.delete_records(one.record.name)

    # detach

    def _close(self, batch: Sequence[Detaching[Offer]]) -> None:
        self._drop_copies(one.volume.uuid for one in batch)
        nodes = self._nodes()
        records = [one.record or self._bare(one.volume) for one in batch]
        here = [_Here(record, nodes.get(record.uuid), attached.sessions(record)) for record in records]
        if any(each.sessions for each in here):
            initiator.check_daemon()
        lost = [bool(each.sessions) and not each.alive for each in here]
        raise_problems(
            [
                problem
                for each, gone in zip(here, lost, strict=True)
                for problem in self._in_use(each.record, each.node, gone)
            ]
        )
        for_each_at_once(_flush, [each for each in here if each.alive and each.node and not each.node.readonly])
        # What was sent to a target that is away comes back only at the end of its sessions.
        for node in [each.node for each in here if each.node and not each.alive]:
            devmapper.stop_queueing(node)
        for_each_at_once(lambda each: paths.hang_up(each.record), [each for each in here if not each.alive])
        for_each_at_once(
            lambda each: initiator.end_logins(each.record.name), [each for each in here if not each.sessions]
        )
        devmapper.remove([each.node.name for each in here if each.node])
        for_each_at_once(self._let_go, [each for each in here if each.alive])
        for one in batch:
            one.gone = True

    def _let_go(self, here: _Here) -> None:
        """Take back this host's registrations, if it may still write, and log out."""
        disks = [disk for each in here.sessions if each.alive and (disk := sessiondisk.find(each))]
        if here.node and not here.node.readonly and _writable(here):
            with suppress(StorkitError):
                if attached.several(here.record):
                    # Also those of its paths' earlier sessions: nobody writes here any more.
                    own = reservations.key_for(here.record.uuid, self.site.host)
                    reservations.register(disks[0], own)
                    reservations.preempt(disks[0], own, own)
                reservations.register(disks[0], 0)
        paths.hang_up(here.record)
        if attached.several(here.record):
            initiator.end_logins(here.record.name)  # a path at which a command was killed

    def _released(self, gone: Sequence[Detaching[Offer]]) -> None:
        # Before our own records: as long as those are there, they name what may be left.
        for one in gone:
            initiator.delete_records((one.record or self._bare(one.volume)).name)

    def _forget(self, gone: Sequence[Detaching[Offer]]) -> None:
        super()._forget(gone)
        watch.stop_unless(self.site, self.of_several_paths)

    # claim

    def claim(self, volumes: list[Volume], writers: list[str]) -> None:
        """Take up the right to write that the target has given, under whoever has the path open.

        A session that was lost is made again; where that fails and nobody has the path open, `attach` is to do it.
        """
        with self._locked(volume.uuid for volume in volumes):
            known, problems = self._records.find(volume.uuid for volume in volumes)
            raise_problems(problems)
            nodes, deadline = self._nodes(), _patience()
            batch = [claimed(record) for uuid, record in known.items() if uuid in nodes]

            def take(one: Attaching[Offer]) -> None:
                node = nodes[one.record.uuid]
                try:
                    self._connect(one, node, deadline)
                except StorkitError:
                    if node.opens:
                        raise
                else:
                    self._take_right(one, writers)

            for_each_at_once(take, batch)
            self._taken_up(batch)

    # what is there

    def _broken(self, records: Mapping[str, Offer]) -> dict[str, str]:
        nodes, sessions = devmapper.of_role(ROLE), initiator.find_sessions()
        faults = {
            uuid: attached.fault(record, nodes.get(uuid), [each for each in sessions if each.target == record.name])
            for uuid, record in records.items()
        }
        return {uuid: why for uuid, why in faults.items() if why}

    def _paths(self, record: Offer) -> list[AttachmentPath]:
        return attached.paths(record, devmapper.of_role(ROLE).get(record.uuid)) if attached.several(record) else []

    def _look(self, record: Offer, offsets: list[int] | None) -> Evidence:
        ranges = wanted(record.uuid, record.size, offsets)
        shares = proving.shares(proving.answering(record, self.site.host), ranges)
        seen: dict[tuple[int, int], bytes] = {}
        states = []
        for path, share in shares.items():
            blocks = self._must_answer(record, path, share or reading.PROBE)
            states.append(proving.ask(path))
            seen |= dict(zip(share, self._blocks(record, path, blocks, states[-1].identity), strict=False))
        return proving.told(record, self.site.host, states, digests(ranges, [seen[each] for each in ranges]))

    # paths that come back

    def of_several_paths(self) -> list[str]:
        """The volumes that are attached by several paths."""
        return [uuid for uuid, record in self._records.find()[0].items() if attached.several(record)]

    def mend(self, uuid: str) -> bool:
        """Use the paths of a volume again that the kernel gave up, and whose sessions go on: each is verified anew, and
        registered if this host writes. Whether there is nothing left to wait for: a portal without a session needs an
        attach."""
        with self._locked([uuid]):
            record = self._records.find([uuid])[0].get(uuid)
            node = devmapper.of_role(ROLE).get(uuid)
            if record is None or node is None:
                return True
            own = reservations.key_for(uuid, self.site.host) if record.writable else None
            back = paths.back(record, node, self._must_answer, own)
            used = devmapper.paths(node)
            if any(disk not in used for disk in back):
                devices = [*(disk for disk, works in used.items() if works), *back]
                table = devmapper.multipath_over(devices, record.size, self.settings.queues)
                devmapper.swap([Wanted(node.name, node.uuid, table, node.readonly)])
            paths.give_up_after(record, self.settings.path_given_up)
            paths.reinstate(node, back)
            states = devmapper.paths(node)
            return all(each.alive and states.get(sessiondisk.find(each)) for each in attached.sessions(record))


def _patience() -> float:
    """Until when a call waits for sessions that are being recovered."""
    return time.monotonic() + initiator.RECOVERY


def _writable(here: _Here) -> bool:
    """Whether the target still shows this disk to this host, and lets it write."""
    alive = [session for session in here.sessions if session.alive]
    return any(sessiondisk.writable(session, here.record.identity) for session in alive)


def _flush(here: _Here) -> None:
    """Write what this host's page cache holds. Raises ServiceUnreachable if the disk, though it is there and this host
    may write it, does not take it: tried again, it may."""
    assert here.node is not None
    error = flush(here.node)
    if error is not None and _writable(here):
        message = f"volume {here.record.volume} cannot be flushed: {error.strerror}"
        raise ServiceUnreachable(message, "storkit status") from error
