"""The root's file system of a disk image, ext2 to ext4, read and changed without mounting it: by debugfs(8) of
e2fsprogs, which needs neither root nor a kernel that knows the file system.

A file that every clone is to have with content of its own is laid once, as a slot: where its bytes lie is known then,
and each clone gets its own by a write to that place. File data has no checksum in ext4, unlike all that describes it.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import PurePosixPath

from storkit.core.errors import Conflict, Unsafe, UsageError
from storkit.core.imagefiles import Extent, FileToLay, Inside, Laid
from storkit.system.files import by_descriptor
from storkit.system.run import run
from storkit.system.timeouts import scaled

LOOKED_FOR = {
    "cloud-init": ("/usr/bin/cloud-init",),
    "systemd": ("/usr/lib/systemd/systemd", "/lib/systemd/systemd"),
    "sshd": ("/usr/sbin/sshd",),
    "networkd": ("/etc/systemd/system/multi-user.target.wants/systemd-networkd.service",),
    "ifupdown": ("/etc/network/interfaces",),
    "udev": ("/usr/lib/systemd/systemd-udevd", "/lib/systemd/systemd-udevd", "/usr/bin/udevadm"),
    "iscsi": ("/etc/iscsi",),
}
"""What is looked for in an image, and the paths that show it."""
_PATH = re.compile(r"(/[A-Za-z0-9][A-Za-z0-9._@-]*|/\.[A-Za-z0-9][A-Za-z0-9._@-]*)+", re.ASCII)
_SECTOR = 512
_MAGIC = 0xEF53
_NEEDS_RECOVERY, _META_BG, _INLINE_DATA, _ENCRYPT = 0x4, 0x10, 0x8000, 0x10000
_LINUX = {
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709": 2,  # root (x86-64), Discoverable Partitions Specification
    "b921b045-1df0-41c3-af44-4c6f280d3fae": 2,  # root (64-bit ARM)
    "0fc63daf-8483-4772-8e79-3d69d8477de4": 1,  # Linux filesystem data
}
"""GPT types of partitions that may be the root, and how surely."""
Read = Callable[[int, int], bytes]
"""Bytes from an offset of the disk, as many as asked for."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """What ext4's says (Documentation/filesystems/ext4/super.rst). `problem`: why it cannot be changed offline."""

    block: int
    problem: str


def superblock(read: Read, offset: int) -> Superblock | None:
    """The superblock of a file system that begins at `offset`; None: there is no ext2 to ext4."""
    raw = read(offset + 1024, 1024)
    if len(raw) < 1024 or struct.unpack_from("<H", raw, 0x38)[0] != _MAGIC:
        return None
    log, incompatible, state = (struct.unpack_from(form, raw, at)[0] for form, at in
                                (("<I", 0x18), ("<I", 0x60), ("<H", 0x3A)))  # fmt: skip
    problem = ""
    if incompatible & _NEEDS_RECOVERY or not state & 1:
        problem = "its file system was not unmounted: shut its guest down, and import it again"
    elif incompatible & _INLINE_DATA:
        problem = "its file system keeps small files in inodes (inline_data)"
    elif incompatible & _ENCRYPT:
        problem = "its file system is encrypted"
    return Superblock(1024 << log if log < 7 else 0, problem if log < 7 else "its block size is none")


def candidates(read: Read) -> list[int]:
    """Offsets, in bytes, at which a disk may have its root: itself, then its partitions, the likeliest first.

    GPT: UEFI specification 2.10, 5.3. MBR: 5.2.
    """
    found: list[tuple[int, int]] = []
    header = read(_SECTOR, 92)
    if header[:8] == b"EFI PART":
        start, count, size = struct.unpack_from("<QII", header, 72)
        if 128 <= size <= 4096 and count <= 1024:
            table = read(start * _SECTOR, count * size)
            for at in range(0, len(table) - 127, size):
                kind, first = _guid(table[at : at + 16]), struct.unpack_from("<Q", table, at + 32)[0]
                if kind in _LINUX and first:
                    found.append((-_LINUX[kind], first * _SECTOR))
    else:
        head = read(0, _SECTOR)
        if head[510:] == b"\x55\xaa":
            for at in range(446, 510, 16):
                first = struct.unpack_from("<I", head, at + 8)[0]
                if head[at + 4] == 0x83 and first:
                    found.append((0, first * _SECTOR))
    return [0, *(offset for _, offset in sorted(found))]


def _guid(raw: bytes) -> str:
    first, second, third = struct.unpack_from("<IHH", raw)
    return f"{first:08x}-{second:04x}-{third:04x}-{raw[8:10].hex()}-{raw[10:16].hex()}"


def look(descriptor: int, size: int) -> Inside:
    """What is in an open raw disk."""

    def read(offset: int, length: int) -> bytes:
        return os.pread(descriptor, length, offset) if 0 <= offset < size else b""

    broken = Inside("")
    for offset in candidates(read):
        found = superblock(read, offset)
        if found is None:
            continue
        if found.problem:
            broken = Inside("ext4", offset, problem=found.problem)
            continue
        paths = {path: name for name, places in LOOKED_FOR.items() for path in places}
        answers = _ask(descriptor, offset, [f"stat {path}" for path in (*paths, "/etc")])
        there = [bool(re.search(r"Inode: \d+", answer)) for answer in answers]
        if there[-1]:
            seen = dict.fromkeys(name for name, is_there in zip(paths.values(), there, strict=False) if is_there)
            return Inside("ext4", offset, list(seen))
    return broken


def lay(descriptor: int, inside: Inside, files: Sequence[FileToLay], write: bool) -> list[Laid]:
    """Write files into an open raw disk; where the slots lie. `write`: false: they must be there, and nothing is
    written. Raises Conflict, Unsafe, UsageError."""
    for file in files:
        if not _PATH.fullmatch(file.path):
            raise UsageError(f"{file.path!r} is no path that can be laid")
    block = _block(descriptor, inside.offset)
    if write:
        _write(descriptor, inside, files)
        os.fsync(descriptor)
    laid: list[Laid] = []
    for file, wrong in _looked_at(descriptor, inside, files, block, laid):
        if wrong and write:
            raise Conflict(f"the image's file system did not take {file.path}: {wrong}", "debugfs -R stats IMAGE")
        if wrong:
            message = f"an image that may have clones already lacks {file.path} as it is to be: {wrong}"
            raise Unsafe(message, "destroy the fleet, and create it anew")
    return laid


def read(descriptor: int, inside: Inside, paths: Sequence[str]) -> list[FileToLay]:
    """Files of an open raw disk, as they would be laid in another; absent are those that are not there, or are no
    text, as a random seed."""
    asked = [FileToLay(path, "") for path in paths]
    with _contents(asked, empty=True) as copies:
        questions = [
            word for path, copy in zip(paths, copies, strict=True) for word in (f"stat {path}", f"dump {path} {copy}")
        ]
        answers = _ask(descriptor, inside.offset, questions, copies.descriptors)
        contents = [os.pread(copy, os.fstat(copy).st_size, 0) for copy in copies.descriptors]
    found = []
    for path, stat, content in zip(paths, answers[::2], contents, strict=True):
        mode = re.search(r"Type: regular\s+Mode:\s+([0-7]+)", stat)
        try:
            found.append(FileToLay(path, content.decode(), int(mode[1], 8) & 0o7777) if mode else _gone(path))
        except UnicodeDecodeError:
            found.append(_gone(path))
    return found


def _gone(path: str) -> FileToLay:
    return FileToLay(path, "", absent=True)


def _write(descriptor: int, inside: Inside, files: Sequence[FileToLay]) -> None:
    _refuse_odd(descriptor, inside, files)
    wanted = [file for file in files if not file.absent]
    with _contents(wanted) as sources:
        commands = [f"rm {file.path}" for file in files]
        # It does no harm to a directory that is there.
        commands += [f"mkdir {each}" for each in dict.fromkeys(p for file in wanted for p in _parents(file.path))]
        for file, source in zip(wanted, sources, strict=True):
            place = PurePosixPath(file.path)
            commands += [
                f"cd {place.parent}", f"write {source} {place.name}",
                f"sif {place.name} mode 0{0o100000 | file.mode:o}",
                f"sif {place.name} uid 0", f"sif {place.name} gid 0",
            ]  # fmt: skip
        _ask(descriptor, inside.offset, commands, sources.descriptors, write=True)


def _refuse_odd(descriptor: int, inside: Inside, files: Sequence[FileToLay]) -> None:
    """Raise Unsafe if a path leads over what is no directory, or is a directory itself: debugfs would go on where it
    was, and write there."""
    parents = list(dict.fromkeys(parent for file in files for parent in _parents(file.path)))
    paths = [*parents, *(file.path for file in files)]
    answers = _ask(descriptor, inside.offset, [f"stat {path}" for path in paths])
    for path, answer in zip(paths, answers, strict=True):
        kind = re.search(r"Type: (\S+)", answer)
        if kind and (kind[1] == "directory") != (path in parents):
            what = "no directory" if path in parents else "a directory"
            raise Unsafe(f"{path} is {what} in the image", "make another image of its machine")


def _looked_at(
    descriptor: int, inside: Inside, files: Sequence[FileToLay], block: int, laid: list[Laid]
) -> Iterator[tuple[FileToLay, str]]:
    """What is wrong with each file, as it is on the disk; empty: nothing. Where slots lie is added to `laid`."""
    with _contents([file for file in files if not file.slot], empty=True) as copies:
        outputs = iter(copies)
        questions = []
        for file in files:
            questions.append(f"stat {file.path}")
            # What is alike in all clones is compared; of a slot, where it lies is all that counts.
            questions.append(f"blocks {file.path}" if file.slot else f"dump {file.path} {next(outputs)}")
        answers = _ask(descriptor, inside.offset, questions, copies.descriptors)
        contents = iter([os.pread(copy, os.fstat(copy).st_size, 0) for copy in copies.descriptors])
    for number, file in enumerate(files):
        stat, blocks = answers[2 * number : 2 * number + 2]
        there, size = re.search(r"Size: (\d+)", stat), len(file.content.encode())
        content = b"" if file.slot else next(contents)
        if file.absent:
            yield file, "it is there" if there else ""
        elif "Type: regular" not in stat or not there or int(there[1]) != size:
            yield file, "it is not there, or has another size"
        elif not file.slot:
            yield file, "" if content == file.content.encode() else "it has another content"
        else:
            numbers = [int(word) for word in blocks.split() if word.isdecimal()]
            whole = len(numbers) == -(-size // block)
            if whole:
                laid.append(Laid(file.path, size, list(_extents(numbers, block, size, inside.offset))))
            yield file, "" if whole else "its blocks are not its bytes alone"


def _extents(numbers: Sequence[int], block: int, size: int, offset: int) -> Iterator[Extent]:
    """The places of a file's bytes, those together that follow each other."""
    begin = 0
    for at in range(1, len(numbers) + 1):
        if at == len(numbers) or numbers[at] != numbers[at - 1] + 1:
            length = min((at - begin) * block, size - begin * block)
            yield Extent(offset + numbers[begin] * block, length)
            begin = at


def _block(descriptor: int, offset: int) -> int:
    found = superblock(lambda at, length: os.pread(descriptor, length, at), offset)
    if found is None or found.problem:
        reason = found.problem if found else "there is no ext4 any more"
        raise Unsafe(f"the image's file system cannot be changed: {reason}")
    return found.block


def _parents(path: str) -> list[str]:
    return [str(parent) for parent in reversed(PurePosixPath(path).parents) if str(parent) != "/"]


class _Sources(list[str]):
    """Names of open files for a program that gets `descriptors`."""

    descriptors: list[int]


@contextmanager
def _contents(files: Sequence[FileToLay], empty: bool = False) -> Iterator[_Sources]:
    """The files' contents as files in memory, which no directory has; or `empty` ones for what they are."""
    opened: list[FileIO] = []
    try:
        for file in files:
            memory = FileIO(os.memfd_create("storkit"), "r+")
            opened.append(memory)
            memory.write(b"" if empty else file.content.encode())
        sources = _Sources(by_descriptor(memory.fileno()) for memory in opened)
        sources.descriptors = [memory.fileno() for memory in opened]
        yield sources
    finally:
        for memory in opened:
            memory.close()


def _ask(
    descriptor: int, offset: int, commands: Sequence[str], more: Sequence[int] = (), write: bool = False
) -> list[str]:
    """What debugfs(8) answers to each command: it ends with status 0 whatever they did."""
    place = f"{by_descriptor(descriptor)}?offset={offset}" if offset else by_descriptor(descriptor)
    done = run(
        ["debugfs", *(["-w"] if write else []), "-f", "-", place],
        stdin="".join(f"{command}\n" for command in commands), timeout=scaled(120), package="e2fsprogs",
        pass_fds=[descriptor, *more],
    )  # fmt: skip
    # It repeats each command before its answer.
    answers = re.split(r"^debugfs: .*$", done.stdout, flags=re.M)[1:]
    if len(answers) < len(commands):
        raise Unsafe(f"debugfs cannot read the image: {done.stderr.strip().splitlines()[-1:]}", "e2fsck -n IMAGE")
    return answers
