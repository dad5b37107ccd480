"""Compressed streams: gzip and xz by Python's own libraries, Zstandard by the zstd program.

Memory is bounded whatever the stream says, and a stream that is cut short or damaged is an error, never a short disk.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from storkit.core.errors import CommandFailed, StorkitError, UsageError
from storkit.system import files
from storkit.system.run import run

CHUNK = 1 << 20
_MEMORY = 512 << 20
"""What an xz or zstd stream may ask for; `xz -9` needs 65 MiB, `zstd --ultra -22` 128 MiB."""
_MAGIC = ((b"\x1f\x8b", "gz"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zst"))
SUFFIXES = (".gz", ".xz", ".zst")
"""What names of compressed files end in."""
_AGAIN = "get the file again, and check its size and checksum"


def compression(head: bytes) -> str:
    """`gz`, `xz`, `zst`, or "" if the bytes at the start of a file are none of them."""
    return next((name for magic, name in _MAGIC if head.startswith(magic)), "")


def unpack(path: Path, kind: str) -> Generator[bytes, None, None]:
    """The uncompressed bytes of a file in pieces of 1 MiB or less.

    Raises UsageError: damaged, or cut short; Unsupported: the zstd program is missing.
    """
    if kind == "zst":
        return _zstd(path)
    return _stream(path, kind)


def _stream(path: Path, kind: str) -> Generator[bytes, None, None]:
    import lzma
    import zlib

    with files.explained(path), path.open("rb") as file:
        try:
            yield from _members(file, kind)
        except (zlib.error, lzma.LZMAError) as error:
            raise UsageError(f"{path} is damaged: {kind} says {error}", _AGAIN) from error
        except EOFError as error:
            raise UsageError(f"{path} is cut short: it ends inside the {kind} data", _AGAIN) from error


def _members(file: BinaryIO, kind: str) -> Iterator[bytes]:
    """Both formats may be several streams one after the other, and be padded with zeros."""
    rest = file.read(CHUNK)
    while rest:
        decoder = _decoder(kind)
        data = rest
        while not decoder.eof:
            if kind == "xz":
                if decoder.needs_input and not data and not (data := file.read(CHUNK)):
                    raise EOFError
                piece = decoder.decompress(data, max_length=CHUNK)
                data = b""
            else:
                if not data and not (data := file.read(CHUNK)):
                    raise EOFError
                piece = decoder.decompress(data, CHUNK)
                data = decoder.unconsumed_tail
            if piece:
                yield piece
        rest = (decoder.unused_data or file.read(CHUNK)).lstrip(b"\0")
        while not rest and (more := file.read(CHUNK)):
            rest = more.lstrip(b"\0")


def _decoder(kind: str) -> Any:
    if kind == "xz":
        import lzma

        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)
    import zlib

    return zlib.decompressobj(wbits=31)


def _zstd(path: Path) -> Generator[bytes, None, None]:
    """zstd writes into a pipe from a thread, so that what it makes is counted and bounded like the others'."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_inheritable(writer, True)  # sh keeps it open in the child, but leaves close-on-exec as it is
    failed: list[StorkitError] = []

    def work() -> None:
        argv = [
            "zstd",
            "-d",
            "-q",
            "-f",
            "--no-sparse",
            f"--memory={_MEMORY >> 20}MB",
            "-o",
            f"/dev/fd/{writer}",
            "--",
            str(path),
        ]
        try:
            run(argv, package="zstd", timeout=86400, pass_fds=[writer])
        except StorkitError as error:
            failed.append(error)
        finally:
            os.close(writer)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while piece := os.read(reader, CHUNK):
            yield piece
    finally:
        os.close(reader)  # zstd gets EPIPE if it is still writing
        thread.join()
    for error in failed:
        if isinstance(error, CommandFailed):
            reason = error.stderr.splitlines()[-1].removeprefix("zstd: ") if error.stderr else f"status {error.status}"
            raise UsageError(f"{path} is damaged or cut short: zstd says {reason}", _AGAIN) from error
        raise error
