"""Into guests that run: their consoles, and their addresses."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from storkit.core.errors import CommandFailed, Conflict, NotAllowed, StorkitError, TimedOut, Unsupported
from storkit.core.guest import Console, Guest, GuestCard
from storkit.core.identities import several
from storkit.hosts.connection import Connection
from storkit.hosts.remote.ssh import forwarding_argv, terminal_argv
from storkit.plans.intent import views
from storkit.plans.intent.coordinator import Coordinator
from storkit.system.timeouts import scaled

_GET_THERE = scaled(30.0)
"""Seconds that ssh has to lead to a console's socket."""
_REFUSED = "open failed"
"""What ssh says where its server forwards nothing for this key."""


@dataclass(frozen=True, slots=True)
class ConsoleDoor:
    """Where a guest's console is."""

    guest: str
    host: str
    url: str
    """Of its host; empty: it is this machine."""
    console: Console

    @property
    def program(self) -> list[str]:
        """What shows the console on a terminal, as words; none: it is a socket (`open`)."""
        if self.console.kind == "socket":
            return []
        return terminal_argv(self.url, self.console.words) if self.url else self.console.words

    @contextmanager
    def open(self) -> Iterator[socket.socket]:
        """A connection to the console's socket, through ssh where it is on another machine.

        Raises Unsupported: it is a program's; Conflict, TimedOut, CommandFailed: nothing leads there.
        """
        if self.console.kind != "socket":
            raise Unsupported(f"the console of {self.guest} is a program's: {' '.join(self.console.words)}")
        if not self.url:
            with self._connected(self.console.words[0]) as line:
                yield line
            return
        with tempfile.TemporaryDirectory(prefix="storkit-") as directory:
            near = f"{directory}/console"
            argv = forwarding_argv(self.url, near, self.console.words[0])
            ssh = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            try:
                self._await(ssh, Path(near))
                with self._connected(near) as line:
                    yield line
            finally:
                ssh.terminate()
                said = ssh.communicate()[1].decode(errors="replace").strip()
            # ssh listens here whether or not its other end lets it through.
            if _REFUSED in said:
                raise self._kept_out(1, said)

    def _connected(self, place: str) -> socket.socket:
        line = socket.socket(socket.AF_UNIX)
        try:
            line.connect(place)
        except OSError as error:
            line.close()
            message = f"the console of {self.guest} on {self.host} cannot be opened: {error.strerror}"
            raise Conflict(message, f"storkit guest show {self.guest}") from None
        return line

    def _await(self, ssh: subprocess.Popen[bytes], near: Path) -> None:
        """Until ssh says that the socket is there (its LocalCommand), or has ended."""
        assert ssh.stdout is not None
        if not select.select([ssh.stdout], [], [], _GET_THERE)[0]:
            message = f"ssh does not lead to host {self.host} within {_GET_THERE:g} seconds"
            raise TimedOut(message, f"storkit host check {self.host}")
        if not os.read(ssh.stdout.fileno(), 1) or not near.exists():
            ssh.terminate()
            said = ssh.communicate()[1].decode(errors="replace").strip()
            raise self._kept_out(ssh.returncode, said)

    def _kept_out(self, status: int, said: str) -> StorkitError:
        hint = f"its key has to let ssh forward a port (docs/console.md); or log in on {self.host}"
        return CommandFailed(["ssh", "-L"], status, said, hint=hint)


@dataclass(frozen=True, slots=True)
class GuestAddress:
    """Where a guest can be reached."""

    guest: str
    host: str
    address: str
    seen: str
    """agent: the guest itself says so, by its agent; neighbour: the host's kernel has seen it; lease: a DHCP server of
    the host's has given it; port: it leads to the guest's ssh, on the loopback of the host; record: in the guest's own
    record."""
    mac: str = ""
    port: int = 0


def console(coordinator: Coordinator, name: str) -> ConsoleDoor:
    """Where the console of a guest is that runs. Raises Conflict: it does not run; Unsupported: it has none."""
    guest, host = _running(coordinator, name)
    if not host:
        raise Conflict(f"guest {name} does not run, so it has no console", f"storkit guest start {name}")
    there = coordinator.connections.to(host).hypervisor(f"hypervisor:{guest.hypervisor}").console(name)
    config = coordinator.inventory.host(host)
    return ConsoleDoor(name, host, "" if config.machine == "local" else config.url, there)


def addresses(coordinator: Coordinator, names: Sequence[str]) -> list[GuestAddress]:
    """Where guests can be reached, as far as it is known; nothing of one that does not run, or was never seen."""
    on: dict[str, list[Guest]] = {}
    for name in several(names):
        guest, host = _running(coordinator, name)
        if host:
            on.setdefault(host, []).append(guest)
    found = [each for host, guests in on.items() for each in _on(coordinator, host, guests)]
    order = {name: number for number, name in enumerate(names)}
    return sorted(found, key=lambda each: order[each.guest])


def _on(coordinator: Coordinator, host: str, guests: list[Guest]) -> Iterator[GuestAddress]:
    """Where guests of one host can be reached: it is asked once for all their cards, and once for their ports."""
    connection = coordinator.connections.to(host)
    for guest in guests:
        if guest.root and guest.root.address:
            yield GuestAddress(guest.name, host, guest.root.address.partition("/")[0], "record")
    owners = {
        guest.mac(number).lower(): guest.name
        for guest in guests
        for number, nic in enumerate(guest.nics)
        if nic.kind == "bridge"
    }
    said = list(_said(connection, guests, owners))
    yield from said
    known = {(each.guest, each.address) for each in said}
    if owners:
        for one in connection.itself.neighbours(list(owners)):
            if one.mac in owners and (owners[one.mac], one.address) not in known:  # of nobody's guest otherwise
                yield GuestAddress(owners[one.mac], host, one.address, one.seen, one.mac)
    with_ports: dict[str, list[str]] = {}
    for guest in guests:
        if any(nic.kind == "user" for nic in guest.nics):
            with_ports.setdefault(guest.hypervisor, []).append(guest.name)
    for hypervisor, names in with_ports.items():
        for name, port in connection.hypervisor(f"hypervisor:{hypervisor}").forwarded(names).items():
            yield GuestAddress(name, host, "127.0.0.1", "port", port=port)


def _said(connection: Connection, guests: list[Guest], owners: dict[str, str]) -> Iterator[GuestAddress]:
    """What guests say themselves, by their agents, of those cards that they have on a network (`owners`)."""
    asked: dict[str, list[str]] = {}
    for guest in guests:
        if (guest.agent or guest.document) and guest.name in owners.values():
            asked.setdefault(guest.hypervisor, []).append(guest.name)
    for hypervisor, names in asked.items():
        found: dict[str, list[GuestCard]] = {}
        with suppress(Unsupported, NotAllowed):  # its storkit does not know the question; the key may not ask it
            found = connection.hypervisor(f"hypervisor:{hypervisor}").cards(names)
        for name, cards in found.items():
            for card in cards:
                if owners.get(card.mac) == name:
                    for address in card.addresses:
                        yield GuestAddress(name, connection.config.name, address, "agent", card.mac)


def _running(coordinator: Coordinator, name: str) -> tuple[Guest, str]:
    """A guest, and the host where it runs; none if it does not."""
    view = views.wherever(coordinator, name)
    return view.guest, next(iter(view.running), "")
