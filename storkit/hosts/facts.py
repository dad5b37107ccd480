"""What `host check` reports of a machine."""

from __future__ import annotations

import os
import platform
import time

import storkit
from storkit.core import registry
from storkit.core.backend import Backend, Site
from storkit.core.errors import NotAllowed
from storkit.core.host import Facts, Missing, Refusal
from storkit.core.model import Finding
from storkit.core.units import format_size
from storkit.hosts.site import Performer
from storkit.system import modules
from storkit.system.run import which


def gather(performer: Performer) -> Facts:
    """Versions, clock, and what the backends in use on this host want and do not find."""
    setup = performer.setup
    in_use: dict[str, type[Backend]] = {}
    for pool in setup.pools.values():
        in_use[pool.type] = registry.pool(pool.type)
    for target in setup.served_by:
        name = target.partition(":")[2]
        in_use.setdefault(name, registry.transport(name))
    for name in setup.runs:
        in_use.setdefault(name, registry.hypervisor(name))
    missing = [
        Missing(name, tool, package)
        for name, backend in sorted(in_use.items())
        for tool, package in backend.needs.tools.items()
        if which(tool) is None
    ]
    missing += [
        Missing(name, f"kernel module {module}", "")
        for name, backend in sorted(in_use.items())
        for module in backend.needs.modules
        if not modules.there(module)
    ]
    refused = []
    for target in (
        *(f"pool:{name}" for name in setup.pools),
        *setup.served_by,
        *(f"hypervisor:{name}" for name in setup.runs),
    ):
        try:
            performer.backend(target)
        except NotAllowed as error:
            refused.append(Refusal(error.message, error.hint, error.kind))
    return Facts(
        version=storkit.__version__,
        kernel=platform.release(),
        clock=time.time(),
        missing=missing,
        python=platform.python_version(),
        root=os.geteuid() == 0,
        state=str(performer.site.state),
        refused=refused,
        findings=state_findings(performer.site),
    )


ROOM = 16 << 20
"""Bytes that storkit's own records want: more than those of thousands of volumes."""
FILES = 64
"""Files that they want."""


def state_findings(place: Site) -> list[Finding]:
    """What keeps records from being written in the state directory, and locks and sockets in the run directory."""
    found, first = list[Finding](), 0
    for what, path in (("state directory", place.state), ("run directory", place.run)):
        try:
            there = os.statvfs(path)
        except OSError as error:
            found.append(Finding(f"the {what} {path} cannot be used: {error.strerror}", f"mkdir -p {path}"))
            continue
        if found and there.f_fsid == first:  # one file system, one problem
            continue
        first = there.f_fsid
        if there.f_flag & os.ST_RDONLY:
            hint = f'mount -o remount,rw "$(findmnt -no TARGET -T {path})"; dmesg says why, if the kernel did it'
            found.append(Finding(f"the {what} {path} is on a file system that is mounted read-only", hint))
        elif not os.access(path, os.W_OK | os.X_OK):
            found.append(Finding(f"the {what} {path} is not this user's to write", f"ls -ld {path}"))
        elif (free := there.f_bavail * there.f_frsize) < ROOM:
            message = f"the {what} {path} has {format_size(free)} of room, {format_size(ROOM)} are wanted"
            found.append(Finding(message, f"df -h {path}; delete what nobody needs there"))
        elif there.f_files and there.f_favail < FILES:
            found.append(Finding(f"the {what} {path} has room for {there.f_favail} files more", f"df -i {path}"))
    return found
