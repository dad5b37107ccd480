"""The kernel's NBD devices, by generic netlink: connected, given new connections, disconnected, and listed.

The interface is linux/nbd-netlink.h with drivers/block/nbd.c; generic netlink itself is linux/genetlink.h. The kernel
takes connected sockets and a free device of its own choice, so that two commands never meet on one. Every device is
connected with a backend identifier, which sysfs shows and without which nothing can be given to it: so a device is
known by who connected it, and never by its number alone.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from storkit.core.errors import Conflict, StorkitError, Unsupported
from storkit.system.run import run
from storkit.system.timeouts import scaled

FLAG_HAS_FLAGS = 1 << 0
TIMEOUT = scaled(30.0)

_REQUEST, _ACK = 1, 4  # NLM_F_REQUEST, NLM_F_ACK
_ERROR = 2  # NLMSG_ERROR: also the acknowledgement
_NESTED, _TYPE_MASK = 0x8000, 0x3FFF
_GENERIC_NETLINK = 16  # NETLINK_GENERIC of linux/netlink.h, which the socket module lacks
_CONTROLLER, _GET_FAMILY = 16, 3  # GENL_ID_CTRL, CTRL_CMD_GETFAMILY
_FAMILY_ID, _FAMILY_NAME = 1, 2  # CTRL_ATTR_*
_CONNECT, _DISCONNECT, _RECONFIGURE = 1, 2, 3  # NBD_CMD_*
# NBD_ATTR_*
_INDEX, _SIZE, _BLOCK_SIZE, _SERVER_FLAGS, _SOCKETS, _DEAD_CONNECTION_TIMEOUT, _BACKEND = 1, 2, 3, 5, 7, 8, 10
_SOCKET_ITEM, _SOCKET_FD = 1, 1
_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")


@dataclass(frozen=True, slots=True)
class Device:
    """A connected NBD device."""

    index: int
    backend: str
    """What it was connected with; empty for another program's, which need not give any."""

    @property
    def path(self) -> str:
        return f"/dev/nbd{self.index}"


def devices(sysfs: Path = Path("/sys/block")) -> list[Device]:
    """The devices that are connected with a backend identifier, by index order."""
    found = []
    for entry in sysfs.glob("nbd*"):
        index = re.fullmatch(r"nbd(\d+)", entry.name)
        try:
            if index:
                found.append(Device(int(index[1]), (entry / "backend").read_text().strip()))
        except OSError:
            continue  # not connected, or not with an identifier
    return sorted(found, key=lambda device: device.index)


# Messages


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes (linux/netlink.h: struct nlattr)."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by type; of several of one type the last."""
    found = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = data[_ATTRIBUTE.size : length]
        data = data[length + -length % 4 :]
    return found


def message(family: int, command: int, sequence: int, payload: bytes) -> bytes:
    """A request that is to be acknowledged."""
    body = _GENERIC.pack(command, 1, 0) + payload
    return _HEADER.pack(_HEADER.size + len(body), family, _REQUEST | _ACK, sequence, 0) + body


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, sequence number and payload of each message in what one recv() gave."""
    while len(data) >= _HEADER.size:
        length, kind, _, sequence, _ = _HEADER.unpack_from(data)
        if length < _HEADER.size:
            break
        yield kind, sequence, data[_HEADER.size : length]
        data = data[length + -length % 4 :]


def sockets_attribute(descriptors: Iterable[int]) -> bytes:
    """NBD_ATTR_SOCKETS: the connections, each an item with a descriptor."""
    items = [
        attribute(_SOCKET_ITEM | _NESTED, attribute(_SOCKET_FD, struct.pack("=I", descriptor)))
        for descriptor in descriptors
    ]
    return attribute(_SOCKETS | _NESTED, b"".join(items))


class Netlink:
    """A conversation with the kernel's NBD driver, which is loaded if it is missing.

    Raises Unsupported: there is no such driver, or not for us. Conflict: the kernel refused.
    """

    def __init__(self) -> None:
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _GENERIC_NETLINK)
        try:
            self._socket.settimeout(TIMEOUT)
            self._socket.bind((0, 0))
            self._family = self._find_family()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def connect(
        self, connections: Sequence[socket.socket], size: int, block: int, flags: int, timeout: int, backend: str
    ) -> Device:
        """Make a free device of connections that have been negotiated (NBD_OPT_GO) and are handed over.

        `size` and `block` are bytes, `flags` the protocol's transmission flags. A device whose connections are all dead
        holds what it is asked for `timeout` seconds before it fails.
        """
        reply = self._call(
            _CONNECT,
            attribute(_SIZE, struct.pack("=Q", size))
            + attribute(_BLOCK_SIZE, struct.pack("=Q", block))
            + attribute(_SERVER_FLAGS, struct.pack("=Q", flags | FLAG_HAS_FLAGS))
            + attribute(_DEAD_CONNECTION_TIMEOUT, struct.pack("=Q", timeout))
            + attribute(_BACKEND, backend.encode() + b"\0")
            + sockets_attribute(connection.fileno() for connection in connections),
            "connect an NBD device",
        )
        return Device(struct.unpack("=I", reply[_INDEX])[0], backend)

    def reconnect(self, device: Device, connections: Sequence[socket.socket]) -> None:
        """Put new connections in the place of dead ones; those that find no dead one are dropped by the kernel.

        The kernel compares the backend identifier: another's device is refused.
        """
        self._call(
            _RECONFIGURE,
            attribute(_INDEX, struct.pack("=I", device.index))
            + attribute(_BACKEND, device.backend.encode() + b"\0")
            + sockets_attribute(connection.fileno() for connection in connections),
            f"give {device.path} a new connection",
        )

    def resize(self, device: Device, size: int) -> None:
        """Tell the kernel that a device has become larger, which has a connection that works."""
        self._call(
            _RECONFIGURE,
            attribute(_INDEX, struct.pack("=I", device.index))
            + attribute(_BACKEND, device.backend.encode() + b"\0")
            + attribute(_SIZE, struct.pack("=Q", size)),
            f"make {device.path} larger",
        )

    def connected(self, device: Device) -> bool:
        """Whether a device takes requests. One that was disconnected keeps its identifier, in sysfs as well, for as
        long as anybody has it open, and fails them all; to change nothing of it is refused then (nbd_genl_reconfigure).
        """
        what = attribute(_INDEX, struct.pack("=I", device.index))
        try:
            self._exchange(self._family, _RECONFIGURE, what + attribute(_BACKEND, device.backend.encode() + b"\0"))
        except OSError as error:
            return error.errno != errno.EINVAL
        return True

    def disconnect(self, device: Device) -> None:
        """Cut a device off: what it holds fails (EIO), and so does what comes later. Gone already is fine."""
        try:
            held = os.open(device.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            # A device that is open is given to nobody else, so what is read now stays true until it is disconnected.
            if device in devices():
                self._call(_DISCONNECT, attribute(_INDEX, struct.pack("=I", device.index)), f"disconnect {device.path}")
        finally:
            os.close(held)

    def _find_family(self) -> int:
        wanted = attribute(_FAMILY_NAME, b"nbd\0")
        for attempt in range(2):
            try:
                reply = self._exchange(_CONTROLLER, _GET_FAMILY, wanted)
                return int(struct.unpack("=H", reply[_FAMILY_ID])[0])
            except FileNotFoundError:
                if attempt == 0:
                    run(["modprobe", "nbd"], ok=range(256), package="kmod")
            except OSError as error:
                raise _refused("ask for the NBD driver", error) from error
        raise Unsupported("this kernel has no NBD driver", 'modprobe nbd; or set attach = "qemu" for nbd')

    def _call(self, command: int, payload: bytes, what: str) -> dict[int, bytes]:
        try:
            return self._exchange(self._family, command, payload)
        except OSError as error:
            raise _refused(what, error) from error

    def _exchange(self, family: int, command: int, payload: bytes) -> dict[int, bytes]:
        """Send a request and return its answer's attributes; an error is an OSError."""
        self._sequence += 1
        self._socket.send(message(family, command, self._sequence, payload))
        answer: dict[int, bytes] = {}
        while True:
            for kind, sequence, body in messages(self._socket.recv(1 << 16)):
                if sequence != self._sequence:
                    continue
                if kind != _ERROR:
                    answer = attributes(body[_GENERIC.size :])
                    continue
                (status,) = struct.unpack_from("=i", body)
                if status:
                    raise OSError(-status, os.strerror(-status))
                return answer


def _refused(what: str, error: OSError) -> StorkitError:
    if error.errno in (errno.EPERM, errno.EACCES):
        return Unsupported(f"this process may not {what}", 'run storkit as root, or set attach = "qemu" for nbd')
    return Conflict(f"the kernel did not {what}: {error.strerror or error}", "see what it says: dmesg | tail")
