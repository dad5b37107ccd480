"""qemu-img(1) on a leash: formats and files are always named, memory and time are limited, nothing is guessed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from storkit.core.errors import CommandFailed, Conflict, StorkitError, Unsafe, Unsupported, UsageError
from storkit.system.run import Result, run, which
from storkit.system.timeouts import scaled
from storkit.tech.images import qcow2

_AGAIN = "get the file again, and check its size and checksum"
_MEMORY = 4 << 30
_EXTENT = re.compile(r'"length": (\d+),.*"offset": (\d+)')
"""A line of `qemu-img map --output=json`, of data that lies as it is."""
_NO_CHECK, _LEAKS = 63, 3
"""Exit statuses of `qemu-img check`: the format has no check; space is lost, which does no harm."""


def node(format: str, path: str | Path, *, alone: bool = False) -> str:
    """A block node that names its format and file, as a file name for qemu-img.

    `alone`: without a backing file, whatever the header says. A vpc image has the size in its footer, not the
    cylinders' (which may be less).
    """
    driver = "host_device" if Path(path).is_block_device() else "file"
    options: dict[str, Any] = {"driver": format, "file": {"driver": driver, "filename": str(path)}}
    if format == "vpc":
        options["force_size_calc"] = "current_size"
    if alone and format == "qcow2":
        options["backing"] = None
    return f"json:{json.dumps(options)}"


def target_options(format: str, path: Path) -> str:
    """The same for `--target-image-opts`."""
    driver = "host_device" if path.is_block_device() else "file"
    return f"driver={format},file.driver={driver},file.filename={str(path).replace(',', ',,')}"


def info(path: Path, format: str) -> dict[str, Any]:
    """`qemu-img info` of an untrusted image. Raises UsageError: damaged; Unsafe: it is not one file by itself."""
    try:
        found: dict[str, Any] = json.loads(_limited(["info", "--output=json", node(format, path, alone=True)]).stdout)
    except CommandFailed as error:
        raise _explained(path, "damaged", error) from error
    specific = found.get("format-specific", {}).get("data", {})
    if found.get("backing-filename") or specific.get("data-file") or found.get("encrypted"):
        raise Unsafe(f"{path} points to other files, or is encrypted", "do not use this file")
    return found


def check(path: Path, format: str, cluster: int = 0) -> None:
    """`qemu-img check` of an untrusted image: what its tables say is beyond its end would be read as zeros.

    `cluster` is its cluster size in bytes (`qemu-img info`).
    """
    if format not in ("qcow2", "vmdk", "vdi"):
        return
    try:
        _limited(["check", "-q", node(format, path, alone=True)], ok=(0, _LEAKS, _NO_CHECK), seconds=600)
    except CommandFailed as error:
        raise _explained(path, "damaged or truncated", error) from error
    if format == "vmdk" or (format == "qcow2" and cluster and path.stat().st_size % cluster):
        _refuse_half_cluster(path, format)


def _refuse_half_cluster(path: Path, format: str) -> None:
    """`qemu-img check` lets an image pass whose last cluster is there in part: the rest of it would read as zeros."""
    end, size = 0, path.stat().st_size

    def on_line(line: str) -> None:
        nonlocal end
        if match := _EXTENT.search(line):
            end = max(end, int(match[1]) + int(match[2]))

    if format == "qcow2":
        with path.open("rb") as file:

            def read(offset: int, length: int) -> bytes:
                return os.pread(file.fileno(), length, offset)

            end = qcow2.data_end(qcow2.parse(read(0, 2 << 20)), read)
    else:
        # What is compressed has no offset here: a checksum covers it.
        _limited(["map", "--output=json", node(format, path, alone=True)], seconds=600, on_line=on_line)
    if end > size:
        hint = f"{_AGAIN}; if it is whole, its program ended it early: qemu-img convert -O qcow2 makes another of it"
        raise UsageError(f"{path} is truncated: its last data ends at {end}, and it has {size} bytes", hint)


def required(shown: str, objects: Sequence[str] = ()) -> int:
    """About how many bytes the content of a node takes, without its holes (`qemu-img measure -O qcow2`). `objects`: the
    words for what it names."""
    argv = ["measure", "--output=json", "-O", "qcow2", *objects, shown]
    return int(json.loads(_limited(argv, seconds=600).stdout)["required"])


def convert(
    arguments: Sequence[str],
    size: int,
    target: Path,
    progress: Callable[[float], None],
    opened: Sequence[int] = (),
    rate: int = 0,
) -> None:
    """`qemu-img convert`. `progress` gets the fraction done. It does not flush: the caller must (fsync(2)).
    `opened` are descriptors that `arguments` name; `rate`: bytes a second at most, 0: no limit.

    Raises Conflict: no room; CommandFailed.
    """

    def on_line(line: str) -> None:
        if match := re.search(r"\(([0-9.]+)/100%\)", line):
            progress(float(match[1]) / 100)

    argv = ["qemu-img", "convert", "-p", *(["-r", str(rate)] if rate else []), *arguments]
    try:
        for descriptor in opened:
            os.set_inheritable(descriptor, True)
        limit = scaled(3600) + size / min(4 << 20, rate or 4 << 20)
        run(argv, package="qemu-utils", timeout=limit, on_line=on_line, pass_fds=opened)
    except CommandFailed as error:
        if "No space left" in error.stderr:
            raise Conflict(f"no space left for {target}", f"free some: df -h {target.parent}") from error
        raise


def _limited(
    arguments: Sequence[str],
    ok: Sequence[int] = (0,),
    seconds: int = 60,
    on_line: Callable[[str], None] | None = None,
) -> Result:
    if which("qemu-img") is None:
        raise Unsupported("qemu-img is not installed", "apt install qemu-utils")
    limits = ["prlimit", f"--as={_MEMORY}", f"--cpu={seconds}", "--core=0"]
    timeout = scaled(5 * seconds)
    return run([*limits, "qemu-img", *arguments], ok=ok, package="util-linux", timeout=timeout, on_line=on_line)


def _explained(path: Path, what: str, error: CommandFailed) -> StorkitError:
    if "lock" in error.stderr and "another process" in error.stderr:
        return Conflict(f"{path} is in use by another program", "stop it, or import a copy of the file")
    lines = [line for line in error.stderr.splitlines() if line.strip()]
    reason = re.sub(r"'?json:\{.*\}'?:? ?|qemu-img: ", "", lines[0]).strip() if lines else f"status {error.status}"
    return UsageError(f"{path} is {what}: {reason}", _AGAIN)
