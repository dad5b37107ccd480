"""iSCSI exports on the host that uses them: logged in to, verified, and only then at their stable paths.

An attachment is a session of its own, its logical unit 0, a device-mapper node over that, and a symbolic link to the
node. They are made in this order, so that a path that exists leads to a verified disk, and taken away in the other:

    open-iscsi's record, session, disk (identity, size), reservation if writable, our record, node, path
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from storkit.core.backend import Site
from storkit.core.errors import (
    Conflict,
    NotFound,
    ServiceUnreachable,
    StorkitError,
    Unsafe,
    UsageError,
    collected,
    raise_problems,
)
from storkit.core.identities import check_secret
from storkit.core.model import Attachment, DiskSource, Evidence, Offer, Secret, Volume, check_name
from storkit.system import locks
from storkit.system.block import devmapper, reservations
from storkit.system.block.devmapper import Wanted, node_name, node_path, node_uuid
from storkit.system.block.openers import only_killed
from storkit.system.files import PARTIAL, make_private
from storkit.system.parallel import every
from storkit.system.timeouts import scaled
from storkit.tech.iscsi import initiator, sessiondisk
from storkit.tech.iscsi.attached import ROLE, AttachedNode, IscsiAttached, find_nodes
from storkit.tech.iscsi.initiator import IscsiSession
from storkit.tech.iscsi.names import (
    Chapped,
    IscsiSettings,
    identity,
    initiator_iqn,
    is_target,
    portal,
    portal_name,
)
from storkit.tech.iscsi.sessiondisk import Lun

_BUSY = scaled(60.0)
Login = Callable[[Offer], None]
"""How an attachment's session is opened."""


@dataclass(slots=True)
class _Attaching:
    """One volume on its way to or from its path."""

    offer: Offer
    node: AttachedNode | None
    """The node that the volume has already."""
    session: IscsiSession | None = None
    disk: Lun | None = None
    ours: bool = False
    """Whether this call logged in."""


class IscsiAttachments:
    """The iSCSI attachments of one host."""

    def __init__(self, site: Site, settings: IscsiSettings) -> None:
        self.site = site
        self.settings = settings
        self._attached = IscsiAttached(site, settings.prefix)

    # attach

    def attach(self, offers: list[Offer]) -> list[Attachment]:
        self._check(offers)
        initiator.check_daemon()
        with self._locked(offer.uuid for offer in offers):
            nodes = self._attached.nodes()
            pending = [_Attaching(offer, nodes.get(offer.uuid)) for offer in offers]
            self._attach(pending, self._write_login, _patience())
            return [self._attachment(it.volume, it.uuid, it.size, it.writable) for it in offers]

    def restore(self) -> None:
        """Attach again what was attached before a reboot. A target that is silent is named, and the others go on."""
        offers, problems = self._attached.offers()
        if offers:
            initiator.check_daemon()
        deadline = _patience()  # one for all: a host that was cut off has many that will not come back

        def again(offer: Offer) -> None:
            with self._locked([offer.uuid]):
                pending = [_Attaching(offer, self._attached.nodes().get(offer.uuid))]
                self._attach(pending, self._recorded_login, deadline)

        with collected(problems):
            every(again, offers)
        raise_problems(problems)

    def _check(self, offers: list[Offer]) -> None:
        """What can be refused before anything changes."""
        problems: list[StorkitError] = []
        owners = {node.volume: node.uuid for node in find_nodes()}
        names = {uuid: volume for volume, uuid in owners.items()}
        for offer in offers:
            check_name("volume", offer.volume)
            owner, path = owners.get(offer.volume, ""), self.site.dev / offer.volume
            if owner not in ("", offer.uuid):
                hint = f"storkit detach {offer.volume} --on {self.site.host}"
                problems.append(
                    Conflict(f"another volume {offer.volume}, {owner}, is attached on {self.site.host}", hint)
                )
            elif (path.is_symlink() or path.exists()) and not _leads_to_node(path, offer.volume):
                hint = f"look at it, then remove it: ls -ld {path}"
                problems.append(Conflict(f"{path} exists, and storkit did not make it", hint))
            if names.get(offer.uuid, offer.volume) != offer.volume:
                message = f"volume {names[offer.uuid]} on {self.site.host} is offered as {offer.volume}"
                hint = f"storkit detach {names[offer.uuid]} --on {self.site.host}"
                problems.append(Conflict(f"{message}, with the same UUID", hint))
            if not is_target(offer.name, offer.uuid) or offer.identity != identity(offer.uuid):
                message = f"the offer of volume {offer.volume} is for another target or disk: {offer.name}"
                problems.append(Unsafe(f"{message}, {offer.identity}", "leave it alone until you know what it is"))
            if not offer.portals:
                problems.append(UsageError(f"the offer of volume {offer.volume} names no portal", "storkit status"))
            for text in offer.portals:
                try:
                    portal(text)
                except UsageError as error:
                    problems.append(error)
        raise_problems(problems)

    def _attach(self, pending: list[_Attaching], login: Login, deadline: float) -> None:
        """All or none. Sessions that are being recovered are waited for until `deadline`."""
        try:
            every(lambda one: self._connect(one, login, deadline), pending)
            if login == self._recorded_login:
                self._heed_target(pending)
            raise_problems([problem for one in pending for problem in self._duplicates(one)])
            every(self._take_right, [one for one in pending if one.offer.writable])
            self._attached.save(one.offer for one in pending)
            self._make_paths(pending)
        except BaseException:
            self._abandon([one for one in pending if one.ours and one.node is None], login)
            raise

    def _connect(self, one: _Attaching, login: Login, deadline: float) -> None:
        """Have a session, and in it the disk that the offer speaks of."""
        session = self._attached.session(one.offer)
        if session is not None and not session.alive:
            if one.node is not None and _opens(one.node) and not only_killed(one.node.path):
                self._wait_for(one.offer, session, deadline)
                session = self._attached.alive(one.offer)
            else:
                # The target may have other secrets by now, which a session that exists never learns.
                self._hang_up(one.offer)
                session = None
        if session is None:
            one.ours = True
            login(one.offer)
            session = self._attached.alive(one.offer)
        one.session = session
        one.disk = sessiondisk.attach(session, one.offer.volume, one.offer.identity, one.offer.size)

    def _wait_for(self, offer: Offer, session: IscsiSession, deadline: float) -> None:
        """The session of a disk in use goes on by itself, soon after its target is back; nothing else may end it.

        Raises ServiceUnreachable: the target is still away.
        """
        reason = initiator.probe(*portal(session.portal))
        if not reason and not initiator.recovered(session.target, deadline):
            reason = "its port is open, and the session does not go on"
        if reason:
            raise ServiceUnreachable(
                f"volume {offer.volume} is in use on {self.site.host}, and its target {session.target} at "
                f"{session.portal} is away ({reason})",
                "it goes on when the target is back: storkit status",
            )

    def _heed_target(self, pending: list[_Attaching]) -> None:
        """After a reboot this host writes only what it wrote before and the target still lets it write."""
        for one in pending:
            if not one.offer.writable or one.disk is None:
                continue
            sessiondisk.rescan(one.disk.path)
            if sessiondisk.readonly(one.disk.path):
                one.offer = replace(one.offer, writable=False)

    def _write_login(self, offer: Offer) -> None:
        """Log in with the secrets of the offer."""
        node = self._login_node(offer, [portal(text) for text in offer.portals])
        initiator.write_record(node)
        initiator.login(node)

    def _recorded_login(self, offer: Offer) -> None:
        """Log in with the secrets of open-iscsi's record: our own has none."""
        portals = initiator.find_records(offer.name)
        if not portals:
            raise NotFound(
                f"the record of volume {offer.volume} is gone from {initiator.database()}",
                f"storkit attach {offer.volume} --on {self.site.host}",
            )
        initiator.login(self._login_node(offer, portals))

    def _login_node(self, offer: Offer, portals: list[tuple[str, int]]) -> initiator.InitiatorRecord:
        """The first portal where anybody answers: trying costs milliseconds here, and minutes in iscsid."""
        silent = []
        for address, port in portals:
            reason = initiator.probe(address, port)
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
            silent.append(f"{portal_name(address, port)}: {reason}")
        message = f"no portal of volume {offer.volume} answers ({'; '.join(silent)})"
        raise ServiceUnreachable(message, "storkit host check")

    def _duplicates(self, one: _Attaching) -> Iterator[StorkitError]:
        if others := sessiondisk.others(one.offer.uuid.lower(), one.offer.name):
            yield Unsafe(
                f"the serial number of volume {one.offer.volume} is also that of {', '.join(others)} on "
                f"{self.site.host}, which comes from elsewhere: one of the two is another disk",
                f"find out which, and give it another serial number: lsblk --scsi -o NAME,SERIAL,TRAN /dev/{others[0]}",
            )

    def _take_right(self, one: _Attaching, writers: list[str] | None = None) -> None:
        """As a writer: be registered, and see to it that the unregistered cannot write."""
        assert one.disk is not None
        offer, path = one.offer, one.disk.path
        sessiondisk.rescan(path)
        if sessiondisk.readonly(path):
            raise Conflict(
                f"the target of volume {offer.volume} lets host {self.site.host} read only", "storkit status"
            )
        keys = None if writers is None else [reservations.key_for(offer.uuid, host) for host in writers]
        reservations.hold(path, reservations.key_for(offer.uuid, self.site.host), keys)

    def _make_paths(self, pending: list[_Attaching]) -> None:
        wanted = []
        for one in pending:
            assert one.disk is not None
            offer, table = one.offer, devmapper.linear(one.disk.path, one.offer.size)
            name, uuid = node_name(offer.volume, ROLE), node_uuid(offer.uuid, ROLE)
            wanted.append(Wanted(name, uuid, table, not offer.writable))
        devmapper.ensure(wanted)
        make_private(self.site.dev)
        for one in pending:
            self._link(one.offer.volume)

    def _link(self, volume: str) -> None:
        path = self.site.dev / volume
        if not _leads_to_node(path, volume):
            partial = path.with_name(path.name + PARTIAL)
            partial.unlink(missing_ok=True)
            partial.symlink_to(node_path(node_name(volume, ROLE)))
            partial.rename(path)

    def _abandon(self, fresh: list[_Attaching], login: Login) -> None:
        """Log out of what this call logged in to. The error that counts is the first one, not one of these."""
        with contextlib.suppress(StorkitError):
            devmapper.remove([node_name(one.offer.volume, ROLE) for one in fresh])
        for one in fresh:
            self._unlink(one.offer.volume)
        with contextlib.suppress(StorkitError):
            every(lambda one: self._hang_up(one.offer), fresh)
        if login == self._write_login:
            self._attached.forget(one.offer for one in fresh)

    # detach

    def detach(self, volumes: list[Volume]) -> None:
        with self._locked(volume.uuid for volume in volumes):
            offers = {offer.uuid: offer for offer in self._attached.offers(volume.uuid for volume in volumes)[0]}
            nodes = self._attached.nodes()
            todo = []
            for volume in volumes:
                offer = offers.get(volume.uuid) or self._attached.bare_offer(volume)
                todo.append(_Attaching(offer, nodes.get(volume.uuid), self._attached.session(offer)))
            if any(one.session for one in todo):
                initiator.check_daemon()
            self._check_unused([one for one in todo if one.node])
            alive = [one for one in todo if one.session and one.session.alive]
            every(self._flush, [one for one in alive if one.node and not one.node.readonly])
            for one in todo:
                self._unlink(one.offer.volume)
            # What was sent to a target that is away comes back only at the end of its session.
            every(lambda one: self._hang_up(one.offer), [one for one in todo if one.session and one not in alive])
            devmapper.remove([one.node.name for one in todo if one.node])
            every(self._let_go, alive)
            self._attached.forget(one.offer for one in todo)

    def _check_unused(self, todo: list[_Attaching]) -> None:
        opens = {node.name: node.opens for node in devmapper.find()} if todo else {}
        problems: list[StorkitError] = []
        for one in todo:
            assert one.node is not None
            stalled = one.session is not None and not one.session.alive
            if opens.get(one.node.name) and not (stalled and only_killed(one.node.path)):
                hint = f"see who has it: lsblk {one.node.path}; fuser -v {one.node.path}"
                problems.append(Conflict(f"volume {one.offer.volume} is in use on {self.site.host}", hint))
        raise_problems(problems)

    def _flush(self, one: _Attaching) -> None:
        """Write what this host's page cache holds. Raises ServiceUnreachable if the disk, though it is there and this
        host may write it, does not take it: tried again, it may."""
        assert one.node is not None and one.session is not None
        descriptor = os.open(one.node.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if sessiondisk.writable(one.session, one.offer.identity):
                message = f"volume {one.offer.volume} cannot be flushed: {error.strerror}"
                raise ServiceUnreachable(message, "storkit status") from error
        finally:
            os.close(descriptor)

    def _unlink(self, volume: str) -> None:
        for path in (self.site.dev / (volume + PARTIAL), self.site.dev / volume):
            if _leads_to_node(path, volume):
                path.unlink()

    def _let_go(self, one: _Attaching) -> None:
        """Take back this host's registration, if it may still write, and log out."""
        assert one.session is not None
        if one.node is not None and not one.node.readonly and sessiondisk.writable(one.session, one.offer.identity):
            with contextlib.suppress(StorkitError):
                reservations.register(sessiondisk.find(one.session), 0)
        self._hang_up(one.offer)

    def _hang_up(self, offer: Offer) -> None:
        while session := self._attached.session(offer):
            initiator.logout(session)

    # claim

    def claim(self, volumes: list[Volume], writers: list[str]) -> None:
        """Take up the right to write that the target has given, under whoever has the path open."""
        with self._locked(volume.uuid for volume in volumes):
            nodes = self._attached.nodes()
            offers, problems = self._attached.offers(volume.uuid for volume in volumes)
            raise_problems(problems)
            pending = [
                _Attaching(replace(offer, writable=True), nodes[offer.uuid]) for offer in offers if offer.uuid in nodes
            ]

            def take(one: _Attaching) -> None:
                one.session = self._attached.alive(one.offer)
                one.disk = sessiondisk.attach(one.session, one.offer.volume, one.offer.identity, one.offer.size)
                self._take_right(one, writers)

            every(take, pending)
            self._attached.save(one.offer for one in pending)
            self._make_paths(pending)

    # what is there

    def find(self, volumes: list[str] | None) -> list[Attachment]:
        return [
            self._attachment(node.volume, uuid, node.size, not node.readonly)
            for uuid, node in self._attached.nodes().items()
            if volumes is None or uuid in volumes
        ]

    def _attachment(self, volume: str, uuid: str, size: int, writable: bool) -> Attachment:
        path = str(self.site.dev / volume)
        return Attachment(volume, uuid, self.site.host, "iscsi", path, DiskSource("block", path), size, writable)

    def evidence(self, volumes: list[Volume], offsets: list[int] | None) -> list[Evidence]:
        return self._attached.evidence(volumes, offsets)

    @contextlib.contextmanager
    def _locked(self, uuids: Iterable[str]) -> Iterator[None]:
        """Keep other commands from these attachments meanwhile."""
        directory = make_private(self.site.run / "iscsi-attach")
        with contextlib.ExitStack() as stack:
            for uuid in sorted(set(uuids)):
                what = f"the attachment of volume {uuid}"
                lock = locks.acquire(directory / uuid, what, holder=f"process {os.getpid()}", wait=_BUSY)
                stack.callback(lock.release, remove=True)
            yield


def _patience() -> float:
    """Until when a call waits for sessions that are being recovered."""
    return time.monotonic() + initiator.RECOVERY


def _leads_to_node(path: Path, volume: str) -> bool:
    return path.is_symlink() and str(path.readlink()) == node_path(node_name(volume, ROLE))


def _opens(node: AttachedNode) -> int:
    """How many have a node open."""
    return sum(found.opens for found in devmapper.find(node_uuid(node.uuid, ROLE)))


def _chap(offer: Offer) -> Chapped | None:
    """The secrets of an offer: the client's own, and with mutual CHAP the one that the target must know."""
    credential = offer.credential
    if credential is None or credential.secret is None:
        return None
    user, secret = (credential.files.get(name, Secret("")) for name in ("mutual-user", "mutual-secret"))
    for said in (user, secret):
        check_secret(said)  # they are lines of open-iscsi's record
    return Chapped(credential.user, credential.secret, user.reveal(), secret)
