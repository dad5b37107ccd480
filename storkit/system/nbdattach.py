"""NBD exports on the host that uses them: found at a stable path, verified before, proved afterwards.

An attachment is a record and, where TLS is used, a directory with its credential as QEMU's tls-creds objects take it.
The stable path is a symbolic link: to the server's Unix socket, or, over the network, to the text of the NBD URI.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from storkit.core import codec
from storkit.core.backend import Site
from storkit.core.errors import (
    CommandFailed,
    Conflict,
    HostUnreachable,
    NotFound,
    StorkitError,
    Unsafe,
    UsageError,
    raise_problems,
)
from storkit.core.model import Attachment, DiskSource, Evidence, Offer, Volume, check_name
from storkit.system import nbdclient
from storkit.system.files import PARTIAL, make_private, read_json, sync_directory, write_atomic, write_many
from storkit.system.fingerprint import BLOCK, digests, wanted
from storkit.system.nbdgrant import codec_text
from storkit.system.nbdserver import NbdSettings, check_x509, every
from storkit.system.qsd import check_socket_path
from storkit.system.run import run

X509_CLIENT_FILES = ("ca-cert.pem", "client-cert.pem", "client-key.pem")
_TOOL_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class Attached:
    """The record of one attachment."""

    attachment: Attachment
    target: str
    """What the stable path points to: the server's socket, or an NBD URI."""


@dataclass(slots=True)
class _Pending:
    offer: Offer
    record: Attached
    known: bool
    """Whether the volume was attached before."""


class Attachments:
    """The attachments of one host."""

    def __init__(self, site: Site, settings: NbdSettings) -> None:
        self.site = site
        self.settings = settings
        self._directory = site.state / "nbd" / "attached"

    def attach(self, offers: list[Offer]) -> list[Attachment]:
        before = {record.attachment.uuid: record for record in self._records(None)}
        names = {record.attachment.volume: uuid for uuid, record in before.items()}
        pending: list[_Pending] = []
        problems: list[StorkitError] = []
        for offer in offers:
            try:
                self._check(offer, names.get(offer.volume, ""))
                pending.append(_Pending(offer, self._plan(offer), offer.uuid in before))
            except StorkitError as error:
                problems.append(error)
        raise_problems(problems)
        for directory in (self._directory.parent, self._directory, self.site.dev):
            make_private(directory)
        every(self._verify, pending)
        write_many((self._record(one.offer.uuid), codec_text(one.record)) for one in pending)
        for one in pending:
            self._link(one.record)
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

    def _plan(self, offer: Offer) -> Attached:
        path = str(self.site.dev / offer.volume)
        source = DiskSource("network", protocol="nbd", export=offer.name)
        if offer.socket:
            source = DiskSource("network", protocol="nbd", export=offer.name, socket=path)
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
        attachment = Attachment(
            offer.volume, offer.uuid, self.site.host, offer.transport, path, source, offer.size, offer.writable
        )
        return Attached(attachment, offer.socket or source.uri)

    def _verify(self, one: _Pending) -> None:
        """Ask the server who it is, and raise Unsafe unless it is who the offer says.

        The credential is written first: the question is asked with it. A volume that was attached keeps its own.
        """
        offer, source = one.offer, one.record.attachment.source
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
            if not one.known:
                shutil.rmtree(self._directory / offer.uuid, ignore_errors=True)
            raise

    def _link(self, record: Attached) -> None:
        """Make the stable path; one that leads elsewhere is of an earlier attachment of the same volume."""
        path = Path(record.attachment.path)
        if path.is_symlink() and str(path.readlink()) == record.target:
            return
        partial = path.with_name(path.name + PARTIAL)
        partial.unlink(missing_ok=True)
        partial.symlink_to(record.target)
        partial.rename(path)

    def detach(self, volumes: list[Volume]) -> None:
        for record in self._records([volume.uuid for volume in volumes]):
            path = Path(record.attachment.path)
            path.with_name(path.name + PARTIAL).unlink(missing_ok=True)
            if path.is_symlink():
                path.unlink()
        for volume in volumes:
            shutil.rmtree(self._directory / volume.uuid, ignore_errors=True)
            file = self._record(volume.uuid)
            for path in (file, file.with_name(file.name + PARTIAL)):
                path.unlink(missing_ok=True)
        if self._directory.is_dir():
            sync_directory(self._directory)

    def find(self, volumes: list[str] | None) -> list[Attachment]:
        found = [record.attachment for record in self._records(volumes)]
        return sorted(found, key=lambda attachment: (attachment.volume, attachment.uuid))

    def restore(self) -> None:
        """Make the stable paths again: /dev is empty after a reboot."""
        make_private(self.site.dev)
        for record in self._records(None):
            self._link(record)

    def evidence(self, volumes: list[Volume], offsets: list[int] | None) -> list[Evidence]:
        records = {record.attachment.uuid: record for record in self._records([volume.uuid for volume in volumes])}
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

        def look(record: Attached) -> None:
            found[record.attachment.uuid] = self._look(record.attachment, offsets)

        every(look, list(records.values()))
        return [found[volume.uuid] for volume in volumes]

    def _look(self, attachment: Attachment, offsets: list[int] | None) -> Evidence:
        source = attachment.source
        if source.tls:
            info = stated(source)
            ranges = wanted(attachment.uuid, info.size, offsets)
            blocks = _read_by_tool(source, ranges)
        else:
            where = source.socket or (source.server, source.port)
            with nbdclient.Connection(where) as connection:
                info = connection.go(source.export)
                ranges = wanted(attachment.uuid, info.size, offsets)
                blocks = [connection.read(offset, length) for offset, length in ranges]
        if not info.description.startswith(f"storkit:{attachment.uuid}:"):
            raise Unsafe(
                f"what answers for volume {attachment.volume} on {self.site.host} is {info.description!r}",
                f"storkit detach {attachment.volume} --on {self.site.host}",
            )
        return Evidence(attachment.volume, self.site.host, info.description, info.size, digests(ranges, blocks))

    def _record(self, uuid: str) -> Path:
        return self._directory / f"{uuid}.json"

    def _records(self, volumes: Iterable[str] | None) -> list[Attached]:
        records: list[Attached] = []
        problems: list[StorkitError] = []
        uuids = [path.stem for path in self._directory.glob("*.json")] if volumes is None else volumes
        for uuid in uuids:
            path = self._record(uuid)
            try:
                records.append(codec.load(Attached, read_json(path, "the attachment"), str(path)))
            except FileNotFoundError:
                continue
            except StorkitError as error:
                first = getattr(error, "problems", [error])[0]
                problems.append(Unsafe(f"the attachment {path} is damaged: {first.message}", f"look at it: cat {path}"))
        raise_problems(problems)
        return records


def stated(source: DiskSource, socket: str = "") -> nbdclient.ExportInfo:
    """What the server behind a disk source says of it; `socket` stands for a stable path that is not there yet.

    Raises HostUnreachable: nobody answers. Unsafe: it does not take this host's credential. NotFound: no such export.
    """
    if not source.tls:
        return nbdclient.ask(socket or source.socket or (source.server, source.port), source.export)
    where = f"{source.server}:{source.port}"
    argv = ["qemu-nbd", "--list", "--object", json.dumps(tls_credential(source)), "--tls-creds", "tls0"]
    argv += ["--bind", source.server, "--port", str(source.port)]
    try:
        listing = run(argv, package="qemu-utils", timeout=_TOOL_TIMEOUT).stdout
    except CommandFailed as error:
        if re.search(r"refused|unreachable|No route|timed out|not known|reset by peer", error.stderr):
            raise nbdclient.unreachable(where, error.stderr.splitlines()[-1]) from None
        raise Unsafe(
            f"the NBD server at {where} and this host do not accept each other: {error.stderr.splitlines()[-1]}",
            f"detach and attach it again: the credential may have changed, {source.tls_dir}",
        ) from None
    for info in parse_listing(listing):
        if info.name == source.export:
            return info
    raise NotFound(f"the NBD server at {where} has no export {source.export!r}", "storkit status")


def tls_credential(source: DiskSource) -> dict[str, Any]:
    """The client's tls-creds object for a disk source, named tls0 (qemu(1))."""
    creds: dict[str, Any] = {"qom-type": f"tls-creds-{source.tls}", "id": "tls0", "endpoint": "client"}
    creds["dir"] = source.tls_dir
    if source.tls == "psk":
        creds["username"] = source.tls_user
    return creds


def parse_listing(text: str) -> list[nbdclient.ExportInfo]:
    """The exports in the output of `qemu-nbd --list`."""
    exports = []
    for part in re.split(r"^ export: ", text, flags=re.MULTILINE)[1:]:
        name, _, rest = part.partition("\n")
        values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in rest.splitlines())}
        flags = int(values["flags"].split()[0], 16)
        name = name.removeprefix("'").removesuffix("'")
        exports.append(nbdclient.ExportInfo(name, values.get("description", ""), int(values["size"]), flags))
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
        raise HostUnreachable(
            f"{source.uri} cannot be read: {error.stderr or error.message}", "storkit status"
        ) from error
    return parse_dump(dump, ranges)


_DUMP = re.compile(r"^([0-9a-f]{8,}):  ((?:[0-9a-f]{2} )+)", re.MULTILINE)


def parse_dump(text: str, ranges: list[tuple[int, int]]) -> list[bytes]:
    """The blocks in the output of qemu-io's `read -v`, one per offset and length of `ranges`."""
    data = b"".join(bytes.fromhex(match[2]) for match in _DUMP.finditer(text))
    if len(data) != sum(length for _, length in ranges):
        raise HostUnreachable(f"qemu-io read {len(data)} bytes of the export: {text[-200:]}", "storkit status")
    blocks = []
    for _, length in ranges:
        blocks.append(data[:length])
        data = data[length:]
    return blocks
