"""What xl's script does on three hosts with real hooks and a real manager; a xenstored and words stand for Xen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import pytest

from storkit.core.errors import Conflict, StorkitError, Unsupported
from storkit.hooks import xen
from storkit.hooks.engine import Hooks
from storkit.hooks.xen import XenHook, parse_path
from storkit.hooks.xenstore import Xenstore
from storkit.hypervisors._xl.processes import XlProcess
from storkit.hypervisors._xl.toolstack import XenDomain
from tests.e2e.hooked import INVENTORY, Hooked
from tests.e2e.world import World
from tests.xenstored import UUID, Daemon

pytestmark = pytest.mark.e2e
SAVED = "/root/g.save"


class XenHosts:
    """h1, h2 and h3, each with a xenstored, and a volume of the manager."""

    def __init__(self, hooked: Hooked, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hooked, self._patch = hooked, monkeypatch
        self.daemons = {name: Daemon(hooked.directory / f"{name}.xs") for name in ("h1", "h2", "h3")}
        # NBD in user space is no device; the block devices are the lab's.
        monkeypatch.setattr(xen, "device_number", lambda path: "fd:b" if path.is_symlink() else "")

    def close(self) -> None:
        for daemon in self.daemons.values():
            daemon.close()

    def call(
        self, host: str, kind: Literal["add", "remove"], domain: int, name: str, words: str,
        flags: str = "--p---", watches: bool = False,
    ) -> None:  # fmt: skip
        """xl calls its script."""
        daemon = self.daemons[host]
        daemon.domain(domain, name)
        place = f"/local/domain/0/backend/vbd/{domain}/51712"
        if f"{place}/params" not in daemon.keys:
            daemon.disk(domain, "v")
        process = XlProcess(9, ("xl", *words.split()), "", watches, "/root")
        self._patch.setattr(xen, "xl_above", lambda pid: process)
        self._patch.setattr(xen, "_listed", lambda number: XenDomain(name, domain, flags, UUID, 1.0))
        self._patch.setattr(xen, "_policies", lambda domain, uuid: {"on_reboot": "restart"})
        self._patch.setattr(xen, "Xenstore", lambda: Xenstore(daemon.place))
        content = self.hooked.content(host)
        self._patch.setattr(Hooks, "load", lambda file: Hooks(content))
        xen.hook(kind, place)
        if kind == "remove":
            daemon.keys.clear()


@pytest.fixture
def hosts(make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> Iterator[XenHosts]:
    hooked = Hooked(make_world(inventory=INVENTORY), monkeypatch)
    hooked.world.storkit("volume", "create", "v", "1MiB")
    found = XenHosts(hooked, monkeypatch)
    yield found
    found.close()


def test_a_guest_starts_moves_sleeps_wakes_and_ends(hosts: XenHosts) -> None:
    hooked = hosts.hooked
    hosts.call("h1", "add", 1, "g", "create g.cfg")
    assert hooked.rights() == {"h1": True}
    with pytest.raises(Conflict, match="written by h1"):
        hosts.call("h2", "add", 1, "g", "create g.cfg")
    hosts.call("h2", "remove", 1, "g", "create g.cfg")
    assert hooked.rights() == {"h1": True} and not hooked.attached("h2")
    # it reboots
    hosts.call("h1", "remove", 1, "g", "create g.cfg", "--psr-", watches=True)
    assert hooked.rights() == {"h1": True} and hooked.attached("h1")
    hosts.call("h1", "add", 2, "g", "create g.cfg", watches=True)
    # it moves, the second time
    hosts.call("h2", "add", 1, "g--incoming", "migrate-receive")
    hosts.call("h2", "remove", 1, "g--incoming", "migrate-receive")
    assert hooked.rights() == {"h1": True} and not hooked.attached("h2")
    hosts.call("h2", "add", 1, "g--incoming", "migrate-receive")
    assert hooked.rights() == {"h1": True, "h2": True}
    hosts.call("h1", "remove", 2, "g--migratedaway", "migrate g h2", "--pss-")
    assert hooked.rights() == {"h2": True} and not hooked.attached("h1")
    # it sleeps, and wakes up elsewhere
    hosts.call("h2", "remove", 1, "g", f"save g {SAVED}", "--pss-")
    assert hooked.rights() == {} and not hooked.attached("h2")
    with pytest.raises(Conflict, match="sleeps on volume v"):
        hosts.call("h3", "add", 1, "g", "create g.cfg")
    hosts.call("h1", "add", 3, "g", f"restore {SAVED}")
    assert hooked.rights() == {"h1": True}
    with pytest.raises(StorkitError, match="no guest sleeps on volume v"):
        hosts.call("h2", "add", 4, "g", f"restore {SAVED}")
    hosts.call("h1", "remove", 3, "g", f"restore {SAVED}", "--ps--", watches=True)
    assert hooked.rights() == {} and not hooked.attached("h1")


def test_between_prepare_and_finish_no_second_guest_starts(hosts: XenHosts) -> None:
    """The disk is attached and writable on both hosts, and no plan is under way."""
    hooked = hosts.hooked
    hosts.call("h1", "add", 1, "g", "create g.cfg")
    hooked.enter("h2", "arrive")
    with pytest.raises(Conflict, match="written by h1"):
        hosts.call("h2", "add", 1, "g", "create g.cfg")
    assert hooked.rights() == {"h1": True, "h2": True} and hooked.attached("h2")
    hosts.call("h2", "add", 2, "g--incoming", "migrate-receive")


def test_a_wake_of_which_another_disk_fails_is_a_sleep_again(hosts: XenHosts) -> None:
    hosts.call("h1", "add", 1, "g", "create g.cfg")
    hosts.call("h1", "remove", 1, "g", f"save g {SAVED}", "--pss-")
    hosts.call("h2", "add", 1, "g", f"restore {SAVED}")
    never_ran = XenDomain("g", 1, "--p---", UUID, 0.0)
    monkey = hosts._patch
    daemon = hosts.daemons["h2"]
    monkey.setattr(xen, "_listed", lambda number: never_ran)
    with Hooks(hosts.hooked.content("h2")) as hooks:
        disk = xen._read(Xenstore(daemon.place), parse_path("backend/vbd/1/51712"))
        XenHook(hooks, Xenstore(daemon.place), disk).run("remove")
    assert hosts.hooked.rights() == {}
    hosts.call("h3", "add", 1, "g", f"restore {SAVED}")
    assert hosts.hooked.rights() == {"h3": True}


def test_what_is_no_block_device_is_given_back(hosts: XenHosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xen, "device_number", lambda path: "")
    with pytest.raises(Unsupported, match="no block device"):
        hosts.call("h1", "add", 1, "g", "create g.cfg")
    assert hosts.hooked.rights() == {} and not hosts.hooked.attached("h1")
