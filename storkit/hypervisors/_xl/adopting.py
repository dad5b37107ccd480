"""Domains that somebody has started with xl, and storkit does not know: looked at, taken as they run, and given back.

Xen keeps no configuration of a guest: that is a file of its administrator's. It keeps what a domain was started with
(libxl's own JSON, from which it is built anew when it reboots, and which goes along when it moves), in a file of its
own beside the domain:

    /var/lib/xen/userdata-d.ID.UUID.libxl-json                  what is known of the domain
    /var/lib/xen/userdata-l.ID.UUID.domain-userdata-lock        whoever changes it locks this (flock(2))

Source: libxl__userdata_path() and libxl__lock_domain_userdata() of Xen 4.17. Taking a domain puts storkit's paths there
in the place of its disks': no xl command does that. What the domain has open stays open until it has moved or stopped.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from storkit.core import codec
from storkit.core.errors import Conflict, NotFound, StorkitError, Unsafe, Unsupported, collected, raise_problems
from storkit.core.guest import Guest, TakenGuest
from storkit.core.model import Original, check_name
from storkit.guests import document
from storkit.hypervisors._embedded import RECORD
from storkit.hypervisors._qemu.definition import Definition
from storkit.hypervisors._xl import toolstack
from storkit.hypervisors._xl.guests import XenGuests
from storkit.hypervisors._xl.toolstack import XenDomain
from storkit.system import openers
from storkit.system.files import write_atomic

KEPT = Path("/var/lib/xen")


def originals(guests: XenGuests, names: Sequence[str]) -> list[Original]:
    """Domains that run here, without a document: nobody but their administrator has one. Raises all that is wrong."""
    if not toolstack.is_dom0():
        raise Unsupported("this machine does not run under Xen", "name the guest's own configuration: --config FILE")
    domains = toolstack.domains()
    found: list[Original] = []
    problems: list[StorkitError] = []
    for name in names:
        with collected(problems):
            found.append(_original(guests, check_name("guest", name), domains))
    raise_problems(problems)
    return found


def _original(guests: XenGuests, name: str, domains: Sequence[XenDomain]) -> Original:
    mine = [each for each in domains if each.guest == name and not each.dying]
    if not mine:
        raise NotFound(f"Xen here runs no domain {name}", "xl list; or name its configuration: --config FILE")
    record = guests.record(name)
    if record and any(each.uuid == record.guest.uuid for each in mine):
        raise Conflict(f"guest {name} is storkit's already", f"storkit guest show {name}")
    if len(mine) > 1 or mine[0].name != name or mine[0].ended:
        raise Conflict(f"domain {name} is just being moved, or has ended", f"xl list -v {name}; adopt it where it runs")
    (domain,) = mine
    places = _places(_read(domain))
    processes = openers.of_domain(domain.id)
    if not processes:
        raise Conflict(f"domain {name} has not connected its disks yet", f"wait; xl block-list {name}")
    return Original(
        name, "", "paused" if domain.paused else "running", processes=processes, uuid=domain.uuid, places=places
    )


def refuse_to_take(run: Path, guest: Guest) -> XenDomain:
    """The domain of a guest that is taken as it runs. Raises Conflict: it is not there any more as it was looked at.
    `run` is Site.run, where it was noted who has its disks open."""
    domain = next((each for each in toolstack.domains() if each.uuid == guest.uuid and not each.dying), None)
    again = f"storkit guest adopt {guest.name} --config FILE"
    if domain is None or domain.ended:
        raise Conflict(f"domain {guest.name} has ended since it was looked at", again)
    own = set(openers.of_domain(domain.id))
    if any(not own & openers.earlier(run, disk.uuid) for disk in guest.disks if not disk.readonly):
        raise Conflict(f"domain {guest.name} was started again while it was adopted", again)
    return domain


def take(directory: Path, domain: XenDomain, taken: TakenGuest, machine: str) -> None:
    """Have a domain's disks at storkit's paths from its next boot on, here or elsewhere. Without them it is known, and
    defined anew before it starts."""
    guest = taken.guest
    if len(taken.disks) < len(guest.disks):
        definition = Definition(guest, [], machine, "", guest.machine)
        write_atomic(directory / RECORD, json.dumps(codec.dump(definition), indent=1) + "\n")
        return
    _readdress(domain, {disk.target: at.path for disk, at in zip(guest.disks, taken.disks, strict=True)})


def give_back(guests: XenGuests, guest: Guest) -> None:
    """Know nothing of a guest any more, whose domain goes on with its disks where its document has them.

    Raises Conflict: storkit has started it.
    """
    if any(process.guest == guest.name for process in guests.bringers(guest.name)):
        raise Conflict(f"guest {guest.name} was started by storkit here", f"storkit guest stop {guest.name}")
    targets = {disk.target for disk in guest.disks}
    before = {each.target: each.place for each in document.find_disks("xl", guest.document) if each.target in targets}
    for domain in toolstack.domains() if toolstack.is_dom0() else []:
        if domain.uuid == guest.uuid and not domain.dying:
            _readdress(domain, before)
    shutil.rmtree(guests.directory(guest.name), ignore_errors=True)
    shutil.rmtree(guests.moving(guest.name), ignore_errors=True)


def _readdress(domain: XenDomain, paths: Mapping[str, str]) -> None:
    """Put other paths in the place of a domain's disks, named as the domain names them."""
    with _locked(domain):
        config = _read(domain)
        for disk in config.get("disks", []):
            if disk.get("vdev") in paths:
                disk["pdev_path"] = paths[disk["vdev"]]
        write_atomic(_kept(domain), json.dumps(config, indent=4) + "\n\0")


def _places(config: Mapping[str, Any]) -> dict[str, str]:
    """Where a domain has its disks, by what it calls them; of an empty drive nothing."""
    disks = config.get("disks", [])
    if not isinstance(disks, list) or not all(isinstance(disk, dict) for disk in disks):
        raise Unsafe("libxl keeps what storkit does not understand of a domain", "xl list -l")
    return {str(disk.get("vdev")): str(disk["pdev_path"]) for disk in disks if disk.get("pdev_path")}


def _read(domain: XenDomain) -> dict[str, Any]:
    """What libxl keeps of a domain. Raises Unsafe: it is not where this Xen should have it."""
    try:
        found = json.loads(_kept(domain).read_text().rstrip("\0"))
        assert isinstance(found, dict)
        return found
    except (OSError, ValueError, AssertionError) as error:
        message = f"what libxl keeps of domain {domain.name} cannot be read: {error}"
        raise Unsafe(message, "shut it down, and adopt it then") from None


def _kept(domain: XenDomain) -> Path:
    return KEPT / f"userdata-d.{domain.id}.{domain.uuid}.libxl-json"


@contextmanager
def _locked(domain: XenDomain) -> Iterator[None]:
    """Keep libxl away from what it keeps of a domain: it gives the file another inode when it has done."""
    path = KEPT / f"userdata-l.{domain.id}.{domain.uuid}.domain-userdata-lock"
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                same = os.fstat(descriptor).st_ino == path.stat().st_ino
            except FileNotFoundError:
                same = False
            if same:
                yield
                path.unlink(missing_ok=True)
                return
        finally:
            os.close(descriptor)
