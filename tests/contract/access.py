"""The bytes behind an attachment, reached as a guest of the same host would."""

from __future__ import annotations

import errno
import json
import mmap
import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from storkit.core.model import Attachment, DiskSource
from storkit.tech.nbd import wire
from storkit.tech.nbd.attach import tls_credential


class Access(ABC):
    """The bytes behind an attachment, as a guest reaches them. Whatever is refused raises OSError or StorkitError."""

    @abstractmethod
    def read(self, offset: int, length: int) -> bytes: ...

    @abstractmethod
    def write(self, offset: int, data: bytes) -> None:
        """Returns when the data is on the server's disk."""


@contextmanager
def access(attachment: Attachment) -> Iterator[Access]:
    """Use an attachment by what its disk source says."""
    source = attachment.source
    if source.kind == "network" and source.protocol == "nbd" and source.tls:
        yield _QemuIo(source)
    elif source.kind == "network" and source.protocol == "nbd":
        with wire.NbdConnection(source.socket or (source.server, source.port)) as connection:
            connection.go(source.export)
            yield _Nbd(connection)
    elif source.kind in ("block", "file"):
        with _Device(attachment.path) as device:
            yield device
    else:
        raise NotImplementedError(f"the contract tests cannot reach a {source.kind} {source.protocol} disk yet")


class _Nbd(Access):
    def __init__(self, connection: wire.NbdConnection) -> None:
        self._connection = connection

    def read(self, offset: int, length: int) -> bytes:
        return self._connection.request(wire.READ, offset, length)

    def write(self, offset: int, data: bytes) -> None:
        self._connection.request(wire.WRITE, offset, payload=data)
        self._connection.request(wire.FLUSH)


class _QemuIo(Access):
    """NBD behind TLS, by qemu-io(1), one process a request. A block is one byte repeated."""

    def __init__(self, source: DiskSource) -> None:
        server = {"type": "inet", "host": source.server, "port": str(source.port)}
        node = {"driver": "nbd", "server": server, "export": source.export, "tls-creds": "tls0"}
        self._file = "json:" + json.dumps({"driver": "raw", "file": node})
        self._credential = json.dumps(tls_credential(source))

    def read(self, offset: int, length: int) -> bytes:
        text = self._run("-r", "-c", f"read -v {offset} {length}")
        rows = [line.partition(":  ")[2][:48] for line in text.splitlines() if line[8:11] == ":  "]
        return bytes.fromhex("".join(rows))

    def write(self, offset: int, data: bytes) -> None:
        assert len(set(data)) == 1, "qemu-io writes one byte repeated"
        self._run("-c", f"write -P {data[0]} {offset} {len(data)}", "-c", "flush")

    def _run(self, *words: str) -> str:
        argv = ["qemu-io", "--object", self._credential, *words, self._file]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode or "failed" in done.stdout:
            raise OSError(f"{done.stdout} {done.stderr}")
        return done.stdout


class _Device(Access):
    """A block device or a file, past this host's page cache."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> _Device:
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        with mmap.mmap(-1, length) as buffer:
            os.preadv(self._descriptor, [buffer], offset)
            return bytes(buffer)

    def write(self, offset: int, data: bytes) -> None:
        with mmap.mmap(-1, len(data)) as buffer:
            buffer[:] = data
            os.pwritev(self._descriptor, [buffer], offset)
        os.fsync(self._descriptor)
