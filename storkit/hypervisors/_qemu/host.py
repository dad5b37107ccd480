"""What QEMU can do on one host: accelerator, machine types, firmware."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Literal

from storkit.core.backend import Site
from storkit.core.errors import StorkitError, Unsupported
from storkit.system.files import read_json, write_atomic
from storkit.system.run import run, which
from storkit.system.timeouts import scaled

PACKAGE = "qemu-system-x86"
PROBE_CPU = 1
"""Seconds of processor time for a guest of a few instructions. Hardware virtualisation takes a tenth; an emulated KVM
takes many times what QEMU's own translator does, and is of no use. A busy machine changes neither."""
PROBE_TIMEOUT = scaled(10.0)

_PROBE = bytes.fromhex(
    "BA0105"  # mov dx, 501h: the port of isa-debug-exit
    "B010"  # mov al, 10h
    "EE"  # out dx, al: QEMU exits with status 10h * 2 + 1
    "F4"  # hlt
    "EBFD"  # jmp to hlt
)
_PROBE_STATUS = 0x10 * 2 + 1
_ALIAS = re.compile(r"^(?P<alias>\S+) .*\(alias of (?P<machine>\S+)\)")
_FIRMWARE = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
)


def program(binary: str) -> str:
    """The path of QEMU. Raises Unsupported."""
    found = which(binary)
    if found is None:
        raise Unsupported(f"{binary} is not installed", f"apt install {PACKAGE}")
    return found


def accelerator(site: Site, binary: str) -> Literal["kvm", "tcg"]:
    """KVM where a guest really runs under it, TCG otherwise; found out once per boot of the host."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    path = program(binary)
    key = f"{boot} {_version_of(path)} {os.geteuid()}"
    cache = site.run / "qemu-accel.json"
    with suppress(StorkitError, FileNotFoundError, LookupError, TypeError):
        known = read_json(cache, "cache")
        if known["key"] == key and known["accel"] in ("kvm", "tcg"):
            return "kvm" if known["accel"] == "kvm" else "tcg"
    accel: Literal["kvm", "tcg"] = "kvm" if _kvm_works(site, path) else "tcg"
    _remember(cache, {"key": key, "accel": accel})
    return accel


def _kvm_works(site: Site, path: str) -> bool:
    image = site.run / f"qemu-probe-{os.getpid()}"
    image.write_bytes(_PROBE.ljust(510, b"\0") + b"\x55\xaa")
    try:
        run(
            [
                "prlimit", f"--cpu={PROBE_CPU}",
                path, "-no-user-config", "-nodefaults", "-display", "none", "-accel", "kvm", "-M", "pc", "-m", "2",
                "-drive", f"file={str(image).replace(',', ',,')},format=raw,if=floppy,read-only=on",
                "-device", "isa-debug-exit,iobase=0x501,iosize=1",
            ],
            timeout=PROBE_TIMEOUT,
            ok=[_PROBE_STATUS],
        )  # fmt: skip
    except StorkitError:
        return False
    finally:
        image.unlink(missing_ok=True)
    return True


def machines(site: Site, binary: str) -> dict[str, str]:
    """The machine types QEMU has, each with the versioned type it stands for (`pc`: `pc-i440fx-7.2`)."""
    path = program(binary)
    key = _version_of(path)
    cache = site.run / "qemu-machines.json"
    with suppress(StorkitError, FileNotFoundError, LookupError, TypeError, AttributeError):
        known = read_json(cache, "cache")
        if known["key"] == key:
            return {str(name): str(machine) for name, machine in known["machines"].items()}
    found = parse_machines(run([path, "-machine", "help"]).stdout)
    _remember(cache, {"key": key, "machines": found})
    return found


def parse_machines(text: str) -> dict[str, str]:
    """`qemu-system-x86_64 -machine help` as a table of machine type to versioned machine type."""
    found: dict[str, str] = {}
    for line in text.splitlines()[1:]:
        words = line.split()
        if words:
            alias = _ALIAS.match(line)
            found[words[0]] = alias["machine"] if alias else words[0]
    return found


def firmware() -> tuple[Path, Path] | None:
    """OVMF's code and the template of its variables, if they are installed."""
    for code, variables in _FIRMWARE:
        if Path(code).is_file() and Path(variables).is_file():
            return Path(code), Path(variables)
    return None


def copy_variables(template: Path, path: Path) -> None:
    """Give a guest its own copy of the firmware's variables, unless it has one."""
    if not path.exists():
        partial = path.with_name(path.name + ".partial")
        shutil.copyfile(template, partial)
        partial.rename(path)


def _version_of(path: str) -> str:
    status = Path(path).stat()
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def _remember(cache: Path, value: object) -> None:
    import json

    with suppress(StorkitError, OSError):
        write_atomic(cache, json.dumps(value))
