"""A disk of a guest that is moved under it by its host's kernel, whatever the hypervisor: the guest has a device-mapper
node open, and the node gets other tables.

    linear: the disk         before, and after a move that was called off
    mirror: disk and copy    the guest writes both, and the kernel copies (storkit.system.block.mirrornode)
    linear: the copy         after the switch, under the name that the copy's transport has for its nodes

What is kept here says which of the two is the disk, also after a power cut. It says `switched` only while the node
holds what the guest writes and both are the same, and the node lets go through the copy alone after that: so whoever
finds that word finds everything in the copy, and whoever does not finds everything in the disk. A command that finds
the word and a node that is not as far brings the node after it. A small program (watch.py) gives a node its disk alone
if one of the two fails, or if a command was killed while it held the guest.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from storkit.core.backend import Site
from storkit.core.errors import Conflict, NotFound, ServiceUnreachable, Unsafe, Unsupported
from storkit.core.identities import Count, GuestName, Line, Size, Uuid, VolumeName, Word
from storkit.core.model import DiskSource, MirrorState
from storkit.core.units import SECTOR
from storkit.hypervisors._copynotes import CopyNotes
from storkit.hypervisors._machine import look_command
from storkit.hypervisors._nodes import watch
from storkit.system.block import devmapper, dmioctl, mirrornode, scsi
from storkit.system.block.devmapper import MappedNode, Wanted
from storkit.system.files import point_at
from storkit.system.run import run
from storkit.system.timeouts import scaled

FLUSH_TIMEOUT = scaled(60.0)
TICK = scaled(0.5)
PATIENCE = 5
"""Seconds that the kernel waits for an iSCSI copy that is away, before its writes fail. The guest's wait for that."""
_COPY = "fill."
AGAIN = "see that the copy's host can be reached, then: storkit plan resume, or the same command"


@dataclass(frozen=True, slots=True)
class NodeMirror:
    """What is kept of a copy, in a file of the volume's UUID."""

    hypervisor: Word
    guest: GuestName
    disk: Uuid
    volume: VolumeName
    size: Size
    node: Line
    """The name of the guest's node while its disk is the disk."""
    to: Line
    """The same once the copy is."""
    fill: Line
    """The node beside it that leads to the copy."""
    identity: Line
    own: Line
    """The device of the disk as MAJOR:MINOR."""
    copy: Line
    boot: Line
    """The boot of this host in which these numbers, and the nodes, are what they are."""
    patience: Line = ""
    """How long the kernel waited for the copy's device before (scsi.patience)."""
    switched: bool = False
    done: bool = False
    """The node has been brought after that word, and is its transport's from then on."""
    stall: Count = 0
    """Milliseconds that the guest's writes were held."""

    @property
    def sectors(self) -> int:
        return self.size // SECTOR


class NodeMirrors:
    """The copies that guests of one host fill by their nodes."""

    def __init__(self, site: Site, hypervisor: str) -> None:
        self._site = site
        self._hypervisor = hypervisor
        self._notes = CopyNotes(site.state.absolute() / "mirrornodes", NodeMirror)

    # HypervisorVerbs

    def mirror(self, name: str, disk: str, copy: DiskSource, identity: str, rate: int) -> None:
        """As HypervisorVerbs.mirror; the guest runs."""
        if rate:
            message = f"the disk of guest {name} is a block device, which this host's kernel copies as fast as it can"
            raise Unsupported(message, "leave --rate away, or stop the guest and move its volume")
        with self._notes.locked(disk):
            known = self._in_line(disk)
            if known and known.switched and known.fill == Path(copy.path).name:
                return
            known = self._begun(name, disk, Path(copy.path).name, identity, known)
        self._wait(known)

    def mirrored(self, disk: str) -> MirrorState:
        """As HypervisorVerbs.mirrored."""
        if not self.has(disk):
            return "none"
        with self._notes.locked(disk):
            known = self._in_line(disk)
            if known is None or known.switched:
                return "switched" if known else "none"
            return "copying" if self._status(known) else "none"

    def switch(self, name: str, disk: str, identity: str) -> int:
        """As HypervisorVerbs.switch; milliseconds that the guest's writes were held."""
        with self._notes.locked(disk):
            known = self._in_line(disk)
            if known is None or known.guest != name:
                raise Conflict(f"guest {name} fills no copy of this disk here", look_command(name))
            return (known if known.switched else self._switched(known, identity)).stall

    def unmirror(self, disk: str, over: bool) -> None:
        """As HypervisorVerbs.unmirror, also of a guest of another hypervisor: that may be gone."""
        if self._notes.read(disk) is None:
            return
        with self._notes.locked(disk):
            known = self._in_line(disk)
            if known is None:
                return
            if known.switched and not over:
                message = f"guest {known.guest} uses the copy of its disk by now, which alone has what it wrote since"
                raise Unsafe(message, "give the command again that moved the volume there")
            if over and not known.switched and self._status(known):
                raise Unsafe(f"guest {known.guest} still uses the disk that its copy is to replace")
            if not known.switched:
                self.alone(known)
            watch.stop(self._site, disk)
            self._notes.forget(disk)

    def has(self, disk: str) -> bool:
        """Whether anything is kept here of a copy of a disk of one of this hypervisor's guests."""
        known = self._notes.read(disk)
        return known is not None and known.hypervisor == self._hypervisor

    # What is kept

    def _in_line(self, disk: str) -> NodeMirror | None:
        """What is kept, after the node was brought to where that says it is."""
        known = self._notes.read(disk)
        if known is None or not known.switched or known.done or known.boot != _boot():
            return known
        nodes = _nodes()
        node = nodes.get(known.to) if known.to in nodes else nodes.get(known.node)
        if node is None or not _is_of(node, disk):  # nobody had it open any more
            return known
        table = _line(known.size, known.copy)
        if node.table != table or node.suspended or node.pending:
            devmapper.swap([Wanted(node.name, node.uuid, table)], flush=False, exact=True)
        if node.name != known.to:
            devmapper.rename(node, known.to)
        point_at(self._site.dev / known.volume, devmapper.node_path(known.to))
        devmapper.remove([known.fill])
        return self._notes.keep(replace(known, done=True))

    def _status(self, known: NodeMirror) -> mirrornode.MirrorStatus | None:
        """How far the copy is; None: it is not being filled."""
        return mirrornode.parse_status(dmioctl.status(known.node))

    # Copying

    def _begun(self, name: str, disk: str, fill: str, identity: str, known: NodeMirror | None) -> NodeMirror:
        """The node writes both disks; it goes on if it does so already."""
        nodes = _nodes()
        target = nodes.get(fill)
        if target is None or not fill.rpartition(":")[2].startswith(_COPY) or not _is_of(target, disk):
            raise NotFound(f"there is no node {devmapper.node_path(fill)} of a copy of this disk", "dmsetup ls")
        node = self._node(target.volume, disk, nodes)
        copy, legs = mirrornode.plain(target.table), mirrornode.legs(node.table)
        own = legs[0] if legs else mirrornode.plain(node.table)
        if not node.opens:
            message = f"guest {name} has its disk open by another way than {node.path}"
            raise Unsupported(message, f"storkit guest stop {name}, then move its volume")
        if not own or not copy or node.readonly or target.readonly or node.size != target.size:
            message = f"the disk of guest {name} or its copy is no block device that is copied under it: {node.table}"
            raise Unsupported(message, "stop the guest, then move its volume")
        if legs and not (known and legs[1] == copy and (state := self._status(known)) and state.good):
            devmapper.swap([Wanted(node.name, node.uuid, _line(node.size, own))], flush=False, exact=True)
            legs = None
        if legs is None or known is None:
            role = fill.rpartition(":")[2].removeprefix(_COPY)
            to = devmapper.node_name(target.volume, role)
            of_before = known.patience if known and known.fill == fill else ""
            patience = of_before or scsi.patience(devmapper.below(target)[0])
            known = NodeMirror(
                self._hypervisor, name, disk, target.volume, node.size, node.name, to, fill, identity, own, copy,
                _boot(), patience,
            )  # fmt: skip
            self._notes.keep(known)
        mirrornode.prepare()
        watch.start(self._site, self._hypervisor, disk)
        if legs is None:
            scsi.be_patient(devmapper.below(target)[0], str(PATIENCE))
            table = mirrornode.line(own, copy, known.sectors)
            devmapper.swap([Wanted(node.name, node.uuid, table)], flush=False, exact=True)
        return known

    def _node(self, volume: str, disk: str, nodes: dict[str, MappedNode]) -> MappedNode:
        """The node that the guest has open, which its stable path leads to."""
        path = self._site.dev / volume
        name = path.readlink().name if path.is_symlink() else ""
        node = nodes.get(name)
        if node is None or not _is_of(node, disk):
            raise NotFound(f"{path} leads to no node of this disk", f"storkit volume show {volume}")
        return node

    def _wait(self, known: NodeMirror) -> None:
        """Wait until both hold the same. Raises ServiceUnreachable: one of them failed."""
        began, first = time.monotonic(), -1
        with dmioctl.events() as wait:
            while True:
                state = self._status(known)
                if state is None or not state.good:
                    why = f"the copy of a disk of guest {known.guest} was not written"
                    raise ServiceUnreachable(f"{why}; the guest goes on with its disk alone", AGAIN)
                if state.whole:
                    # Before the two are compared: what a server that loses its power would lose is not to be compared.
                    run(["sync", devmapper.node_path(known.fill)], timeout=FLUSH_TIMEOUT)
                    self._site.progress(1.0, "the disk and its copy are the same")
                    return
                first = state.done if first < 0 else first
                self._site.progress(state.done / state.regions, _told(state, known.size, first, began))
                wait(TICK)

    def alone(self, known: NodeMirror) -> None:
        """The guest goes on with its disk."""
        node = _nodes().get(known.node)
        if node is None or not _is_of(node, known.disk):
            return
        legs = mirrornode.legs(node.table)
        if legs or node.suspended or node.pending:
            table = _line(node.size, legs[0]) if legs else node.table
            devmapper.swap([Wanted(node.name, node.uuid, table)], flush=False, exact=True)

    def look(self, disk: str) -> bool:
        """For the program that watches: give the node its disk alone if it has to have that. Whether there is anything
        left to watch."""
        with self._notes.locked(disk):
            known = self._in_line(disk)
            if known is None or known.switched:
                return False
            node, state = _nodes().get(known.node), self._status(known)
            if node is None or (state is None and not node.suspended):
                return False
            if node.suspended or node.pending or (state and not state.good):
                self.alone(known)
                return False
            return True

    # The switch

    def _switched(self, known: NodeMirror, identity: str) -> NodeMirror:
        if known.identity != identity:
            message = f"the server of the copy that guest {known.guest} fills is another one since"
            raise Conflict(message, "storkit plan rollback, then move the volume again")
        nodes = _nodes()
        node, fill = nodes.get(known.node), nodes.get(known.fill)
        self._must_be_whole(known)
        if node is None or fill is None:
            raise Conflict(f"the nodes of the copy of guest {known.guest} are gone", AGAIN)
        device = devmapper.below(fill)[0]
        # What was copied is made durable before the copy is the disk; what the guest flushed went to both.
        run(["sync", fill.path], timeout=FLUSH_TIMEOUT)
        self._must_be_whole(known)
        scsi.be_patient(device, known.patience)
        try:
            devmapper.load(Wanted(node.name, node.uuid, _line(known.size, known.copy)))
            began = time.monotonic()
            devmapper.hold(node.name)
            self._must_be_whole(known)
            known = self._notes.keep(replace(known, switched=True))
        except BaseException:
            self.alone(known)
            raise
        devmapper.let_go(node.name)
        stall = int((time.monotonic() - began) * 1000)
        known = self._notes.keep(replace(known, stall=stall))
        self._site.progress(1.0, f"the writes of guest {known.guest} were held for {stall} ms")
        known = self._in_line(known.disk) or known
        watch.stop(self._site, known.disk)
        return known

    def _must_be_whole(self, known: NodeMirror) -> None:
        state = self._status(known)
        if state is None or not state.whole:
            raise Conflict(f"the copy of a disk of guest {known.guest} is not whole", AGAIN)


def _nodes() -> dict[str, MappedNode]:
    return {node.name: node for node in devmapper.find()}


def _is_of(node: MappedNode, disk: str) -> bool:
    return node.uuid.startswith(f"{devmapper.PREFIX}{disk}-")


def _line(size: int, device: str) -> str:
    return f"0 {size // SECTOR} linear {device} 0"


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _told(state: mirrornode.MirrorStatus, size: int, first: int, began: float) -> str:
    """How far a copy is, how fast, and how long it will take."""
    region = mirrornode.REGION * SECTOR
    seconds = time.monotonic() - began
    rate = (state.done - first) * region / seconds if seconds else 0.0
    left = f", {(state.regions - state.done) * region / rate:.0f} s left" if rate else ""
    return f"{min(size, state.done * region) >> 20} of {size >> 20} MiB, {rate / 1e6:.0f} MB/s{left}"
