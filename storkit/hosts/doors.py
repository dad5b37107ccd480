"""Whether other machines reach this host's servers: a port is opened for a moment, and they try it (`host check`)."""

from __future__ import annotations

import errno
import socket
import threading
from typing import TYPE_CHECKING

from storkit.core.errors import StorkitError
from storkit.core.host import Door, Listening
from storkit.core.model import Finding
from storkit.system.addresses import address_problem
from storkit.system.timeouts import scaled

if TYPE_CHECKING:
    from storkit.hosts.site import Performer

_CONNECT = scaled(3.0)


class Doors:
    """What one connection of a coordinator has had this host listen on."""

    def __init__(self) -> None:
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()

    def listen(self, performer: Performer, target: str) -> Listening:
        """Listen where the servers of a transport would. A port that one has is served, and left alone."""
        from storkit.core.backend import Transport
        from storkit.core.errors import UsageError

        transport = performer.backend(target)
        if not isinstance(transport, Transport):
            raise UsageError(f"{target} is no transport")
        doors, findings = list[Door](), list[Finding]()
        for door in transport.doors():
            if problem := address_problem(performer.site.host, door.address):
                findings.append(Finding(problem.message, problem.hint))
            elif door.port == door.last and _taken(door.address, door.port):
                doors.append(door)
            else:
                try:
                    doors.append(self._listen(door))
                except StorkitError as error:
                    findings.append(Finding(error.message, error.hint))
        return Listening(doors, findings)

    def _listen(self, door: Door) -> Door:
        from storkit.system.qemu.storagedaemon import listen_tcp

        listener = listen_tcp(door.address, door.port, door.last)
        with self._lock:
            self._open.append(listener)
        port = int(listener.getsockname()[1])
        return Door(door.address, port, port)

    def close(self) -> None:
        with self._lock:
            while self._open:
                self._open.pop().close()


def _taken(address: str, port: int) -> bool:
    """Whether somebody listens there already."""
    family, kind, protocol, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(where)
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def reach(address: str, port: int) -> str:
    """Why this host cannot connect to a port; empty: it can."""
    try:
        with socket.create_connection((address, port), _CONNECT):
            return ""
    except TimeoutError:
        return "no answer, as behind a firewall"
    except (OSError, UnicodeError) as error:
        return str(getattr(error, "strerror", "") or error)
