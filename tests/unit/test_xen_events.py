"""What follows from each call of Xen's hotplug script: all that were seen on Xen 4.17, and their neighbours."""

from __future__ import annotations

from dataclasses import replace

import pytest

from storkit.hooks.xenevents import Act, Enter, Keep, Leave, PutToSleep, XenEvent, decide
from storkit.hypervisors._xl.processes import XlProcess
from storkit.hypervisors._xl.toolstack import XenDomain

UUID = "6d4e1bb0-1f0c-4d53-9f5a-7a3c9c8f0001"
KEEP = Keep("any")


def xl(line: str, watches: bool = False) -> XlProcess:
    return XlProcess(7, ("/usr/lib/xen-4.17/bin/xl", *line.split()), "", watches, "/root")


def domain(flags: str, seconds: float = 3.1) -> XenDomain:
    return XenDomain("g1", 4, flags, UUID, seconds)


CREATE, WATCHER = xl("create /etc/xen/g1.cfg"), xl("create /etc/xen/g1.cfg", watches=True)
RESTORED = xl("restore g1.save", watches=True)
RECEIVED = xl("migrate-receive", watches=True)


@pytest.mark.parametrize(
    ("name", "caller", "act"),
    [
        ("g1", CREATE, Enter("start", ask=True)),
        ("g1", xl("-v cr -q g1.cfg"), Enter("start", ask=True)),
        ("g1", xl("block-attach g1 script=block-storkit,vdev=xvdb,target=data"), Enter("start", ask=True)),
        ("g1--incoming", xl("migrate-receive"), Enter("arrive")),
        ("g1--incoming", xl("migrate-receive -p"), Enter("arrive")),
        ("g1--incoming", None, Enter("arrive")),
        ("g1", xl("restore g1.save"), Enter("wake", ask=True)),
        ("g1", xl("rest -p g1.cfg g1.save"), Enter("wake", ask=True)),
        # a guest that reboots is built anew by the xl that has built it before
        ("g1", WATCHER, Enter("start")),
        ("g1", RESTORED, Enter("start")),
        ("g1", RECEIVED, Enter("start")),
        # libvirt, or an xl that has ended: a guest that sleeps is refused by its hold
        ("g1", None, Enter("start", ask=True)),
        # storkit's own, whose plan has the volume
        ("g1", replace(CREATE, guest="g1"), Enter("start")),
    ],
)
def test_add(name: str, caller: XlProcess | None, act: Act) -> None:
    assert decide(XenEvent("add", name, caller)) == act


POLICIES = {"on_reboot": "restart", "on_soft_reset": "soft_reset"}


@pytest.mark.parametrize(
    ("name", "caller", "seen", "act"),
    [
        ("g1--migratedaway", xl("migrate g1 h2"), domain("--pss-"), Leave("moved")),
        ("g1--migratedaway", xl("migrate g1 h2"), None, Leave("moved")),
        ("g1--migratedaway", xl("destroy g1--migratedaway"), domain("---ss-"), Leave("moved")),
        ("g1--incoming", xl("migrate-receive"), domain("--p---", 0), Leave("failed")),
        ("g1--incoming", xl("destroy g1--incoming"), domain("--p---", 0), Leave("failed")),
        ("g1--incoming", None, None, Leave("failed")),
        ("g1", xl("destroy g1"), domain("--p---"), Leave("ended")),
        ("g1", xl("des g1"), domain("--psc-"), Leave("ended")),
        ("g1", xl("destroy g1"), domain("--pss-"), Leave("ended")),
        ("g1", xl("destroy g1"), None, Leave("ended")),
        ("g1", xl("block-detach g1 xvdb"), domain("-b----"), Leave("ended")),
        ("g1", xl("save g1 /srv/g1.save"), domain("--pss-"), PutToSleep("/srv/g1.save")),
        ("g1", xl("save -p 4 g1.save"), domain("---ss-"), PutToSleep("/root/g1.save")),
        ("g1", xl("save g1 g1.save g1.cfg"), None, PutToSleep("/root/g1.save")),
        # it crashed or shut down under the save
        ("g1", xl("save g1 g1.save"), domain("--psc-"), KEEP),
        ("g1", xl("save g1 g1.save"), domain("--ps--"), KEEP),
        # the xl that watches over it
        ("g1", WATCHER, domain("--psr-"), KEEP),
        ("g1", RESTORED, domain("--psr-"), KEEP),
        ("g1", RECEIVED, domain("--psr-"), KEEP),
        ("g1", WATCHER, domain("--psS-"), KEEP),
        ("g1", WATCHER, domain("--ps--"), Leave("ended")),
        ("g1", RECEIVED, domain("--ps--"), Leave("ended")),
        ("g1", WATCHER, domain("--psc-"), Leave("ended")),
        ("g1", WATCHER, domain("--psw-"), Leave("ended")),
        ("g1", WATCHER, domain("--pss-"), KEEP),
        ("g1", WATCHER, domain("--ps?-"), KEEP),
        ("g1", WATCHER, domain("--p---"), KEEP),
        ("g1", WATCHER, None, KEEP),
        # with -F it stays in the foreground
        ("g1", xl("create -F g1.cfg"), domain("--psr-"), KEEP),
        ("g1", xl("create -F g1.cfg"), domain("--ps--"), Leave("ended")),
        # another disk could not be had: the guest has never run
        ("g1", CREATE, domain("--p---", 0), Leave("failed")),
        ("g1", xl("restore g1.save"), domain("--p---", 0), PutToSleep("/root/g1.save")),
        ("g1", xl("migrate-receive"), domain("--p---", 0), Leave("failed")),
        ("g1", CREATE, None, KEEP),
        ("g1", xl("migrate g1 h2"), domain("--pss-"), KEEP),
        ("g1", xl("shutdown g1"), domain("--p---"), KEEP),
        ("g1", None, domain("--pss-"), KEEP),
        ("g1", None, domain("--p---"), KEEP),
        ("", None, None, KEEP),
    ],
)
def test_remove(name: str, caller: XlProcess | None, seen: XenDomain | None, act: Act) -> None:
    found = decide(XenEvent("remove", name, caller, seen, POLICIES))
    assert found == act or (isinstance(act, Keep) and isinstance(found, Keep))


@pytest.mark.parametrize(
    ("flags", "policies", "act"),
    [
        ("--psc-", {"on_crash": "restart"}, KEEP),
        ("--psc-", {"on_crash": "coredump_restart"}, KEEP),
        ("--psc-", {"on_crash": "rename_restart"}, KEEP),
        ("--psc-", {"on_crash": "preserve"}, KEEP),
        ("--psc-", {"on_crash": "coredump_destroy"}, Leave("ended")),
        ("--psc-", {"on_crash": "something new"}, KEEP),
        ("--psr-", {}, Leave("ended")),
        ("--ps--", {"on_poweroff": "restart"}, KEEP),
        ("--psw-", {"on_watchdog": "restart"}, KEEP),
        ("--ps--", None, KEEP),
    ],
)
def test_how_it_ended_counts_as_its_configuration_says(flags: str, policies: dict[str, str] | None, act: Act) -> None:
    found = decide(XenEvent("remove", "g1", WATCHER, domain(flags), policies))
    assert found == act or (isinstance(act, Keep) and isinstance(found, Keep))


def test_an_add_that_failed_has_nothing_to_remove() -> None:
    failed = XenEvent("remove", "g1", xl("destroy g1"), domain("--p---"), POLICIES, connected=False)
    assert isinstance(decide(failed), Keep)
    assert decide(replace(failed, cut_short="start")) == Leave("failed")
    woke = replace(failed, xl=xl("restore g1.save"), cut_short="wake")
    assert decide(woke) == PutToSleep("/root/g1.save")
    # whatever its name: the source still has it
    assert isinstance(decide(replace(failed, name="g1--incoming")), Keep)


def test_a_name_is_its_guests() -> None:
    for name in ("g1", "g1--incoming", "g1--migratedaway"):
        assert XenEvent("add", name, None).guest == "g1"
