"""Hosts that a person has declared to be off: verbs of the target `host`, carried out where the word is kept.

Where no storage can cut a host off, somebody who has seen it without power says so: `storkit fence HOST
--confirmed-off`. The word is kept by the hosts that answered then. It counts for as long as that host is silent, and
until `storkit unfence HOST`.
"""

from __future__ import annotations

import time

from storkit.core.backend import Site
from storkit.core.errors import raise_problems
from storkit.core.host import Declared
from storkit.core.identities import ClientName, HostName, Line
from storkit.tech.grants import check_host_slug, host_slug
from storkit.tech.records import RecordFiles


def _records(site: Site) -> RecordFiles[Declared]:
    return RecordFiles(site.state / "off", Declared, "the record of a host that is off", check_host_slug)


def declare_off(site: Site, client: ClientName, by: Line, keepers: list[HostName]) -> Declared:
    """Keep the word of `by` that host `client` is off, durably."""
    declared = Declared(client, by, time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()), keepers)
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
