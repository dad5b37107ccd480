"""`storkit hooks install|status|remove`: the files by which hypervisors call storkit's hooks.

Each is a file of storkit's own, in a directory where a hypervisor looks for any number of them, or under a name of its
own: whatever else is there is neither called nor changed.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from storkit.core import codec, registry
from storkit.core.errors import Conflict, NotFound, StorkitError, Unsupported, UsageError, raise_problems
from storkit.core.host import state_directory
from storkit.hooks import hostfile, program
from storkit.hooks.engine import connect
from storkit.hooks.hostfile import HostFile, Manager
from storkit.hosts.setup import remembered
from storkit.system import beneath, files
from storkit.system.run import run

MARK = "# storkit's: storkit hooks install"
"""In each of the files, and in no other."""


@dataclass(frozen=True, slots=True)
class Script:
    """A file that a hypervisor calls."""

    hypervisor: str
    place: Path
    template: str
    """Its name beside this file."""


SCRIPTS = (
    Script("libvirt", Path("/etc/libvirt/hooks/qemu.d/storkit"), "libvirt-qemu.sh"),
    Script("xen", Path("/etc/xen/scripts/block-storkit"), "block-storkit.sh"),
)


@dataclass(frozen=True, slots=True)
class InstallWish:
    """What this host's file is to say, beside what it says."""

    name: str = ""
    managers: Mapping[str, str] = field(default_factory=dict)
    """Name to URL."""
    identity: str = ""
    """The file of the key for these managers; and where their servers are, and which volumes are asked for there."""
    addresses: Sequence[str] = ()
    volumes: Sequence[str] = ()
    settings: Sequence[str] = ()
    """TRANSPORT.KEY=VALUE: of this host, as they stand in the inventory's [transports]."""
    state: str = ""
    file: Path | None = None
    """This host's file; None: the usual one."""


@dataclass(frozen=True, slots=True)
class Installed:
    """What there is of the hooks on this host."""

    file: Path
    content: HostFile
    scripts: dict[str, str]
    """Hypervisor to the path of its script; empty: none is installed."""
    managers: dict[str, str]
    """Manager to why it does not answer; empty: it does."""


def install(wish: InstallWish, root: Path = Path("/")) -> Installed:
    """Write this host's file, or what is new in it, and the scripts of the hypervisors that are here.

    Raises UsageError: the host has no name, or no manager; Unsupported: no hypervisor is here whose hooks there are;
    Conflict: something else has a script's place. Then nothing is written.
    """
    where = (wish.file or hostfile.default_file()).absolute()
    content = hostfile.parse(hostfile.dumps(_wished(wish, where)), str(where))
    wanted = [script for script in SCRIPTS if _is_here(script, root)]
    problems = [problem for script in wanted for problem in _refused(script, root)]
    if not wanted:
        problems.append(Unsupported("neither libvirt nor Xen is on this host", "apt install libvirt-daemon-system"))
    raise_problems(problems)
    try:
        where.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        os.close(beneath.open_trusted(where.parent))
        files.write_atomic(where, hostfile.dumps(content), 0o644)
        for script in wanted:
            place = _below(root, script)
            place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            files.write_atomic(place, _text(script, where if wish.file else None), 0o755)
    except OSError as error:
        raise files.explain(error, where) from error
    return status(wish.file, root, ask=False)


def _wished(wish: InstallWish, where: Path) -> HostFile:
    """This host's file as it is to be."""
    try:
        before = hostfile.load(where)
    except NotFound:
        if not wish.name or not wish.managers:
            raise UsageError(
                f"there is no {where} yet, so this host needs a name, and a manager",
                "storkit hooks install --name THIS-HOST --manager NAME=ssh://USER@HOST --identity KEY",
            ) from None
        before = HostFile(wish.name)
    managers = dict(before.managers)
    for name, url in wish.managers.items():
        known = managers.get(name, Manager(url))
        managers[name] = Manager(
            url,
            wish.identity or known.identity,
            list(wish.addresses) or known.addresses,
            list(wish.volumes) or known.volumes,
        )
    state = wish.state or before.state
    return replace(
        before,
        name=wish.name or before.name,
        managers=managers,
        state=state,
        transports=_settings(wish.settings, before, Path(state or state_directory())),
    )


def _settings(wishes: Sequence[str], before: HostFile, state: Path) -> dict[str, dict[str, Any]]:
    """The settings of transports on this host: as the file has them, or else as a coordinator last told them, and what
    is set now. Raises UsageError: there is none of that name, or it is something else."""
    told = None if before.transports else remembered(state)
    found = {name: dict(table) for name, table in (told.transports if told else before.transports).items()}
    for wish in wishes:
        key, _, value = wish.partition("=")
        transport, _, name = key.partition(".")
        if not name or not value:
            raise UsageError(f"--set {wish}: it is not TRANSPORT.KEY=VALUE", "--set nbd.attach=kernel")
        found.setdefault(transport, {})[name] = int(value) if value.isdecimal() else value
    for name, table in found.items():
        codec.load(registry.transport(name).Settings, table, f"transports.{name}")
    return found


def status(file: Path | None = None, root: Path = Path("/"), ask: bool = True) -> Installed:
    """What is installed; `ask`: and whether the managers answer."""
    where = file or hostfile.default_file()
    content = hostfile.load(where)
    scripts = {
        script.hypervisor: str(script.place) if _is_ours(_below(root, script)) else ""
        for script in SCRIPTS
        if _is_here(script, root)
    }
    return Installed(where, content, scripts, {name: _why_silent(name, content) for name in content.managers if ask})


def remove(root: Path = Path("/")) -> list[str]:
    """Take the scripts away, and leave the host's file. What is attached stays so. The paths that were removed."""
    gone: list[str] = []
    for script in SCRIPTS:
        place = _below(root, script)
        if _is_ours(place):
            place.unlink()
            gone.append(str(script.place))
    return gone


def _below(root: Path, script: Script) -> Path:
    return root / script.place.relative_to("/")


def _is_here(script: Script, root: Path) -> bool:
    """Whether a script's hypervisor is on this host, as its own directory in /etc says."""
    return (root / Path(*script.place.parts[1:3])).is_dir() and bool(_template(script))


def _refused(script: Script, root: Path) -> Iterator[StorkitError]:
    place = _below(root, script)
    if (place.exists() or place.is_symlink()) and not _is_ours(place):
        yield Conflict(f"{script.place} exists, and storkit did not make it", f"look at it: ls -l {script.place}")
    if script.hypervisor == "libvirt" and root == Path("/") and (version := _libvirt()) < (6, 5):
        shown = ".".join(map(str, version)) or "unknown"
        yield Unsupported(
            f"libvirt here is of version {shown}: only since 6.5.0 it calls more than one hook, and"
            " /etc/libvirt/hooks/qemu may be somebody else's",
            "upgrade libvirt, or migrate with storkit migrate run alone",
        )


def _libvirt() -> tuple[int, ...]:
    """The version of libvirt's daemon."""
    for daemon in ("libvirtd", "virtqemud"):
        with suppress(StorkitError):
            words = run([daemon, "--version"]).stdout.split()
            return tuple(int(part) for part in words[-1].split(".") if part.isdecimal()) if words else ()
    return ()


def _is_ours(place: Path) -> bool:
    try:
        return not place.is_symlink() and MARK in place.read_text(errors="replace")
    except OSError:
        return False


def _template(script: Script) -> str:
    found = resources.files("storkit.hooks") / script.template
    return found.read_text() if found.is_file() else ""


def _text(script: Script, file: Path | None) -> str:
    """A script, with the program that it calls: the one that installs it, wherever that is."""
    options = ["--file", str(file)] if file else []
    return (
        _template(script)
        .replace("@MARK@", MARK)
        .replace("@STORKIT@", shlex.join(program.command()))
        .replace("@OPTIONS@", shlex.join(options))
    )


def _why_silent(name: str, content: HostFile) -> str:
    try:
        _, close = connect(name, content.managers[name], content.name)
    except StorkitError as error:
        return error.message
    close()
    return ""
