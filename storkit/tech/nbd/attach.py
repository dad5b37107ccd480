"""NBD exports on the host that uses them: found at a stable path, verified before, proved afterwards.

An attachment is a record and, where TLS is used, a directory with its credential as QEMU's tls-creds objects take it.
The stable path is a symbolic link: to the server's Unix socket, or, over the network, to the text of the NBD URI. With
`attach = "kernel"` it leads to a block device instead (kernel.py), and the record keeps how its server is reached.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
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
    TimedOut,
    Unsafe,
    Unsupported,
    raise_problems,
)
from storkit.core.model import Attachment, DiskSource, Evidence, Offer, Volume, check_name
from storkit.system.block import reading
from storkit.system.block.fingerprint import digests, wanted
from storkit.system.files import make_private, remove_tree, write_atomic
from storkit.system.parallel import for_each_at_once
from storkit.system.qemu.storagedaemon import check_socket_path, listening_sockets
from storkit.system.run import run
from storkit.system.timeouts import scaled
from storkit.tech.attachments import Attaching, Attachments, Detaching
from storkit.tech.grants import short_digest
from storkit.tech.nbd import keepalive
from storkit.tech.nbd import wire as nbd_wire
from storkit.tech.nbd.arguments import check_x509
from storkit.tech.nbd.kernel import KernelDevice, KernelDevices
from storkit.tech.nbd.names import export_name
from storkit.tech.nbd.server import NbdSettings
from storkit.tech.records import RecordFiles

X509_CLIENT_FILES = ("ca-cert.pem", "client-cert.pem", "client-key.pem")
KEYS = "keys.psk"
"""As QEMU's tls-creds-psk names it."""
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
    def link(self) -> KernelDevice | None:
        """What the block device is made of, where there is one."""
        it = self.attachment
        if self.wire is None:
            return None
        credential = tls_credential(self.wire) if self.wire.tls else None
        return KernelDevice(it.volume, it.uuid, it.size, it.writable, self.wire, credential)


class NbdAttachments(Attachments[NbdAttached]):
    """The attachments of one host."""

    transport = "nbd"

    def __init__(self, site: Site, settings: NbdSettings) -> None:
        self._directory = site.state / self.transport / "attached"
        super().__init__(site, RecordFiles(self._directory, NbdAttached, "the attachment"))
        self.settings = settings
        self._kernel = KernelDevices(site)
        self._copies = KernelDevices(site, copies=True)

    def _attachment(self, record: NbdAttached) -> Attachment:
        return record.attachment

    def _refused(self, offer: Offer, known: NbdAttached | None) -> Iterator[StorkitError]:
        if offer.socket:
            check_socket_path(self.path(offer.volume))
        if offer.credential and offer.credential.method == "x509":
            check_x509(Path(self.settings.tls_dir or "."), X509_CLIENT_FILES)
        kernel = self.settings.attach == "kernel"
        if known is not None and (known.wire is not None) != kernel:
            was = "in user space" if known.wire is None else "as a block device"
            yield Conflict(
                f"volume {offer.volume} is attached {was} on {self.site.host}; nbd's `attach` has changed since",
                f"storkit detach {offer.volume} --on {self.site.host}",
            )
        if link := self._planned(offer).link:
            self._kernel.check(link)

    def _planned(self, offer: Offer) -> NbdAttached:
        path = str(self.path(offer.volume))
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

    def sources(self, offers: list[Offer]) -> list[DiskSource]:
        """As TransportVerbs.sources: what is attached keeps its stable path and its credential."""
        if self.settings.attach == "kernel":
            return [self._connected_aside(offer) for offer in offers]
        return [self._aside(offer) for offer in offers]

    def _aside(self, offer: Offer) -> DiskSource:
        planned = self._planned(offer).attachment.source
        if offer.socket:
            source = replace(planned, socket=offer.socket)
        elif planned.tls == "psk":
            source = replace(planned, tls_dir=str(self._beside(offer.uuid)))
        else:
            source = planned
        _keep_key(offer, source)
        self._see_identity(offer, source, "")
        return source

    def _connected_aside(self, offer: Offer) -> DiskSource:
        """A block device, with a node beside the stable path, and no record: nothing makes it again after a reboot."""
        with self._locked([offer.uuid]):
            check_name("volume", offer.volume)
            problems = list(self._refused(offer, None))
            if self._records.find([offer.uuid])[0]:
                message = f"volume {offer.volume} is attached on {self.site.host} by NBD: it is not copied to there"
                problems.append(Unsupported(message, "stop its guest, then move its volume"))
            raise_problems(problems)
            record = self._planned(offer)
            assert record.wire is not None and record.link is not None
            make_private(self._directory.parent)
            make_private(self._directory)
            _keep_key(offer, record.wire)
            self._see_identity(offer, record.wire, offer.socket)
            keepalive.hasten({record.wire.server}, self.settings.keepalive_time)
            return DiskSource("block", self._copies.connect([record.link])[offer.uuid])

    def _beside(self, uuid: str) -> Path:
        """Where the credential of a copy is, while its disk is attached."""
        return self._directory.parent / "copies" / uuid

    def _below(self, record: NbdAttached) -> list[str]:
        return self._kernel.of(record.attachment.uuid) if record.wire else []

    # Connections

    def _open(self, batch: Sequence[Attaching[NbdAttached]]) -> None:
        """Ask each server who it is. What has been asked once, QEMU finds by itself after a reboot."""
        make_private(self._directory.parent)
        make_private(self._directory)
        for_each_at_once(self._verify, batch)

    def _verify(self, one: Attaching[NbdAttached]) -> None:
        """The credential is written first: the question is asked with it. A volume that was attached keeps its own."""
        one.fresh = one.known is None
        if one.offer is None:
            if one.record.wire is not None:
                self._identity(one.record)
            return
        offer, source = one.offer, one.record.wire or one.record.attachment.source
        _keep_key(offer, source)
        self._see_identity(offer, source, offer.socket)
        remove_tree(self._beside(offer.uuid))

    def _see_identity(self, offer: Offer, source: DiskSource, socket: str) -> None:
        """Raise Unsafe unless the server behind a source is the one that was offered."""
        info = stated(source, socket)
        hint = "leave it alone until you know what serves there: storkit status"
        if not offer.identity.startswith(f"storkit:{offer.uuid}:") or info.description != offer.identity:
            said = f"the server of volume {offer.volume} is {offer.identity!r}"
            raise Unsafe(f"{said}, and what answers is {info.description!r}", hint)
        if info.size != offer.size:
            raise Unsafe(f"volume {offer.volume} has {offer.size} bytes, and the server serves {info.size}", hint)

    def _place(self, batch: Sequence[Attaching[NbdAttached]]) -> None:
        """Make the block devices, or give those that are there new connections."""
        servers = {(one.record.wire or one.record.attachment.source).server for one in batch}
        keepalive.hasten(servers, self.settings.keepalive_time)
        paths = self._kernel.connect([link for one in batch if (link := one.record.link)])
        for one in batch:
            one.target = paths.get(one.record.attachment.uuid, one.record.target)

    def _abandon(self, fresh: Sequence[Attaching[NbdAttached]]) -> None:
        for one in fresh:
            if link := one.record.link:
                with suppress(StorkitError):
                    self._kernel.disconnect(link, lambda: False)
            if one.known is None:
                remove_tree(self._directory / one.record.attachment.uuid)

    def _close(self, batch: Sequence[Detaching[NbdAttached]]) -> None:
        for_each_at_once(self._disconnect, batch)

    def _disconnect(self, one: Detaching[NbdAttached]) -> None:
        if (record := one.record) and (link := record.link):
            self._kernel.disconnect(link, lambda: self._serves(record))
        elif self.settings.attach == "kernel":
            self._copies.discard(one.volume.uuid)
        one.gone = True

    def _released(self, gone: Sequence[Detaching[NbdAttached]]) -> None:
        for one in gone:
            remove_tree(self._directory / one.volume.uuid)
            remove_tree(self._beside(one.volume.uuid))

    def _ours(self, target: str, name: str, uuid: str, record: NbdAttached | None) -> bool:
        if record is None:
            return False
        if record.wire is not None:
            return self._kernel.makes(target, name)
        # An earlier attachment of the same volume, which a kill kept from being replaced, had another port.
        earlier = target.startswith(("nbd:", "nbds:")) or target.endswith(f"/{short_digest(uuid)}.sock")
        return earlier or target == record.target

    def _broken(self, records: Mapping[str, NbdAttached]) -> dict[str, str]:
        found = self._kernel.broken([link for record in records.values() if (link := record.link)])
        listening = listening_sockets()
        for uuid, record in records.items():
            source = record.wire or record.attachment.source
            socket = source.socket and (source.socket if record.wire else record.target)
            if socket and socket not in listening:
                found[uuid] = f"nobody listens at its server's socket {socket}"
            elif source.tls == "psk" and not Path(source.tls_dir, KEYS).exists():
                found[uuid] = f"its credential is gone from {source.tls_dir}"
        return found

    def claim(self, volumes: list[Volume]) -> None:
        """Have block devices that may be written; in user space QEMU sees for itself what the server lets it do."""
        with self._locked(volume.uuid for volume in volumes):
            found, problems = self._records.find([volume.uuid for volume in volumes])
            raise_problems(problems)
            before = [record for record in found.values() if record.wire is not None]
            records = [self._writable(record) for record in before]
            broken = self._kernel.broken([link for record in records if (link := record.link)])
            self._bring_again(
                [new for old, new in zip(before, records, strict=True) if new != old or new.attachment.uuid in broken]
            )

    def _bring_again(self, records: Sequence[NbdAttached]) -> None:
        batch = [Attaching(record, record, None) for record in records]
        self._records.save({record.attachment.uuid: record for record in records})
        self._place(batch)
        for one in batch:
            self._link(one.record.attachment.volume, one.target)

    def _writable(self, record: NbdAttached) -> NbdAttached:
        """The record with this host's export as the server has it now: it may have another name."""
        it, wire = record.attachment, record.wire
        assert wire is not None
        own = export_name(it.volume, self.site.host) + "+"
        found = [info for info in listed(wire) if info.name.startswith(own) and info.writable]
        if len(found) != 1 or not found[0].description.startswith(f"storkit:{it.uuid}:"):
            raise Unsafe(f"the server of volume {it.volume} does not let {self.site.host} write", "storkit status")
        return replace(record, attachment=replace(it, writable=True), wire=replace(wire, export=found[0].name))

    # What the server says

    def _serves(self, record: NbdAttached) -> bool:
        """Whether the server of an attachment answers, and still has this export for this host."""
        try:
            return self._identity(record).writable or not record.attachment.writable
        except StorkitError:
            return False

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
            blocks = _read_by_tool(source, ranges) if record.wire is None else self._read_device(record, ranges)
        return Evidence(attachment.volume, self.site.host, info.description, info.size, digests(ranges, blocks))

    def _read_device(self, record: NbdAttached, ranges: list[tuple[int, int]]) -> list[bytes]:
        assert record.link is not None
        path = self._kernel.path(record.link)
        try:
            return reading.read(path, ranges).blocks
        except OSError as error:
            raise ServiceUnreachable(f"{path} cannot be read: {error.strerror}", "storkit host restore") from error
        except TimedOut as error:
            # Its server has gone away, and it holds the reads until that is back.
            raise TimedOut(error.message, "storkit host restore, on both hosts") from error


def _keep_key(offer: Offer, source: DiskSource) -> None:
    """Keep the key that an offer has, where the source says that it is."""
    if offer.credential is not None and offer.credential.secret is not None:
        directory = Path(source.tls_dir)
        make_private(directory.parent)
        keys = make_private(directory) / KEYS
        write_atomic(keys, f"{source.tls_user}:{offer.credential.secret.reveal()}\n")


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
