"""NFS exports on the host that uses them: mounted, verified before the stable path appears, proved afterwards.

Each volume has a mount of its own, which shares no superblock with others (`nosharecache`): a mount whose server is
gone can be given up, and the requests of its own fail, while those of the other volumes wait on.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
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
    raise_problems,
)
from storkit.core.identities import check_path
from storkit.core.model import AttachedHere, Attachment, DiskSource, Evidence, Offer, Volume, check_name
from storkit.system.block import fingerprint
from storkit.system.files import PARTIAL, explain, make_private
from storkit.system.parallel import every
from storkit.system.run import run
from storkit.system.timeouts import scaled
from storkit.tech.images import qcow2
from storkit.tech.nfs.layout import IDENTITY, stated
from storkit.tech.nfs.names import NfsSettings
from storkit.tech.nfs.server import unescape
from storkit.tech.records import RecordFiles, damaged, refuse_renamed

PACKAGE = "nfs-common"
PORT = 2049
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
        run(argv, package=PACKAGE, timeout=_MOUNT_TIMEOUT)
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
    if "protocol not supported" in said or "unknown filesystem" in said or "no such device" in said:
        message = f"this host and the NFS server {server} have no version of NFS in common that was asked for"
        return Unsupported(message, f"apt install {PACKAGE}; modprobe nfsv4; or set version of transports.nfs")
    return error


def unmount(point: Path, abort: bool = False) -> None:
    """Take a mount away. With `abort`, as when its server is gone, what its users wait for fails, and they get time to
    close their files.

    umount(8) must not look at the mount point itself, which would wait for the server (-c -i). What it aborts (-f) is
    all that is waited for just then: who closes a file after a failed write asks the server again. So it is done until
    nobody is left. It is never detached under its users (-l): what those ask afterwards cannot be aborted any more, and
    even when they are killed they stay until the server is back.

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


class NfsAttachments:
    """The attachments of one host."""

    def __init__(self, site: Site, settings: NfsSettings) -> None:
        self.site = site
        self.settings = settings
        self._records = RecordFiles(site.state / "nfs" / "attached", NfsAttached, "the attachment")
        self._mounts = site.run / "nfs"

    def attach(self, offers: list[Offer]) -> list[Attachment]:
        before = {record.attachment.uuid: record for record in self._find(None)}
        names = {record.attachment.volume: uuid for uuid, record in before.items()}
        problems: list[StorkitError] = []
        for offer in offers:
            try:
                refuse_renamed(before.get(offer.uuid), offer, self.site.host)
                self._check(offer, names.get(offer.volume, ""))
            except StorkitError as error:
                problems.append(error)
        raise_problems(problems)
        for directory in (self._mounts, self.site.dev):
            make_private(directory)
        made: dict[str, NfsAttached] = {}

        def attach(offer: Offer) -> None:
            made[offer.uuid] = self._mount(self._plan(offer), before.get(offer.uuid))

        try:
            every(attach, offers)
        finally:
            self._records.save(made)
            for record in made.values():
                self._link(record)
        return [made[offer.uuid].attachment for offer in offers]

    def _check(self, offer: Offer, owner: str) -> None:
        check_name("volume", offer.volume)
        path = self.site.dev / offer.volume
        if owner not in ("", offer.uuid):
            hint = f"storkit detach {offer.volume} --on {self.site.host}"
            raise Conflict(f"another volume {offer.volume}, {owner}, is attached on {self.site.host}", hint)
        if not owner and (path.is_symlink() or path.exists()):
            raise Conflict(f"{path} exists, and storkit did not make it", f"look at it, then remove it: ls -ld {path}")
        file, format = offer.options.get("file", ""), offer.options.get("format", "")
        if not file or "/" in file or file.startswith("."):
            raise Unsafe(f"the offer of volume {offer.volume} names no file: {file!r}", "storkit status")
        if format not in ("raw", "qcow2"):
            raise Unsafe(f"the offer of volume {offer.volume} names no format: {format!r}", "storkit status")
        try:
            check_path(offer.name)
        except UsageError as error:
            raise Unsafe(f"the offer of volume {offer.volume}: {error.message}", "storkit status") from None
        if not offer.server:
            raise Unsafe(f"the offer of volume {offer.volume} names no server", "storkit status")

    def _plan(self, offer: Offer) -> NfsAttached:
        path, file = self.site.dev / offer.volume, offer.options["file"]
        # QEMU looks for the file that an overlay stands on where the path says, not where a link leads.
        shown = self._point(offer.uuid) / file if offer.options.get("backing") else path
        disk = DiskSource("file", path=str(shown), format=offer.options["format"])
        attachment = Attachment(
            offer.volume, offer.uuid, self.site.host, offer.transport, str(path), disk, offer.size, offer.writable
        )
        return NfsAttached(attachment, offer.server, offer.name, file, offer.identity)

    def _point(self, uuid: str) -> Path:
        return self._mounts / uuid

    def _mount(self, record: NfsAttached, before: NfsAttached | None) -> NfsAttached:
        """Mount what was offered, and raise Unsafe unless it is the volume."""
        point = self._point(record.attachment.uuid)
        old = before is not None and replace(before, attachment=record.attachment) == record
        if self._mounted(point) and not old:
            unmount(point)
        fresh = not self._mounted(point)
        if fresh:
            mount(record.server, record.path, point, mount_options(self.settings))
        try:
            self._verify(record)
        except StorkitError:
            if fresh:
                unmount(point)
            raise
        return record

    def _mounted(self, point: Path) -> bool:
        return any(mount.point == str(point) for mount in mounts())

    def _verify(self, record: NfsAttached) -> tuple[str, int]:
        """What the server says the volume is, and its size. Raises Unsafe unless it is the one in the record;
        ServiceUnreachable, since who asks a mount whose server is away is not given back."""
        _answers(record.server)
        name, point = record.attachment.volume, self._point(record.attachment.uuid)
        file = point / record.file
        try:
            label = fingerprint.read_direct(point / IDENTITY, [(0, fingerprint.BLOCK)])[0].decode(errors="replace")
            descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                there = os.fstat(descriptor)
            finally:
                os.close(descriptor)
            size = there.st_size if record.attachment.source.format == "raw" else _qcow2_size(file)
        except FileNotFoundError as error:
            message = f"the NFS server {record.server} shows no volume {name} in {record.path}"
            raise Unsafe(message, f"storkit detach {name} --on {self.site.host}, then attach it again") from error
        except OSError as error:
            raise _read_error(error, file, record.server) from error
        hint = "leave it alone until you know what serves there: storkit status"
        uuid, instance = record.attachment.uuid, label.strip().rpartition(":")[2].partition(".")[0]
        says = label.strip() if not label.startswith(f"storkit:{uuid}:") else stated(uuid, instance, there.st_ino)
        if not stat.S_ISREG(there.st_mode) or label.strip() != record.identity or says != record.identity:
            raise Unsafe(f"volume {name} is {record.identity}, and what the NFS server shows is {says}", hint)
        if size != record.attachment.size:
            raise Unsafe(f"volume {name} has {record.attachment.size} bytes, and the NFS server shows {size}", hint)
        return says, size

    def _link(self, record: NfsAttached) -> None:
        path, target = Path(record.attachment.path), self._point(record.attachment.uuid) / record.file
        if path.is_symlink() and path.readlink() == target:
            return
        partial = path.with_name(path.name + PARTIAL)
        partial.unlink(missing_ok=True)
        partial.symlink_to(target)
        partial.rename(path)

    def detach(self, volumes: list[Volume]) -> None:
        records = {record.attachment.uuid: record for record in self._find([volume.uuid for volume in volumes])}

        def detach(volume: Volume) -> None:
            unmount(self._point(volume.uuid), abort=not self._reachable(records.get(volume.uuid)))
            if record := records.get(volume.uuid):
                path = Path(record.attachment.path)
                path.with_name(path.name + PARTIAL).unlink(missing_ok=True)
                if path.is_symlink():
                    path.unlink()
            self._records.forget([volume.uuid])

        every(detach, volumes)

    def _reachable(self, record: NfsAttached | None) -> bool:
        try:
            if record is not None and self._mounted(self._point(record.attachment.uuid)):
                _answers(record.server)
        except ServiceUnreachable:
            return False
        return True

    def look(self, volumes: list[str] | None) -> AttachedHere:
        records, problems = self._records.find(volumes)
        # By the name that this host has now: a record may be older than the inventory.
        found = [replace(record.attachment, host=self.site.host) for record in records.values()]
        return AttachedHere(
            sorted(found, key=lambda attachment: (attachment.volume, attachment.uuid)), damaged(problems)
        )

    def restore(self) -> None:
        """Mount again what was attached before a reboot, if it is still the same."""
        records = self._find(None)
        if records:
            make_private(self._mounts)
            make_private(self.site.dev)
        every(lambda record: self._link(self._mount(record, record)), records)

    def evidence(self, volumes: list[Volume], offsets: list[int] | None) -> list[Evidence]:
        records = {record.attachment.uuid: record for record in self._find([volume.uuid for volume in volumes])}
        problems: list[StorkitError] = []
        for volume in volumes:
            if volume.uuid not in records:
                hint = f"storkit attach {volume.name} --on {self.site.host}"
                problems.append(NotFound(f"volume {volume.name} is not attached on {self.site.host}", hint))
        for record in records.values():
            if not self._mounted(self._point(record.attachment.uuid)):
                message = f"volume {record.attachment.volume} is not mounted on {self.site.host}"
                problems.append(NotFound(message, f"storkit host restore {self.site.host}"))
            if any(offset % fingerprint.BLOCK or not 0 <= offset < record.attachment.size for offset in offsets or ()):
                message = f"offsets are multiples of {fingerprint.BLOCK} below {record.attachment.size}"
                problems.append(UsageError(message))
        raise_problems(problems)
        return [self._look(records[volume.uuid], offsets) for volume in volumes]

    def _look(self, record: NfsAttached, offsets: list[int] | None) -> Evidence:
        says, size = self._verify(record)
        file = self._point(record.attachment.uuid) / record.file
        # Of a qcow2 file the bytes as they lie are compared, empty where it is not that long yet.
        ranges = fingerprint.wanted(record.attachment.uuid, size, offsets)
        try:
            blocks = fingerprint.read_direct(file, ranges)
        except OSError as error:
            raise _read_error(error, file, record.server) from error
        return Evidence(record.attachment.volume, self.site.host, says, size, fingerprint.digests(ranges, blocks))

    def _find(self, volumes: Iterable[str] | None) -> list[NfsAttached]:
        records, problems = self._records.find(volumes)
        raise_problems(problems)
        return list(records.values())


def _qcow2_size(file: Path) -> int:
    try:
        return qcow2.parse(fingerprint.read_direct(file, [(0, fingerprint.BLOCK)])[0]).size
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
