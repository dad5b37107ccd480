"""The verbs of a volume that is moved under its guest: the copy is let be filled, filled, compared, switched to."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ClassVar

from storkit.core.errors import TimedOut, Unsafe
from storkit.core.identities import ClientName, Count, GuestName, Line
from storkit.core.model import FILLING, Switched, Volume
from storkit.core.units import format_size
from storkit.plans.plan import Step
from storkit.plans.verb import BlindVerb, Run
from storkit.plans.verbs.attachments import offered
from storkit.plans.verbs.exports import client


@dataclass(frozen=True)
class LetFill(BlindVerb):
    """A copy is exported to the host of the guest that fills it, and to nobody else. Undone by ending
    that."""

    verb: ClassVar[str] = "let_fill"
    volume: Volume
    client: ClientName

    def needs(self, step: Step) -> set[str]:
        return super().needs(step) | {self.client}

    def act(self, run: Run, step: Step) -> None:
        here, name = run.on(step.host), self.volume.name
        found = [each for each in here.pool(f"pool:{self.volume.pool}").find([name]) if each.uuid == self.volume.uuid]
        if len(found) != 1 or found[0].made != FILLING:
            message = f"what pool {self.volume.pool} has of volume {name} is not the copy that is to be filled"
            raise Unsafe(message, f"storkit volume show {self.volume.pool}/{name}")
        here.transport(step.target).export(found, [client(run, step.host, self.client, {})])
        here.transport(step.target).set_writers(found, [self.client], fills=True)

    def undo(self, run: Run, step: Step, before: None) -> None:
        run.on(step.host).transport(step.target).unexport([self.volume], [self.client])

    def by_hand(self, step: Step) -> str:
        return f"storkit detach {self.volume.pool}/{self.volume.name} --on {self.client}"


@dataclass(frozen=True)
class _Mirroring(BlindVerb):
    """At the host of the guest `name`, whose hypervisor is the step's target: its disk `volume`, by that one's UUID."""

    name: GuestName
    volume: Volume
    transport: Line = ""
    """Of the copy, where its home is the step's peer."""

    def _identity(self, run: Run, step: Step) -> str:
        """What the server of the copy says of itself by now."""
        return run.on(step.peer).transport(self.transport).offers([self.volume], step.host)[0].identity

    def _call_off(self, run: Run, step: Step) -> None:
        """The guest goes on with its disk, whatever the server of the copy does."""
        hypervisor = run.on(step.host).hypervisor(step.target)
        try:
            hypervisor.unmirror(self.name, self.volume.uuid)
        except TimedOut:
            if not self.transport:
                raise
            # What waits to be sent by a Unix socket is given up by nobody but its server, and by its end.
            run.on(step.peer).transport(self.transport).unexport([self.volume], [step.host])
            hypervisor.unmirror(self.name, self.volume.uuid)

    def by_hand(self, step: Step) -> str:
        return f"storkit volume move {self.volume.name} --to {self.volume.pool}"


@dataclass(frozen=True)
class MirrorDisk(_Mirroring):
    """The guest copies its disk to `volume`, whose home is the step's peer, and writes both from then on. Undone by
    calling that off."""

    verb: ClassVar[str] = "mirror"
    nodes: bool = False
    """Whether the copy is a block device of the step's host."""
    SERVERS: ClassVar[int] = 3
    """Servers of the copy that may come and go: what one was given may be lost with it, and is copied anew."""
    rate: Count = 0

    def act(self, run: Run, step: Step) -> None:
        here = run.on(step.host)
        for _ in range(self.SERVERS):
            offers = offered(run, step.peer, step.host, self.transport, [self.volume])
            (source,) = here.transport(self.transport).sources(offers)
            here.hypervisor(step.target).mirror(self.name, self.volume.uuid, source, offers[0].identity, self.rate)
            if self._identity(run, step) == offers[0].identity:
                return
        message = f"the server of volume {self.volume.name} on {step.peer} begins anew again and again"
        raise Unsafe(message, f"storkit host check {step.peer}")

    def undo(self, run: Run, step: Step, before: None) -> None:
        self._call_off(run, step)
        if self.nodes:
            run.on(step.host).transport(self.transport).detach([self.volume])


@dataclass(frozen=True)
class CallOffMirror(_Mirroring):
    """The guest goes on with its disk. Nothing needs its copy back, which is `volume` where there is one."""

    verb: ClassVar[str] = "call_off"

    def act(self, run: Run, step: Step) -> None:
        self._call_off(run, step)


@dataclass(frozen=True)
class SwitchDisk(_Mirroring):
    """The guest uses the copy alone. Undone only as long as it
    has not switched: a barrier, since the copy alone has what it writes from then on."""

    verb: ClassVar[str] = "switch"
    barrier = True

    def act(self, run: Run, step: Step) -> Switched:
        return run.on(step.host).hypervisor(step.target).switch(self.name, self.volume.uuid, self._identity(run, step))

    def undo(self, run: Run, step: Step, before: None) -> None:
        run.on(step.host).hypervisor(step.target).unmirror(self.name, self.volume.uuid)


@dataclass(frozen=True)
class SettleMirror(_Mirroring):
    """The pools say which is the disk: what the guest's host keeps of that is forgotten."""

    verb: ClassVar[str] = "settle"

    def act(self, run: Run, step: Step) -> None:
        run.on(step.host).hypervisor(step.target).unmirror(self.name, self.volume.uuid, over=True)


@dataclass(frozen=True)
class LetGoOfOld(BlindVerb):
    """Nobody has the old one any more, which is the disk no longer; or a copy that is none: that is never put back."""

    verb: ClassVar[str] = "let_go"
    volume: Volume
    clients: list[ClientName]
    attached: bool = False
    """Whether the clients have it as a block device, beside the other one of the two."""

    def needs(self, step: Step) -> set[str]:
        return super().needs(step) | (set(self.clients) if self.attached else set())

    def act(self, run: Run, step: Step) -> None:
        for host in self.clients if self.attached else ():
            run.on(host).transport(step.target).detach([self.volume])
        run.on(step.host).transport(step.target).unexport([self.volume], self.clients)


@dataclass
class _Blocks:
    """Blocks that differed when they were last read, by their places: what each side held."""

    last: dict[int, tuple[str, str]] = field(default_factory=dict)
    still: dict[int, int] = field(default_factory=dict)
    """How often in a row both were as before."""

    def add(self, at: int, one: str, other: str) -> bool:
        """Take in what was read; whether the block is to be read again."""
        if one == other:
            self.last.pop(at, None)
            return False
        self.still[at] = self.still.get(at, 0) + 1 if self.last.get(at) == (one, other) else 0
        self.last[at] = (one, other)
        return True


@dataclass(frozen=True)
class CompareCopy(BlindVerb):
    """All of a volume, at the step's host, and of its copy, at the peer, while a guest writes both: each home reads its
    own, and digests are compared. Its result is the digest of all of it.

    A block that the guest writes between the two readings differs once, and is read again. One that is never the same,
    and changes each time, is being written all the time: every write goes into both.
    """

    verb: ClassVar[str] = "compare"
    question = True
    PART: ClassVar[int] = 256 << 20
    BLOCK: ClassVar[int] = 1 << 20
    PAGE: ClassVar[int] = 4096
    ROUNDS: ClassVar[int] = 12
    STILL: ClassVar[int] = 3
    """Rounds after which a block that differs, and in which nothing changes, is another one."""
    volume: Volume
    copy: Volume
    client: ClientName
    own: Line = ""
    """The transport of the volume, where it is another than the copy's, which is the step's target."""

    def act(self, run: Run, step: Step) -> str:
        total = hashlib.sha256()
        for offset in range(0, self.volume.size, self.PART):
            length = min(self.PART, self.volume.size - offset)
            one, other = self._read(run, step, offset, length, self.BLOCK)
            for number, (mine, its) in enumerate(zip(one, other, strict=True)):
                total.update(bytes.fromhex(mine))
                if mine != its:
                    self._pages(run, step, offset + number * self.BLOCK)
        return f"blocks-sha256:{total.hexdigest()}"

    def _read(self, run: Run, step: Step, offset: int, length: int, block: int) -> tuple[list[str], list[str]]:
        """The digests of both sides, which are read at the same time."""
        here, there = run.on(step.host).transport(self.own or step.target), run.on(step.peer).transport(step.target)
        with ThreadPoolExecutor(1) as other:
            its = other.submit(there.digests, self.copy, self.client, offset, length, block)
            mine = here.digests(self.volume, self.client, offset, length, block)
            return mine, its.result()

    def _pages(self, run: Run, step: Step, start: int) -> None:
        """The pages of a block that differed. Raises Unsafe: some of them are not the same."""
        blocks, places = _Blocks(), set[int]()
        for number in range(self.ROUNDS):
            one, other = self._read(run, step, start, min(self.BLOCK, self.volume.size - start), self.PAGE)
            read = {start + n * self.PAGE: pair for n, pair in enumerate(zip(one, other, strict=True))}
            again = places if number else read.keys()
            places = {at for at in again if blocks.add(at, *read[at])}
            if not places:
                return
            if bad := sorted(at for at in places if blocks.still[at] >= self.STILL):
                where = f"{format_size(bad[0])} from its start, and in {len(bad) - 1} other places"
                message = f"the copy of volume {self.volume.name} is another than the disk: {where}"
                raise Unsafe(message, "move it again; if that fails as well, a disk or a memory of these hosts is bad")
