"""A small NBD client: the fixed newstyle handshake and simple replies, over a Unix socket or plain TCP.

It asks a server what it says of an export (description, size, rights, block sizes) and reads blocks from it. The
protocol is doc/proto.md of github.com/NetworkBlockDevice/nbd. TLS is left to QEMU's tools: Python's ssl has no
pre-shared keys before 3.13.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from storkit.core.errors import NotFound, ServiceUnreachable, StorkitError, TimedOut, Unsafe
from storkit.system.timeouts import scaled

TIMEOUT = scaled(10.0)

_MAGIC = 0x4E42444D41474943
_OPTION = 0x49484156454F5054
_REPLY = 0x0003E889045565A9
_REQUEST = 0x25609513
_SIMPLE = 0x67446698

_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPT_ABORT, _OPT_LIST, _OPT_INFO, _OPT_GO = 2, 3, 6, 7
_REP_ACK, _REP_SERVER, _REP_INFO = 1, 2, 3
_REP_ERROR = 1 << 31
_ERR_TLS_REQUIRED, _ERR_UNKNOWN = _REP_ERROR | 5, _REP_ERROR | 6
_INFO_EXPORT, _INFO_DESCRIPTION, _INFO_BLOCK_SIZE = 0, 2, 3
_LONGEST_REPLY = 1 << 20

FLAG_READ_ONLY = 1 << 1
READ, WRITE, DISCONNECT, FLUSH = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """What a server says of one export. Sizes in bytes."""

    name: str
    description: str
    size: int
    flags: int
    """The transmission flags of the protocol."""
    minimum_block: int = 1
    preferred_block: int = 4096

    @property
    def writable(self) -> bool:
        return not self.flags & FLAG_READ_ONLY


class NbdConnection:
    """A connection to an NBD server: `info` and `names` while options are negotiated, `request` after `go`.

    Raises ServiceUnreachable: nobody listens, or the connection broke. TimedOut: no answer. NotFound: no such export.
    Unsafe: what answers does not speak NBD, or wants TLS. OSError: the server refused a request (EPERM, EIO, ...).
    """

    def __init__(self, where: str | tuple[str, int], timeout: float = TIMEOUT) -> None:
        """`where` is the path of a Unix socket, or an address and a port."""
        self.where = where if isinstance(where, str) else f"{where[0]}:{where[1]}"
        self._timeout = timeout
        self._cookie = 0
        self._socket: socket.socket | None = None
        with self._explained():
            if isinstance(where, str):
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._socket.settimeout(timeout)
                self._socket.connect(where)
            else:
                self._socket = socket.create_connection(where, timeout)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            magic, option, flags = struct.unpack(">QQH", self._receive(18))
            if magic != _MAGIC or option != _OPTION or not flags & _FIXED_NEWSTYLE:
                raise Unsafe(f"what listens at {self.where} is no NBD server of the newstyle protocol")
            self._no_zeroes = bool(flags & _NO_ZEROES)
            self._send(struct.pack(">I", _FIXED_NEWSTYLE | (flags & _NO_ZEROES)))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> NbdConnection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def hand_over(self) -> socket.socket:
        """The socket itself, negotiated and blocking, for somebody who goes on with it: the kernel."""
        assert self._socket is not None
        handed, self._socket = self._socket, None
        handed.settimeout(None)
        return handed

    def names(self) -> list[str]:
        """The names of all exports (NBD_OPT_LIST)."""
        return [
            data[4 : 4 + struct.unpack(">I", data[:4])[0]].decode(errors="replace")
            for kind, data in self._option(_OPT_LIST, b"", "")
            if kind == _REP_SERVER
        ]

    def info(self, name: str) -> ExportInfo:
        """What the server says of an export (NBD_OPT_INFO)."""
        return self._info(_OPT_INFO, name)

    def go(self, name: str) -> ExportInfo:
        """As `info`, and start to use the export (NBD_OPT_GO)."""
        return self._info(_OPT_GO, name)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the export, from the server."""
        return self.request(READ, offset, length)

    def request(self, command: int, offset: int = 0, length: int = 0, payload: bytes = b"") -> bytes:
        """Send one request and wait for its reply; the data, for READ."""
        self.send((command, offset, payload), length=length)
        magic, error, cookie = struct.unpack(">IIQ", self._receive(16))
        if magic != _SIMPLE or cookie != self._cookie:
            raise Unsafe(f"the NBD server at {self.where} sent a reply that is none")
        if error:
            raise OSError(error, os.strerror(error))
        return self._receive(length) if command == READ else b""

    def send(self, *requests: tuple[int, int, bytes], length: int = 0) -> None:
        """Send requests (command, offset, payload) without waiting for replies."""
        for command, offset, payload in requests:
            self._cookie += 1
            header = struct.pack(">IHHQQI", _REQUEST, 0, command, self._cookie, offset, length or len(payload))
            self._send(header + payload)

    def _info(self, option: int, name: str) -> ExportInfo:
        encoded = name.encode()
        wanted = (_INFO_EXPORT, _INFO_DESCRIPTION, _INFO_BLOCK_SIZE)
        payload = struct.pack(f">I{len(encoded)}sH{len(wanted)}H", len(encoded), encoded, len(wanted), *wanted)
        size = flags = None
        description, blocks = "", (1, 4096)
        for kind, data in self._option(option, payload, name):
            if kind != _REP_INFO:
                continue
            (what,) = struct.unpack(">H", data[:2])
            if what == _INFO_EXPORT:
                size, flags = struct.unpack(">QH", data[2:12])
            elif what == _INFO_DESCRIPTION:
                description = data[2:].decode(errors="replace")
            elif what == _INFO_BLOCK_SIZE:
                blocks = struct.unpack(">II", data[2:10])
        if size is None or flags is None:
            raise Unsafe(f"the NBD server at {self.where} did not say how large export {name!r} is")
        return ExportInfo(name, description, size, flags, *blocks)

    def _option(self, option: int, payload: bytes, name: str) -> Iterator[tuple[int, bytes]]:
        self._send(struct.pack(">QII", _OPTION, option, len(payload)) + payload)
        while True:
            magic, echoed, kind, length = struct.unpack(">QIII", self._receive(20))
            if magic != _REPLY or echoed != option or length > _LONGEST_REPLY:
                raise Unsafe(f"the NBD server at {self.where} sent an option reply that is none")
            data = self._receive(length)
            if kind == _REP_ACK:
                return
            if kind == _ERR_UNKNOWN:
                raise NotFound(f"the NBD server at {self.where} has no export {name!r}")
            if kind == _ERR_TLS_REQUIRED:
                raise Unsafe(f"the NBD server at {self.where} wants TLS")
            if kind & _REP_ERROR:
                said = data.decode(errors="replace") or f"error {kind - _REP_ERROR}"
                raise Unsafe(f"the NBD server at {self.where} refuses export {name!r}: {said}")
            yield kind, data

    def _send(self, data: bytes) -> None:
        with self._explained() as stream:
            stream.sendall(data)

    def _receive(self, length: int) -> bytes:
        data = bytearray()
        with self._explained() as stream:
            while len(data) < length:
                chunk = stream.recv(min(length - len(data), 1 << 20))
                if not chunk:
                    raise ConnectionResetError("the server hung up")
                data += chunk
        return bytes(data)

    @contextmanager
    def _explained(self) -> Iterator[socket.socket]:
        try:
            yield self._socket  # type: ignore[misc]
        except TimeoutError as error:
            self.close()
            raise TimedOut(f"the NBD server at {self.where} did not answer within {self._timeout:g} s") from error
        except OSError as error:
            self.close()
            raise unreachable(self.where, error.strerror or str(error)) from error


def unreachable(where: str, why: str) -> StorkitError:
    """No NBD server answers at `where`."""
    return ServiceUnreachable(
        f"no NBD server answers at {where}: {why}", "see what the storage host serves: storkit status"
    )


def ask(where: str | tuple[str, int], name: str, timeout: float = TIMEOUT) -> ExportInfo:
    """What a server says of one export, on a connection of its own."""
    with NbdConnection(where, timeout) as connection:
        return connection.info(name)
