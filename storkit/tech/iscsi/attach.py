"""iSCSI exports on the host that uses them: logged in to, verified, and only then at their stable paths.

An attachment is a session of its own, its logical unit 0, a device-mapper node over that, and a symbolic link to the
node. They are made in this order, so that a path that exists leads to a verified disk, and taken away in the other:

    open-iscsi's record, session, disk (identity, size), reservation if writable, our record, node, path

Our record is the offer without its secrets, which open-iscsi's own record has.
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
from storkit.core.identities import check_secret
from storkit.core.model import Evidence, Offer, Secret, Volume
from storkit.system.block import devmapper, reservations, scsi
from storkit.system.block.devmapper import MappedNode, node_name
from storkit.system.block.fingerprint import digests, wanted
from storkit.system.openers import only_killed
from storkit.system.parallel import for_each_at_once
from storkit.tech import portals
from storkit.tech.attachments import Attaching, Detaching
from storkit.tech.iscsi import attached, initiator, sessiondisk
from storkit.tech.iscsi.initiator import IscsiSession
from storkit.tech.iscsi.names import (
    PORT,
    Chapped,
    IscsiSettings,
    identity,
    initiator_iqn,
    is_target,
    portal,
    target_iqn,
)
from storkit.tech.mapped import ROLE, MappedAttachments, claimed, flush
from storkit.tech.records import RecordFiles


@dataclass(frozen=True, slots=True)
class _Here:
    """What the kernel has of an attachment."""

    record: Offer
    node: MappedNode | None
    session: IscsiSession | None

    @property
    def alive(self) -> bool:
        return self.session is not None and self.session.alive


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
        session = attached.session(record)
        return [disk] if session and (disk := sessiondisk.find(session)) else []

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
        """Have a session, and in it the disk that the offer speaks of. Where the volume has a node, that keeps the new
        session, whatever fails: whoever has the node open needs it."""
        record = one.record
        session = attached.session(record)
        if session is not None and not session.alive:
            if node is not None and node.opens and not only_killed(node.device):
                self._wait_for(record, session, deadline)
                session = attached.alive(record, self.site.host)
            else:
                # The target may have other secrets by now, which a session that exists never learns.
                _hang_up(record)
                session = None
        if session is None:
            one.fresh = node is None
            self._log_in(one)
            session = attached.alive(record, self.site.host)
        elif path := sessiondisk.find(session):
            self._must_answer(record, path)
        one.device = sessiondisk.attach(session, record.volume, record.identity, record.size).path

    def _wait_for(self, record: Offer, session: IscsiSession, deadline: float) -> None:
        """The session of a disk in use goes on by itself, soon after its target is back; nothing else may end it.

        Raises ServiceUnreachable: the target is still away.
        """
        reason = portals.probe(*portal(session.portal))
        if not reason and not initiator.recovered(session.target, deadline):
            reason = "its port is open, and the session does not go on"
        if reason:
            raise ServiceUnreachable(
                f"volume {record.volume} is in use on {self.site.host}, and its target {session.target} at "
                f"{session.portal} is away ({reason})",
                "it goes on when the target is back: storkit status",
            )

    def _heed_target(self, one: Attaching[Offer]) -> None:
        """After a reboot this host writes only what it wrote before and the target still lets it write."""
        if one.record.writable:
            sessiondisk.rescan(one.device)
            if sessiondisk.readonly(one.device):
                one.record = replace(one.record, writable=False)

    def _log_in(self, one: Attaching[Offer]) -> None:
        """With the secrets of the offer, or with those of open-iscsi's record: our own has none."""
        if one.offer is not None:
            node = self._login_node(one.offer, [portal(text) for text in one.offer.portals])
            initiator.write_record(node)
        else:
            portals = initiator.find_records(one.record.name)
            if not portals:
                raise NotFound(
                    f"the record of volume {one.record.volume} is gone from {initiator.database()}",
                    f"storkit attach {one.record.volume} --on {self.site.host}",
                )
            node = self._login_node(one.record, portals)
        initiator.login(node)

    def _login_node(self, offer: Offer, places: list[tuple[str, int]]) -> initiator.InitiatorRecord:
        """The first portal where anybody answers: trying costs milliseconds here, and minutes in iscsid."""
        silent = []
        for address, port in places:
            reason = portals.probe(address, port)
            if not reason:
                return initiator.InitiatorRecord(
                    offer.name,
                    address,
                    port,
                    initiator_iqn(offer.name.removesuffix(f":{offer.uuid.lower()}"), self.site.host),
                    _chap(offer),
                    self.settings.login_timeout,
                    self.settings.replacement_timeout,
                )
            silent.append(f"{portals.name(address, port)}: {reason}")
        message = f"no portal of volume {offer.volume} answers ({'; '.join(silent)})"
        raise ServiceUnreachable(message, "storkit host check")

    def _duplicates(self, record: Offer) -> Iterator[StorkitError]:
        if others := sessiondisk.others(record.uuid.lower(), record.name):
            yield Unsafe(
                f"the serial number of volume {record.volume} is also that of {', '.join(others)} on "
                f"{self.site.host}, which comes from elsewhere: one of the two is another disk",
                f"find out which, and give it another serial number: lsblk --scsi -o NAME,SERIAL,TRAN /dev/{others[0]}",
            )

    def _take_right(self, one: Attaching[Offer], writers: list[str] | None = None) -> None:
        """As a writer: be registered, and see to it that the unregistered cannot write."""
        uuid = one.record.uuid
        sessiondisk.rescan(one.device)
        if sessiondisk.readonly(one.device):
            raise Conflict(
                f"the target of volume {one.record.volume} lets host {self.site.host} read only", "storkit status"
            )
        keys = None if writers is None else [reservations.key_for(uuid, host) for host in writers]
        reservations.hold(one.device, reservations.key_for(uuid, self.site.host), keys)

    def _abandon(self, fresh: Sequence[Attaching[Offer]]) -> None:
        with suppress(StorkitError):
            devmapper.remove([node_name(one.record.volume, ROLE) for one in fresh])
        with suppress(StorkitError):
            for_each_at_once(lambda one: _hang_up(one.record), fresh)
        for one in fresh:
            if one.offer is not None:
                initiator.delete_records(one.record.name)

    # detach

    def _close(self, batch: Sequence[Detaching[Offer]]) -> None:
        nodes = self._nodes()
        records = [one.record or self._bare(one.volume) for one in batch]
        here = [_Here(record, nodes.get(record.uuid), attached.session(record)) for record in records]
        if any(each.session for each in here):
            initiator.check_daemon()
        lost = [each.session is not None and not each.alive for each in here]
        raise_problems(
            [
                problem
                for each, gone in zip(here, lost, strict=True)
                for problem in self._in_use(each.record, each.node, gone)
            ]
        )
        for_each_at_once(_flush, [each for each in here if each.alive and each.node and not each.node.readonly])
        # What was sent to a target that is away comes back only at the end of its session.
        for_each_at_once(lambda each: _hang_up(each.record), [each for each in here if not each.alive])
        for_each_at_once(
            lambda each: initiator.end_logins(each.record.name), [each for each in here if not each.session]
        )
        devmapper.remove([each.node.name for each in here if each.node])
        for_each_at_once(self._let_go, [each for each in here if each.alive])
        for one in batch:
            one.gone = True

    def _let_go(self, here: _Here) -> None:
        """Take back this host's registration, if it may still write, and log out."""
        assert here.session is not None
        if here.node and not here.node.readonly and sessiondisk.writable(here.session, here.record.identity):
            with suppress(StorkitError):
                reservations.register(sessiondisk.find(here.session), 0)
        _hang_up(here.record)

    def _released(self, gone: Sequence[Detaching[Offer]]) -> None:
        # Before our own records: as long as those are there, they name what may be left.
        for one in gone:
            initiator.delete_records((one.record or self._bare(one.volume)).name)

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

    def _look(self, record: Offer, offsets: list[int] | None) -> Evidence:
        session = attached.alive(record, self.site.host)
        # A session is lost ten seconds after its target: who asks the disk meanwhile waits until that is back.
        if reason := portals.probe(*portal(session.portal)):
            message = f"the target of volume {record.volume} does not answer {self.site.host} at {session.portal}"
            raise ServiceUnreachable(f"{message}: {reason}", "storkit status")
        path = sessiondisk.find(session)
        ranges = wanted(record.uuid, record.size, offsets)
        seen = self._must_answer(record, path, ranges)
        disk = sessiondisk.read(path)
        seen = self._blocks(record, path, seen, disk.identity)
        with scsi.ScsiDisk(path) as asked:
            keys = {reservations.key_text(key) for key in asked.registered_keys()}
        own = reservations.key_text(reservations.key_for(record.uuid, self.site.host))
        key = own if own in keys else ""
        blocks = digests(ranges, seen)
        return Evidence(record.volume, self.site.host, disk.identity, disk.size, blocks, key, sorted(keys))


def _patience() -> float:
    """Until when a call waits for sessions that are being recovered."""
    return time.monotonic() + initiator.RECOVERY


def _hang_up(record: Offer) -> None:
    while session := attached.session(record):
        initiator.logout(session)


def _flush(here: _Here) -> None:
    """Write what this host's page cache holds. Raises ServiceUnreachable if the disk, though it is there and this host
    may write it, does not take it: tried again, it may."""
    assert here.node is not None and here.session is not None
    error = flush(here.node)
    if error is not None and sessiondisk.writable(here.session, here.record.identity):
        message = f"volume {here.record.volume} cannot be flushed: {error.strerror}"
        raise ServiceUnreachable(message, "storkit status") from error


def _chap(offer: Offer) -> Chapped | None:
    """The secrets of an offer: the client's own, and with mutual CHAP the one that the target must know."""
    credential = offer.credential
    if credential is None or credential.secret is None:
        return None
    user, secret = (credential.files.get(name, Secret("")) for name in ("mutual-user", "mutual-secret"))
    for said in (user, secret):
        check_secret(said)  # they are lines of open-iscsi's record
    return Chapped(credential.user, credential.secret, user.reveal(), secret)
