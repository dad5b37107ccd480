"""What disk image files say of themselves, read before any other program sees them.

Formats are told apart by their magic numbers only, and everything that a header can point elsewhere with (backing
file, data file, extents, parents) is found here. Sources: QEMU docs/interop/qcow2.txt; VMware "Virtual Disk Format
5.0"; Microsoft "Virtual Hard Disk Image Format Specification" 1.0; VirtualBox VDICore.h.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

from storkit.core.errors import StorkitError, Unsafe, Unsupported, UsageError
from storkit.core.units import SECTOR
from storkit.tech.images import qcow2

HEAD = 2 << 20
"""As much of a file as a header can take."""
MAX_SIZE = 64 << 40
"""The largest disk that is imported unless another limit is given: 64 TiB."""
FORMATS = ("raw", "qcow2", "vmdk", "vpc", "vdi")
_FLATTEN = "flatten it where it was made: qemu-img convert -O qcow2 IMAGE FLAT.qcow2"
_AGAIN = "get the file again, and check its size and checksum"
_NO_PARENT = bytes(16)
_OTHERS = (
    (0, b"vhdxfile", "vhdx"),
    (0, b"QED\0", "qed"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"Bochs Virtual HD", "bochs"),
    (0, b"COWD", "vmdk of version 3 (COWD)"),
    (0, b"PK\3\4", "a zip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"BZh", "bzip2 data"),
    (257, b"ustar", "a tar archive (ova)"),
)


@dataclass(frozen=True, slots=True)
class View:
    """A file as far as a header check needs it. `size` is -1, and `tail` empty, while a stream's end is not known."""

    head: bytes
    size: int
    tail: bytes = b""
    """The last 512 bytes."""
    read: Callable[[int, int], bytes] | None = None
    """(offset, length) to bytes, where any place can be read."""


@dataclass(slots=True)
class Findings:
    """The disk's size in bytes, and everything that speaks against the image."""

    name: str
    virtual_size: int
    problems: list[StorkitError]

    def bad(self, reason: str, hint: str = _AGAIN) -> None:
        self.problems.append(UsageError(f"{self.name}: {reason}", hint))

    def elsewhere(self, reason: str) -> None:
        self.problems.append(Unsafe(f"{self.name}: {reason}", _FLATTEN))

    def unknown(self, reason: str, hint: str) -> None:
        self.problems.append(Unsupported(f"{self.name}: {reason}", hint))


def recognise(view: View) -> str:
    """The format by magic number: one of FORMATS (`raw` if there is none), or the name of one that is not supported."""
    head = view.head
    if head[:4] == qcow2.MAGIC:
        return "qcow2"
    if head[:4] == b"KDMV" or head[:512].lstrip().startswith(b"# Disk DescriptorFile"):
        return "vmdk"
    if head[:8] == b"conectix" or view.tail[:8] == b"conectix":
        return "vpc"
    if head[0x40:0x44] == b"\x7f\x10\xda\xbe":
        return "vdi"
    for offset, magic, name in _OTHERS:
        if head[offset : offset + len(magic)] == magic:
            return name
    return "raw"


def examine(view: View, format: str, name: str) -> Findings:
    """What the header of a file of this format says. Nothing is raised: see Findings.problems, which name `name`."""
    findings = Findings(name, 0, [])
    if not view.head:
        findings.bad("the image is empty")
        return findings
    checks = {"raw": _raw, "qcow2": _qcow2, "vmdk": _vmdk, "vpc": _vpc, "vdi": _vdi}
    try:
        checks[format](view, findings)
    except (ValueError, struct.error) as error:
        reason = "the header is cut short" if isinstance(error, struct.error) else str(error)
        findings.bad(f"bad {format} header: {reason}")
    return findings


def _within(view: View, end: int) -> bool:
    return view.size < 0 or end <= view.size


def _raw(view: View, findings: Findings) -> None:
    findings.virtual_size = -(-view.size // SECTOR) * SECTOR if view.size >= 0 else 0


def _qcow2(view: View, findings: Findings) -> None:
    header = qcow2.parse(view.head)
    cluster = 1 << header.cluster_bits
    findings.virtual_size = header.size
    if header.backing:
        findings.elsewhere(f"the image stands on a backing file, {header.backing!r}")
    if header.incompatible & qcow2.DATA_FILE or header.data_file:
        findings.elsewhere(f"the image keeps its data in another file, {header.data_file!r}")
    if header.encrypted:
        findings.unknown("the image is encrypted", "decrypt it first: qemu-img convert")
    for bit, reason in ((qcow2.CORRUPT, "marked as corrupt"), (qcow2.DIRTY, "marked as not closed cleanly (dirty)")):
        if header.incompatible & bit:
            findings.bad(f"the image is {reason}", "repair a copy: qemu-img check -r all IMAGE")
    if unknown := header.incompatible & ~qcow2.KNOWN_FEATURES:
        message = f"the image needs qcow2 features that are not known here (bits {unknown:#x})"
        findings.unknown(message, "convert it with the QEMU that made it")
    l1_bytes = header.l1_entries * 8
    if header.l1_entries < header.l1_needed:
        findings.bad(
            f"bad qcow2 header: an L1 table of {header.l1_entries} entries is too short for {header.size} bytes"
        )
    if l1_bytes > 32 << 20:
        findings.bad(f"bad qcow2 header: an L1 table of {l1_bytes} bytes")
    for what, offset in (("L1 table", header.l1_offset), ("refcount table", header.refcount_offset)):
        if offset % cluster or offset < cluster:
            findings.bad(f"bad qcow2 header: the {what} is at offset {offset}")
    if not _within(view, header.l1_offset + l1_bytes) or not _within(view, header.refcount_offset + 1):
        findings.bad(f"the image is truncated: its tables lie beyond its end at {view.size}")
    if header.snapshots > 65536 or (header.snapshots and not _within(view, header.snapshots_offset + 1)):
        findings.bad(f"bad qcow2 header: {header.snapshots} snapshots at {header.snapshots_offset}")


def _vmdk(view: View, findings: Findings) -> None:
    if view.head[:4] != b"KDMV":
        names = re.findall(rb'^\s*R\w+ \d+ \w+ "([^"]*)"', view.head[:65536], re.MULTILINE)
        shown = ", ".join(repr(name.decode(errors="replace")) for name in names[:4]) or "none"
        findings.elsewhere(f"the vmdk is a descriptor only, its data is in other files: {shown}")
        return
    version, _, capacity, _, at, length = struct.unpack_from("<IIQQQQ", view.head, 4)
    findings.virtual_size = capacity * SECTOR
    if not 1 <= version <= 3:
        findings.bad(f"bad vmdk header: version {version}")
    if view.head[73:77] != b"\n \r\n":
        findings.bad("bad vmdk header: its line ends were changed, as by a transfer in text mode")
    if capacity == 0:
        findings.elsewhere("the vmdk has no sectors of its own: its descriptor names other files")
    if not at or not length or (at + length) * SECTOR > len(view.head):
        findings.bad("the vmdk has no descriptor: it is one extent of several, or damaged")
        return
    text = view.head[at * SECTOR : (at + length) * SECTOR].split(b"\0", 1)[0].decode(errors="replace")
    values = dict(re.findall(r'^\s*(\w+)\s*=\s*"?([^"\r\n]*)"?', text, re.MULTILINE))
    if "parentFileNameHint" in values or values.get("parentCID", "ffffffff").lower() != "ffffffff":
        findings.elsewhere(f"the vmdk stands on a parent, {values.get('parentFileNameHint', 'not named')!r}")
    kind = values.get("createType", "")
    if kind not in ("monolithicSparse", "streamOptimized"):
        findings.elsewhere(f"the vmdk is of type {kind!r}, which keeps its data in other files")
    extents = re.findall(r'^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+(\w+)(?:\s+"([^"]*)")?', text, re.MULTILINE)
    if len(extents) != 1 or extents[0][0] != "SPARSE" or "/" in extents[0][1]:
        shown = ", ".join(f"{type} {name!r}" for type, name in extents) or "none"
        findings.elsewhere(f"the vmdk's extents point elsewhere: {shown}")


def _vpc(view: View, findings: Findings) -> None:
    footer = view.head[:512] if view.head[:8] == b"conectix" else view.tail
    if len(footer) < 512:
        raise ValueError("the footer is cut short")
    size, kind, checksum = struct.unpack_from(">Q4xII", footer, 48)
    table_header = struct.unpack_from(">Q", footer, 16)[0]
    findings.virtual_size = size
    if checksum != _vpc_sum(footer, 64):
        findings.bad("bad vpc footer: its checksum is wrong")
    if kind == 4:
        findings.elsewhere("the vpc image is a differencing disk: it stands on a parent")
    elif kind == 2:
        if view.size >= 0 and view.size != size + 512:
            findings.bad(f"the image is truncated: {view.size} bytes instead of {size + 512}")
    elif kind == 3:
        _vpc_table(view, findings, table_header)
    else:
        findings.bad(f"bad vpc footer: disk type {kind}")


def _vpc_table(view: View, findings: Findings, at: int) -> None:
    header = view.head[at : at + 1024]
    if header[:8] != b"cxsparse" or len(header) < 1024:
        raise ValueError("there is no dynamic disk header")
    if struct.unpack_from(">I", header, 36)[0] != _vpc_sum(header, 36):
        findings.bad("bad vpc header: its checksum is wrong")
    table, _, entries, block = struct.unpack_from(">QIII", header, 16)
    if block < SECTOR or block & (block - 1) or entries * block < findings.virtual_size or entries > 1 << 26:
        raise ValueError(f"{entries} blocks of {block} bytes for a disk of {findings.virtual_size}")
    if not _within(view, table + 4 * entries):
        findings.bad(f"the image is truncated: its block table lies beyond its end at {view.size}")
        return
    if view.read is None:
        return
    if view.tail[:8] != b"conectix":
        findings.bad("the image is truncated: there is no footer at its end")
    used = [entry for (entry,) in struct.iter_unpack(">I", view.read(table, 4 * entries)) if entry != 0xFFFFFFFF]
    bitmap = -(-block // SECTOR // 8 // SECTOR) * SECTOR or SECTOR
    if used and not _within(view, max(used) * SECTOR + bitmap + block):
        findings.bad(f"the image is truncated: a block lies beyond its end at {view.size}")


def _vpc_sum(record: bytes, at: int) -> int:
    return ~(sum(record) - sum(record[at : at + 4])) & 0xFFFFFFFF


def _vdi(view: View, findings: Findings) -> None:
    version, _, kind = struct.unpack_from("<III", view.head, 0x44)
    blocks_at, data_at = struct.unpack_from("<II", view.head, 0x154)
    size, block, _, blocks, used = struct.unpack_from("<QIIII", view.head, 0x170)
    link, parent = struct.unpack_from("<16s16s", view.head, 0x1A8)
    findings.virtual_size = size
    if version != 0x10001:
        findings.bad(f"bad vdi header: version {version:#x}")
    if kind not in (1, 2) or link != _NO_PARENT or parent != _NO_PARENT:
        findings.elsewhere("the vdi image is a differencing disk: it stands on a parent")
    if block != 1 << 20:
        findings.unknown(f"a vdi image with blocks of {block} bytes", "convert it with VBoxManage")
    if blocks * block < size:
        findings.bad(f"bad vdi header: {blocks} blocks of {block} bytes for a disk of {size}")
    if used > blocks or not _within(view, blocks_at + 4 * blocks) or not _within(view, data_at + used * block):
        findings.bad(f"the image is truncated: its blocks lie beyond its end at {view.size}")
