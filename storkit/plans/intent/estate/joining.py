"""Hosts are brought in, given another storkit, and taken out (`host add`, `host upgrade`, `host remove`).

What is copied goes by ssh(1) with the login of whoever types it, who may run commands there: not with the key that is
pinned to `storkit agent`. No key is copied.
"""

from __future__ import annotations

import re
import shlex
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import storkit
from storkit.core.errors import Conflict, StorkitError, UsageError, raise_problems
from storkit.core.identities import check_host, several
from storkit.core.inventory import HostConfig, parse
from storkit.core.model import ALIVE
from storkit.hosts.remote.ssh import ssh_argv
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.drift.overview import look
from storkit.plans.intent.estate import inventoryfile
from storkit.system.run import run
from storkit.system.timeouts import scaled

PROGRAM = "/usr/local/bin/storkit"
"""On the PATH of `ssh HOST storkit agent`."""
UNIT = "/etc/systemd/system/storkit-restore.service"
_PATH = re.compile(r"/[A-Za-z0-9._+/-]+", re.ASCII)
_COPY = scaled(300.0)
"""Seconds for a few megabytes on a slow line."""

_INSTALL = """\
set -eu
umask 022
mkdir -p "$(dirname "$1")"
new=$(mktemp "$(dirname "$1")/.storkit.XXXXXX")
trap 'rm -f "$new"' EXIT
cat > "$new"
chmod 755 "$new"
"$new" --version
mv -f "$new" "$1"
"""
_ENABLE = """\
set -eu
if [ "$(id -u)" = 0 ] && [ -d /run/systemd/system ]; then
    cat > "$1"
    systemctl daemon-reload
    systemctl enable --quiet "$(basename "$1")"
    echo enabled
else
    cat > /dev/null
fi
"""
"""The unit goes where systemd runs, and root may; elsewhere `storkit host restore` is somebody's to call at boot."""


@dataclass(frozen=True, slots=True)
class JoinWish:
    """How a host is brought in."""

    address: str = ""
    """Where other hosts reach it; empty: as its URL says."""
    state: str = ""
    """Its state directory; empty: the default one."""
    file: str = ""
    """storkit.pyz, to be copied; empty: the one that is running."""
    program: str = PROGRAM
    """Where it goes on the host."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A host that is in the inventory by now."""

    host: str
    inventory: str
    """The file that it was written into."""
    installed: str
    """The version of storkit that was copied; empty: none was."""
    unit: bool
    """Whether systemd will bring its exports and attachments back at boot."""
    authorized: str
    """The line for `authorized_keys` there, but for the key."""


@dataclass(frozen=True, slots=True)
class Upgraded:
    """The versions of storkit on a host."""

    host: str
    before: str
    after: str


def add(coordinator: Coordinator, name: str, url: str, wish: JoinWish) -> Joined:
    """Copy storkit to a machine, and write it into the inventory as a host. Called again it goes on.

    Raises Conflict: another host has the name, or the machine; UsageError; CommandFailed: ssh, or what it ran there.
    """
    _refuse_to_plan(coordinator)
    check_host(name)
    inventory = coordinator.inventory
    there = inventory.hosts.get(name)
    if there is None or (there.url != url and there != inventory.known(url)):
        inventoryfile.with_host(inventory, name, url, wish.address, wish.state)
    elif (wish.address and wish.address != there.address) or (wish.state and wish.state != there.state):
        message = f"host {name} is in the inventory already, with another address or state directory"
        raise Conflict(message, f"change it in {inventoryfile.file_of(inventory)}")
    if not _PATH.fullmatch(wish.program):
        raise UsageError(f"{wish.program!r} is no path for a program", "an absolute one, of letters, digits and ._+-/")
    far = url.startswith("ssh:")
    content = _pyz(wish.file) if far else b""
    installed, unit = (_install(url, content, wish.program), _enable(url, wish.program)) if far else ("", False)
    file = inventoryfile.file_of(inventory)
    if there is None:
        # Others may have written it while the program was copied.
        with inventoryfile.locked(coordinator.state):
            text = inventoryfile.with_host(inventory, name, url, wish.address, wish.state)
            file = inventoryfile.write(inventory, text)
        coordinator.connections.inventory = parse(text, file)
    coordinator.acted = True
    command = f"{wish.program} agent" if wish.program != PROGRAM else "storkit agent"
    return Joined(name, str(file), installed, unit, f'command="{command} --grade guests",restrict' if far else "")


def upgrade(coordinator: Coordinator, hosts: Sequence[str], file: str = "", program: str = PROGRAM) -> list[Upgraded]:
    """Copy storkit to hosts, all that ssh reaches if none are named, one after another; guests go on running. The first
    that fails ends it: those after it stay as they are."""
    _refuse_to_plan(coordinator)
    names = [coordinator.host(name) for name in several(hosts)] if hosts else list(coordinator.inventory.hosts)
    far = [config for name in names if (config := coordinator.inventory.host(name)).url.startswith("ssh:")]
    content = _pyz(file) if far else b""
    return [_upgrade(config, content, program) for config in far]


def remove(coordinator: Coordinator, name: str) -> Path:
    """Take a host out of the inventory; its file. Raises, together, what it still has; it has to answer, or be off."""
    _refuse_to_plan(coordinator)
    coordinator.inventory.host(name)
    raise_problems(_has(coordinator, name))
    with inventoryfile.locked(coordinator.state):
        text = inventoryfile.without_host(coordinator.inventory, name)
        coordinator.acted = True
        return inventoryfile.write(coordinator.inventory, text)


def _has(coordinator: Coordinator, name: str) -> list[StorkitError]:
    """What would be lost sight of."""
    inventory = coordinator.inventory
    problems: list[StorkitError] = [
        Conflict(f"pool {pool.name} is on host {name}", f"move its volumes away, and take pool {pool.name} out first")
        for pool in inventory.pools.values()
        if name in pool.hosts
    ]
    seen = look(coordinator)
    survey = coordinator.survey
    homes = inventory.homes
    for host in sorted(survey.silent.keys() & {name, *homes}):
        if host == name and host in survey.off:
            continue
        why = survey.silent[host]
        hint = f"storkit fence {name}, with --confirmed-off if it is; then try again" if host == name else why.hint
        problems.append(type(why)(why.message, hint))
    problems += [error for (host, _), error in survey.unread.items() if host in {name, *homes}]
    problems += survey.failed.values()
    for each in seen.asleep:
        if each.hold.host == name:
            message = f"guest {each.hold.name} sleeps, and its memory is on host {name}"
            problems.append(Conflict(message, f"storkit guest restore {each.hold.name}"))
    for plan in seen.plans:
        if plan.record and any(name in (step.host, step.peer) for step in plan.record.plan.steps):
            message = f"plan {plan.id} ({plan.title}) has not ended, and has steps on host {name}"
            problems.append(Conflict(message, f"storkit plan resume {plan.id}; or: storkit plan rollback {plan.id}"))
    for group in seen.exports.values():
        for export in group:
            if export.client == name:
                detach = f"storkit detach {export.volume} --on {name}"
                problems.append(Conflict(f"host {name} may have volume {export.volume}", detach))
    exported = {export.uuid for group in seen.exports.values() for export in group if export.client == name}
    problems += [
        Conflict(f"host {name} has volume {each.volume} attached", f"storkit detach {each.volume} --on {name}")
        for each in seen.attachments.get(name, [])
        if each.uuid not in exported
    ]
    problems += [
        Conflict(f"guest {state.name} is {state.status} on host {name}", f"storkit host drain {name}")
        for state in seen.guests
        if state.host == name and state.status in ALIVE
    ]
    return problems


def _upgrade(config: HostConfig, content: bytes, program: str) -> Upgraded:
    asked = run(
        ssh_argv(config.url, f"{shlex.quote(program)} --version || true"), timeout=_COPY, package="openssh-client"
    )
    after = _install(config.url, content, program)
    return Upgraded(config.name, asked.stdout.strip().removeprefix("storkit "), after)


def _install(url: str, content: bytes, program: str) -> str:
    """The version that is there now."""
    words = f"sh -c {shlex.quote(_INSTALL)} sh {shlex.quote(program)}"
    done = run(ssh_argv(url, words), stdin=content, timeout=_COPY, package="openssh-client")
    return done.stdout.strip().removeprefix("storkit ")


def _enable(url: str, program: str) -> bool:
    unit = (resources.files("storkit.hosts") / "storkit-restore.service").read_text()
    if program != PROGRAM:
        unit = unit.replace("ExecStart=storkit ", f"ExecStart={program} ")
    words = f"sh -c {shlex.quote(_ENABLE)} sh {UNIT}"
    return run(ssh_argv(url, words), stdin=unit, timeout=_COPY, package="openssh-client").stdout.strip() == "enabled"


def _pyz(file: str) -> bytes:
    """storkit in one file. Raises UsageError."""
    path = Path(file or sys.argv[0])
    if not path.is_file() or not zipfile.is_zipfile(path):
        if file:
            raise UsageError(f"{file} is no storkit.pyz", "make pyz makes one: build/storkit.pyz")
        message = f"storkit {storkit.__version__} is not running from one file here, so there is nothing to copy"
        raise UsageError(message, "make pyz; then: --file build/storkit.pyz")
    with zipfile.ZipFile(path) as inside:
        if "storkit/__init__.py" not in inside.namelist():
            raise UsageError(f"{path} is no storkit.pyz: it has no storkit in it", "make pyz makes one")
    return path.read_bytes()


def _refuse_to_plan(coordinator: Coordinator) -> None:
    if coordinator.planning:
        raise UsageError("the inventory is no plan that could be shown", "leave --dry-run out")
