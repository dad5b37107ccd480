"""xl(1): how it is called, and what its answers mean. Formats: xl_list.c and xl_info.c of Xen 4.17.

Domains are named by their id: a name changes while a guest moves, and xl takes a name of digits for an id.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from storkit.core.errors import CommandFailed, StorkitError, Unsafe, Unsupported
from storkit.system.run import run, which
from storkit.system.timeouts import scaled

PACKAGE = "xen-utils"
ASK_TIMEOUT = scaled(15.0)
"""Seconds after which an xl that does not answer makes its guests `unknown`."""
SCRIPT = "block-storkit"
"""The hotplug script of disks that storkit attaches when xl asks for them: their target is a volume's name."""
INCOMING, AWAY = "--incoming", "--migratedaway"
"""What xl appends to the name of a domain that arrives, and of one whose memory has been sent (xl_migrate.c)."""
HYPERVISOR = Path("/sys/hypervisor")
"""Of the kernel, whatever is mounted beside it (Documentation/ABI/stable/sysfs-hypervisor-xen)."""
_DOM0 = "00000000-0000-0000-0000-000000000000"
_LINE = re.compile(
    r"^(?P<name>.*?)\s+(?P<id>\d+)\s+\d+\s+\d+\s+(?P<flags>[-a-zA-Z?]{6})\s+(?P<seconds>[\d.]+)"
    r"\s+(?P<uuid>[0-9a-f-]{36})(?:\s|$)"
)
_BACKEND = re.compile(
    r"^(?P<device>/local/domain/\d+/backend/[^/]+/(?P<domain>\d+)/\d+)/(?P<key>\S+) = \"(?P<value>.*)\"$"
)


@dataclass(frozen=True, slots=True)
class XenDomain:
    """A line of `xl list -v`."""

    name: str
    id: int
    flags: str
    """`r b p s X d`: running, blocked, paused, shut down, the reason of that, being destroyed; `-` where not."""
    uuid: str
    seconds: float
    """What its processors have run here, to a tenth: one that has arrived has 0 until somebody lets it go on."""

    @property
    def guest(self) -> str:
        """The name that it has when it does not move."""
        return self.name.removesuffix(INCOMING).removesuffix(AWAY)

    @property
    def incoming(self) -> bool:
        return self.name.endswith(INCOMING)

    @property
    def away(self) -> bool:
        return self.name.endswith(AWAY)

    @property
    def paused(self) -> bool:
        return self.flags[2] == "p"

    @property
    def ended(self) -> str:
        """Why it does not run any more: `r`eboot, `S`oft reset (kexec), `s`uspend, `c`rash, `w`atchdog, `-` for
        poweroff; empty: it does."""
        return self.flags[4] if self.flags[3] == "s" else ""

    @property
    def dying(self) -> bool:
        """Its devices are gone already, and its memory is being freed."""
        return self.flags[5] == "d"


@dataclass(frozen=True, slots=True)
class XenMachine:
    """What `xl info` says of the host."""

    version: str
    """Xen's, as 4.17."""
    abilities: frozenset[str]
    """virt_caps: pv, hvm, hap, shadow and others."""
    free: int | None
    """Bytes of memory that a new guest can have; None: dom0 gives of its own, so it is not known."""


def parse_list(text: str) -> list[XenDomain]:
    """`xl list -v`, without dom0.

    Raises Unsafe: a line is not understood. A guest that is left out would be taken for one that is stopped.
    """
    header, *lines = text.splitlines() or [""]
    if not header.startswith("Name "):
        raise _strange(header)
    found = [_domain(line) for line in lines if line.strip()]
    return [domain for domain in found if domain.id]


def _domain(line: str) -> XenDomain:
    found = _LINE.match(line)
    if not found:
        raise _strange(line)
    return XenDomain(found["name"], int(found["id"]), found["flags"], found["uuid"], float(found["seconds"]))


def _strange(line: str) -> Unsafe:
    return Unsafe(f"xl list says what storkit does not understand: {line!r}", "xl list -v")


def parse_info(text: str) -> XenMachine:
    """`xl info`. xl takes memory from dom0 for a new guest unless dom0's is fixed (xl.conf(5), autoballoon)."""
    pairs = (line.partition(":")[::2] for line in text.splitlines())
    values = {key.strip(): value.strip() for key, value in pairs}
    fixed = "dom0_mem=" in values.get("xen_commandline", "")
    version = ".".join((values.get("xen_major", ""), values.get("xen_minor", "")))
    free = int(values["free_memory"]) << 20 if fixed and values.get("free_memory", "").isdecimal() else None
    return XenMachine(version, frozenset(values.get("virt_caps", "").split()), free)


def parse_devices(text: str) -> dict[int, bool]:
    """`xenstore-ls -f` of the backends: id of a domain to whether the hotplug scripts of all its devices have ended."""
    domains: dict[str, int] = {}
    ended: dict[str, bool] = {}
    for found in filter(None, map(_BACKEND.match, text.splitlines())):
        device = found["device"]
        domains[device] = int(found["domain"])
        if found["key"] == "script":
            ended.setdefault(device, False)
        if found["key"] == "hotplug-status":
            ended[device] = found["value"] == "connected"
    return {
        domain: all(ended.get(device, True) for device in domains if domains[device] == domain)
        for domain in domains.values()
    }


def cause(stderr: str) -> str:
    """The first error of several, which is why the others came: xl goes on to tell of what it could not undo."""
    found = [line for line in stderr.splitlines() if ": error: " in line]
    return re.sub(r"^.*?: error: (?:\S+\.c:\d+:\w+: )?", "", found[0]) if len(found) > 1 else ""


def is_dom0() -> bool:
    """Whether this machine runs under Xen, and starts its guests."""
    try:
        if (HYPERVISOR / "type").read_text().strip() != "xen":
            return False
    except OSError:
        return False
    try:
        return (HYPERVISOR / "uuid").read_text().strip() == _DOM0
    except OSError:
        return True  # xl itself will say


def xl(*words: str, timeout: float = ASK_TIMEOUT, env: Mapping[str, str] | None = None) -> str:
    """Run one command; its output. Raises CommandFailed, TimedOut, and Unsupported without xl."""
    try:
        return run(["xl", *words], timeout=timeout, package=PACKAGE, env=env).stdout
    except CommandFailed as error:
        if first := cause(error.stderr):
            raise CommandFailed(error.argv, error.status, f"{error.stderr}\n{first}", hint=error.hint) from None
        raise


def path() -> str:
    """Where xl is, for those that a shell starts. Raises Unsupported."""
    found = which("xl")
    if found is None:
        raise Unsupported("xl is not installed", f"apt install {PACKAGE}")
    return found


def domains() -> list[XenDomain]:
    """All domains but dom0."""
    return parse_list(xl("list", "-v"))


def machine() -> XenMachine:
    """What this host is."""
    return parse_info(xl("info"))


def launched(domain: int) -> bool:
    """Whether a paused domain has all that it needs to run: its devices come last when it is received."""
    words = ["xenstore-ls", "-f", "/local/domain/0/backend"]
    return parse_devices(run(words, timeout=ASK_TIMEOUT, package="xenstore-utils").stdout).get(domain, False)


_LET_GO_ON = """\
import sys
sys.path[:0] = sys.argv[2:]
from xen.lowlevel import xc, xs
xc.xc().domain_resume(int(sys.argv[1]), 1)
xs.xs().resume_domain(int(sys.argv[1]))
"""


def unsuspend(domain: int) -> None:
    """Let a domain run on that was suspended for a migration or a save: xl itself has no command for it.

    Raises StorkitError: it cannot be done here.
    """
    where = sorted(str(path) for path in _libraries())
    if not where:
        raise Unsupported(f"Xen's Python modules are not here, and xl has no command that lets domain {domain} go on")
    run(["/usr/bin/python3", "-c", _LET_GO_ON, str(domain), *where], package="python3")


def go_on(domain: XenDomain) -> None:
    """Let a domain run that stands still."""
    if domain.ended == "s":
        # libxl has stopped the device model of an HVM guest as well, and only `xl unpause` lets that go on.
        if not domain.paused:
            xl("pause", str(domain.id))
        unsuspend(domain.id)
    xl("unpause", str(domain.id))


def _libraries() -> Iterable[Path]:
    return Path("/usr/lib").glob("xen-*/lib/python")


def reason(error: StorkitError) -> str:
    """What xl said, in one line."""
    if isinstance(error, CommandFailed) and error.stderr.strip():
        return error.stderr.strip().splitlines()[-1]
    return error.message
