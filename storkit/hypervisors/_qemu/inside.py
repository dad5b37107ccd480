"""The way to the agent inside a guest: the socket of its virtio-serial port."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from storkit.core.errors import Conflict, NotFound, TimedOut
from storkit.hypervisors import _guestagent as agents
from storkit.hypervisors._machine import look_command
from storkit.hypervisors._qemu.process import ASK_TIMEOUT, Process
from storkit.system.qemu import guestagent, qmp

CHANNEL = "storkit-agent"
"""QEMU's name of the character device of a guest that templates made (templates/qemu/guest.args.j2)."""
_PLACES = ("/machine/peripheral", "/machine/peripheral-anon")


def way(here: Process) -> agents.Way:
    """The way to the agent of the guest of a process."""
    return agents.Way(
        partial(talk, here), partial(talk, here, ASK_TIMEOUT), str(here.directory),
        lambda: ["socket", str(channel(here))],
    )  # fmt: skip


@contextmanager
def talk(here: Process, timeout: float = guestagent.ANSWERS) -> Iterator[guestagent.Ask]:
    """A conversation with the agent of the guest of a process. Raises NotFound: it does not run; Unsupported: it has no
    channel, or nobody is at its other end; TimedOut."""
    path = channel(here)
    try:
        with guestagent.talk(path, timeout) as ask:
            yield ask
    except TimedOut as error:
        hint = error.hint or f"look at what it does: storkit guest console {here.name}"
        raise TimedOut(error.message, hint) from None


def channel(here: Process) -> Path:
    """The socket that leads to the agent of a guest that runs. Raises as `talk`."""
    if not here.alive():
        raise NotFound(f"guest {here.name} does not run here", look_command(here.name))
    if here.adopted and not here.adopted.monitor:
        raise agents.unreachable(here.name)
    label, devices = asyncio.run(_ask(here.monitor))
    found = next((device for device in devices if label and device.get("label") == label), None)
    if found is None:
        raise agents.unreachable(here.name)
    path = here.agent if label == CHANNEL else _path(str(found.get("filename", "")))
    if path is None:
        message = f"the agent of guest {here.name} has no Unix socket of its own on this host"
        raise Conflict(message, f"storkit guest render {here.name}")
    if found.get("frontend-open") is False:
        raise agents.absent(here.name)
    return path


async def _ask(monitor: Path) -> tuple[str, list[dict[str, Any]]]:
    """QEMU's name of the character device that leads to the agent, none if none does; and all there are.

    A guest with a document of its own, or one that was adopted, has given it any name and any path.
    """
    async with qmp.connect(monitor, timeout=ASK_TIMEOUT) as qemu:
        label = ""
        for place in _PLACES:
            for each in await qemu.execute("qom-list", {"path": place}, timeout=ASK_TIMEOUT):
                if each["type"] != "child<virtserialport>":
                    continue
                port = f"{place}/{each['name']}"
                name = await qemu.execute("qom-get", {"path": port, "property": "name"}, timeout=ASK_TIMEOUT)
                if name == guestagent.PORT:
                    label = await qemu.execute("qom-get", {"path": port, "property": "chardev"}, timeout=ASK_TIMEOUT)
        return label, await qemu.execute("query-chardev", timeout=ASK_TIMEOUT)


def _path(filename: str) -> Path | None:
    """The socket's path in what QEMU says of it: `disconnected:unix:/run/ga.sock,server=on`."""
    kind, found, rest = filename.removeprefix("disconnected:").partition("unix:")
    path = rest.partition(",server")[0]
    return Path(path) if found and not kind and path.startswith("/") else None
