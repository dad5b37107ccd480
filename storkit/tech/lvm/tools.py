"""LVM as storkit uses it: one volume group read in one process, changed under a lock, many commands in one `lvm`.

A volume's metadata are tags of its logical volume, `storkit.KEY=VALUE` (lvm(8) on tags). What is being made carries
`storkit.batch=ID`, and the volume group `storkit.making=HOST:ID` for as long: taking that one tag away turns all
volumes of the batch into existing ones at once, and a batch whose maker is dead is removed by the next command.

`lvm` without a command is a shell that reads commands from its standard input, and goes on after one that fails.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from storkit.core import codec
from storkit.core.errors import CommandFailed, Conflict, NotFound, StorkitError, Unsafe, Unsupported, raise_problems
from storkit.core.model import Volume, VolumeHold
from storkit.system.locks import Lock
from storkit.system.run import TIMEOUT, Result, run, which
from storkit.system.timeouts import scaled

PACKAGE = "lvm2"
TAG = "storkit."
MAKING = "storkit.making="
BATCH = "batch"
_VG_FIELDS = "vg_name,vg_size,vg_free,vg_extent_size,vg_tags"
_LV_FIELDS = "lv_name,lv_size,lv_tags,lv_attr,pool_lv,origin,data_percent,metadata_percent"
# Not as JSON: the shell of LVM 2.03.16 does not print it.
_REPORT = (
    *("fullreport", "--nameprefixes", "--noheadings", "--units", "b", "--nosuffix"),
    *("--configreport", "vg", "-o", _VG_FIELDS, "--configreport", "lv", "-o", _LV_FIELDS),
    *("--configreport", "pv", "-o", "pv_uuid", "-S", "pv_missing=1"),
    # The other two are not wanted, and come nevertheless.
    *("--configreport", "pvseg", "-o", "pvseg_start", "-S", "pvseg_start=-1"),
    *("--configreport", "seg", "-o", "seg_start", "-S", "seg_start=1"),
)
_MISSING = re.compile(r"is missing PV (\S+) \(last written to (/\S+)\)")
_PLAIN = re.compile(r"[A-Za-z0-9_.+:=-]", re.ASCII)
_FIELD = re.compile(r"\bLVM2_(\w+)='([^']*)'")
_VG_UUID = re.compile(r"[A-Za-z0-9]{6}(-[A-Za-z0-9]{4}){5}-[A-Za-z0-9]{6}", re.ASCII)
_PER_COMMAND = scaled(20.0)
"""Seconds that one command of many may take, at most."""


@dataclass(frozen=True, slots=True)
class LogicalVolume:
    """A logical volume as lvs(8) reports it."""

    name: str
    size: int
    attr: str
    """lv_attr's letters."""
    pool: str
    """The thin pool it is in; empty: none."""
    origin: str
    data: float | None = None
    """Percent of a thin pool's space that is taken; None: not known, since it is not active."""
    metadata: float | None = None
    """Percent of a thin pool's metadata that is taken."""
    tags: dict[str, str] = field(default_factory=dict)
    """storkit's, without the prefix."""

    @property
    def is_thin_pool(self) -> bool:
        return self.attr[0] == "t"

    @property
    def readonly(self) -> bool:
        return self.attr[1] == "r"

    @property
    def active(self) -> bool:
        return self.attr[4] == "a"

    @property
    def open(self) -> bool:
        return self.attr[5] == "o"

    @property
    def zeroes(self) -> bool:
        """A thin pool's new chunks are zeroed before a volume gets them."""
        return self.attr[7] == "z"

    @property
    def used(self) -> int | None:
        """The bytes that it takes; of a thin volume at most, since its percentage is rounded. None: not known, since it
        is not active."""
        if not self.pool:
            return self.size
        return None if self.data is None else min(self.size, int(self.size * (self.data + 0.005) / 100))

    @property
    def health(self) -> str:
        """Of a thin pool: F failed, D out of data space, M metadata read-only, - well. Of any: p, it lacks a disk."""
        return self.attr[8]


@dataclass(frozen=True, slots=True)
class VolumeGroup:
    """A volume group and its visible logical volumes."""

    name: str
    size: int
    free: int
    extent: int
    lvs: dict[str, LogicalVolume]
    making: dict[str, str] = field(default_factory=dict)
    """Batch to the host that makes it."""
    missing: tuple[str, ...] = ()
    """The disks that are not there, as LVM knows them: by their UUID, and where they were last."""

    def extents(self, size: int) -> int:
        """`size` as LVM gives it: whole extents."""
        return -(-size // self.extent) * self.extent

    def batch(self, batch: str) -> list[LogicalVolume]:
        return [lv for lv in self.lvs.values() if lv.tags.get(BATCH) == batch]

    def exists(self, lv: LogicalVolume) -> bool:
        """Whether a logical volume is a volume: storkit's, and made to its end."""
        return bool(lv.tags) and lv.tags.get(BATCH) not in self.making

    def thin_pool(self, name: str) -> LogicalVolume:
        """Raises NotFound: there is none of that name."""
        pool = self.lvs.get(name)
        if pool is None or not pool.is_thin_pool:
            hint = f"make one: lvcreate --type thin-pool -l 90%FREE -n {name} {self.name}"
            raise NotFound(f"there is no thin pool {name} in volume group {self.name}", hint)
        return pool


def path(vg: str, lv: str) -> str:
    return f"/dev/{vg}/{lv}"


# Tags


def encode(value: str) -> str:
    """`value` in the characters that tags may have; others as #XX, the hexadecimal bytes of UTF-8."""
    return "".join(
        character if _PLAIN.fullmatch(character) else "".join(f"#{byte:02x}" for byte in character.encode())
        for character in value
    )


def decode(value: str) -> str:
    """What `encode` was given."""
    raw = re.sub(rb"#([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), value.encode())
    return raw.decode(errors="replace")


def tag(key: str, value: str) -> str:
    return f"{TAG}{key}={encode(value)}"


def tags_of(volume: Volume) -> dict[str, str]:
    """A volume's metadata as tags: all but what follows from where it is."""
    tags = {"uuid": volume.uuid, "kind": volume.kind, "size": str(volume.size), "made": volume.made}
    tags |= {"created": volume.created} | ({"origin": volume.origin} if volume.origin else {})
    tags |= {"generation": str(volume.generation)} if volume.generation else {}
    tags |= {key: value for key, value in (("was", volume.was), ("checksum", volume.checksum)) if value}
    return tags | ({"hold": json.dumps(codec.dump(volume.hold))} if volume.hold else {})


def add_tags(volume: Volume, batch: str) -> list[str]:
    """The options of lvcreate that give a new volume its metadata."""
    tags = tags_of(volume) | {BATCH: batch}
    return [word for key, value in tags.items() for word in ("--addtag", tag(key, value))]


def change_tags(old: Volume, new: Volume) -> list[str]:
    """The options of lvchange that turn the metadata of `old` into those of `new`, in one commit."""
    before, after = tags_of(old), tags_of(new)
    words = []
    for key in {**before, **after}:
        if before.get(key) != after.get(key):
            words += ["--deltag", tag(key, before[key])] if key in before else []
            words += ["--addtag", tag(key, after[key])] if key in after else []
    return words


def volume_of(lv: LogicalVolume, missing: Sequence[str] = ()) -> Volume:
    """The volume that a logical volume's tags tell of. `missing` are disks of its volume group.

    Raises Unsafe: they cannot be trusted, or a part of it is not there.
    """
    tags = lv.tags
    wrong = [key for key, pattern in _VALUES.items() if not pattern.fullmatch(tags.get(key, _UNSAID.get(key, "")))]
    problems = [f"{key} {tags.get(key, '')!r}" for key in wrong]
    if not problems and int(tags["size"]) > lv.size:
        problems.append(f"{tags['size']} bytes, of which {lv.size} are there")
    if not problems and lv.health == "p":
        raise incomplete(lv, missing)
    if problems:
        raise Unsafe(f"the tags of logical volume {lv.name} are damaged: {', '.join(problems)}", "lvs -o+lv_tags")
    size, kind = int(tags["size"]), tags["kind"]
    return Volume(
        lv.name, tags["uuid"], size, kind=kind, format="raw", origin=tags.get("origin", ""),  # type: ignore[arg-type]
        made=tags["made"], created=tags["created"], hold=_hold(lv), generation=int(tags.get("generation", 0)),
        was=tags.get("was", ""), checksum=tags.get("checksum", ""),
    )  # fmt: skip


def _hold(lv: LogicalVolume) -> VolumeHold | None:
    """The hold that a logical volume's tags tell of. Raises Unsafe: it cannot be read."""
    if "hold" not in lv.tags:
        return None
    try:
        return codec.load(VolumeHold, json.loads(lv.tags["hold"]))
    except (ValueError, StorkitError):
        message = f"the tags of logical volume {lv.name} are damaged: hold {lv.tags['hold']!r}"
        raise Unsafe(message, "lvs -o+lv_tags") from None


def incomplete(lv: LogicalVolume, missing: Sequence[str]) -> Unsafe:
    """A part of a logical volume is on one of these disks, which are missing."""
    disks = " or ".join(missing) or "a disk"
    message = f"logical volume {lv.name} is damaged: a part of it is on {disks}, which its volume group lacks"
    return Unsafe(message, "bring the disk back: pvs")


_VALUES = {
    "uuid": re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII),
    "kind": re.compile("disk|image|snapshot"),
    "size": re.compile(r"[1-9][0-9]{0,18}", re.ASCII),
    "made": re.compile(".*"),
    "created": re.compile(".*"),
    "generation": re.compile("[0-9]{1,18}", re.ASCII),
    "checksum": re.compile("(sha256:[0-9a-f]{64})?", re.ASCII),
    "was": re.compile(r"(/dev/[A-Za-z0-9_.+-]+/[A-Za-z0-9_.+-]+)?", re.ASCII),
}
_UNSAID = {"generation": "0"}
"""What is meant by a tag that is not there, and may be missing."""


# Parsing


def parse_group(report: str, said: str = "") -> VolumeGroup:
    """A volume group from the lines of `lvm fullreport --nameprefixes` as `read` asks for it, sizes in bytes, and from
    what LVM said meanwhile.

    Raises ValueError: it is not in it.
    """
    rows = [{key.lower(): value for key, value in _FIELD.findall(line)} for line in report.splitlines()]
    (group,) = [row for row in rows if "vg_name" in row]
    lvs = {row["lv_name"]: _parse_lv(row) for row in rows if "lv_name" in row}
    making = {}
    for tag in group["vg_tags"].split(","):
        if tag.startswith(MAKING):
            host, _, batch = tag.removeprefix(MAKING).rpartition(":")
            making[batch] = host
    size, free, extent = (int(group[key]) for key in ("vg_size", "vg_free", "vg_extent_size"))
    last = dict(_MISSING.findall(said))
    disks = [row["pv_uuid"] for row in rows if "pv_uuid" in row]
    missing = tuple(f"{last[disk]} (PV {disk})" if disk in last else f"PV {disk}" for disk in disks)
    return VolumeGroup(group["vg_name"], size, free, extent, lvs, making, missing)


def _parse_lv(row: dict[str, str]) -> LogicalVolume:
    ours = [tag.removeprefix(TAG) for tag in row["lv_tags"].split(",") if tag.startswith(TAG)]
    tags = {key: decode(value) for key, _, value in (tag.partition("=") for tag in ours)}
    data, metadata = (float(row[key]) if row[key] else None for key in ("data_percent", "metadata_percent"))
    name, size = row["lv_name"], int(row["lv_size"])
    return LogicalVolume(name, size, row["lv_attr"], row["pool_lv"], row["origin"], data, metadata, tags)


def complaint(stderr: str) -> str:
    """What LVM's messages say is wrong, without its warnings, in one line."""
    lines = [line.strip().rstrip(".") for line in stderr.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line and not line.startswith("WARNING")))


def explain(failure: CommandFailed, vg: str) -> StorkitError:
    """A failure of LVM as the kind of error it is."""
    said = complaint(failure.stderr)
    if re.search(r'[Vv]olume group "?\S+"? not found', said):
        return NotFound(f"there is no volume group {vg}", "vgs lists those there are; pvs shows what lacks a disk")
    if "while PVs are missing" in said:
        return lacking(f"volume group {vg}", vg, [])
    if "insufficient free space" in said:
        return Conflict(f"no room in volume group {vg}: {said}", f"vgs {vg}")
    if "target(s) not detected" in said or "target support missing" in said or "thin-pool target" in said:
        return Unsupported(f"this kernel lacks a device-mapper target: {said}", "modprobe dm-mod dm-thin-pool")
    if "thin_check" in said and ("No such file" in said or "failed" in said):
        return Unsupported(f"a thin pool cannot be checked: {said}", "apt install thin-provisioning-tools")
    return CommandFailed(failure.argv, failure.status, said or failure.stderr, hint=failure.hint)


def lacking(what: str, vg: str, missing: Sequence[str]) -> Conflict:
    """LVM changes nothing in a volume group that lacks a disk, but removes logical volumes."""
    return Conflict(
        f"{what} lacks {', '.join(missing) or 'a disk'}, and until it is back nothing can be changed there",
        "bring the disk back: pvs; where LVM calls it missing then: vgextend --restoremissing; if it is gone for good: "
        f"vgreduce --removemissing {vg}",
    )


# Acting


def read(vg: str) -> VolumeGroup:
    """The state of a volume group, in one process. Raises NotFound: there is none of that name."""
    try:
        # 5: something is wrong with a part of it, such as a missing disk, and the rest is told.
        done = run(["lvm", *_REPORT, vg], ok=(0, 5), package=PACKAGE)
    except CommandFailed as failure:
        raise explain(failure, vg) from failure
    try:
        return parse_group(done.stdout, done.stderr)
    except ValueError:
        raise explain(CommandFailed(["lvm", "fullreport", vg], done.status, done.stderr), vg) from None


def uuid(vg: str) -> str:
    """The UUID of a volume group, which it keeps when it is renamed. Raises NotFound: there is none of that name."""
    try:
        said = run(["lvm", "vgs", "--noheadings", "-o", "vg_uuid", vg], package=PACKAGE).stdout.strip()
    except CommandFailed as failure:
        raise explain(failure, vg) from failure
    if not _VG_UUID.fullmatch(said):
        raise Unsafe(f"volume group {vg} has no UUID that LVM knows: {said[:80]!r}", f"vgs -o+vg_uuid {vg}")
    return said


def change(vg: str, lock: Lock, argv: Sequence[str]) -> None:
    """Run one LVM command that changes `vg`. Raises what it says is wrong."""
    _locked_run(vg, lock, list(argv), count=len(argv))


def batch(vg: str, lock: Lock, commands: Sequence[Sequence[str]]) -> tuple[VolumeGroup, str]:
    """Run many LVM commands in one process; the volume group after them, and what they complain of.

    A command that fails does not stop the others: which of them worked is to be seen in the volume group.
    """
    script = os.memfd_create("lvm", 0)  # inherited by lvm
    try:
        with os.fdopen(os.dup(script), "w") as file:
            file.write("".join(f"{' '.join(command)}\n" for command in [*commands, [*_REPORT, vg]]))
        # A file, not a pipe: what a killed writer leaves in a pipe can end in the middle of a name.
        argv = ["sh", "-c", 'exec lvm <"$0"', f"/proc/self/fd/{script}"]
        done = _locked_run(vg, lock, argv, script, count=len(commands))
    finally:
        os.close(script)
    said = complaint(done.stderr)
    try:
        return parse_group(done.stdout, done.stderr), said
    except ValueError:
        raise explain(CommandFailed(["lvm", "fullreport", vg], done.status, said), vg) from None


def _locked_run(vg: str, lock: Lock, argv: list[str], *keep: int, count: int) -> Result:
    """Run a command under a shell that keeps the lock while it runs, also when we are killed: LVM itself closes what
    it inherits, and without the lock the next command would take its half-made volumes for leftovers. Nor may LVM then
    die of a message that nobody reads, while it has devices suspended."""
    if which("lvm") is None:
        raise Unsupported("lvm is not installed", f"apt install {PACKAGE}")
    os.set_inheritable(lock.descriptor, True)
    # No history of our commands in root's ~/.lvm_history.
    environment = {"HOME": "/dev/null", "LVM_SUPPRESS_FD_WARNINGS": "1"}
    try:
        return run(
            ["sh", "-c", 'trap "" PIPE; "$@"; exit $?', "sh", *argv],
            timeout=TIMEOUT + _PER_COMMAND * count,
            pass_fds=[lock.descriptor, *keep],
            env=environment,
        )
    except CommandFailed as failure:
        plain = CommandFailed(argv, failure.status, failure.stderr, hint=f"try it by hand: {shlex.join(argv)}")
        raise explain(plain, vg) from failure


def activate(volumes: Sequence[Volume]) -> None:
    """Make the paths of LVM volumes usable on this host, as they are no longer after it was booted.

    storkit's logical volumes have the activation skip flag (lvcreate -ky): neither the boot nor `vgchange -ay`, here or
    on another host that sees the disks, activates them. Whoever serves a volume by its path calls this first; volumes
    whose path is there, and those of other pools, are left alone.

    Raises NotFound: gone; Conflict: the logical volume of that name is not this volume; Unsafe: it lacks a disk. All
    others are activated before.
    """
    problems: list[StorkitError] = []
    wanted: dict[str, list[Volume]] = {}
    for volume in volumes:
        parts = Path(volume.path).parts
        if len(parts) == 4 and parts[:2] == ("/", "dev") and parts[3] == volume.name and not Path(volume.path).exists():
            wanted.setdefault(parts[2], []).append(volume)
    for vg, missing in wanted.items():
        group = read(vg)
        sound = []
        for volume in missing:
            lv = group.lvs.get(volume.name)
            if lv is None:
                problems.append(NotFound(f"{vg} has no logical volume {volume.name}", f"lvs {vg}"))
            elif lv.tags.get("uuid") != volume.uuid:
                problems.append(Conflict(f"{volume.path} is not the volume {volume.name} that was meant", f"lvs {vg}"))
            elif lv.health == "p":
                problems.append(incomplete(lv, group.missing))
            else:
                sound.append(f"{vg}/{volume.name}")
        if not sound:
            continue
        try:
            run(["lvchange", "-ay", "-K", *sound], package=PACKAGE, timeout=TIMEOUT + _PER_COMMAND * len(sound))
        except CommandFailed as failure:
            problems.append(explain(failure, vg))
    raise_problems(problems)
