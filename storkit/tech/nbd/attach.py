"""NBD exports on the host that uses them: found at a stable path, verified before, proved afterwards.

An attachment is a record and, where TLS is used, a directory with its credential as QEMU's tls-creds objects take it.
The stable path is a symbolic link: to the server's Unix socket, or, over the network, to the text of the NBD URI. With
`attach = "kernel"` it leads to a block device instead (kernel.py), and the record keeps how its server is reached.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from storkit.core.backend import Site
from storkit.core.errors import (
    CommandFailed,
    Conflict,
    NotFound,
    ServiceUnreachable,
    StorkitError,
    Unsafe,
    UsageError,
    raise_problems,
)
from storkit.core.model import AttachedHere, Attachment, DiskSource, Evidence, Offer, Volume, check_name
from storkit.system.block.fingerprint import BLOCK, digests, wanted
from storkit.system.files import PARTIAL, make_private, write_atomic
from storkit.system.parallel import every
from storkit.system.qemu.storagedaemon import check_socket_path
from storkit.system.run import run
from storkit.system.timeouts import scaled
from storkit.tech.nbd import keepalive
from storkit.tech.nbd import wire as nbd_wire
from storkit.tech.nbd.kernel import KernelDevices, Link, read_device
from storkit.tech.nbd.names import export_name
from storkit.tech.nbd.server import NbdSettings, check_x509
from storkit.tech.records import RecordFiles, damaged, refuse_renamed

X509_CLIENT_FILES = ("ca-cert.pem", "client-cert.pem", "client-key.pem")
_TOOL_TIMEOUT = scaled(30.0)


@dataclass(frozen=True, slots=True)
class NbdAttached:
    """The record of one attachment."""

    attachment: Attachment
    target: str
    """What the stable path points to: the server's socket, or an NBD URI; empty for a block device."""
    wire: DiskSource | None = None
    """How the server of a block device is reached; None: QEMU does it itself, as the attachment's source says."""

    @property
    def link(self) -> Link | None:
        """What the block device is made of, where there is one."""
        it = self.attachment
        if self.wire is None:
            return None
        credential = tls_credential(self.wire) if self.wire.tls else None
        return Link(it.volume, it.uuid, it.size, it.writable, self.wire, credential)


@dataclass(slots=True)
class _NbdAttaching:
    offer: Offer
    record: NbdAttached
    known: NbdAttached | None
    """The record of a volume that was attached before."""


class NbdAttachments:
    """The attachments of one host."""

    def __init__(self, site: Site, settings: NbdSettings) -> None:
        self.site = site
        self.settings = settings
        self._directory = site.state / "nbd" / "attached"
        self._records = RecordFiles(self._directory, NbdAttached, "the attachment")
        self._devices = KernelDevices(site)

    def attach(self, offers: list[Offer]) -> list[Attachment]:
        before = {record.attachment.uuid: record for record in self._find(None)}
        names = {record.attachment.volume: uuid for uuid, record in before.items()}
        pending: list[_NbdAttaching] = []
        problems: list[StorkitError] = []
        for offer in offers:
            try:
                refuse_renamed(before.get(offer.uuid), offer, self.site.host)
                self._check(offer, names.get(offer.volume, ""))
                pending.append(_NbdAttaching(offer, self._plan(offer), before.get(offer.uuid)))
                self._check_kind(pending[-1])
            except StorkitError as error:
                problems.append(error)
        raise_problems(problems)
        for directory in (self._directory.parent, self._directory, self.site.dev):
            make_private(directory)
        every(self._verify, pending)
        self._records.save({one.offer.uuid: one.record for one in pending})
        self._connect([one.record for one in pending])
        return [one.record.attachment for one in pending]

    def _check(self, offer: Offer, owner: str) -> None:
        check_name("volume", offer.volume)
        path = self.site.dev / offer.volume
        if offer.socket:
            check_socket_path(path)
        if owner not in ("", offer.uuid):
            hint = f"storkit detach {offer.volume} --on {self.site.host}"
            raise Conflict(f"another volume {offer.volume}, {owner}, is attached on {self.site.host}", hint)
        if not owner and (path.is_symlink() or path.exists()):
            raise Conflict(f"{path} exists, and storkit did not make it", f"look at it, then remove it: ls -ld {path}")
        if offer.credential and offer.credential.method == "x509":
            check_x509(Path(self.settings.tls_dir or "."), X509_CLIENT_FILES)

    def _check_kind(self, one: _NbdAttaching) -> None:
        if one.known is not None and (one.known.wire is None) != (one.record.wire is None):
            was = "in user space" if one.known.wire is None else "as a block device"
            raise Conflict(
                f"volume {one.offer.volume} is attached {was} on {self.site.host}; nbd's `attach` has changed since",
                f"storkit detach {one.offer.volume} --on {self.site.host}",
            )
        if one.record.link is not None:
            self._devices.check(one.record.link)

    def _plan(self, offer: Offer) -> NbdAttached:
        path = str(self.site.dev / offer.volume)
        kernel = self.settings.attach == "kernel"
        source = DiskSource("network", protocol="nbd", export=offer.name)
        if offer.socket:
            where = offer.socket if kernel else path
            source = DiskSource("network", protocol="nbd", export=offer.name, socket=where)
        else:
            tls: Literal["", "psk", "x509"] = ""
            directory = user = ""
            if offer.credential is not None and offer.credential.method != "chap":
                tls, user = offer.credential.method, offer.credential.user
                own = self._directory / offer.uuid
                directory = str(Path(self.settings.tls_dir).absolute() if tls == "x509" else own)
            source = DiskSource(
                "network",
                protocol="nbd",
                export=offer.name,
                server=offer.server,
                port=offer.port,
                tls=tls,
                tls_dir=directory,
                tls_user=user,
            )
        seen = DiskSource("block", path=path) if kernel else source
        attachment = Attachment(
            offer.volume, offer.uuid, self.site.host, offer.transport, path, seen, offer.size, offer.writable
        )
        return NbdAttached(attachment, "", source) if kernel else NbdAttached(attachment, offer.socket or source.uri)

    def _verify(self, one: _NbdAttaching) -> None:
        """Ask the server who it is, and raise Unsafe unless it is who the offer says.

        The credential is written first: the question is asked with it. A volume that was attached keeps its own.
        """
        offer, source = one.offer, one.record.wire or one.record.attachment.source
        secret = offer.credential.secret if offer.credential else None
        try:
            if secret is not None:
                keys = make_private(self._directory / offer.uuid) / "keys.psk"
                write_atomic(keys, f"{source.tls_user}:{secret.reveal()}\n")
            info = stated(source, offer.socket)
            hint = "leave it alone until you know what serves there: storkit status"
            if not offer.identity.startswith(f"storkit:{offer.uuid}:") or info.description != offer.identity:
                raise Unsafe(
                    f"the server of volume {offer.volume} is {offer.identity!r}, and what answers is "
                    f"{info.description!r}",
                    hint,
                )
            if info.size != offer.size:
                raise Unsafe(f"volume {offer.volume} has {offer.size} bytes, and the server serves {info.size}", hint)
        except StorkitError:
            if one.known is None:
                shutil.rmtree(self._directory / offer.uuid, ignore_errors=True)
            raise

    def _connect(self, records: list[NbdAttached]) -> None:
        """Make the stable paths, and the block devices that they lead to."""
        servers = {(record.wire or record.attachment.source).server for record in records}
        keepalive.hasten(servers, self.settings.keepalive_time)
        paths = self._devices.connect([record.link for record in records if record.link is not None])
        for record in records:
            self._point(Path(record.attachment.path), paths.get(record.attachment.uuid, record.target))

    def _point(self, path: Path, target: str) -> None:
        """Make a stable path; one that leads elsewhere is of an earlier attachment of the same volume."""
        if path.is_symlink() and str(path.readlink()) == target:
            return
        partial = path.with_name(path.name + PARTIAL)
        partial.unlink(missing_ok=True)
        partial.symlink_to(target)
        partial.rename(path)

    def claim(self, volumes: list[Volume]) -> None:
        """Have block devices that may be written; in user space QEMU sees for itself what the server lets it do."""
        before = [record for record in self._find([volume.uuid for volume in volumes]) if record.wire is not None]
        records = [self._writable(record) for record in before]
        changed = [new for old, new in zip(before, records, strict=True) if new != old or not self._device(new)]
        self._records.save({record.attachment.uuid: record for record in changed})
        self._connect(changed)

    def _writable(self, record: NbdAttached) -> NbdAttached:
        """The record with this host's export as the server has it now: it may have another name."""
        it, wire = record.attachment, record.wire
        assert wire is not None
        own = export_name(it.volume, self.site.host) + "+"
        found = [info for info in listed(wire) if info.name.startswith(own) and info.writable]
        if len(found) != 1 or not found[0].description.startswith(f"storkit:{it.uuid}:"):
            raise Unsafe(f"the server of volume {it.volume} does not let {self.site.host} write", "storkit status")
        return replace(record, attachment=replace(it, writable=True), wire=replace(wire, export=found[0].name))

    def _device(self, record: NbdAttached) -> str:
        return self._devices.path(record.link) if record.link is not None else ""

    def detach(self, volumes: list[Volume]) -> None:
        records = self._find([volume.uuid for volume in volumes])
        problems: list[StorkitError] = []
        kept: set[str] = set()
        for record in records:
            try:
                if record.link is not None:
                    self._devices.disconnect(record.link, lambda record=record: self._serves(record))  # type: ignore[misc]
            except StorkitError as error:
                problems.append(error)
                kept.add(record.attachment.uuid)
                continue
            path = Path(record.attachment.path)
            path.with_name(path.name + PARTIAL).unlink(missing_ok=True)
            if path.is_symlink():
                path.unlink()
        gone = {volume.uuid for volume in volumes} - kept
        for uuid in gone:
            shutil.rmtree(self._directory / uuid, ignore_errors=True)
        self._records.forget(gone)
        raise_problems(problems)

    def _serves(self, record: NbdAttached) -> bool:
        """Whether the server of an attachment answers, and still has this export for this host."""
        try:
            return self._identity(record).writable or not record.attachment.writable
        except StorkitError:
            return False

    def look(self, volumes: list[str] | None) -> AttachedHere:
        records, problems = self._records.find(volumes)
        # By the name that this host has now: a record may be older than the inventory.
        found = [replace(record.attachment, host=self.site.host) for record in records.values()]
        return AttachedHere(
            sorted(found, key=lambda attachment: (attachment.volume, attachment.uuid)), damaged(problems)
        )

    def restore(self) -> None:
        """Make the stable paths and block devices again: /dev is empty after a reboot. Devices whose server or relay
        has died get new connections. All that fails is raised at the end."""
        make_private(self.site.dev)

        def again(record: NbdAttached) -> None:
            if record.wire is not None:
                self._identity(record)
            self._connect([record])

        every(again, self._find(None))

    def _identity(self, record: NbdAttached) -> nbd_wire.ExportInfo:
        """What the server of an attachment says, if it is that volume's; Unsafe otherwise."""
        it = record.attachment
        return self._checked(it, stated(record.wire or it.source))

    def _checked(self, attachment: Attachment, info: nbd_wire.ExportInfo) -> nbd_wire.ExportInfo:
        if not info.description.startswith(f"storkit:{attachment.uuid}:"):
            raise Unsafe(
                f"what answers for volume {attachment.volume} on {self.site.host} is {info.description!r}",
                f"storkit detach {attachment.volume} --on {self.site.host}",
            )
        return info

    def evidence(self, volumes: list[Volume], offsets: list[int] | None) -> list[Evidence]:
        records = {record.attachment.uuid: record for record in self._find([volume.uuid for volume in volumes])}
        problems: list[StorkitError] = [
            NotFound(
                f"volume {volume.name} is not attached on {self.site.host}",
                f"storkit attach {volume.name} --on {self.site.host}",
            )
            for volume in volumes
            if volume.uuid not in records
        ]
        for record in records.values():
            if any(offset % BLOCK or not 0 <= offset < record.attachment.size for offset in offsets or ()):
                problems.append(UsageError(f"offsets are multiples of {BLOCK} below {record.attachment.size}"))
        raise_problems(problems)
        found: dict[str, Evidence] = {}

        def look(record: NbdAttached) -> None:
            found[record.attachment.uuid] = self._look(record, offsets)

        every(look, list(records.values()))
        return [found[volume.uuid] for volume in volumes]

    def _look(self, record: NbdAttached, offsets: list[int] | None) -> Evidence:
        attachment, source = record.attachment, record.wire or record.attachment.source
        if record.wire is None and not source.tls:
            where = source.socket or (source.server, source.port)
            with nbd_wire.NbdConnection(where) as connection:
                info = self._checked(attachment, connection.go(source.export))
                ranges = wanted(attachment.uuid, info.size, offsets)
                blocks = [connection.read(offset, length) for offset, length in ranges]
        else:
            info = self._identity(record)
            ranges = wanted(attachment.uuid, info.size, offsets)
            blocks = _read_by_tool(source, ranges) if record.wire is None else read_device(self._device(record), ranges)
        return Evidence(attachment.volume, self.site.host, info.description, info.size, digests(ranges, blocks))

    def _find(self, volumes: Iterable[str] | None) -> list[NbdAttached]:
        records, problems = self._records.find(volumes)
        raise_problems(problems)
        return list(records.values())


def stated(source: DiskSource, socket: str = "") -> nbd_wire.ExportInfo:
    """What the server behind a disk source says of it; `socket` stands for a stable path that is not there yet.

    Raises ServiceUnreachable: nobody answers. Unsafe: it does not take this host's credential. NotFound: no such
    export.
    """
    if not source.tls:
        return nbd_wire.ask(socket or source.socket or (source.server, source.port), source.export)
    for info in listed(source):
        if info.name == source.export:
            return info
    where = f"{source.server}:{source.port}"
    raise NotFound(f"the NBD server at {where} has no export {source.export!r}", "storkit status")


def listed(source: DiskSource) -> list[nbd_wire.ExportInfo]:
    """All exports of the server behind a disk source. Raises as `stated`."""
    if not source.tls:
        with nbd_wire.NbdConnection(source.socket or (source.server, source.port)) as connection:
            return [connection.info(name) for name in connection.names()]
    where = f"{source.server}:{source.port}"
    argv = ["qemu-nbd", "--list", "--object", json.dumps(tls_credential(source)), "--tls-creds", "tls0"]
    argv += ["--bind", source.server, "--port", str(source.port)]
    try:
        return parse_listing(run(argv, package="qemu-utils", timeout=_TOOL_TIMEOUT).stdout)
    except CommandFailed as error:
        if re.search(r"refused|unreachable|No route|timed out|not known|reset by peer", error.stderr):
            raise nbd_wire.unreachable(where, error.stderr.splitlines()[-1]) from None
        raise Unsafe(
            f"the NBD server at {where} and this host do not accept each other: {error.stderr.splitlines()[-1]}",
            f"detach and attach it again: the credential may have changed, {source.tls_dir}",
        ) from None


def tls_credential(source: DiskSource) -> dict[str, Any]:
    """The client's tls-creds object for a disk source, named tls0 (qemu(1))."""
    creds: dict[str, Any] = {"qom-type": f"tls-creds-{source.tls}", "id": "tls0", "endpoint": "client"}
    creds["dir"] = source.tls_dir
    if source.tls == "psk":
        creds["username"] = source.tls_user
    return creds


def parse_listing(text: str) -> list[nbd_wire.ExportInfo]:
    """The exports in the output of `qemu-nbd --list`."""
    exports = []
    for part in re.split(r"^ export: ", text, flags=re.MULTILINE)[1:]:
        name, _, rest = part.partition("\n")
        values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in rest.splitlines())}
        flags = int(values["flags"].split()[0], 16)
        name = name.removeprefix("'").removesuffix("'")
        exports.append(nbd_wire.ExportInfo(name, values.get("description", ""), int(values["size"]), flags))
    return exports


def _read_by_tool(source: DiskSource, ranges: list[tuple[int, int]]) -> list[bytes]:
    """Blocks of an export behind TLS, read by qemu-io(1): Python has no TLS with pre-shared keys."""
    node = {
        "driver": "nbd",
        "server": {"type": "inet", "host": source.server, "port": str(source.port)},
        "export": source.export,
        "tls-creds": "tls0",
    }
    argv = ["qemu-io", "-r", "--object", json.dumps(tls_credential(source))]
    for offset, length in ranges:
        argv += ["-c", f"read -v {offset} {length}"]
    filename = "json:" + json.dumps({"driver": "raw", "file": node})
    try:
        dump = run([*argv, filename], package="qemu-utils", timeout=_TOOL_TIMEOUT).stdout
    except CommandFailed as error:
        raise ServiceUnreachable(
            f"{source.uri} cannot be read: {error.stderr or error.message}", "storkit status"
        ) from error
    return parse_dump(dump, ranges)


_DUMP = re.compile(r"^([0-9a-f]{8,}):  ((?:[0-9a-f]{2} )+)", re.MULTILINE)


def parse_dump(text: str, ranges: list[tuple[int, int]]) -> list[bytes]:
    """The blocks in the output of qemu-io's `read -v`, one per offset and length of `ranges`."""
    data = b"".join(bytes.fromhex(match[2]) for match in _DUMP.finditer(text))
    if len(data) != sum(length for _, length in ranges):
        raise ServiceUnreachable(f"qemu-io read {len(data)} bytes of the export: {text[-200:]}", "storkit status")
    blocks = []
    for _, length in ranges:
        blocks.append(data[:length])
        data = data[length:]
    return blocks
