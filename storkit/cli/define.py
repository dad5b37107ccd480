"""`storkit guest define`: a new guest, or with --replace what is to be different of one."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from storkit.cli.commands import REMOVABLE
from storkit.cli.guest import bind, save, tree
from storkit.cli.session import Session
from storkit.core.errors import StorkitError, UsageError, raise_problems
from storkit.core.guest import Boot, Disk, Guest, Nic, Root
from storkit.core.model import check_name
from storkit.core.units import parse_size
from storkit.guests import files
from storkit.plans.lookup import parts

MEMORY = "512MiB"


def define(session: Session, options: Namespace) -> None:
    problems: list[StorkitError] = []
    _tried(problems, lambda: check_name("guest", options.name))
    memory = _tried(problems, lambda: None if options.memory is None else parse_size(options.memory))
    problems += _contradictions(options)
    raise_problems(problems)
    old = _old(session, options)
    start = old or Guest(
        options.name, str(uuid4()), parse_size(MEMORY), hypervisor=session.inventory.defaults.hypervisor
    )
    start = _without(start, options.without)
    said = {"memory": memory, "vcpus": options.vcpus, "hypervisor": options.hypervisor, "machine": options.machine,
            "console": _absolute(options.console)}  # fmt: skip
    guest = replace(start, **_given(said))
    boot = {"kernel": _absolute(options.kernel), "initrd": _absolute(options.initrd), "cmdline": options.cmdline}
    guest = replace(guest, boot=replace(guest.boot, **_given(boot)), root=_root(session, options, guest.root))
    if options.disk is not None:
        guest = replace(guest, disks=bind(session, _disks(options.disk, guest.disks)))
    if options.bridge is not None:
        guest = replace(guest, nics=_nics(options.bridge, guest.nics))
    save(session, guest, replace_=options.replace)


def _old(session: Session, options: Namespace) -> Guest | None:
    """The guest that is there, where it is to be changed."""
    if not options.replace or options.name not in files.names(session.guests):
        return None
    return files.load(session.guests, options.name)


def _contradictions(options: Namespace) -> list[StorkitError]:
    without = options.without or []
    if without and not options.replace:
        return [UsageError("--without takes something from a guest that is there", "say --replace, or leave it out")]
    return [
        UsageError(f"{REMOVABLE[key]} and --without {key} contradict each other", "say one of them")
        for key in without
        if getattr(options, REMOVABLE[key].removeprefix("--")) is not None
    ]


def _without(guest: Guest, keys: list[str] | None) -> Guest:
    """The guest less what --without names."""
    none: dict[str, Any] = {"disks": [], "root": None, "nics": [], "machine": "", "console": ""}
    for key in keys or ():
        if key in none:
            guest = replace(guest, **{key: none[key]})
        else:
            guest = replace(guest, boot=replace(guest.boot, **{key: getattr(Boot(), key)}))
    return guest


def _disks(texts: list[str], old: list[Disk]) -> list[Disk]:
    """The disks that are said; one that was there keeps its target and its bus."""
    had = {disk.volume: disk for disk in old}
    names = [(text.removesuffix(":ro"), text.endswith(":ro")) for text in texts]
    # What POOL/NAME says counts, and not the UUID that was there under this name.
    disks = [(had.get(parts(name)[1], Disk(name)), name, readonly) for name, readonly in names]
    return [
        replace(disk, volume=name, uuid="" if "/" in name else disk.uuid, readonly=readonly)
        for disk, name, readonly in disks
    ]


def _nics(bridges: list[str], old: list[Nic]) -> list[Nic]:
    """The cards that are said; each keeps the address and the model of the one that was in its place."""
    return [replace(old[n], bridge=bridge) if n < len(old) else Nic(bridge) for n, bridge in enumerate(bridges)]


def _root(session: Session, options: Namespace, old: Root | None) -> Root | None:
    network = _given({"address": options.address, "gateway": options.gateway})
    if options.root is None:
        if network and old is None:
            raise UsageError("--address and --gateway are for a guest whose root is a tree", "name it with --root")
        return replace(old, **network) if old else None
    volume = tree(session, options.root)
    if old is None:
        return Root(volume.name, **{"address": "", **network}, uuid=volume.uuid)
    return replace(old, volume=volume.name, uuid=volume.uuid, path="", **network)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """What was said, also if it was said to be nothing."""
    return {key: value for key, value in values.items() if value is not None}


def _absolute(path: str | None) -> str | None:
    return str(Path(path).absolute()) if path else path


def _tried(problems: list[StorkitError], action: Callable[[], Any]) -> Any:
    try:
        return action()
    except StorkitError as error:
        problems.append(error)
        return None
