"""Programs of this host that take disks for themselves: whether multipathd and LVM would take storkit's.

Both decide by their own settings, which are asked of themselves: `multipath -t` and `lvmconfig --type full` print what
is in force, defaults included.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from storkit.core.errors import StorkitError
from storkit.core.model import Finding
from storkit.system import unixsockets
from storkit.system.run import run, which

PROPERTY = "DISK_OF_STORKIT"
"""The property of udevd's by which multipath.conf(5) can leave storkit's disks out. multipathd goes through them in the
order of their names, and stops at ID_WWN, which is an exception from its blacklist by default."""
LINKS = "disk/by-storkit"
"""Where below /dev each has a link, by which LVM's filter can: its own name is one of many."""
MULTIPATH_BLACKLIST = f'property "{PROPERTY}"'
LVM_FILTER = f'"r|^/dev/{LINKS}/|", "r|^/dev/mapper/storkit:|"'
_MULTIPATHD = "@/org/kernel/linux/storage/multipathd"
_TAKES = {"off", "no", "greedy", "smart"}
"""The values of find_multipaths (multipath.conf(5)) by which a disk with one path becomes a map."""
_TAKES_SEVERAL = _TAKES | {"on", "yes"}
"""Those by which one with several does."""
_DEVICES_FILE = Path("/etc/lvm/devices/system.devices")


@dataclass(frozen=True, slots=True)
class GrabbableDisk:
    """A disk of storkit's as those programs see it."""

    name: str
    """The kernel's."""
    links: tuple[str, ...] = ()
    """Its other names below /dev."""
    vendor: str = ""
    product: str = ""
    wwid: str = ""
    protocol: str = ""
    properties: tuple[str, ...] = ()
    """Those that storkit's rule for udevd gives it."""
    several: bool = False
    """Whether there are others of the same WWID: paths to the same disk."""

    @property
    def paths(self) -> list[str]:
        return [f"/dev/{self.name}", *self.links]


@dataclass(slots=True)
class Section:
    """A section of multipath's configuration: settings, and sections in it, in their order."""

    settings: list[tuple[str, str]] = field(default_factory=list)
    sections: list[tuple[str, Section]] = field(default_factory=list)

    def values(self, key: str) -> list[str]:
        return [value for name, value in self.settings if name == key]

    def inner(self, key: str) -> list[Section]:
        return [section for name, section in self.sections if name == key]


def rule(match: str) -> str:
    """A rule for udevd by which neither blkid nor what goes by its findings (LVM, md, btrfs, mounts) looks at the disks
    that match, and those who look all the same have a property and a link to know them by."""
    return f"""\
{match}, \\
  ENV{{UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG}}="1", ENV{{DM_UDEV_DISABLE_OTHER_RULES_FLAG}}="1", \\
  ENV{{DM_MULTIPATH_DEVICE_PATH}}="0", ENV{{SYSTEMD_READY}}="0", ENV{{UDISKS_IGNORE}}="1", OPTIONS:="nowatch", \\
  ENV{{{PROPERTY}}}="1", SYMLINK+="{LINKS}/%k"
"""


def parse_multipath(text: str) -> Section:
    """The output of `multipath -t`."""
    stack = [Section()]
    for line in text.splitlines():
        words = line.strip().split(None, 1)
        if not words or words[0][0] in "#!":
            continue
        if words[-1] == "{" or words[-1].endswith(" {"):
            inner = Section()
            stack[-1].sections.append((words[0], inner))
            stack.append(inner)
        elif words[0] == "}":
            stack.pop()
        elif len(words) == 2:
            stack[-1].settings.append((words[0], words[1].strip().strip('"')))
    return stack[0]


def multipath_takes(configuration: Section, disk: GrabbableDisk) -> bool:
    """Whether multipathd would make a map of a disk."""
    finds = [value for section in configuration.inner("defaults") for value in section.values("find_multipaths")]
    if (finds or ["strict"])[-1] not in (_TAKES_SEVERAL if disk.several else _TAKES):
        return False
    blacklist, exceptions = configuration.inner("blacklist"), configuration.inner("blacklist_exceptions")
    for kind, value in (("devnode", disk.name), ("wwid", disk.wwid), ("protocol", disk.protocol)):
        if _names(blacklist, kind, value) and not _names(exceptions, kind, value):
            return False
    if _names_device(blacklist, disk) and not _names_device(exceptions, disk):
        return False
    for name in sorted(disk.properties):  # the first that is named anywhere decides
        if _names(exceptions, "property", name):
            break
        if _names(blacklist, "property", name):
            return False
    return True


def _names(sections: Iterable[Section], kind: str, value: str) -> bool:
    return any(_match(pattern, value) for section in sections for pattern in section.values(kind))


def _names_device(sections: Iterable[Section], disk: GrabbableDisk) -> bool:
    return any(
        _match((device.values("vendor") or [".*"])[-1], disk.vendor)
        and _match((device.values("product") or [".*"])[-1], disk.product)
        for section in sections
        for device in section.inner("device")
    )


def _match(pattern: str, value: str) -> bool:
    """As multipath matches: anywhere, unless the expression says where; `!` before it turns it round."""
    inverted = pattern.startswith("!")
    try:
        return bool(value) and (re.search(pattern.removeprefix("!"), value) is None) == inverted
    except re.error:
        return False


def parse_lvmconfig(text: str) -> dict[str, list[str]]:
    """The settings in the output of `lvmconfig`: each a list, of one element where it is none."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals:
            found[name] = re.findall(r'"((?:[^"\\]|\\.)*)"', value) if '"' in value else [value.strip()]
    return found


def lvm_takes(settings: Mapping[str, list[str]], disk: GrabbableDisk, devices_file: bool) -> bool:
    """Whether LVM's commands would look into a disk; `devices_file` says whether there is one (lvmdevices(8))."""
    if settings.get("use_devicesfile") == ["1"] and devices_file:
        return False
    return all(_accepts(settings.get(name, []), disk.paths) for name in ("global_filter", "filter"))


def _accepts(patterns: Iterable[str], paths: Iterable[str]) -> bool:
    """As LVM's regex filter: any of a disk's names that is accepted is enough, then any that is rejected."""
    rejected = False
    for path in paths:
        for pattern in patterns:
            if len(pattern) > 2 and re.search(pattern[2 : pattern.rfind(pattern[1])], path):
                if pattern[0] == "a":
                    return True
                rejected = True
                break
    return not rejected


def findings(disk: GrabbableDisk, lvm_filter: str, blacklist: str = "") -> list[Finding]:
    """What this host's programs would do with such a disk, and what to write where, so that they leave it alone."""
    found = []
    if blacklist and found_multipathd(disk):
        message = "multipathd takes disks for itself, and so those that storkit attaches (find_multipaths)"
        hint = f"write into the section blacklist of /etc/multipath.conf: {blacklist}; then: multipathd reconfigure"
        found.append(Finding(message, hint))
    if found_lvm(disk):
        message = "LVM's commands on this host see the volume groups in guests' disks, and `vgchange -ay` takes them"
        hint = f"write into /etc/lvm/lvm.conf: devices {{ global_filter = [ {lvm_filter} ] }}"
        found.append(Finding(message, hint, warning=True))
    return found


def found_multipathd(disk: GrabbableDisk) -> bool:
    """Whether a multipathd that runs on this host would take such a disk."""
    if not unixsockets.bound(_MULTIPATHD):
        return False
    return any(multipath_takes(parse_multipath(text), disk) for text in _asked("multipath", "-t"))


def found_lvm(disk: GrabbableDisk) -> bool:
    """Whether this host's LVM would look into such a disk."""
    names = [f"devices/{name}" for name in ("use_devicesfile", "global_filter", "filter")]
    asked = _asked("lvmconfig", "--type", "full", *names)
    return any(lvm_takes(parse_lvmconfig(text), disk, _DEVICES_FILE.exists()) for text in asked)


def _asked(*argv: str) -> Iterator[str]:
    """What a program prints, where it is installed and can say."""
    if which(argv[0]):
        try:
            yield run(argv, ok=range(256)).stdout
        except StorkitError:
            return
