"""A xenstored with what a test puts into it, for hosts that have no Xen."""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path

UUID = "6d4e1bb0-1f0c-4d53-9f5a-7a3c9c8f0001"
HEADER = struct.Struct("=IIII")


class Daemon:
    """It answers the four requests that a hook makes, as xs_wire.h has them."""

    def __init__(self, place: Path) -> None:
        self.keys: dict[str, str] = {}
        self.written: list[tuple[str, str]] = []
        self.place = place
        self.noise = b""
        """Bytes that come before each answer."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(place))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while head := stream.read(HEADER.size):
                kind, number, _, length = HEADER.unpack(head)
                path, _, value = stream.read(length).partition(b"\0")
                answer = self._answer(kind, path.decode().rstrip("\0"), value.decode())
                kind, said = (16, b"ENOENT\0") if answer is None else (kind, answer)
                connection.sendall(self.noise + HEADER.pack(kind, number, 0, len(said)) + said)

    def _answer(self, kind: int, path: str, value: str) -> bytes | None:
        below = sorted({key[len(path) + 1 :].split("/")[0] for key in self.keys if key.startswith(f"{path}/")})
        if kind == 1:
            return "".join(f"{name}\0" for name in below).encode() if below else None
        if kind == 2:
            return self.keys[path].encode() if path in self.keys else None
        if kind == 13:
            return b"OK\0" if self.keys.pop(path, None) is not None else None
        assert kind == 11
        self.keys[path] = value
        self.written.append((path, value))
        return b"OK\0"

    def domain(self, number: int, name: str, uuid: str = UUID) -> None:
        self.keys |= {f"/local/domain/{number}/name": name, f"/local/domain/{number}/vm": f"/vm/{uuid}"}

    def disk(self, domain: int, params: str, mode: str = "w", number: str = "", script: str = "block-storkit") -> str:
        place = f"/local/domain/0/backend/vbd/{domain}/51712"
        self.keys |= {f"{place}/params": params, f"{place}/mode": mode, f"{place}/script": f"/etc/xen/scripts/{script}"}
        if number:
            self.keys[f"{place}/physical-device"] = number
        return place
