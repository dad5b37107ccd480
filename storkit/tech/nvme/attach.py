"""NVMe/TCP exports on the host that uses them: connected, verified, and only then at their stable paths.

An attachment is a controller for each portal that answers, the disk that the kernel makes of them, a device-mapper node
over that, and a symbolic link to the node. They are made in this order, so that a path that exists leads to a verified
disk, and taken away in the other. Our record is the offer with its keys, 0600: after a reboot they are needed again.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

from storkit.core.backend import Site
from storkit.core.errors import Conflict, ServiceUnreachable, StorkitError, Unsafe, UsageError, raise_problems
from storkit.core.identities import check_secret
from storkit.core.model import WORKING, AttachmentPath, Evidence, Offer, Volume
from storkit.system.block import devmapper, udev
from storkit.system.block.devmapper import MappedNode, node_name
from storkit.system.block.fingerprint import digests, wanted
from storkit.system.openers import only_killed
from storkit.system.parallel import for_each_at_once
from storkit.tech import portals
from storkit.tech.attachments import Attaching, Detaching
from storkit.tech.mapped import ROLE, MappedAttachments, claimed, flush, node_fault
from storkit.tech.nvme import controllers
from storkit.tech.nvme.controllers import Controller
from storkit.tech.nvme.names import HOST, PORT, Keys, NvmeSettings, identity, is_host, portal, subsystem_nqn
from storkit.tech.records import RecordFiles


@dataclass(frozen=True, slots=True)
class _Connected:
    """What the kernel has of an attachment."""

    record: Offer
    node: MappedNode | None
    paths: list[Controller]

    @property
    def alive(self) -> bool:
        return any(path.alive for path in self.paths)


class NvmeAttachments(MappedAttachments):
    """The NVMe/TCP attachments of one host."""

    transport = "nvme"

    def __init__(self, site: Site, settings: NvmeSettings) -> None:
        super().__init__(site, RecordFiles(site.state / "nvme-attached", Offer, "the attachment"))
        self.settings = settings

    def _planned(self, offer: Offer) -> Offer:
        return offer

    def _bare(self, volume: Volume) -> Offer:
        name = subsystem_nqn(volume.uuid, self.site.host)
        return Offer(volume.name, volume.uuid, volume.size, self.site.host, self.transport, name, "", False)

    def _below(self, record: Offer) -> list[str]:
        return [disk] if (disk := controllers.disk(record.name)) else []

    def _nodes(self) -> dict[str, MappedNode]:
        """The nodes of volumes that are attached over NVMe/TCP, by UUID."""
        ours, named = set(self._records.uuids()), {path.nqn for path in controllers.find()}
        nodes = devmapper.of_role(ROLE).items()
        return {uuid: node for uuid, node in nodes if uuid in ours or subsystem_nqn(uuid, self.site.host) in named}

    def _unrecorded(self, known: Mapping[str, Offer], volumes: list[str] | None) -> dict[str, Offer]:
        return {
            uuid: self._bare(Volume(node.volume, uuid, node.size))
            for uuid, node in self._nodes().items()
            if uuid not in known and (volumes is None or uuid in volumes)
        }

    def _refused(self, offer: Offer, known: Offer | None) -> Iterator[StorkitError]:
        yield from self._refused_name(offer)
        known_name = offer.name == subsystem_nqn(offer.uuid, offer.client)
        known_host = is_host(offer.options.get(HOST, ""), offer.uuid, offer.client)
        if not known_name or not known_host or offer.identity != identity(offer.uuid):
            message = f"the offer of volume {offer.volume} is for another subsystem or disk: {offer.name}"
            yield Unsafe(f"{message}, {offer.identity}", "leave it alone until you know what it is")
        yield from self._refused_portals(offer, PORT)

    # attach

    def _open(self, batch: Sequence[Attaching[Offer]]) -> None:
        controllers.prepare()
        nodes, deadline = self._nodes(), monotonic() + controllers.RECOVERY
        for_each_at_once(lambda one: self._connect(one, nodes.get(one.record.uuid), deadline), batch)
        raise_problems([problem for one in batch for problem in self._duplicates(one.record)])

    def _connect(self, one: Attaching[Offer], node: MappedNode | None, deadline: float) -> None:
        """Have controllers, and the disk that the offer speaks of. Where the volume has a node, that keeps the new
        controllers, whatever fails: whoever has the node open needs them."""
        record = one.record
        used = node is not None and node.opens > 0 and not only_killed(node.device)
        self._leave_elsewhere(record, used)
        here = controllers.find(record.name)
        if here and not any(path.alive for path in here):
            if used:
                self._wait_for(record, deadline)
            else:
                # The target may have other keys by now, which a controller that exists never learns.
                for path in here:
                    controllers.disconnect(path)
        with udev.Watch("block", processed=False) as watch:
            one.fresh = node is None and not controllers.find(record.name)
            self._connect_paths(record)
            one.device = controllers.appeared(record.name, watch)
        self._verify(record, one.device)

    def _leave_elsewhere(self, record: Offer, used: bool) -> None:
        """The kernel takes all subsystems of one name for one, and would send a guest's writes to either: what is
        connected to another server goes first. Raises Conflict: it is in use."""
        there = {portal(text) for text in record.portals}
        elsewhere = [path for path in controllers.find(record.name) if (path.address, path.port) not in there]
        if elsewhere and used:
            where = " and ".join(path.portal for path in elsewhere)
            message = f"volume {record.volume} is in use on {self.site.host}, from another place: {where}"
            raise Conflict(message, f"storkit detach {record.volume} --on {self.site.host}")
        for path in elsewhere:
            controllers.disconnect(path)

    def _wait_for(self, record: Offer, deadline: float) -> None:
        """The controllers of a disk in use go on by themselves, soon after their target is back; nothing else may end
        them. Raises ServiceUnreachable: the target is still away."""
        silent = [reason for text in record.portals if (reason := portals.probe(*portal(text)))]
        if len(silent) == len(record.portals) or not controllers.recovered(record.name, deadline):
            why = "; ".join(silent) or "its port is open, and no controller goes on"
            raise ServiceUnreachable(
                f"volume {record.volume} is in use on {self.site.host}, and its target at {', '.join(record.portals)}"
                f" is away ({why})",
                "it goes on when the target is back: storkit status",
            )

    def _connect_paths(self, record: Offer) -> None:
        """A controller for each portal that answers; one is enough, and all that there can be without multipath."""
        have = {(path.address, path.port) for path in controllers.find(record.name)}
        silent, refused = list[str](), list[StorkitError]()
        for text in record.portals:
            if have and not controllers.multipath():
                break
            address, port = portal(text)
            if (address, port) in have:
                continue
            if reason := portals.probe(address, port):
                silent.append(f"{text}: {reason}")
                continue
            try:
                controllers.connect(record.name, record.options[HOST], address, port, _keys(record))
                have.add((address, port))
            except StorkitError as error:
                refused.append(error)
        if not have:
            raise_problems(refused)
            message = f"no portal of volume {record.volume} answers ({'; '.join(silent)})"
            raise ServiceUnreachable(message, "storkit host check")

    def _verify(self, record: Offer, device: str) -> None:
        """Raises Unsafe: the target shows another disk."""
        self._must_answer(record, device)
        said, size = controllers.identify(device)
        where = f"volume {record.volume}: the subsystem {record.name} at {', '.join(record.portals)}"
        hint = "leave it alone until you know what that target is: storkit status"
        if said != record.identity:
            raise Unsafe(f"{where} shows {said}, not {record.identity}", hint)
        if size != record.size:
            raise Unsafe(f"{where} shows a disk of {size} bytes, not {record.size}", hint)
        controllers.sized(record.name, device, size)

    def _duplicates(self, record: Offer) -> Iterator[StorkitError]:
        if others := controllers.others(record.uuid, record.name):
            yield Unsafe(
                f"the UUID of volume {record.volume} is also that of {', '.join(others)} on {self.site.host}, which "
                "comes from elsewhere: one of the two is another disk",
                f"find out which: cat /sys/class/block/{others[0]}/device/subsysnqn",
            )

    def _abandon(self, fresh: Sequence[Attaching[Offer]]) -> None:
        with suppress(StorkitError):
            devmapper.remove([node_name(one.record.volume, ROLE) for one in fresh])
        for_each_at_once(lambda one: _hang_up(one.record), fresh)

    # detach

    def _close(self, batch: Sequence[Detaching[Offer]]) -> None:
        nodes = self._nodes()
        records = [one.record or self._bare(one.volume) for one in batch]
        here = [_Connected(record, nodes.get(record.uuid), controllers.find(record.name)) for record in records]
        raise_problems([problem for each in here for problem in self._in_use(each.record, each.node, not each.alive)])
        for_each_at_once(_flush, [each for each in here if each.alive and each.node and not each.node.readonly])
        # What was sent to a target that is away comes back only at the end of its controllers.
        for_each_at_once(lambda each: _hang_up(each.record), [each for each in here if not each.alive])
        devmapper.remove([each.node.name for each in here if each.node])
        for_each_at_once(lambda each: _hang_up(each.record), [each for each in here if each.alive])
        for one in batch:
            one.gone = True

    # claim

    def claim(self, volumes: list[Volume], writers: list[str]) -> None:
        """Make the nodes writable, under whoever has the path open: the target lets this host write already.

        What is not connected any more is left to `attach`.
        """
        with self._locked(volume.uuid for volume in volumes):
            known, problems = self._records.find(volume.uuid for volume in volumes)
            raise_problems(problems)
            nodes = self._nodes()
            batch = [claimed(record) for uuid, record in known.items() if uuid in nodes]
            for one in batch:
                one.device = controllers.disk(one.record.name)
            self._taken_up(batch)

    # what is there

    def _paths(self, record: Offer) -> list[AttachmentPath]:
        if len(record.portals) < 2:
            return []
        there = {(path.address, path.port): path for path in controllers.find(record.name)}
        return [AttachmentPath(text, _path_state(there.get(portal(text)))) for text in record.portals]

    def _broken(self, records: Mapping[str, Offer]) -> dict[str, str]:
        nodes, paths = devmapper.of_role(ROLE), controllers.find()
        faults = {
            uuid: fault(record, nodes.get(uuid), [path for path in paths if path.nqn == record.name])
            for uuid, record in records.items()
        }
        return {uuid: why for uuid, why in faults.items() if why}

    def _look(self, record: Offer, offsets: list[int] | None) -> Evidence:
        # A controller is lost some seconds after its target: who asks the disk meanwhile waits until that is back.
        silent = [f"{text}: {reason}" for text in record.portals if (reason := portals.probe(*portal(text)))]
        if len(silent) == len(record.portals):
            message = f"the target of volume {record.volume} does not answer {self.site.host} at {'; '.join(silent)}"
            raise ServiceUnreachable(message, "storkit status")
        device = controllers.disk(record.name)
        ranges = wanted(record.uuid, record.size, offsets)
        seen = self._must_answer(record, device, ranges)
        said, size = controllers.identify(device)
        return Evidence(
            record.volume, self.site.host, said, size, digests(ranges, self._blocks(record, device, seen, said))
        )


def fault(record: Offer, node: MappedNode | None, paths: Sequence[Controller]) -> str:
    """Why an attachment does not work; empty if it does. `paths` are the controllers of its subsystem."""
    if not paths:
        return "it has no connection to its target"
    if not any(path.alive for path in paths):
        return f"its target does not answer: the connection is lost ({paths[0].state})"
    if not (disk := controllers.disk(record.name)):
        return "its target shows no disk"
    return node_fault(node, disk, "target", record.writable)


def _path_state(path: Controller | None) -> str:
    if path is None:
        return "it has no connection"
    return WORKING if path.alive else f"its connection is lost ({path.state})"


def _hang_up(record: Offer) -> None:
    for path in controllers.find(record.name):
        controllers.disconnect(path)


def _flush(here: _Connected) -> None:
    """Write what this host's page cache holds. Raises ServiceUnreachable: the disk has not taken it, and yet takes
    what comes next, or its pool is full. One that takes nothing is one whose right is gone: its target refuses a flush
    like a write, and nothing tells it from a disk that fails.
    """
    assert here.node is not None
    error = flush(here.node)
    if error is not None and (error.errno == errno.ENOSPC or flush(here.node) is None):
        message = f"volume {here.record.volume} cannot be flushed: {error.strerror}"
        raise ServiceUnreachable(message, "storkit status") from error


def _keys(offer: Offer) -> Keys | None:
    """The keys of an offer: the client's own, and the one that the target must know."""
    credential = offer.credential
    if credential is None or credential.secret is None:
        return None
    controller = credential.files.get("controller")
    if controller is None:
        raise UsageError(f"the offer of volume {offer.volume} has one key of two", "storkit host check")
    for said in (credential.secret, controller):
        check_secret(said)
        if "," in said.reveal():  # it would be another option of the kernel's
            raise UsageError(f"the offer of volume {offer.volume} has no key, but several words", "storkit host check")
    return Keys(credential.secret, controller)
