"""Which processes have files and block devices open: one pass over /proc for any number of them (proc(5)).

RUN/earlier/UUID of a volume's home host notes those that have its bytes open since before these were a volume: those of
a guest that was adopted while it ran. A line for each: its pid, and when it started (field 22 of /proc/PID/stat). They
write past every server and node of storkit's, and nobody can take that from them. So they count as what their host
itself writes: another host gets a right only while that host has one too. It ends with the process.

A disk that Xen's backend has open for a domain is open in the kernel's thread that serves it (block/blkback.py).

What may never answer is left alone: /proc leads to every open file, and to look at one on a network file system whose
server is gone would wait for it. Other users' processes are seen by root alone.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from storkit.core.identities import check_uuid
from storkit.core.model import Existing, Volume
from storkit.system import files
from storkit.system.block import blkback

PROC = Path("/proc")
_SIGKILL = 1 << 8
_DULL = frozenset({"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx"})
_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs", "glusterfs"})
_END = 1 << 63

Key = tuple[str, int, int]
"""What tells one file or block device from all others, by whatever name it was opened."""


@dataclass(frozen=True, slots=True)
class Opener:
    """A process that has a file or a block device open."""

    pid: int
    name: str
    """The first 15 bytes of its program's."""
    writes: bool
    locked: tuple[tuple[int, int], ...]
    """The bytes of it, first and last, that it has locks on (fcntl(2))."""
    killed: bool
    """It is dead, but for an I/O that does not come back, and has its files open until then."""
    descriptors: int = 1
    """How often it has it open, at most: two descriptors may be one (dup(2))."""
    direct: bool = False
    """All that may write go past the page cache (O_DIRECT)."""

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"

    def has_locked(self, byte: int) -> bool:
        return any(first <= byte <= last for first, last in self.locked)


def find(paths: Iterable[str]) -> dict[str, list[Opener]]:
    """The processes that have each of these open, apart from this one. What is not there nobody has open."""
    wanted: dict[Key, list[str]] = defaultdict(list)
    devices: set[int] = set()
    for path in dict.fromkeys(paths):
        with suppress(OSError):
            there = os.stat(path)
            devices.add(there.st_dev)
            wanted[_key(there)].append(path)
    found: dict[str, list[Opener]] = {path: [] for group in wanted.values() for path in group}
    mounts = _Mounts(devices)
    for number in _names(str(PROC)) if wanted else ():
        if number.isdigit() and int(number) != os.getpid():
            for key, opener in _of(int(number), wanted, mounts):
                for path in wanted[key]:
                    found[path].append(opener)
    for key, opener in _of_domains(wanted):
        for path in wanted[key]:
            found[path].append(opener)
    return found


def of_domain(domain: int) -> list[int]:
    """The processes that read and write the disks of a domain of Xen's on this host: threads of the kernel, and the
    QEMU that serves the others, or is the domain's machine."""
    pids = [pid for (number, _), found in blkback.threads(_comms()).items() if number == domain for pid in found]
    for name in filter(str.isdigit, _names(str(PROC))):
        with suppress(OSError):
            words = _read(f"{PROC}/{name}/cmdline").split("\0")
            if str(domain) == next((after for word, after in pairwise(words) if word == "-xen-domid"), ""):
                pids.append(int(name))
    return sorted(pids)


def _of_domains(wanted: Container[Key]) -> Iterator[tuple[Key, Opener]]:
    """What domains of Xen's have open of what is wanted. A disk whose thread cannot be told from others is that of any
    of its domain's."""
    backends = [(("device", os.makedev(*each.device), 0), each) for each in blkback.find()]
    mine = [(key, each) for key, each in backends if key in wanted]
    names = _comms() if mine else {}
    threads = blkback.threads(names)
    for key, each in mine:
        own = [pid for (domain, _), found in threads.items() if domain == each.domain for pid in found]
        for pid in threads.get((each.domain, each.disk), own)[:1]:
            yield key, Opener(pid, names[pid], each.writes, (), killed=False, direct=True)


def _comms() -> dict[int, str]:
    """The names of all processes, the kernel's threads among them."""
    found: dict[int, str] = {}
    for name in filter(str.isdigit, _names(str(PROC))):
        with suppress(OSError):
            found[int(name)] = _read(f"{PROC}/{name}/comm").strip()
    return found


def only_killed(path: str) -> bool:
    """Whether a device is open in processes that have been killed, and nowhere else that can be seen: not in others,
    not mounted, not below another device."""
    number = os.stat(path).st_rdev
    name = f"{os.major(number)}:{os.minor(number)}"
    if any(Path(f"/sys/dev/block/{name}/holders").iterdir()):
        return False
    if any(line.split()[2] == name for line in (PROC / "self/mountinfo").read_text(errors="replace").splitlines()):
        return False
    found = find([path])[path]
    return bool(found) and all(opener.killed for opener in found)


def note_earlier(run: Path, adopted: Iterable[tuple[Volume, Existing]]) -> None:
    """Note, of the processes that are said to have volumes open, those that do; `run` is the home host's Site.run."""
    said = [(volume, existing.processes) for volume, existing in adopted if existing.processes]
    opened = find([volume.path for volume, _ in said])
    for volume, pids in said:
        lines: list[str] = []
        for pid in {each.pid for each in opened[volume.path]} & set(pids):
            with suppress(OSError):
                lines.append(f"{pid} {started(pid)}\n")
        if lines:
            files.write_atomic(files.make_private(run / "earlier") / check_uuid(volume.uuid), "".join(lines))


def earlier(run: Path, uuid: str) -> frozenset[int]:
    """The noted processes of a volume that have not ended."""
    found: set[int] = set()
    with suppress(FileNotFoundError):
        for line in (run / "earlier" / uuid).read_text().splitlines():
            pid, _, since = line.partition(" ")
            with suppress(OSError, ValueError):
                if started(int(pid)) == since:
                    found.add(int(pid))
    return frozenset(found)


def forget_earlier(run: Path, uuids: Iterable[str]) -> None:
    """These are volumes no more."""
    for uuid in uuids:
        (run / "earlier" / check_uuid(uuid)).unlink(missing_ok=True)


def started(pid: int) -> str:
    """When a process started, in ticks since the boot. Raises OSError: there is none, or it has ended."""
    state, *words = _read(f"{PROC}/{pid}/stat").rpartition(")")[2].split()
    if state in "ZX":
        raise ProcessLookupError(f"process {pid} has ended")
    return words[18]


def _of(pid: int, wanted: Container[Key], mounts: _Mounts) -> Iterator[tuple[Key, Opener]]:
    """What a process has open of what is wanted.

    A machine has thousands of open files, and a pass looks at all of them: names are plain text here, since to build a
    Path costs more than to ask the kernel.
    """
    process = f"{PROC}/{pid}"
    said: dict[Key, list[str]] = defaultdict(list)
    threads = {process: _names(f"{process}/fd")}
    if not threads[process]:  # a kernel's thread; or the first thread has ended, and others have not
        tasks = [f"{process}/task/{name}" for name in _names(f"{process}/task")]
        threads = {task: _names(f"{task}/fd") for task in tasks}
    for thread, descriptors in threads.items():
        answering: Container[str] | None = None
        for name in descriptors:
            with suppress(OSError):
                file = f"{thread}/fd/{name}"
                if not _is_file(os.readlink(file)):  # noqa: PTH115
                    continue
                if answering is None:
                    answering = mounts.answering(thread)
                info = _read(f"{thread}/fdinfo/{name}")
                if _mount(info) in answering and (key := _key(os.stat(file))) in wanted:
                    said[key] += info.splitlines()
    for key, lines in said.items():
        with suppress(OSError):
            program = _read(f"{process}/comm").strip()
            dead = all(_killed(f"{process}/task/{name}") for name in _names(f"{process}/task"))
            flags = [int(line.split()[1], 8) for line in lines if line.startswith("flags:")]
            writing = [each for each in flags if each & os.O_ACCMODE != os.O_RDONLY]
            direct = all(each & os.O_DIRECT for each in writing)
            yield key, Opener(pid, program, bool(writing), tuple(_locked(lines)), dead, len(flags), direct)


def _read(path: str) -> str:
    """A file of /proc. A program's name may be no text: the kernel cuts it after 15 bytes, also within a character."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = []
        while piece := os.read(descriptor, 1 << 16):
            found.append(piece)
        return b"".join(found).decode(errors="replace")
    finally:
        os.close(descriptor)


def _mount(info: str) -> str:
    """The number of the mount that an open file is on."""
    return info.partition("mnt_id:\t")[2].partition("\n")[0]


def _is_file(name: str) -> bool:
    """Whether /proc's name of an open file may be that of a file or a block device, and no socket, pipe or terminal."""
    return name.startswith("/") and name not in _DULL and not name.startswith("/dev/pts/")


def _key(there: os.stat_result) -> Key:
    if stat.S_ISBLK(there.st_mode):
        return "device", there.st_rdev, 0
    return "file", there.st_dev, there.st_ino


def _locked(lines: Iterable[str]) -> Iterator[tuple[int, int]]:
    for line in lines:
        if line.startswith("lock:") and "->" not in line:  # who waits for a lock has none
            first, last = line.split()[-2:]
            yield int(first), _END if last == "EOF" else int(last)


def _killed(thread: str) -> bool:
    """Whether a thread has a SIGKILL on its way, or has ended."""
    try:
        status = dict(line.split(":\t", 1) for line in _read(f"{thread}/status").splitlines() if ":\t" in line)
    except OSError:
        return True
    return status["State"][0] in "ZX" or bool((int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)) & _SIGKILL)


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208
    except OSError:
        return []


class _Mounts:
    """The mounted file systems that can be asked, in the mount namespace of each process.

    What is looked for is on `devices`: they have answered.
    """

    def __init__(self, devices: Iterable[int]) -> None:
        self._devices = {f"{os.major(device)}:{os.minor(device)}" for device in devices}
        self._asked: dict[str, set[str]] = {}

    def answering(self, thread: str) -> set[str]:
        """The numbers of the mounts, as a thread sees them, that can be asked: this machine's, and answering ones."""
        space = os.readlink(f"{thread}/ns/mnt")  # noqa: PTH115
        if space not in self._asked:
            self._asked[space] = set(self._read(f"{thread}/mountinfo"))
        return self._asked[space]

    def _read(self, table: str) -> Iterator[str]:
        for line in filter(None, _read(table).split("\n")):  # a mount point's name may have other ends of lines in it
            head, _, tail = line.partition(" - ")
            number, _, device = head.split()[:3]
            kind = tail.split()[0]
            if device in self._devices or (kind not in _REMOTE and (kind == "fuseblk" or not kind.startswith("fuse"))):
                yield number
