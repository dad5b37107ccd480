"""The kernel's NVMe host: controllers of storkit's subsystems, made through /dev/nvme-fabrics, read from sysfs.

A controller is one path to a subsystem. Where the kernel has native multipath, several share one disk, and what is
sent to it waits while none of them works. It tries for ever to reach its target again. No program is needed: what is
written to /dev/nvme-fabrics is seen by no other process, and what the kernel shows of it in sysfs is hidden at once.

Kernel: drivers/nvme/host/{fabrics,tcp,multipath}.c, linux/nvme_ioctl.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import struct
import threading
import time
import uuid as uuids
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from storkit.core.errors import (
    NotFound,
    ServiceUnreachable,
    StorkitError,
    TimedOut,
    Unsafe,
    Unsupported,
)
from storkit.core.units import SECTOR
from storkit.system.block import configfs, grabbers, udev
from storkit.system.timeouts import scaled
from storkit.tech import portals
from storkit.tech.nvme.names import NAMESPACE, PREFIX, Keys, host_id, stated

FABRICS = Path("/dev/nvme-fabrics")
CONTROLLERS = Path("/sys/class/nvme")
SUBSYSTEMS = Path("/sys/class/nvme-subsystem")
MULTIPATH = Path("/sys/module/nvme_core/parameters/multipath")
MODULES = ("nvme_tcp",)
RULES = Path("/run/udev/rules.d/05-storkit-nvme.rules")
_RULES = """\
# Made by storkit: what guests keep on their disks, and partitions there, is none of this host's business. These are the
# disks of storkit's own NVMe controllers.
""" + grabbers.rule(f'SUBSYSTEM=="block", KERNEL=="nvme*", ATTRS{{subsysnqn}}=="{PREFIX}:*"')
RECONNECT = 2
"""Seconds between the kernel's tries to reach a target that is away."""
KEEP_ALIVE = 5
"""Seconds after which a target that says nothing counts as away."""
QUEUES = 4
"""The most that a controller has, each a connection: without a limit there is one for each processor."""
RECOVERY = scaled(45.0)
"""Seconds for a lost controller whose target is back: the kernel's pause, and TCP's own back-off."""
_CONNECT = scaled(60.0)
_APPEARS = scaled(30.0)
_LOOK = 0.02
_SECRETS = ("dhchap_secret", "dhchap_ctrl_secret")
_DISK = re.compile(r"nvme\d+n\d+")

_ADMIN = 0xC0484E41
"""NVME_IOCTL_ADMIN_CMD: _IOWR('N', 0x41, struct nvme_passthru_cmd)."""
_COMMAND = struct.Struct("=BBHIIIQQIIIIIIIIII")
_IDENTIFY, _OF_NAMESPACE, _DESCRIPTORS, _PAGE = 0x06, 0x00, 0x03, 4096
_NGUID, _UUID = 2, 3
_COMMAND_TIMEOUT = scaled(10.0)


@dataclass(frozen=True, slots=True)
class Controller:
    """A path to a subsystem, as the kernel has it."""

    name: str
    nqn: str
    address: str
    port: int
    state: str
    """live, connecting, resetting, deleting ..."""

    @property
    def alive(self) -> bool:
        return self.state == "live"

    @property
    def portal(self) -> str:
        return portals.name(self.address, self.port)

    @property
    def path(self) -> Path:
        return CONTROLLERS / self.name


def prepare() -> None:
    """Load the host's modules, and keep others from the disks that come. Raises Unsupported."""
    for module in MODULES:
        if not Path("/sys/module", module).is_dir():
            configfs.modprobe(module)
    udev.keep_rules(RULES, _RULES)


def multipath() -> bool:
    """Whether this kernel makes one disk of several controllers of one subsystem."""
    return _read(MULTIPATH) == "Y"


# What there is


def find(nqn: str = "") -> list[Controller]:
    """The controllers of a subsystem (empty: of all of storkit's)."""
    found = []
    for path in sorted(CONTROLLERS.glob("nvme*")):
        named = _read(path / "subsysnqn")
        if named.startswith(f"{PREFIX}:") and nqn in ("", named):
            where = dict(word.partition("=")[::2] for word in _read(path / "address").split(","))
            service = where.get("trsvcid", "")
            port = int(service) if service.isdecimal() else 0
            found.append(Controller(path.name, named, where.get("traddr", ""), port, _read(path / "state") or "gone"))
    return found


def disk(nqn: str) -> str:
    """The block device of a subsystem's namespace, or nothing."""
    parents = [path for path in SUBSYSTEMS.glob("*") if _read(path / "subsysnqn") == nqn]
    parents += [controller.path for controller in find(nqn)]  # without native multipath it is the controller's
    for parent in parents:
        for directory in parent.glob("nvme*"):
            device = f"/dev/{directory.name}"
            ours = _DISK.fullmatch(directory.name) and _read(directory / "nsid") == str(NAMESPACE)
            if ours and Path(device).is_block_device():
                return device
    return ""


def others(uuid: str, nqn: str) -> list[str]:
    """The NVMe disks of this host with this UUID that do not come from that subsystem, by device name."""
    found = []
    for path in Path("/sys/class/block").glob("nvme*"):
        same = _DISK.fullmatch(path.name) and _read(path / "uuid").lower() == uuid
        if same and _read(path / "device/subsysnqn") != nqn:
            found.append(path.name)
    return sorted(found)


def size(device: str) -> int:
    """Bytes of a disk, as the kernel has it; 0: it is gone."""
    sectors = _read(Path("/sys/class/block", device.removeprefix("/dev/"), "size"))
    return int(sectors or 0) * SECTOR


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # a controller goes at any moment
        return ""


# Acting


def connect(nqn: str, host: str, address: str, port: int, keys: Keys | None) -> None:
    """Make a controller; one that is there already is fine. `host` is this client's own NQN.

    Raises ServiceUnreachable: nobody answers at that portal. Unsafe: the target does not let this host in, or one side
    does not accept the other's key. Unsupported: this kernel cannot.
    """
    options = [
        "transport=tcp", f"traddr={address}", f"trsvcid={port}", f"nqn={nqn}", f"hostnqn={host}",
        f"hostid={host_id(host)}", f"nr_io_queues={min(QUEUES, os.cpu_count() or 1)}", "ctrl_loss_tmo=-1",
        f"reconnect_delay={RECONNECT}", f"keep_alive_tmo={KEEP_ALIVE}",
    ]  # fmt: skip
    if keys is not None:
        options += [f"dhchap_secret={keys.host.reveal()}", f"dhchap_ctrl_secret={keys.controller.reveal()}"]
    where = portals.name(address, port)
    failure = _asked(",".join(options).encode(), nqn, where)
    hide(nqn)
    if failure is not None and failure.errno not in (errno.EALREADY,):
        raise _explained(failure, nqn, where)


def _asked(options: bytes, nqn: str, where: str) -> OSError | None:
    """Have the kernel connect, and why it did not. It waits in the kernel, by times of its own: a thread does, which is
    left alone if it does not come back."""
    failures: list[OSError | None] = []

    def ask() -> None:
        try:
            descriptor = os.open(FABRICS, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.write(descriptor, options)
            finally:
                os.close(descriptor)
            failures.append(None)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    deadline = time.monotonic() + _CONNECT
    while thread.is_alive() and time.monotonic() < deadline:
        hide(nqn)  # it is there, and shows its keys, before it is connected
        thread.join(_LOOK)
    if not failures:
        raise TimedOut(f"the NVMe target at {where} does not answer within {_CONNECT:g} seconds", "storkit host check")
    return failures[0]


def hide(nqn: str) -> None:
    """Let nobody but root read the keys that the kernel shows of a subsystem's controllers."""
    for controller in find(nqn):
        for name in _SECRETS:
            with suppress(OSError):
                (controller.path / name).chmod(0o600)


def _explained(failure: OSError, nqn: str, where: str) -> StorkitError:
    why = failure.strerror or str(failure)
    if failure.errno in (errno.EINVAL, errno.ENOENT, errno.ENXIO):
        return Unsupported(f"this kernel makes no NVMe/TCP connection to {where}: {why}", "dmesg | tail")
    if failure.errno in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT, errno.ECONNRESET):
        return ServiceUnreachable(f"the NVMe target at {where} does not answer: {why}", "storkit host check")
    message = f"the NVMe target at {where} does not let this host in to {nqn}, or one does not accept the other's key"
    return Unsafe(f"{message}: {why}", "dmesg | tail shows the kernel's reason; storkit attach exports it again")


def appeared(nqn: str, watch: udev.Watch) -> str:
    """The disk of a subsystem that has a controller, waited for; `watch` has listened since before."""
    if not _opens(disk(nqn)):
        what = f"the disk of {nqn}"
        try:
            watch.wait(lambda device: _opens(disk(nqn)), _APPEARS, what)
        except TimedOut as error:
            if not _opens(disk(nqn)):
                raise NotFound(f"{what} did not appear", "dmesg | tail shows the kernel's reason") from error
    return disk(nqn)


def _opens(path: str) -> bool:
    if not path:
        return False
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def sized(nqn: str, device: str, wanted: int) -> None:
    """See that the kernel has a disk at the size that its target says. Raises TimedOut."""
    with udev.Watch("block", processed=False) as watch:
        if size(device) == wanted:
            return
        for controller in find(nqn):
            with suppress(OSError):
                (controller.path / "rescan_controller").write_text("1")
        watch.wait(lambda _: size(device) == wanted, _APPEARS, f"{device} with {wanted} bytes")


def disconnect(controller: Controller) -> None:
    """End a controller, and with the last one its disk: what was still to be done there fails."""
    with suppress(OSError):  # it has gone meanwhile
        (controller.path / "delete_controller").write_text("1")


def recovered(nqn: str, deadline: float) -> bool:
    """Wait until a subsystem has a live controller again."""
    while not any(controller.alive for controller in find(nqn)):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK)
    return True


# Who a disk is, asked of its target


def identify(device: str) -> tuple[str, int]:
    """The identity that a namespace states now, and its size in bytes. Raises ServiceUnreachable: no path to it works;
    Unsafe: it states none."""
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            descriptors = _identified(descriptor, _DESCRIPTORS)
            namespace = _identified(descriptor, _OF_NAMESPACE)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ServiceUnreachable(f"{device} does not say who it is: {error.strerror}", "storkit status") from error
    return parse_descriptors(descriptors), parse_size(namespace)


def _identified(descriptor: int, what: int) -> bytes:
    """A data structure of the command Identify (NVM Express Base Specification, 5.17)."""
    page = ctypes.create_string_buffer(_PAGE)
    milliseconds = int(_COMMAND_TIMEOUT * 1000)
    command = _COMMAND.pack(
        _IDENTIFY, 0, 0, NAMESPACE, 0, 0, 0, ctypes.addressof(page), 0, _PAGE, what, 0, 0, 0, 0, 0, milliseconds, 0
    )  # fmt: skip
    if status := fcntl.ioctl(descriptor, _ADMIN, bytearray(command)):
        raise OSError(errno.EIO, f"NVMe status {status:#x}")
    return page.raw


def parse_descriptors(page: bytes) -> str:
    """The identity in a namespace's identification descriptors: a type, a length, two bytes, and the identifier."""
    found: dict[int, bytes] = dict(_each_descriptor(page))
    if _UUID not in found or _NGUID not in found:
        raise Unsafe("an NVMe disk states no UUID and NGUID of its own", "nvme list -v")
    return stated(str(uuids.UUID(bytes=found[_UUID])), found[_NGUID].hex())


def _each_descriptor(page: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(page) and page[at + 1]:
        kind, length = page[at], page[at + 1]
        if length == 16 and at + 4 + length <= len(page):
            yield kind, page[at + 4 : at + 4 + length]
        at += 4 + length


def parse_size(page: bytes) -> int:
    """Bytes of a namespace: its blocks (NSZE), times the size of a block in the format in use (FLBAS, LBADS)."""
    blocks = int.from_bytes(page[:8], "little")
    return blocks << page[128 + 4 * (page[26] & 0xF) + 2]


def sample() -> grabbers.GrabbableDisk:
    """A disk of storkit's, as multipathd and LVM would meet it."""
    wwid = "uuid.00000000-0000-4000-8000-000000000000"
    links = (f"/dev/{grabbers.LINKS}/nvme99n1",)
    return grabbers.GrabbableDisk("nvme99n1", links, "NVME", "storkit", wwid, "nvme:tcp", (grabbers.PROPERTY, "ID_WWN"))
