"""Who else on its home host can write a volume, past the server: looked for before a right is given, and by `status`.

A file that the NBD server has open is held by QEMU's image locks. Nothing holds a logical volume, or a file of an NFS
pool, against whoever is root there and opens it: the kernel lets everyone in who does not ask to be alone. So it cannot
be prevented; it can be seen. Not strangers are storkit's own nodes, and processes that have the volume's use lock: its
servers, and commands at work; and those of a guest that was adopted while it ran are known ones (openers.earlier).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from storkit.core.errors import Conflict, Unsupported
from storkit.core.model import Volume
from storkit.system import locks, openers
from storkit.system.block import dmioctl, holders, udev


@dataclass(frozen=True, slots=True)
class Strangers:
    """Those who can write one volume."""

    volume: Volume
    processes: Sequence[openers.Opener] = ()
    things: Sequence[holders.Holder] = ()
    """Maps, mounts, loop devices and the like."""
    unseen: bool = False
    """The kernel itself has the device open, and does not say for whom."""
    earlier: Sequence[openers.Opener] = ()
    """Its guest's own, which have it open since before it was a volume (openers.earlier)."""

    @property
    def unexpected(self) -> bool:
        """Whether there is anyone whose writes storkit does not count as those of their host."""
        return bool(self.processes or self.things or self.unseen)

    def __str__(self) -> str:
        """Who they are; empty: there are none."""
        each = [f"{process}" for process in self.processes]
        each += [f"{process}, its guest's since before it was a volume" for process in self.earlier]
        each += [f"{thing.what} on {thing.device}" for thing in self.things]
        each += ["something in the kernel, perhaps an iSCSI target that storkit did not make"] * self.unseen
        return " and ".join(each)

    @property
    def hint(self) -> str:
        """The commands that show them, and take away what can be taken away."""
        pids = ",".join(str(process.pid) for process in self.processes)
        shows = [f"see what it is, and end it: ps -fp {pids}"] if pids else []
        shows += ["it ends when the guest moves or stops"] if self.earlier else []
        shows += [thing.remove for thing in self.things]
        shows += [f"see what it is: dmsetup info {self.volume.path}; targetcli ls /backstores"] * self.unseen
        return "; ".join(shows)

    def refuse(self, host: str) -> Conflict:
        """Why nobody may get a right to the volume, and no command change it."""
        message = f"volume {self.volume.name} is open for writing on its home host {host}: by {self}"
        return Conflict(message, self.hint)


def find(run: Path, volumes: Iterable[Volume]) -> list[Strangers]:
    """The strangers of these volumes, for those that have any; `run` is the home host's Site.run."""
    looked = [volume for volume in volumes if volume.path and volume.kind != "tree"]
    if not looked:
        return []
    found = _look(run, looked)
    if any(each.unseen for each in found) and udev.runs():  # udevd looks at a device that was written to
        udev.settle()
        found = _look(run, looked)
    return [each for each in found if str(each)]


def _look(run: Path, volumes: Sequence[Volume]) -> list[Strangers]:
    use = {volume.uuid: str(locks.use_lock(run, volume.uuid)) for volume in volumes}
    opened = openers.find([*use.values(), *(volume.path for volume in volumes)])
    devices = {volume.path for volume in volumes if Path(volume.path).is_block_device()}
    hidden = unseen(devices, opened)
    found = []
    for volume in volumes:
        own = {each.pid for each in opened.get(use[volume.uuid], []) if each.locked}
        here = opened.get(volume.path, [])
        known = openers.earlier(run, volume.uuid)
        writers = [each for each in here if each.writes and each.pid not in own]
        others = [each for each in writers if each.pid not in known]
        guests = [each for each in writers if each.pid in known]
        if volume.path in devices:
            things = holders.find([volume.path], through=False)
            hides = volume.path in hidden and not things
            found.append(Strangers(volume, others, things, hides, guests))
        else:
            found.append(Strangers(volume, others, holders.on_file(volume.path), earlier=guests))
    return found


def unseen(devices: Iterable[str], opened: Mapping[str, Sequence[openers.Opener]]) -> set[str]:
    """Those of these logical volumes that are open more often than by the nodes that stand on them, and by the
    processes that have them `opened`."""
    try:
        nodes = {node.name: node for node in dmioctl.all_nodes()} if devices else {}
    except Unsupported:  # not root, whom alone device-mapper tells
        return set()
    opens = {node.device: node.opens for node in nodes.values()}
    # A node's next table may have it open beside the present one.
    return {
        device
        for device in devices
        if (name := holders.kernel_name(device)) in opens
        and opens[name]
        > sum(1 + nodes[above].pending for above in holders.nodes_on(name) if above in nodes)
        + sum(each.descriptors for each in opened.get(device, ()))
    }
