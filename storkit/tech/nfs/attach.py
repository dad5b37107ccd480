"""NFS exports on the host that uses them: mounted, verified before the stable path appears, proved afterwards.

Each volume has a mount of its own, which shares no superblock with others (`nosharecache`): a mount whose server is
gone can be given up, and the requests of its own fail, while those of the other volumes wait on.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from storkit.core.backend import Site
from storkit.core.errors import (
    CommandFailed,
    Conflict,
    NotFound,
    ServiceUnreachable,
    StorkitError,
    TimedOut,
    Unsafe,
    Unsupported,
    UsageError,
)
from storkit.core.identities import check_path
from storkit.core.model import Attachment, DiskSource, Evidence, Offer
from storkit.system.block import fingerprint, holders, reading
from storkit.system.block.holders import Holder
from storkit.system.files import explain, make_private
from storkit.system.parallel import for_each_at_once
from storkit.system.run import run
from storkit.system.timeouts import scaled
from storkit.tech.attachments import Attaching, Attachments, Detaching
from storkit.tech.images import qcow2
from storkit.tech.nfs.layout import IDENTITY, stated
from storkit.tech.nfs.names import NfsSettings
from storkit.tech.nfs.server import unescape
from storkit.tech.records import RecordFiles

PACKAGE = "nfs-common"
PORT = 2049
NO_TCP = "mount.nfs does not know the protocol tcp: this host has no /etc/protocols", "apt install netbase"
"""What is wrong where `knows_tcp` is false, and what mends it: nfs-common does not depend on that package."""
_ANSWER_TIMEOUT = scaled(10.0)
_MOUNT_TIMEOUT = scaled(150.0)
"""A server that has just started lets nobody in for its grace period, 90 s by default."""
_UNMOUNT_TIMEOUT = scaled(5.0)
CLOSE_TIMEOUT = scaled(10.0)
"""Seconds that a user whose I/O has failed gets to close the file."""
_LOOK = 0.2
"""Seconds until requests are aborted again. No event tells that a user has closed its file, or asks the server again:
a mount in use shows in the answer of umount(2) alone."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/PID/mountinfo (proc(5))."""

    point: str
    root: str
    """The directory of the file system that is mounted here."""
    type: str
    source: str


def parse_mountinfo(text: str) -> list[Mount]:
    """The mounts in /proc/PID/mountinfo; of those on one point the last is on top."""
    found = []
    for line in text.splitlines():
        head, _, tail = line.partition(" - ")
        fields, (kind, source) = head.split(), tail.split()[:2]
        found.append(Mount(unescape(fields[4]), unescape(fields[3]), kind, unescape(source)))
    return found


def mounts() -> list[Mount]:
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))


def mount_of(path: Path, among: Iterable[Mount]) -> Mount:
    """The mount that a path is on."""
    real = Path(os.path.realpath(path))
    found = [mount for mount in among if real.is_relative_to(mount.point)]
    return max(enumerate(found), key=lambda pair: (len(pair[1].point), pair[0]))[1]


HARMLESS = "nosuid,nodev,noexec"
"""What a server shows is data: no program that gives whoever runs it another's rights, and no device (mount(8))."""


def mount_options(settings: NfsSettings) -> str:
    """The options of a volume's mount (nfs(5))."""
    words = [f"vers={settings.version}", "proto=tcp", "hard", "nosharecache", f"sec={settings.sec}"]
    return ",".join([*words, *filter(None, (word.strip() for word in settings.options.split(","))), HARMLESS])


def source(server: str, path: str) -> str:
    """A server's directory as mount(8) takes it."""
    return f"[{server}]:{path}" if ":" in server else f"{server}:{path}"


def mount(server: str, path: str, point: Path, options: str) -> None:
    """Mount a directory of a server. Raises ServiceUnreachable, NotFound, Unsupported or Conflict, with what to do."""
    _refuse_other(point)
    _answers(server)
    make_private(point)
    argv = ["mount", "-n", "-t", "nfs", "-o", options, source(server, path), str(point)]
    try:
        run(argv, package=PACKAGE, timeout=_MOUNT_TIMEOUT, locked=True)
    except CommandFailed as error:
        point.rmdir()
        raise _explained(server, path, error) from error
    except TimedOut as error:
        with suppress(StorkitError):
            unmount(point)
        hint = f"see what it does: rpcinfo -t {server} nfs 4"
        raise ServiceUnreachable(f"the NFS server {server} did not let {path} be mounted in time", hint) from error


def _refuse_other(point: Path) -> None:
    """Raise Conflict if there is another's thing where something is to be mounted: what is in a directory would be
    hidden, and a link would lead the mount elsewhere."""
    try:
        there = point.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.geteuid() or any(point.iterdir()):
        hint = f"look at it, then move it away: ls -la {point}"
        raise Conflict(f"{point} is no empty directory of storkit's, and nothing is mounted over it", hint)


def _answers(server: str) -> None:
    try:
        socket.create_connection((server, PORT), _ANSWER_TIMEOUT).close()
    except OSError as error:
        reason = error.strerror or str(error)
        hint = "is it on, its NFS server started, and the address the one it answers at? systemctl status nfs-server"
        raise ServiceUnreachable(f"no NFS server answers at {server}, port {PORT}: {reason}", hint) from None


def _explained(server: str, path: str, error: CommandFailed) -> StorkitError:
    said = error.stderr.lower()
    if "access denied" in said or "operation not permitted" in said:
        hint = "compare the host's address in the inventory with the one it comes from: ip route get " + server
        return Conflict(f"the NFS server {server} does not let this host mount {path}", hint)
    if "no such file" in said:
        return NotFound(f"the NFS server {server} has no {path}", "storkit status")
    if "'tcp' protocol" in said:
        return Unsupported(*NO_TCP)
    if "protocol not supported" in said or "unknown filesystem" in said or "no such device" in said:
        message = f"this host and the NFS server {server} have no version of NFS in common that was asked for"
        return Unsupported(message, f"apt install {PACKAGE}; modprobe nfsv4; or set version of transports.nfs")
    return error


def knows_tcp() -> bool:
    """Whether mount.nfs will find the protocol that it is told to use (getprotobyname(3))."""
    try:
        socket.getprotobyname("tcp")
    except OSError:
        return False
    return True


def unmount(point: Path, abort: bool = False) -> None:
    """Take a mount away. With `abort`, as when its server is gone, what its users wait for fails, and they get time to
    close their files.

    umount(8) runs with -c and -i, since a look at the mount point would wait for the server. `umount -f` aborts the
    requests that wait at that moment only. A process that closes its file after EIO sends a new request, so `umount -f`
    is repeated until no process is left. The mount is never detached under its users (-l): nobody can abort what they
    request afterwards, and even after a kill they stay until the server is back.

    Raises Conflict: it is in use. TimedOut: it cannot be taken away.
    """
    argv = ["umount", "-c", "-i", str(point)]
    deadline = time.monotonic() + CLOSE_TIMEOUT
    while any(mount.point == str(point) for mount in mounts()):
        try:
            run([*argv, "-f"] if abort else argv, timeout=_UNMOUNT_TIMEOUT)
        except TimedOut:
            if time.monotonic() > deadline:
                raise
            abort = True
        except CommandFailed as error:
            if "not mounted" in error.stderr:
                break
            if "busy" not in error.stderr:
                raise
            if not abort or time.monotonic() > deadline:
                hint = f"end who uses it, then do it again: ls -l /proc/[0-9]*/fd | grep {point}"
                raise Conflict(f"{point} is in use", hint) from error
            time.sleep(_LOOK)
    with suppress(FileNotFoundError):
        point.rmdir()


@dataclass(frozen=True, slots=True)
class NfsAttached:
    """The record of one attachment."""

    attachment: Attachment
    server: str
    path: str
    """The directory on the server."""
    file: str
    """The name of the volume's file in it."""
    identity: str


class NfsAttachments(Attachments[NfsAttached]):
    """The attachments of one host."""

    transport = "nfs"

    def __init__(self, site: Site, settings: NfsSettings) -> None:
        super().__init__(site, RecordFiles(site.state / "nfs" / "attached", NfsAttached, "the attachment"))
        self.settings = settings
        self._mounts = site.run / "nfs"

    def _attachment(self, record: NfsAttached) -> Attachment:
        return record.attachment

    def _refused(self, offer: Offer, known: NfsAttached | None) -> Iterator[StorkitError]:
        file, format = offer.options.get("file", ""), offer.options.get("format", "")
        if not file or "/" in file or file.startswith("."):
            yield Unsafe(f"the offer of volume {offer.volume} names no file: {file!r}", "storkit status")
        if format not in ("raw", "qcow2"):
            yield Unsafe(f"the offer of volume {offer.volume} names no format: {format!r}", "storkit status")
        try:
            check_path(offer.name)
        except UsageError as error:
            yield Unsafe(f"the offer of volume {offer.volume}: {error.message}", "storkit status")
        if not offer.server:
            yield Unsafe(f"the offer of volume {offer.volume} names no server", "storkit status")

    def _planned(self, offer: Offer) -> NfsAttached:
        path, file = self.path(offer.volume), offer.options["file"]
        # QEMU looks for the file that an overlay stands on where the path says, not where a link leads.
        shown = self._point(offer.uuid) / file if offer.options.get("backing") else path
        disk = DiskSource("file", path=str(shown), format=offer.options["format"])
        attachment = Attachment(
            offer.volume, offer.uuid, self.site.host, offer.transport, str(path), disk, offer.size, offer.writable
        )
        return NfsAttached(attachment, offer.server, offer.name, file, offer.identity)

    def _point(self, uuid: str) -> Path:
        return self._mounts / uuid

    def _users(self, record: NfsAttached) -> list[Holder]:
        return holders.on_file(str(self._point(record.attachment.uuid) / record.file))

    # Mounts

    def _open(self, batch: Sequence[Attaching[NfsAttached]]) -> None:
        make_private(self._mounts)
        for_each_at_once(self._mount, batch)

    def _mount(self, one: Attaching[NfsAttached]) -> None:
        record, point = one.record, self._point(one.record.attachment.uuid)
        there = mounted_at(point, mounts())
        if there is not None and there.source != source(record.server, record.path):
            _unmount_own(point, there)
            there = None
        if there is None:
            mount(record.server, record.path, point, mount_options(self.settings))
            one.fresh = True
        self._verify(record)

    def _place(self, batch: Sequence[Attaching[NfsAttached]]) -> None:
        for one in batch:
            one.target = str(self._point(one.record.attachment.uuid) / one.record.file)

    def _abandon(self, fresh: Sequence[Attaching[NfsAttached]]) -> None:
        with suppress(StorkitError):
            for_each_at_once(lambda one: unmount(self._point(one.record.attachment.uuid)), fresh)

    def _close(self, batch: Sequence[Detaching[NfsAttached]]) -> None:
        for_each_at_once(self._unmount, batch)

    def _unmount(self, one: Detaching[NfsAttached]) -> None:
        point = self._point(one.volume.uuid)
        there = mounted_at(point, mounts())
        if there is not None:
            _unmount_own(point, there, abort=not _reachable(one.record))
        with suppress(FileNotFoundError):
            point.rmdir()
        one.gone = True

    def _ours(self, target: str, name: str, uuid: str, record: NfsAttached | None) -> bool:
        return target.startswith(f"{self._point(uuid)}/")

    def _broken(self, records: Mapping[str, NfsAttached]) -> dict[str, str]:
        there, found = mounts(), dict[str, str]()
        for uuid, record in records.items():
            mount = mounted_at(self._point(uuid), there)
            if mount is None:
                found[uuid] = f"{source(record.server, record.path)} is not mounted any more"
            elif mount.source != source(record.server, record.path):
                found[uuid] = f"{mount.source} is mounted in its place, at {mount.point}"
        return found

    # What the server shows

    def _verify(self, record: NfsAttached, ranges: Sequence[tuple[int, int]] = ()) -> tuple[str, list[bytes]]:
        """What the server says the volume is, and blocks of its file. Raises Unsafe unless it is the one in the record.

        ServiceUnreachable: who asks a mount whose server is away is not given back, so the server is asked first; and
        a child looks, since the server may go meanwhile.
        """
        _answers(record.server)
        name, uuid, point = record.attachment.volume, record.attachment.uuid, self._point(record.attachment.uuid)
        file = point / record.file
        head = [(0, fingerprint.BLOCK)]
        try:
            seen = reading.read_all(
                {
                    "label": reading.Asked(point / IDENTITY, head, follow=False),
                    "file": reading.Asked(file, [*head, *ranges], follow=False),
                }
            )
            label, there = reading.answered(seen["label"]), reading.answered(seen["file"])
        except FileNotFoundError as error:
            message = f"the NFS server {record.server} shows no volume {name} in {record.path}"
            raise Unsafe(message, f"storkit detach {name} --on {self.site.host}, then attach it again") from error
        except OSError as error:
            raise _read_error(error, file, record.server) from error
        except TimedOut as error:
            hint = f"see whether it runs: rpcinfo -t {record.server} nfs 4"
            message = f"the NFS server {record.server} does not answer for volume {name}: {error.message}"
            raise ServiceUnreachable(message, hint) from error
        hint = "leave it alone until you know what serves there: storkit status"
        label_text = label.blocks[0].decode(errors="replace").strip()
        instance = label_text.rpartition(":")[2].partition(".")[0]
        says = label_text if not label_text.startswith(f"storkit:{uuid}:") else stated(uuid, instance, there.inode)
        if not stat.S_ISREG(there.mode) or label_text != record.identity or says != record.identity:
            raise Unsafe(f"volume {name} is {record.identity}, and what the NFS server shows is {says}", hint)
        raw = record.attachment.source.format == "raw"
        size = there.size if raw else _qcow2_size(file, there.blocks[0])
        if size != record.attachment.size:
            raise Unsafe(f"volume {name} has {record.attachment.size} bytes, and the NFS server shows {size}", hint)
        return says, there.blocks[1:]

    def _look(self, record: NfsAttached, offsets: list[int] | None) -> Evidence:
        it = record.attachment
        # Of a qcow2 file the bytes as they lie are compared, empty where it is not that long yet.
        ranges = fingerprint.wanted(it.uuid, it.size, offsets)
        says, blocks = self._verify(record, ranges)
        return Evidence(it.volume, self.site.host, says, it.size, fingerprint.digests(ranges, blocks))


def mounted_at(point: Path, among: Iterable[Mount]) -> Mount | None:
    """What is mounted on a directory, the last on top of the others."""
    return next((mount for mount in reversed(list(among)) if mount.point == str(point)), None)


def _unmount_own(point: Path, there: Mount, abort: bool = False) -> None:
    """Take a mount of storkit's away. Raises Conflict: somebody has mounted something else there."""
    if not there.type.startswith("nfs"):
        raise Conflict(f"{there.source} ({there.type}) is mounted over {point}", f"umount {point}")
    unmount(point, abort)


def _reachable(record: NfsAttached | None) -> bool:
    try:
        if record is not None:
            _answers(record.server)
    except ServiceUnreachable:
        return False
    return True


def _qcow2_size(file: Path, head: bytes) -> int:
    try:
        return qcow2.parse(head).size
    except ValueError as error:
        raise Unsafe(f"{file} is damaged: {error}", f"qemu-img check {file}") from error


def _read_error(error: OSError, file: Path, server: str) -> StorkitError:
    import errno

    if error.errno in (errno.EACCES, errno.EPERM):
        hint = "the server must take this host's root for a user who may read it (anonuid, no_root_squash): exports(5)"
        return Conflict(f"the NFS server {server} does not let this host read {file}", hint)
    if error.errno == errno.ESTALE:
        return Unsafe(f"{file} is not what was mounted any more: {error.strerror}", "detach it, then attach it again")
    return explain(error, file)
