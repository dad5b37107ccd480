"""The xenstore, spoken to directly: a hotplug script asks it a dozen things while a guest stands still.

Protocol: docs/misc/xenstore.txt and xen/include/public/io/xs_wire.h of Xen. Paths that do not start with `/` are below
/local/domain/0.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from storkit.core.errors import CommandFailed, NotFound, ServiceUnreachable, StorkitError, TimedOut
from storkit.system.timeouts import scaled

SOCKET, DEVICE = Path("/run/xenstored/socket"), Path("/dev/xen/xenbus")
"""The daemon's own socket, and the kernel's way to one that is another domain."""
PATIENCE = scaled(10.0)
"""Seconds for one answer."""
_HEADER = struct.Struct("=IIII")
_DIRECTORY, _READ, _WRITE, _RM, _EVENT, _ERROR = 1, 2, 11, 13, 15, 16
_MOST = 4096
"""Bytes of an answer."""


class Xenstore:
    """A connection, for one thread. It ends with the process."""

    def __init__(self, place: Path | None = None) -> None:
        """Raises NotFound: this machine has none; ServiceUnreachable: nobody answers there."""
        self._place = place or (SOCKET if SOCKET.exists() else DEVICE)
        self._asked = 0
        try:
            self._file = self._opened()
        except FileNotFoundError:
            raise NotFound("this machine has no xenstore", "run it in the dom0; systemctl status xenstored") from None
        except OSError as error:
            raise self._silent(error) from error

    def _opened(self) -> int:
        if not self._place.is_socket():
            return os.open(self._place, os.O_RDWR | os.O_CLOEXEC)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(self._place))
            connection.settimeout(None)
            # The kernel's own limits: what comes after is the same for a socket and the device.
            span = struct.pack("ll", int(PATIENCE), 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, span)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, span)
            return connection.detach()

    def read(self, path: str) -> str | None:
        """The value of a key; None: there is no such key."""
        found = self._ask(_READ, path.encode() + b"\0", missing=True)
        return None if found is None else found.decode(errors="replace")

    def list(self, path: str) -> list[str]:
        """The names below a key, none where there is no such key."""
        found = self._ask(_DIRECTORY, path.encode() + b"\0", missing=True) or b""
        return [name.decode(errors="replace") for name in found.split(b"\0") if name]

    def write(self, values: Mapping[str, str]) -> None:
        """Set keys, one after the other."""
        for path, value in values.items():
            self._ask(_WRITE, path.encode() + b"\0" + value.encode())

    def remove(self, path: str) -> None:
        """Remove a key and what is below it; one that is not there is fine."""
        self._ask(_RM, path.encode() + b"\0", missing=True)

    def _ask(self, kind: int, body: bytes, missing: bool = False) -> bytes | None:
        """The answer; None where `missing` lets a key not be there. Raises StorkitError."""
        self._asked += 1
        try:
            self._send(_HEADER.pack(kind, self._asked, 0, len(body)) + body)
            while True:
                answered, number, _, length = _HEADER.unpack(self._receive(_HEADER.size))
                if length > _MOST:
                    raise self._silent(f"an answer of {length} bytes")
                said = self._receive(length)
                if answered != _EVENT and number == self._asked:
                    break
        except OSError as error:
            raise self._silent(error) from error
        if answered != _ERROR:
            return said
        reason = said.rstrip(b"\0").decode(errors="replace")
        if missing and reason == "ENOENT":
            return None
        where = body.partition(b"\0")[0].decode(errors="replace")
        raise CommandFailed(["xenstore", where], 1, reason, hint=f"xenstore-ls {where}")

    def _send(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._file, data) :]

    def _receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = os.read(self._file, length - len(data))
            if not piece:
                raise ConnectionResetError("the connection ended")
            data += piece
        return data

    def _silent(self, why: object) -> StorkitError:
        if isinstance(why, BlockingIOError | TimeoutError):
            return TimedOut(f"the xenstore did not answer within {PATIENCE:g} seconds", "systemctl status xenstored")
        said = why.strerror if isinstance(why, OSError) and why.strerror else why
        return ServiceUnreachable(
            f"the xenstore at {self._place} does not answer: {said}", "systemctl status xenstored"
        )

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self._file)
