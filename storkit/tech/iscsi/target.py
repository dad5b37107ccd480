"""The kernel's iSCSI target (LIO), through configfs: one target with one LUN for each volume.

A `Unit` says what a volume's backstore, target and access lists should be; `bring` makes the kernel agree, taking
rights before it gives any; `observe` says what the kernel has. rtslib and targetcli show and restore these objects like
their own, but are not used to make them: they list all of configfs for each object they touch, and choose backstore
numbers without a lock that others heed.

What a host may do is its access list (ACL): its mapped LUN is write-protected or not. Write protection is looked at
when a command arrives, so a write that was let in a moment before is still on its way to the disk when the bit is set.
Removing the ACL ends the host's session, and the rmdir(2) returns only when the session's last command has come back
from the disk and its reservations are dropped: that is how a right is taken.

Kernel: drivers/target/target_core_{configfs,fabric_configfs,tpg,device}.c, iscsi/iscsi_target_configfs.c.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from storkit.core.errors import Conflict, StorkitError, TimedOut, raise_problems
from storkit.system.block import configfs
from storkit.system.timeouts import scaled
from storkit.tech.iscsi import aptpl, lio
from storkit.tech.iscsi.names import Chapped

DRAIN = scaled(60.0)
LINK = "storkit"
"""What the links from LUN to backstore and from mapped LUN to LUN are called; rtslib calls it the alias."""
TAKING = "storkit-taking"
"""The tag of an ACL whose right to write is being taken: the kernel refuses new writes; earlier ones may still be
on their way. If a command times out or is killed here, the ACL keeps this tag. The next command sees it and waits for
the session to end too, because until then every configfs read of this target blocks."""
FIRST_INDEX = 1 << 20
"""rtslib numbers backstores below this, so no foreign process ever picks one of ours at the same moment."""
TPG_ATTRIBUTES = {
    "generate_node_acls": "0",  # nobody without an ACL
    "demo_mode_discovery": "0",  # nor does anybody else see the target
    "cache_dynamic_acls": "0",
    "prod_mode_write_protect": "1",  # a mapped LUN is read-only from its first moment on
}
TPG_PARAMETERS = {"InitialR2T": "No", "FirstBurstLength": "262144", "MaxRecvDataSegmentLength": "262144"}
_SESSION = re.compile(r"^LIO Session ID: (\d+)", re.MULTILINE)
BACKSTORE_ATTRIBUTES = {"emulate_3pc": "0"}  # no third-party copy: commands act on their own LUN


@dataclass(frozen=True, slots=True)
class Access:
    """What one initiator may do."""

    writable: bool
    chap: Chapped | None = None


@dataclass(frozen=True, slots=True)
class Unit:
    """A volume as the target should offer it. Without `access` there is no target."""

    name: str
    """The backstore's."""
    serial: str
    device: str
    readonly: bool
    discard: bool
    """Whether the device takes discards."""
    iqn: str
    portals: list[str]
    """As LIO names their directories: ADDRESS:PORT, [IPV6]:PORT."""
    authentication: bool
    access: dict[str, Access] = field(default_factory=dict)
    """Initiator name to what it may do."""

    @property
    def target(self) -> Path:
        return lio.FABRIC / self.iqn

    @property
    def tpg(self) -> Path:
        return self.target / "tpgt_1"

    def acl(self, initiator: str) -> Path:
        return self.tpg / "acls" / initiator


@dataclass(frozen=True, slots=True)
class Seen:
    """A volume's target as the kernel has it."""

    serial: str
    """The logical unit's; empty without a backstore."""
    device: str
    enabled: bool
    access: dict[str, bool | None]
    """Initiator to whether it may write, or what it has written may still be on its way; None: it has an ACL without
    the LUN."""
    backstore: Path | None = None


# What there is


def observe(iqn: str) -> Seen | None:
    """A target as the kernel has it; None if it has none of that name."""
    tpg = lio.FABRIC / iqn / "tpgt_1"
    if not tpg.is_dir():
        return Seen("", "", False, {}) if (lio.FABRIC / iqn).is_dir() else None
    backstore = _linked(tpg / "lun" / "lun_0")
    access: dict[str, bool | None] = {}
    for acl in configfs.entries(tpg / "acls"):
        mapped = tpg / "acls" / acl / "lun_0"
        flag = configfs.read(mapped / "write_protect") if _linked(mapped) else ""
        access[acl] = (flag == "0" or _taking(tpg / "acls" / acl)) if flag else None
    serial = _serial(backstore) if backstore else ""
    device = configfs.read(backstore / "udev_path") if backstore else ""
    return Seen(serial, device, configfs.read(tpg / "enable") == "1", access, backstore)


def stands(unit: Unit) -> bool:
    """Whether the kernel has this unit's backstore, and with it the device open."""
    seen = observe(unit.iqn)
    return seen is not None and seen.backstore is not None and seen.serial == unit.serial


def registrations(backstore: Path) -> dict[str, str]:
    """Initiator to the reservation key that it has registered at this logical unit, in hexadecimal."""
    return aptpl.parse_registered(configfs.read(backstore / "pr" / "res_pr_registered_i_pts"))


def discards(device: str) -> bool:
    """Whether a block device takes discards."""
    with contextlib.suppress(OSError):
        number = os.stat(device).st_rdev
        return configfs.read(
            Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/queue/discard_max_bytes")
        ) not in (
            "",
            "0",
        )
    return False


def _taking(acl: Path) -> bool:
    return configfs.read(acl / "tag") == TAKING


def _linked(lun: Path) -> Path | None:
    """What a LUN or mapped LUN stands for."""
    for name in configfs.entries(lun):
        link = lun / name
        if link.is_symlink():
            return Path(os.path.normpath(lun / link.readlink()))
    return None


def _serial(backstore: Path) -> str:
    return configfs.read(backstore / "wwn" / "vpd_unit_serial").partition(":")[2].strip()


# What there should be


def foreign(units: Iterable[Unit]) -> list[StorkitError]:
    """Targets of these units' names that hold something else: not ours to touch."""
    problems: list[StorkitError] = []
    for unit in units:
        seen = observe(unit.iqn)
        if seen is not None and seen.backstore is not None and seen.serial != unit.serial:
            what = f"{seen.backstore.name}, serial number {seen.serial or 'none'}"
            hint = f"targetcli ls /iscsi/{unit.iqn}; remove or rename it"
            problems.append(Conflict(f"target {unit.iqn} exists and holds another disk: {what}", hint))
        elif seen is not None and seen.device not in ("", unit.device):
            hint = f"targetcli ls /iscsi/{unit.iqn}"
            problems.append(Conflict(f"target {unit.iqn} is made on {seen.device}, not on {unit.device}", hint))
    return problems


def bring(units: Sequence[Unit]) -> None:
    """Make targets and rights what `units` say. First all rights that are too many are taken, then others given.

    A unit with no access at all is removed with its backstore. Raises TimedOut if a host's writes do not drain: its
    right to send more is gone then, and nobody has been given any.
    """
    take(units)
    problems: list[StorkitError] = []
    for unit in units:
        try:
            _make(unit) if unit.access else _remove(unit)
        except OSError as error:
            message = f"the kernel's target refuses volume unit {unit.name}: {error.filename}: {error.strerror}"
            problems.append(Conflict(message, "dmesg | tail shows the kernel's reason"))
        except StorkitError as error:
            problems.append(error)
    raise_problems(problems)


def take(units: Sequence[Unit]) -> None:
    """End the sessions of all initiators that may do more in the kernel than these units say, and remove their ACLs.

    All sessions are ended at the same time. Raises TimedOut if one's commands do not come back from the disk: it can
    send no more writes then, but what it has sent may still arrive.
    """
    doomed: list[tuple[Unit, str]] = []
    for unit in units:
        seen = observe(unit.iqn)
        for initiator, writable in seen.access.items() if seen else ():
            wanted = unit.access.get(initiator)
            if wanted is None or (writable and not wanted.writable) or _taking(unit.acl(initiator)):
                doomed.append((unit, initiator))
    ends = []
    for unit, initiator in doomed:
        acl = unit.acl(initiator)
        with contextlib.suppress(FileNotFoundError):
            configfs.put(acl / "tag", TAKING)
            configfs.write(acl / "lun_0" / "write_protect", "1")
        if session := _session(acl):
            ends.append((unit, initiator, session))
            threading.Thread(target=_end_session, args=(acl,), daemon=True).start()
    deadline = time.monotonic() + DRAIN
    for unit, initiator, session in ends:
        if not _gone(unit.acl(initiator), session, deadline):
            message = f"commands of {initiator} on {unit.name} do not come back from {unit.device}"
            raise TimedOut(message, "see why that device hangs: dmsetup info; dmesg | tail; then try again")
    for unit, initiator in doomed:
        _remove_acl(unit.acl(initiator))
        aptpl.forget(lio.databases(), unit.serial, [initiator])


def _session(acl: Path) -> str:
    """The number of the session that an initiator has, or whose commands are not back yet; empty: none."""
    match = _SESSION.search(configfs.read(acl / "info"))
    return match[1] if match else ""


def _gone(acl: Path, session: str, deadline: float) -> bool:
    """Wait until a session has ended. Asked for a second time, the kernel says at once that it has ended, and to remove
    the ACL of one that has not would wait in the kernel for as long as its commands take."""
    while _session(acl) == session:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def _end_session(acl: Path) -> None:
    """Shut down the session that an initiator has, and wait until its commands are back: a new queue depth does both.

    Removing the ACL would do so too, but with all of the target's configfs locked meanwhile, and the client would get
    errors for what it reads in the moment without the LUN; this way its connection breaks, and it comes back.
    """
    with contextlib.suppress(OSError):  # what is not done here is done when the ACL is removed
        configfs.write(acl / "cmdsn_depth", str(int(configfs.read(acl / "cmdsn_depth")) - 1))


def _make(unit: Unit) -> None:
    backstore = _backstore(unit)
    tpg = unit.tpg
    if not tpg.is_dir():
        unit.target.mkdir(exist_ok=True)
        tpg.mkdir()
    for name, value in {**TPG_ATTRIBUTES, "authentication": str(int(unit.authentication))}.items():
        configfs.put(tpg / "attrib" / name, value)
    for name, value in TPG_PARAMETERS.items():
        configfs.put(tpg / "param" / name, value)
    lun = tpg / "lun" / "lun_0"
    lun.mkdir(exist_ok=True)
    if _linked(lun) is None:
        (lun / LINK).symlink_to(backstore)
    for initiator, access in unit.access.items():
        _make_acl(unit.acl(initiator), access, lun)
    for portal in unit.portals:
        try:
            (tpg / "np" / portal).mkdir(exist_ok=True)
        except OSError as error:
            message = f"the kernel's target cannot listen on {portal}: {error.strerror}"
            raise Conflict(message, f"see who does: ss -ltnp 'sport = :{portal.rpartition(':')[2]}'") from error
    configfs.put(tpg / "enable", "1")


def _make_acl(acl: Path, access: Access, lun: Path) -> None:
    acl.mkdir(exist_ok=True)
    chap = access.chap
    words = {} if chap is None else {"userid": chap.user, "password": chap.secret.reveal()}
    if chap is not None and chap.mutual_user:
        words |= {"userid_mutual": chap.mutual_user, "password_mutual": chap.mutual_secret.reveal()}
    for name, value in words.items():
        configfs.put(acl / "auth" / name, value)
    mapped = acl / "lun_0"
    mapped.mkdir(exist_ok=True)
    if _linked(mapped) is None:
        (mapped / LINK).symlink_to(lun)
    configfs.put(mapped / "write_protect", "0" if access.writable else "1")


def _backstore(unit: Unit) -> Path:
    """The unit's backstore, made if there is none: found by the target's LUN, or where its number puts it."""
    linked = _linked(unit.tpg / "lun" / "lun_0")
    if linked is not None:
        return linked
    index = _index(unit)
    while True:
        backstore = lio.CORE / f"iblock_{index}" / unit.name
        backstore.parent.mkdir(exist_ok=True)
        if set(configfs.entries(backstore.parent)) <= {"hba_info", "hba_mode", unit.name}:
            break
        index += 1
    try:
        return _enable(unit, backstore)
    except OSError as error:
        # The device is claimed: a backstore of an earlier life, that rtslib restored under a number of its own?
        for other in _scan(unit.name):
            if other != backstore and _serial(other) == unit.serial and configfs.read(other / "enable") == "1":
                _remove_backstore(backstore)
                return other
        _remove_backstore(backstore)
        hint = f"see who has it: lsblk {unit.device}; dmesg | tail"
        raise Conflict(f"the kernel cannot export {unit.device}: {error.strerror}", hint) from error


def _index(unit: Unit) -> int:
    """A number for the unit's backstore, from all of its serial: UUIDs made by time or by hand may begin alike."""
    return FIRST_INDEX + int.from_bytes(hashlib.sha256(unit.serial.encode()).digest()[:4]) % (1 << 30)


def _enable(unit: Unit, backstore: Path) -> Path:
    if backstore.is_dir() and configfs.read(backstore / "enable") != "1":
        backstore.rmdir()  # of a command that was killed: it may be configured for another device
    if not backstore.is_dir():
        backstore.mkdir()
        configfs.write(backstore / "control", f"udev_path={unit.device},readonly={int(unit.readonly)}")
        configfs.write(backstore / "udev_path", unit.device)
        configfs.write(backstore / "wwn" / "vpd_unit_serial", unit.serial)
        configfs.write(backstore / "enable", "1")
    for name, value in {**BACKSTORE_ATTRIBUTES, "emulate_tpu": str(int(unit.discard))}.items():
        configfs.put(backstore / "attrib" / name, value)
    writers = [initiator for initiator, access in unit.access.items() if access.writable]
    for metadata in aptpl.kept(lio.databases(), unit.serial, writers):
        configfs.write(backstore / "pr" / "res_aptpl_metadata", metadata)
    return backstore


# What there should no longer be


def _remove(unit: Unit) -> None:
    """Remove a unit that nobody may use any more, from the target down to the backstore."""
    backstore = _linked(unit.tpg / "lun" / "lun_0")
    if unit.tpg.is_dir():
        configfs.put(unit.tpg / "enable", "0")
        for portal in configfs.entries(unit.tpg / "np"):
            configfs.rmdir(unit.tpg / "np" / portal)
        _remove_lun(unit.tpg / "lun" / "lun_0")
        configfs.rmdir(unit.tpg)
    configfs.rmdir(unit.target)
    for left in [backstore] if backstore else _scan(unit.name):
        if _serial(left) == unit.serial or configfs.read(left / "enable") != "1":
            _remove_backstore(left)
    _remove_hba(lio.CORE / f"iblock_{_index(unit)}")  # a command that was killed may have left it empty
    aptpl.forget(lio.databases(), unit.serial)


def _remove_acl(acl: Path) -> None:
    for name in configfs.entries(acl):
        if name.startswith("lun_"):
            _remove_lun(acl / name)
    configfs.rmdir(acl)


def _remove_lun(lun: Path) -> None:
    for name in configfs.entries(lun):
        if (lun / name).is_symlink():
            (lun / name).unlink(missing_ok=True)
    configfs.rmdir(lun)


def _remove_backstore(backstore: Path) -> None:
    configfs.rmdir(backstore)
    _remove_hba(backstore.parent)


def _remove_hba(hba: Path) -> None:
    with contextlib.suppress(OSError):  # not there, or not empty: it holds another's backstore
        hba.rmdir()


def _scan(name: str) -> list[Path]:
    """All block backstores of a name, wherever rtslib has put them."""
    return [
        lio.CORE / hba / name
        for hba in configfs.entries(lio.CORE)
        if hba.startswith("iblock_") and (lio.CORE / hba / name).is_dir()
    ]
