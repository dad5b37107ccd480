"""What persons have said of hosts: verbs of the target `host`, carried out where the word is kept.

Where no storage can cut a host off, somebody who has seen it without power says so: `storkit fence HOST
--confirmed-off`. The word is kept by the hosts that answered then. It counts for as long as that host is silent, and
until `storkit unfence HOST`.

A host that is to be worked on takes no guests: `storkit host drain HOST`. It keeps this word itself, also when it is
restarted, until `storkit host undrain HOST`.
"""

from __future__ import annotations

import time

from storkit.core.backend import Site
from storkit.core.errors import UsageError, raise_problems
from storkit.core.host import Declared, Drained
from storkit.core.identities import ClientName, HostName, Line
from storkit.tech.grants import check_host_slug, host_slug
from storkit.tech.records import RecordFiles


def _records(site: Site) -> RecordFiles[Declared]:
    return RecordFiles(site.state / "off", Declared, "the record of a host that is off", check_host_slug)


_THIS = "this"
"""The one record of a host's own."""


def _own(site: Site) -> RecordFiles[Drained]:
    return RecordFiles(site.state / "drained", Drained, "the record that this host takes no guests", _only_this)


def _only_this(name: str) -> None:
    if name != _THIS:
        raise UsageError(f"{name!r} is no record of this host itself", "storkit host list")


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


def declare_off(site: Site, client: ClientName, by: Line, keepers: list[HostName]) -> Declared:
    """Keep the word of `by` that host `client` is off, durably."""
    declared = Declared(client, by, _now(), keepers)
    _records(site).save({host_slug(client): declared})
    return declared


def withdraw_off(site: Site, client: ClientName) -> None:
    """Forget that `client` was declared off; nobody said so is fine."""
    _records(site).forget([host_slug(client)])


def find_off(site: Site) -> list[Declared]:
    """Every host that was declared off here."""
    found, problems = _records(site).find()
    raise_problems(problems)
    return list(found.values())


def drain(site: Site, by: Line) -> Drained:
    """Keep the word of `by` that this host takes no guests, durably; an earlier one stays as it is."""
    for earlier in find_drained(site):
        return earlier
    drained = Drained(by, _now())
    _own(site).save({_THIS: drained})
    return drained


def undrain(site: Site) -> None:
    """Forget that this host takes no guests; nobody said so is fine."""
    _own(site).forget([_THIS])


def find_drained(site: Site) -> list[Drained]:
    """The word that this host takes no guests, if somebody has said so."""
    found, problems = _own(site).find()
    raise_problems(problems)
    return list(found.values())
