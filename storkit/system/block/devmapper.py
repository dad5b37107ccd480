"""storkit's own device-mapper nodes: found, made, given another table under a running user, removed, by dmsetup(8).

A node stands between a volume's device and whoever uses it, so that what lies below can be changed or cut off without
its user noticing. Every node has a device-mapper UUID with the prefix STORKIT-, and no other is ever touched.

    name = node_name("web1", "guest")
    create([Wanted(name, node_uuid(uuid, "guest"), linear("/dev/vg/web1", size))])
    swap([Wanted(name, node_uuid(uuid, "guest"), error(size))], flush=False)    # cut its user off
    remove([name])

What a guest keeps on its disk is none of this host's business: a rule for udevd keeps blkid, LVM and multipath away
from these nodes, and watches none of them, so that nothing but their user holds them open. LVM's own commands scan
block devices without asking udevd: an administrator who has guests with LVM directly on their disk adds
`"r|^/dev/mapper/storkit:|"` to `devices/global_filter` (lvm.conf(5)).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from storkit.core.errors import (
    CommandFailed,
    Conflict,
    NotFound,
    StorkitError,
    Unsafe,
    Unsupported,
    UsageError,
    raise_problems,
)
from storkit.core.units import SECTOR
from storkit.system.block import configfs, dmioctl, mirrornode, multipath, udev
from storkit.system.run import TIMEOUT, run
from storkit.system.timeouts import scaled

PREFIX = "STORKIT-"
RULES = Path("/run/udev/rules.d/05-storkit.rules")
"""Before the rules of device-mapper itself: 10-dm.rules upstream, 55-dm.rules in Debian."""
_RULES = f"""\
# Made by storkit: nothing on this host looks into the disks of guests.
SUBSYSTEM=="block", ATTR{{dm/uuid}}=="{PREFIX}?*", ENV{{DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG}}="1", \\
  ENV{{DM_UDEV_DISABLE_DISK_RULES_FLAG}}="1", ENV{{DM_UDEV_DISABLE_OTHER_RULES_FLAG}}="1", OPTIONS:="nowatch"
"""
_OURS = re.compile(PREFIX + r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-.+")
_CONTROL = Path("/sys/class/misc/device-mapper")
_PACKAGE = "dmsetup"
_SUSPEND = scaled(30.0)
_EACH = scaled(2.0)
"""Seconds that one node may take of a busy udevd."""


@dataclass(frozen=True, slots=True)
class MappedNode:
    """A node as the kernel has it."""

    name: str
    uuid: str
    """device-mapper's: see `node_uuid`."""
    device: str
    """The kernel's own name for it, `/dev/dm-3`: it is there as long as the node is."""
    size: int
    """Bytes; 0 for a node that was killed before it had a table."""
    readonly: bool
    suspended: bool
    pending: bool
    """Whether another table has been loaded, which the next resume makes the active one: what a kill may leave."""
    opens: int
    """How many have it open: processes, mounts, exports, nodes on top of it."""
    table: str
    """dmsetup's lines; devices as MAJOR:MINOR."""

    @property
    def path(self) -> str:
        """The name that stays: a link that udevd makes when it gets to it, after the node, and takes away before."""
        return node_path(self.name)

    @property
    def volume(self) -> str:
        """The volume's name, in that of a node of storkit's."""
        return self.name.split(":")[1] if self.name.count(":") == 2 else ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A node as it should be."""

    name: str
    uuid: str
    table: str
    readonly: bool = False


def node_name(volume: str, role: str) -> str:
    """The name of a volume's node: a colon can be in no volume's name, so no two volumes share one."""
    return f"storkit:{volume}:{role}"


def node_uuid(volume_uuid: str, role: str) -> str:
    return f"{PREFIX}{volume_uuid}-{role}"


def beside(role: str) -> str:
    """The role of the node by which a volume's copy is filled, that is to have this role."""
    return f"fill.{role}"


def node_path(name: str) -> str:
    return f"/dev/mapper/{name}"


# Tables


def linear(device: str, size: int, offset: int = 0) -> str:
    """`size` bytes of a block device from `offset` on. Raises NotFound: there is no such block device."""
    return f"0 {_sectors(size)} linear {_number(device)} {_sectors(offset)}"


def error(size: int) -> str:
    """Whatever is read or written fails (EIO); nothing lies below."""
    return f"0 {_sectors(size)} error"


def multipath_over(devices: Sequence[str], size: int, queue: bool = True) -> str:
    """One disk by several paths (storkit.system.block.multipath). While none of them works, what is sent there waits,
    or, without `queue`, fails."""
    return multipath.line([_number(device) for device in devices], _sectors(size), queue)


def refuse_writes(device: str, size: int, offset: int = 0) -> str:
    """Reads pass, writes fail (EIO), by the target `flakey`, also for those who have had the node open for writing.

    A read-only `linear` table is not enough to take a right away: a write that comes while the node is suspended passes
    the check for read-only devices before the swap and is carried out after it.
    """
    return f"0 {_sectors(size)} flakey {_number(device)} {_sectors(offset)} 0 1 1 error_writes"


def _sectors(size: int) -> int:
    if size < 0 or size % SECTOR:
        raise UsageError(f"{size} bytes are not whole {SECTOR}-byte sectors", "give a multiple of 512")
    return size // SECTOR


def _number(device: str) -> str:
    try:
        found = os.stat(device)
    except FileNotFoundError:
        raise NotFound(f"there is no device {device}", "lsblk") from None
    if not stat.S_ISBLK(found.st_mode):
        raise NotFound(f"{device} is not a block device", f"ls -l {device}")
    return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"


def concise(wanted: Sequence[Wanted]) -> str:
    """What `dmsetup create --concise` makes these nodes from."""
    return ";".join(
        f"{node.name},{node.uuid},,{'ro' if node.readonly else 'rw'},{node.table.replace(chr(10), ',')}"
        for node in wanted
    )


# Acting


def find(prefix: str = PREFIX) -> list[MappedNode]:
    """The nodes whose UUID starts with `prefix`, by name order; it costs no process."""
    nodes = [_node(mapped) for mapped in dmioctl.all_nodes(PREFIX if prefix.startswith(PREFIX) else prefix)]
    return [node for node in nodes if node.uuid.startswith(prefix)]


def of_role(role: str) -> dict[str, MappedNode]:
    """The nodes of one role, by their volumes' UUIDs; whoever has none needs no right to ask."""
    try:
        there = find()
    except Unsupported:
        # Only root may ask. A link comes later than its node: udevd makes it, when it gets to it.
        if any(Path("/dev/mapper").glob(node_name("*", role))):
            raise
        return {}
    nodes = [node for node in there if node.uuid.endswith(f"-{role}") and node.name == node_name(node.volume, role)]
    return {node.uuid.removeprefix(PREFIX).removesuffix(f"-{role}"): node for node in nodes}


def below(node: MappedNode) -> list[str]:
    """The devices that a node's table names, as /dev/NAME; one that is gone is left out."""
    numbers = re.findall(r"(?<= )\d+:\d+(?= |$)", node.table, re.MULTILINE)
    places = [Path(f"/sys/dev/block/{number}") for number in numbers]
    return [f"/dev/{place.resolve().name}" for place in places if place.exists()]


def _node(mapped: dmioctl.Mapped) -> MappedNode:
    size = sum(length for _, length, _, _ in mapped.targets) * SECTOR
    table = "\n".join(f"{start} {length} {kind} {words}".rstrip() for start, length, kind, words in mapped.targets)
    state = mapped.readonly, mapped.suspended, mapped.pending, mapped.opens
    return MappedNode(mapped.name, _uuid(mapped), f"/dev/{mapped.device}", size, *state, table)


def _uuid(mapped: dmioctl.Mapped) -> str:
    """A node's UUID. The kernel gives none another one, so one that was renamed under its user is told by its name."""
    ours = _OURS.fullmatch(mapped.uuid)
    return node_uuid(ours[1], mapped.name.rpartition(":")[2]) if ours and mapped.name.count(":") == 2 else mapped.uuid


def prepare_paths() -> None:
    """Load what nodes of several paths need. Raises Unsupported: this kernel has it not."""
    for module in multipath.MODULES:
        if not Path("/sys/module", module).is_dir():
            configfs.modprobe(module)


def create(wanted: Sequence[Wanted]) -> list[MappedNode]:
    """Make nodes, all in one process, all or none; those that are there with this UUID, table and mode are fine.

    Raises Conflict: a node of that name is another one, or has another table (see `swap`); Unsupported: this kernel has
    no device-mapper, or not the target.
    """
    there = {node.name: node for node in find("")}
    problems: list[StorkitError] = []
    for node in wanted:
        if node.name in there:
            problems += _differs(node, there[node.name])
    raise_problems(problems)
    udev.keep_rules(RULES, _RULES)
    todo = [node for node in wanted if node.name not in there]
    try:
        if todo:
            _dmsetup(["create", "--concise"], stdin=concise(todo), timeout=TIMEOUT + _EACH * len(todo))
        swap([node for node in wanted if node.name in there])  # one without a table: its command was killed
    except StorkitError:
        remove([node.name for node in todo])
        raise
    return _named(wanted)


def swap(
    wanted: Sequence[Wanted], *, flush: bool = True, timeout: float = _SUSPEND, exact: bool = False
) -> list[MappedNode]:
    """Give existing nodes other tables, under whoever has them open; those that have them already are fine. So are
    those that are copied from the wanted disk just now (storkit.system.block.mirrornode), unless `exact`.

    The kernel does it in one call that a kill cannot divide: it suspends the node, which waits until all that was sent
    to the device below has come back, swaps the tables, and resumes it. Once this returns, nothing that was written
    through the old table is still on its way. What comes meanwhile is held, and goes through the new table.
    With `flush`, what this host's page cache holds for the node is written first, through the old table, and a file
    system mounted on it is frozen. Without, it is left to the new table: for a device below that does not answer. A
    node of several paths is never flushed: while none of them works, that would fail what waits for one.

    Raises TimedOut if the device below keeps what it was sent for `timeout` seconds: device-mapper cannot take it back.
    That node and those after it have their old tables then. Make the device fail first (iSCSI: recovery_tmo, or the
    session's end), then swap. Raises NotFound: no such node; Conflict: it is another one.
    """
    there = {node.name: node for node in find("")}
    problems: list[StorkitError] = []
    for node in wanted:
        if node.name not in there:
            problems.append(NotFound(f"there is no node {node_path(node.name)}", "dmsetup ls"))
        elif there[node.name].uuid != node.uuid:
            problems += _differs(node, there[node.name])
    raise_problems(problems)
    todo = [node for node in wanted if not _settled(there[node.name], node, exact)]
    if todo:
        names = [node.name for node in todo]
        try:
            for node in todo:
                _load(node)
            for flushed in (True, False):
                if some := [name for name in names if flushed == (flush and not of_paths(there[name]))]:
                    _dmsetup(["resume", *([] if flushed else ["--noflush", "--nolockfs"]), *some], timeout=timeout)
        except StorkitError:
            _dmsetup(["clear", *names])
            raise
    return _named(wanted)


def paths(node: MappedNode) -> dict[str, bool]:
    """The disks of a node of several paths, as /dev/NAME, and whether the kernel uses each; one that is gone is left
    out."""
    known = multipath.parse_paths(dmioctl.status(node.name)) if of_paths(node) else {}
    places = {Path(f"/sys/dev/block/{number}"): used for number, used in known.items()}
    return {f"/dev/{place.resolve().name}": used for place, used in places.items() if place.exists()}


def load(wanted: Wanted) -> None:
    """Give a node a table that counts with `let_go`. Another `swap` forgets it."""
    _load(wanted)


def hold(name: str, timeout: float = _SUSPEND) -> None:
    """Hold whatever comes, once all that was sent to the devices below has come back. Raises TimedOut, as `swap`."""
    _dmsetup(["suspend", "--noflush", "--nolockfs", name], timeout=timeout)


def let_go(name: str) -> None:
    """After `load` and `hold`: what was held goes on through the table that was loaded."""
    _dmsetup(["resume", "--noudevsync", "--noflush", "--nolockfs", name], timeout=_SUSPEND)


def rename(node: MappedNode, name: str) -> MappedNode:
    """Give a node another name, under whoever has it open. Done already is fine."""
    if node.name != name:
        _dmsetup(["rename", node.name, name])
    return _named([Wanted(name, "", "")])[0]


def reinstate(node: MappedNode, device: str) -> None:
    """Use a path again that the kernel gave up. What waits for a path goes on by it."""
    _dmsetup(["message", node.name, "0", f"reinstate_path {_number(device)}"])


def stop_queueing(node: MappedNode) -> None:
    """Fail what waits for a path, and what comes while none works: for those who were killed, and cannot end before.
    The next table queues again."""
    if of_paths(node):
        _dmsetup(["message", node.name, "0", "fail_if_no_path"])


def of_paths(node: MappedNode) -> bool:
    """Whether a node's table is that of several paths."""
    return multipath.is_multipath(node.table)


def ensure(wanted: Sequence[Wanted]) -> list[MappedNode]:
    """Have these nodes with these tables, whatever tables they had: `create`, or `swap`."""
    there = {node.name for node in find("")}
    create([node for node in wanted if node.name not in there])
    return swap(wanted)


def remove(names: Sequence[str], *, force: bool = False, timeout: float = _SUSPEND) -> None:
    """Remove nodes; those that are gone are fine, and those that are not storkit's are left alone.

    `force`: their tables become `error` first, so that nobody can write through them any more, whatever is left; this
    raises TimedOut as `swap` does. Raises Conflict: a node is in use; the others are gone.
    """
    ours = {node.name for node in find() if node.name in set(names)}
    if ours and force:
        # remove --force would do this as well, but waits in sleeps
        _dmsetup(["wipe_table", "--noflush", "--nolockfs", *sorted(ours)], timeout=timeout)
    if not ours or not _remove_idle(ours):
        return
    # udevd's programs may have a node open for a moment when something asks for its events again.
    udev.settle()
    raise_problems(
        [
            Conflict(f"{node.path} is in use", f"see who has it open: lsblk {node.path}; fuser -v {node.path}")
            for node in _remove_idle(ours)
        ]
    )


def _remove_idle(names: set[str]) -> list[MappedNode]:
    """Remove those of these nodes that nobody has open; what is left. dmsetup stops at the first that is busy."""
    idle = [node.name for node in find() if node.name in names and not node.opens]
    if idle:
        try:
            _dmsetup(["remove", *idle], timeout=TIMEOUT + _EACH * len(idle))
        except CommandFailed as failure:
            if "busy" not in failure.stderr:
                raise
    return [node for node in find() if node.name in names]


def _named(wanted: Sequence[Wanted]) -> list[MappedNode]:
    """The nodes as they are now, each with its path: whoever made one may have been killed before udevd came to it."""
    there = {node.name: node for node in find()}
    found = [there[node.name] for node in wanted if node.name in there]
    if any(not _leads(node) for node in found):
        udev.settle()
        if missing := [node.name for node in found if not _leads(node)]:
            _dmsetup(["mknodes", *missing])  # udevd was not there, or its events were lost
    raise_problems(
        [Unsafe(f"{node.path} leads to another device than its node", "udevadm trigger -s block") for node in found
         if not _leads(node)]
    )  # fmt: skip
    return found


def _leads(node: MappedNode) -> bool:
    """Whether a node's path leads to it: a link may be missing still, or be that of an earlier node."""
    try:
        return os.minor(os.stat(node.path).st_rdev) == int(node.device.removeprefix("/dev/dm-"))
    except FileNotFoundError:
        return False


def _differs(wanted: Wanted, there: MappedNode) -> list[StorkitError]:
    if there.uuid != wanted.uuid:
        return [
            Conflict(f"{there.path} is another node, with UUID {there.uuid or 'none'}", f"dmsetup info {there.name}")
        ]
    if there.table and not _has(there, wanted):
        return [Conflict(f"{there.path} exists with another table: {there.table}", f"dmsetup table {there.name}")]
    return []


def _has(there: MappedNode, wanted: Wanted, exact: bool = False) -> bool:
    alike = multipath.alike(there.table, wanted.table)
    copied = not exact and mirrornode.stands_on(there.table, wanted.table)
    return (alike or copied) and there.readonly == wanted.readonly


def _settled(there: MappedNode, wanted: Wanted, exact: bool) -> bool:
    return _has(there, wanted, exact) and not there.suspended and not there.pending


def _load(node: Wanted) -> None:
    _dmsetup(["load", *(["--readonly"] if node.readonly else []), node.name], stdin=node.table)


def _dmsetup(words: Sequence[str], *, stdin: str | None = None, timeout: float = TIMEOUT) -> str:
    # These two wait for the device below, which the next command may have to make fail.
    locked = words[0] not in ("resume", "wipe_table", "suspend")
    # What a udevd that has ended leaves there, dmsetup takes for one that runs, and waits for it.
    alone = [] if udev.runs() else ["--noudevsync", "--verifyudev"]  # then it makes device nodes itself
    try:
        argv = ["dmsetup", *alone, *words]
        return run(argv, stdin=stdin, timeout=timeout, package=_PACKAGE, locked=locked).stdout
    except CommandFailed as failure:
        if not _CONTROL.exists():
            raise Unsupported("this kernel has no device-mapper", "modprobe dm-mod") from failure
        if "unknown target type" in failure.stderr or "Invalid argument" in failure.stderr:
            _explain_target(failure, stdin or "")
        raise


def _explain_target(failure: CommandFailed, tables: str) -> None:
    """A target whose module is missing fails like any other bad table."""
    known = {line.split()[0] for line in run(["dmsetup", "targets"], package=_PACKAGE).stdout.splitlines() if line}
    wanted = {words[2] for line in re.split("[\n,;]", tables) if len(words := line.split()) > 2 and words[0].isdigit()}
    if missing := sorted(wanted - known):
        module = f"dm-{missing[0]}"
        raise Unsupported(f"device-mapper lacks the target {', '.join(missing)}", f"modprobe {module}") from failure
