"""The kernel's NFS server on this host: what it exports to whom, changing that, and knowing when a change has arrived.

rpc.mountd answers the kernel's questions from /var/lib/nfs/etab, which exportfs(8) edits. storkit changes its own
entries there, never by `exportfs -r`, which would drop what others exported by hand; what has to come back at boot is
in a file of storkit's own in /etc/exports.d (exports(5)).

A right that was taken has arrived when no request that began before can still write (`settle`). The server checks a
client's right anew for each request, but a request that has passed the check may be delayed on its way to the file. So
each of the server's threads is looked at until it has once been seen asleep: a thread that has work, and waits for a
disk or for a lock of the file, is running or in uninterruptible sleep.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from storkit.core.errors import CommandFailed, Conflict, StorkitError, Unsafe, Unsupported
from storkit.system.files import PARTIAL, write_atomic
from storkit.system.run import run, which
from storkit.system.timeouts import scaled
from storkit.tech.files.trees import ROOT
from storkit.tech.nfs.names import EXPORTS, NfsSettings

PACKAGE = "nfs-kernel-server"
SERVICE = "nfs-server"
ETAB = Path("/var/lib/nfs/etab")
EXPORTS_D = Path("/etc/exports.d")
CONTROL = Path("/proc/fs/nfsd")
CACHES = Path("/proc/net/rpc")
SETTLE_TIMEOUT = scaled(30.0)
_MANY = 500
"""Arguments to one exportfs."""
_TREE = f".tree/{ROOT}"
_FSID = re.compile(r"fsid=[0-9a-f]{32}")
_OURS = re.compile(rf"/{re.escape(EXPORTS)}/[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}\+[0-9a-f]+$")


@dataclass(frozen=True, slots=True)
class Entry:
    """A directory exported to one address, network or name."""

    path: str
    client: str
    writable: bool
    fsid: str = ""
    """A UUID that is part of all its file handles; for storkit's own entries."""
    options: tuple[str, ...] = ()
    """As the table has them."""
    tree: bool = False
    """It is a guest's root file system, in which its root is root."""

    @property
    def ours(self) -> bool:
        tree = self.path.endswith(_TREE) and any(_FSID.fullmatch(word) for word in self.options)
        return tree or bool(_OURS.search(self.path))


def unescape(text: str) -> str:
    """A path as /var/lib/nfs/etab and /proc have it, with octal escapes, as it is."""
    raw = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), os.fsencode(text))
    return os.fsdecode(raw)


def escape(path: str) -> str:
    """A path as exports(5) takes it: all but the harmless characters as octal escapes."""
    return re.sub(rb"[^A-Za-z0-9/._+-]", lambda match: b"\\%03o" % match[0][0], os.fsencode(path)).decode()


def parse_etab(text: str) -> list[Entry]:
    """The entries of /var/lib/nfs/etab, and of /proc/net/rpc/nfsd.export/content, where clients are domains."""
    entries = []
    for line in text.splitlines():
        match = re.fullmatch(r"(\S+)\s+(\S+?)\(([^()]*)\)", line.strip())
        if match and not line.startswith("#"):
            options = tuple(match[3].split(","))
            entries.append(Entry(unescape(match[1]), match[2], "rw" in options, options=options))
    return entries


@dataclass(frozen=True, slots=True)
class NfsClient:
    """A client that the server holds NFS 4 state of."""

    number: str
    address: str
    files: frozenset[int]
    """The inode numbers of what it has open, locked or delegated."""


def parse_client(number: str, info: str, states: str) -> NfsClient:
    """/proc/fs/nfsd/clients/N/info and its states."""
    match = re.search(r'^address: "(.*)"$', info, re.MULTILINE)
    address = match[1].rpartition(":")[0].strip("[]") if match else ""
    files = re.findall(r'superblock: "[0-9a-f]+:[0-9a-f]+:(\d+)"', states)
    return NfsClient(number, address, frozenset(map(int, files)))


def network(address: str) -> str:
    """An address as a network of one host: for a bare address, mountd asks the DNS for names."""
    return f"{address}/{128 if ':' in address else 32}"


def options(settings: NfsSettings, entry: Entry) -> str:
    """The export options of a volume. Every user of the client is one unprivileged user here, who owns the volume's
    file and nothing else in what is exported. With subtree_check a handle is good below its own export alone: without
    it, a client could make up handles of all other files of the file system (exports(5)). The fsid is in every handle:
    by the directory's inode number alone, a new directory could be taken for an old one that had the same."""
    words = ["rw" if entry.writable else "ro", "sync", "no_wdelay", "subtree_check"]
    squash = ["all_squash", f"anonuid={settings.uid}", f"anongid={settings.gid}"]
    words += ["no_root_squash", "no_all_squash"] if entry.tree else squash
    words += [f"sec={settings.sec}", f"fsid={entry.fsid}"]
    return ",".join(words)


def exports_text(entries: Iterable[Entry], settings: NfsSettings) -> str:
    """The content of storkit's file in /etc/exports.d."""
    lines = [f"{escape(entry.path)} {entry.client}({options(settings, entry)})\n" for entry in entries]
    return "# Written by storkit, which changes it with every export.\n" + "".join(sorted(lines)) if lines else ""


def argument(entry: Entry) -> str:
    """An entry as exportfs(8) takes it."""
    return f"[{entry.client}]:{entry.path}" if ":" in entry.client else f"{entry.client}:{entry.path}"


def table() -> list[Entry]:
    """What rpc.mountd would tell the kernel."""
    try:
        return parse_etab(ETAB.read_text(errors="surrogateescape"))
    except FileNotFoundError:
        return []


def in_kernel() -> list[Entry]:
    """What the kernel has been told, and still believes."""
    try:
        return parse_etab((CACHES / "nfsd.export/content").read_text(errors="surrogateescape"))
    except FileNotFoundError:
        return []


def changed(there: Iterable[Entry], wanted: Iterable[Entry], settings: NfsSettings) -> list[Entry]:
    """Those of the wanted entries that are not in the table yet, or otherwise than they should be."""
    now = {(entry.path, entry.client): set(entry.options) for entry in there}
    return [
        entry
        for entry in wanted
        if not now.get((entry.path, entry.client), set()) >= set(options(settings, entry).split(","))
    ]


def apply(remove: Sequence[Entry], add: Sequence[Entry], settings: NfsSettings) -> None:
    """Take entries out of the table, and put entries in or change their rights."""
    for chunk in _chunks(remove):
        # What is not there any more is no error to exportfs but a message.
        run(["exportfs", "-u", *map(argument, chunk)], package=PACKAGE, locked=True)
    together: dict[str, list[Entry]] = {}
    for entry in add:
        together.setdefault(options(settings, entry), []).append(entry)
    for words, entries in together.items():
        argv = ["exportfs", "-i", "-o", words, *map(argument, entries)]
        said = run(argv, package=PACKAGE, locked=True).stderr
        if said.strip():  # it exits with 0 also where it did nothing
            raise CommandFailed(argv, 0, said, hint="see exports(5) for what can be exported")


def _chunks(entries: Sequence[Entry]) -> list[Sequence[Entry]]:
    return [entries[start : start + _MANY] for start in range(0, len(entries), _MANY)]


def keep(state: Path, entries: Iterable[Entry], settings: NfsSettings) -> None:
    """Write what the distribution exports at boot. A host whose state is elsewhere than usual has a file of its own."""
    from storkit.core.host import SYSTEM_STATE
    from storkit.tech.grants import short_digest

    own = "storkit" if state == SYSTEM_STATE else f"storkit-{short_digest(str(state))}"
    file, text = EXPORTS_D / f"{own}.exports", exports_text(entries, settings)
    if not text:
        for path in (file.with_name(file.name + PARTIAL), file):
            path.unlink(missing_ok=True)
        return
    EXPORTS_D.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not file.exists() or file.read_text() != text:
        write_atomic(file, text, 0o644)


def threads() -> int:
    """How many threads the server has; 0: it does not run."""
    try:
        return int((CONTROL / "threads").read_text())
    except (FileNotFoundError, ValueError):
        return 0


def runs() -> bool:
    """Whether the server answers, and something tells it what is exported."""
    return threads() > 0 and bool(_processes("rpc.mountd", "nfsv4.exportd"))


def start() -> None:
    """Start the server if it does not run: by systemd, or as its unit would."""
    if runs():
        return
    if which("rpc.nfsd") is None:
        raise Unsupported("there is no NFS server here", f"apt install {PACKAGE}")
    if Path("/run/systemd/system").is_dir():
        run(["systemctl", "start", SERVICE], timeout=scaled(120))
        return
    run(["modprobe", "nfsd"])
    if not CONTROL.joinpath("threads").exists():
        run(["mount", "-t", "nfsd", "nfsd", CONTROL])
    if not _processes("rpc.mountd"):
        run(["rpc.mountd"])
    if not threads():
        run(["rpc.nfsd"], timeout=scaled(120))  # with the settings of /etc/nfs.conf
    if not threads():
        raise Conflict("the NFS server does not start", "rpc.nfsd -d -s 8; dmesg | tail")


def settle(taken: Iterable[str]) -> None:
    """Wait until the kernel has forgotten what it was told, and has ended every request that it began before.

    `taken` are the paths that must not be writable afterwards. Raises Unsafe: after 30 s something of it goes on.
    """
    if not threads():
        return
    deadline = time.monotonic() + SETTLE_TIMEOUT
    paths = set(taken)
    while True:
        # An answer that mountd had begun from the old table would come after the flush, and stay for half an hour.
        _quiet(_processes("rpc.mountd", "nfsv4.exportd"), deadline, "rpc.mountd")
        for cache in ("auth.unix.ip", "nfsd.fh", "nfsd.export"):
            (CACHES / cache / "flush").write_text(f"{int(time.time())}\n")
        _quiet(_processes("nfsd", kernel=True), deadline, "the NFS server")
        # Server-side copies (RFC 7862) go on in threads of their own.
        _until(lambda: not _processes("copy thread", kernel=True), deadline, "a copy inside of the NFS server")
        if not [entry for entry in in_kernel() if entry.path in paths and entry.writable]:
            return
        if time.monotonic() > deadline:
            raise _unsettled("the kernel's table of exports")


def _processes(*names: str, kernel: bool = False) -> list[int]:
    """The processes, or threads of the kernel, of these names. A name in /proc has 15 characters at most."""
    wanted = {name[:15] for name in names}
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                name, _, parent = _stat(int(entry.name))
            except OSError:
                continue
            if name in wanted and (parent in (0, 2)) == kernel:
                found.append(int(entry.name))
    return found


def _stat(pid: int) -> tuple[str, str, int]:
    """Name, state and parent of a process (proc(5))."""
    text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    head, _, rest = text.rpartition(")")
    state, parent = rest.split()[:2]
    return head.partition("(")[2], state, int(parent)


def _quiet(pids: list[int], deadline: float, what: str) -> None:
    """Wait until each of these was seen asleep, waiting for work, or is gone."""

    def asleep(pid: int) -> bool:
        try:
            return _stat(pid)[1] in "SIZX"
        except OSError:
            return True

    left = pids

    def done() -> bool:
        nonlocal left
        left = [pid for pid in left if not asleep(pid)]
        return not left

    _until(done, deadline, what)


def _until(condition: Callable[[], bool], deadline: float, what: str) -> None:
    while not condition():
        if time.monotonic() > deadline:
            raise _unsettled(what)
        time.sleep(0.001)


def _unsettled(what: str) -> StorkitError:
    hint = "look for what holds it: dmesg | tail; ps -eo pid,stat,wchan,comm | grep nfsd; then try again"
    return Unsafe(f"{what} may still work on a request from before the change, after {SETTLE_TIMEOUT:g} s", hint)


def clients() -> list[NfsClient]:
    """The clients that the server holds state of."""
    found = []
    for directory in CONTROL.glob("clients/*"):
        try:
            info, states = (directory / "info").read_text(), (directory / "states").read_text(errors="replace")
        except OSError:  # it has just gone
            continue
        found.append(parse_client(directory.name, info, states))
    return found


def expire(addresses: Iterable[str], inodes: set[int] | None = None) -> None:
    """End the state of the clients at these addresses that have one of these files open (None: whatever they have):
    their locks are free."""
    for client in clients() if addresses else []:
        if client.address in addresses and (inodes is None or client.files & inodes):
            try:
                (CONTROL / "clients" / client.number / "ctl").write_text("expire\n")
            except FileNotFoundError:
                continue


def foreign(pool: Path) -> list[Entry]:
    """Others' entries by which someone could write the files of this pool."""
    real = Path(os.path.realpath(pool))
    found = []
    for entry in table():
        path = Path(os.path.realpath(entry.path))
        if entry.ours or not entry.writable:
            continue
        if path.is_relative_to(real) or (real.is_relative_to(path) and _reaches(path, real, entry.options)):
            found.append(entry)
    return found


def _reaches(path: Path, pool: Path, options: tuple[str, ...]) -> bool:
    """Whether an export of `path` leads to a directory below it: not across a mount, unless told (`crossmnt`)."""
    try:
        return "crossmnt" in options or path.stat().st_dev == pool.stat().st_dev
    except OSError:
        return True
