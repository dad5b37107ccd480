"""Reads a QEMU command line (qemu(1)): a file of one argument a line, as storkit renders it, or a shell command.

What it does not know is kept in the guest's `extra` words and named in the warnings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from storkit.core.errors import UsageError
from storkit.core.guest import Nic
from storkit.core.model import DiskSource
from storkit.guests.check import MIB
from storkit.guests.command import ALONE, Pair, command, pairs
from storkit.guests.documents.options import memory_size, secret
from storkit.guests.documents.options import read as read_argument
from storkit.guests.draft import GuestDraft, path_source, uri_source

OURS = frozenset(
    [
        "-S",
        "-daemonize",
        "-no-user-config",
        "-nodefaults",
        "-nographic",
        "-display",
        "-qmp",
        "-mon",
        "-monitor",
        "-pidfile",
        "-incoming",
    ]
)
"""Options that say how a guest is run here and now, not what it is: storkit says them itself."""

_BLOCK_NETS = {"virtio-net-pci": "virtio", "virtio-net": "virtio", "virtio-net-device": "virtio"}
_NICS = {**_BLOCK_NETS, **{model: model for model in ("e1000", "e1000e", "rtl8139", "vmxnet3", "ne2k_pci", "pcnet")}}
_DISKS = {
    "virtio-blk-pci": "virtio",
    "virtio-blk": "virtio",
    "virtio-blk-device": "virtio",
    "scsi-hd": "scsi",
    "ide-hd": "ide",
}
_PLACING = {"id", "bus", "addr", "unit", "scsi-id", "channel", "lun", "serial", "bootindex"}
"""Where a device sits and what it is called: chosen anew."""
_TRANSLATED = 8 << 10
"""Bytes that templates/qemu adds to the memory of a guest without KVM."""
_FORMATS = ("raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vpc", "vhdx", "parallels")
_OPENERS = frozenset(["-sd", "-mtdblock", "-pflash", "-fda", "-fdb", "-virtfs", "-fsdev"])
"""Options that open a file or a device which storkit cannot put a volume in the place of."""
_SAID = {"write-cache": "on", "rerror": "stop", "werror": "stop"}


def read(text: str) -> GuestDraft:
    """What a command line says. Raises UsageError for one that cannot be taken apart."""
    return _Reader(pairs(command(text).arguments)).read()


def options(text: str, first: str = "") -> dict[str, str]:
    """An option's argument as a dictionary; `first` is the key that the first word may leave out.

    A doubled comma is a comma in a value; a word without `=` is a switch, on.
    """
    return {part.key: part.value for part in read_argument(text, first).parts if part.leaf}


class _Reader:
    """Goes over the words once; devices and the nodes they use are put together at the end."""

    def __init__(self, words: list[Pair]) -> None:
        self.words = words
        self.found = GuestDraft()
        self.nodes: dict[str, dict[str, Any]] = {}
        self.netdevs: dict[str, dict[str, str]] = {}
        self.chardevs: dict[str, dict[str, str]] = {}
        self.secrets: dict[str, dict[str, str]] = {}
        self.devices: list[tuple[int, dict[str, str]]] = []
        """With the lines that they stand on."""
        self.line = 0
        self.serials: list[str] = []
        self.sata: set[str] = set()
        self.removable: set[str] = set()
        """Drives for removable media, which are not kept."""
        self.used: set[str] = set()
        """Nodes and character devices that something refers to."""

    def read(self) -> GuestDraft:
        for pair in self.words:
            with self._placed(pair.line):
                if pair.option:
                    self._option(pair.option, pair.text)
                else:
                    self._refuse(pair.text)
        for line, device in self.devices:
            with self._placed(line):
                self._device(device)
        self._console()
        self._chardevs()
        for what, there in (("blockdev", self.nodes), ("chardev", self.chardevs), ("netdev", self.netdevs)):
            for name in there.keys() - self.used:
                self.found.warn(f"-{what} {name}: nothing that is kept uses it")
        return self.found

    @contextmanager
    def _placed(self, line: int) -> Iterator[None]:
        """Say the line of what cannot be read."""
        self.line = line
        try:
            yield
        except UsageError as error:
            raise UsageError(f"line {line}: {error.message}", error.hint) from error
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            raise UsageError(f"line {line}: {type(error).__name__}: {error}", "see qemu(1)") from error

    def _option(self, option: str, value: str) -> None:
        known: dict[str, Callable[[str], None]] = {
            "-name": self._name,
            "-uuid": lambda text: setattr(self.found, "uuid", text),
            "-m": self._memory,
            "-smp": self._smp,
            "-cpu": lambda text: setattr(self.found, "cpu", text),
            "-machine": self._machine,
            "-M": self._machine,
            "-accel": lambda text: None,
            "-enable-kvm": lambda text: None,
            "-kernel": lambda text: self._boot("kernel", text),
            "-initrd": lambda text: self._boot("initrd", text),
            "-append": lambda text: self._boot("cmdline", text),
            "-blockdev": self._blockdev,
            "-drive": self._drive,
            **{f"-hd{letter}": self._image for letter in "abcd"},
            "-netdev": lambda text: self._keep(self.netdevs, options(text, "type")),
            "-chardev": lambda text: self._keep(self.chardevs, options(text, "type")),
            "-device": self._add_device,
            "-mon": lambda text: self.used.add(options(text, "chardev").get("chardev", "")),
            "-serial": self.serials.append,
        }
        if secret(value):
            hint = "take it out: what is kept of a guest is read by others"
            self.found.refused.append(UsageError(f"{option}: a secret stands in the command", hint))
        elif option in known:
            known[option](value)
        elif option in _OPENERS:
            self._refuse(f"{option} {value}")
        elif option == "-object" and value.startswith("tls-creds-"):
            self._keep(self.secrets, options(value, "type"))
        elif option == "-boot" and value == "strict=on":
            pass
        elif option not in OURS:
            self.found.extra += [option] if option in ALONE else [option, value]
            self.found.warn(f"{' '.join(part for part in (option, value) if part)}: kept as it is, for QEMU only")

    def _refuse(self, words: str) -> None:
        """Nothing that the guest opens may stay behind, and nothing may be shared without anybody knowing."""
        hint = "write the disk as -drive file=PATH,format=raw,if=virtio, or take it out"
        self.found.refused.append(UsageError(f"{words}: a disk that storkit cannot make a volume of", hint))

    def _image(self, text: str) -> None:
        self._drive(f"file={text.replace(',', ',,')}")

    def _keep(self, where: dict[str, dict[str, str]], values: dict[str, str]) -> None:
        where[values.get("id", "")] = values

    def _name(self, text: str) -> None:
        self.found.name = options(text, "guest").get("guest", "")

    def _memory(self, text: str) -> None:
        size = options(text, "size").get("size", "")
        memory = memory_size(size)
        self.found.memory = memory - _TRANSLATED if memory % MIB == _TRANSLATED else memory
        self._unknown("-m", options(text, "size"), {"size"})

    def _smp(self, text: str) -> None:
        values = options(text, "cpus")
        counts = [values.get(key, "1") for key in ("sockets", "dies", "clusters", "cores", "threads")]
        given = [values["cpus"]] if "cpus" in values else counts
        self.found.vcpus = math.prod(int(each) if each.isdecimal() else 0 for each in given)
        self._unknown("-smp", values, {"cpus"})

    def _machine(self, text: str) -> None:
        values = options(text, "type")
        self.found.machine = values.get("type", self.found.machine)
        self.used |= {values.get("pflash0", ""), values.get("pflash1", "")}
        if {"pflash0", "pflash1"} <= values.keys():
            self.found.boot = replace(self.found.boot, firmware="uefi")
        self._unknown("-machine", values, {"type", "accel", "pflash0", "pflash1"})

    def _boot(self, key: str, text: str) -> None:
        self.found.boot = replace(self.found.boot, **{key: text})  # type: ignore[arg-type]

    def _blockdev(self, text: str) -> None:
        node = _tree(options(text, "driver"))
        self.nodes[str(node.get("node-name", ""))] = node

    def _drive(self, text: str) -> None:
        values = options(text)
        identity = values.get("id", f"drive{len(self.nodes)}")
        if values.get("media") == "cdrom":
            self.removable.add(identity)
            if values.get("file"):
                self.found.warn(f"-drive {text}: a cdrom is not kept")
            return
        self.nodes[identity] = {
            "uri": values.get("file", ""),
            "driver": values.get("format", "raw"),
            "read-only": values.get("readonly", values.get("read-only", "")),
        }
        if "format" not in values:
            self.found.warn(f"-drive {text}: no format was given, raw is taken")
        self._unknown("-drive", values, {"file", "format", "if", "id", "readonly", "read-only", "media", "index"})
        kinds = {"virtio": "virtio-blk", "scsi": "scsi-hd", "ide": "ide-hd"}
        kind = values.get("if", "ide")
        if kind in kinds:
            self.devices.append((self.line, {"driver": kinds[kind], "drive": identity}))
        elif kind != "none":
            self.found.warn(f"-drive {text}: if={kind} is not kept")

    def _add_device(self, text: str) -> None:
        device = options(text, "driver")
        if device["driver"] in ("ahci", "ich9-ahci"):
            self.sata.add(device.get("id", ""))
        elif not device["driver"].startswith("virtio-scsi"):
            self.devices.append((self.line, device))

    def _device(self, device: dict[str, str]) -> None:
        driver = device.pop("driver")
        if device.get("drive") in self.removable:
            self.found.warn(f"-device {driver}: the drive of a cdrom is not kept")
        elif driver in _DISKS:
            self._disk(driver, device)
        elif driver in _NICS:
            self._nic(driver, device)
        else:
            text = ",".join([driver, *(f"{key}={value.replace(',', ',,')}" for key, value in device.items())])
            self.found.extra += ["-device", text]
            self.found.warn(f"-device {text}: kept as it is, for QEMU only")

    def _disk(self, driver: str, device: dict[str, str]) -> None:
        name = device.pop("drive", "")
        self.used.add(name)
        node = self.nodes.get(name)
        source = self._source(node) if node is not None else None
        if node is None or source is None:
            shown = f"{node.get('uri') or node.get('driver', '')}" if node else f"drive={name}"
            self._refuse(f"-device {driver} ({shown})")
            return
        bus = "sata" if device.get("bus", "").partition(".")[0] in self.sata else _DISKS[driver]
        self.found.add_disk(source, "", bus, node.get("read-only") == "on")
        for key, value in device.items():
            if key not in _PLACING and _SAID.get(key) != value:
                self.found.warn(f"disk {source.uri}: {key}={value} is not kept")

    def _source(self, node: dict[str, Any]) -> DiskSource | None:
        if "uri" in node:
            uri = str(node["uri"])
            return uri_source(uri, node["driver"]) or (path_source(uri, node["driver"]) if uri[:1] == "/" else None)
        protocol = node.get("file", node)
        if isinstance(protocol, str):
            self.used.add(protocol)
            protocol = self.nodes.get(protocol, {})
        format = str(node.get("driver", "raw")) if protocol is not node else "raw"
        if format not in _FORMATS:
            return None
        if protocol.get("driver") in ("file", "host_device"):
            kind = "file" if protocol["driver"] == "file" else "block"
            return DiskSource(kind, str(protocol.get("filename", "")), format)  # type: ignore[arg-type]
        if protocol.get("driver") != "nbd":
            return None
        server = protocol.get("server", {})
        tls = self.secrets.get(str(protocol.get("tls-creds", "")), {})
        return DiskSource(
            kind="network",
            format=format,
            protocol="nbd",
            export=str(protocol.get("export", "")),
            socket=str(server.get("path", "")),
            server=str(server.get("host", "")),
            port=int(server.get("port", 0)),
            tls=tls.get("type", "").removeprefix("tls-creds-"),  # type: ignore[arg-type]
            tls_dir=tls.get("dir", ""),
            tls_user=tls.get("username", ""),
        )

    def _nic(self, driver: str, device: dict[str, str]) -> None:
        name = device.pop("netdev", "")
        self.used.add(name)
        netdev = self.netdevs.get(name, {})
        bridge = netdev.get("br", "br0" if netdev.get("type") == "bridge" else "")
        if not bridge:
            self.found.warn(f"-device {driver}: its network {netdev.get('type', '')} is no bridge; it is not kept")
            return
        self.found.nics.append(Nic(bridge, device.pop("mac", ""), _NICS[driver]))
        self._unknown(f"-device {driver}", device, _PLACING)

    def _console(self) -> None:
        for number, serial in enumerate(self.serials):
            kind, _, rest = serial.partition(":")
            self.used.add(rest)
            chardev = self.chardevs.get(rest, {}) if kind == "chardev" else {}
            path = chardev.get("path", "") if chardev.get("type") == "file" else rest if kind == "file" else ""
            if number == 0 and path:
                self.found.console = path
            elif serial != "none":
                self.found.warn(f"-serial {serial} is not kept")

    def _chardevs(self) -> None:
        """Keep what a device that is kept speaks through."""
        for name, chardev in self.chardevs.items():
            if any(f"chardev={name}" in word.split(",") for word in self.found.extra):
                rest = [f"{key}={value.replace(',', ',,')}" for key, value in chardev.items() if key != "type"]
                words = ",".join([chardev.get("type", ""), *rest])
                self.found.extra = ["-chardev", words, *self.found.extra]
                self.found.warn(f"-chardev {words}: kept as it is, for QEMU only")
                self.used.add(name)

    def _unknown(self, option: str, values: dict[str, str], known: set[str]) -> None:
        for key, value in values.items():
            if key not in known:
                self.found.warn(f"{option} {key}={value} is not kept")


def _tree(flat: dict[str, str]) -> dict[str, Any]:
    """`file.driver=nbd,file.server.type=unix` as nested dictionaries."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return tree
