"""The hooks of three hosts, each with a key that is bound to it: who is let in, who leaves, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from storkit.core.errors import Conflict, HostUnreachable, NotAllowed, StorkitError, Unsafe, Unsupported
from storkit.hooks.engine import GuestDisk, GuestId, Hooks
from storkit.hosts.accept import GuestHost
from tests.e2e.hooked import DISK, GUEST, INVENTORY, Hooked
from tests.e2e.world import World

pytestmark = pytest.mark.e2e


@pytest.fixture
def hooked(make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> Hooked:
    made = Hooked(make_world(inventory=INVENTORY), monkeypatch)
    made.world.storkit("volume", "create", "v", "1MiB")
    return made


def test_a_guest_starts_moves_and_ends(hooked: Hooked) -> None:
    hooked.enter("h1")
    assert hooked.rights() == {"h1": True} and hooked.attached("h1")
    with pytest.raises(Conflict, match="volume v is written by h1"):
        hooked.enter("h2")
    assert hooked.rights() == {"h1": True} and not hooked.attached("h2")
    hooked.enter("h2", "arrive")
    assert hooked.rights() == {"h1": True, "h2": True} and hooked.attached("h2")
    with pytest.raises(Conflict, match="written by h1 and h2: no third host is let in"):
        hooked.enter("h3", "arrive")
    hooked.leave("h1", "moved")
    assert hooked.rights() == {"h2": True} and not hooked.attached("h1")
    hooked.leave("h1", "moved")
    hooked.leave("h2")
    hooked.leave("h2")
    assert hooked.rights() == {} and not hooked.attached("h2")


def test_what_is_attached_and_writable_asks_nobody(hooked: Hooked) -> None:
    hooked.enter("h1")
    before = hooked.grants()
    (hooked.binaries / "ssh").write_text("#!/bin/sh\nexit 255\n")
    hooked.enter("h1")
    hooked.enter("h1", "arrive")
    with pytest.raises(HostUnreachable):
        hooked.enter("h2", "arrive")
    assert hooked.grants() == before


def test_nobody_arrives_where_nobody_writes(hooked: Hooked) -> None:
    with pytest.raises(Conflict, match="nobody writes volume v"):
        hooked.enter("h1", "arrive")
    assert hooked.rights() == {}


def test_a_guest_sleeps_and_wakes_elsewhere_once(hooked: Hooked) -> None:
    hooked.enter("h1")
    with hooked.hooks("h1") as hooks:
        hooks.hold(DISK, GUEST, "/var/g.save")
    assert hooked.rights() == {} and not hooked.attached("h1")
    hold = hooked.world.storkit("--json", "volume", "show", "v").json["hold"]
    assert (hold["guest"], hold["host"], hold["file"]) == (GUEST.uuid, "h1", "/var/g.save")
    for why in ("start", "arrive"):
        with pytest.raises(StorkitError, match="guest g sleeps on volume v"):
            hooked.enter("h2", why)
    other = GuestId("other", GUEST.uuid.replace("1", "9"))
    for stranger in (other, GuestId("g")):
        with pytest.raises(Conflict, match="and not this one"):
            hooked.enter("h2", "wake", guest=stranger)
    assert hooked.rights() == {}
    hooked.enter("h2", "wake")
    assert hooked.rights() == {"h2": True} and hooked.attached("h2")
    assert hooked.world.storkit("--json", "volume", "show", "v").json["hold"] is None
    with pytest.raises(Conflict, match="no guest sleeps on volume v"):
        hooked.enter("h2", "wake")
    hooked.leave("h2")


def test_a_guest_that_does_not_wake_up_after_all_sleeps_on(hooked: Hooked) -> None:
    hooked.enter("h1")
    with hooked.hooks("h1") as hooks:
        hooks.hold(DISK, GUEST, "/var/g.save")
    with hooked.hooks("h2") as hooks:
        hooks.enter(DISK, GUEST, "wake")
        hooks.leave(DISK, GUEST, "failed")
    assert hooked.rights() == {} and not hooked.attached("h2")
    hooked.enter("h3", "wake")
    assert hooked.rights() == {"h3": True}


def test_a_host_may_hold_only_what_it_alone_writes(hooked: Hooked) -> None:
    hooked.enter("h1")
    hooked.enter("h2", "arrive")
    before = hooked.kept()
    with hooked.hooks("h1") as hooks, pytest.raises(Conflict, match="written by h1, h2, and not by h1 alone"):
        hooks.hold(DISK, GUEST, "/var/g.save")
    with hooked.hooks("h3") as hooks, pytest.raises(Conflict, match="not by h3 alone"):
        hooks.hold(DISK, GUEST, "/var/g.save")
    assert hooked.kept() == before and hooked.attached("h1")


def test_all_disks_or_none(hooked: Hooked) -> None:
    hooked.world.storkit("volume", "create", "v2", "1MiB")
    hooked.world.storkit("volume", "create", "other", "1MiB")
    hooked.enter("h1", disks=[GuestDisk("v2")])
    both = [GuestDisk("v"), GuestDisk("v2"), GuestDisk("other")]
    with pytest.raises(NotAllowed, match="host h2 may not have a volume other of host a"):
        hooked.enter("h2", disks=both)
    with pytest.raises(Conflict, match="volume v2 is written by h1"):
        hooked.enter("h2", disks=both[:2])
    assert hooked.rights() == {} and hooked.rights("v2") == {"h1": True}
    hooked.enter("h2", disks=[GuestDisk("v"), GuestDisk("v2", read_only=True)])
    assert hooked.rights() == {"h2": True} and hooked.rights("v2") == {"h1": True, "h2": False}
    hooked.leave("h2", disks=both[:2])
    assert hooked.rights() == {} and hooked.rights("v2") == {"h1": True}


def test_what_cannot_be_attached_is_given_back(hooked: Hooked) -> None:
    """Here: the manager sends the host elsewhere than to itself."""
    hooked.admit({"h2": GuestHost(["default/*"], "127.0.0.1")})
    content = hooked.content("h2")
    content.managers["a"].addresses[:] = ["10.9.9.9"]
    with Hooks(content) as hooks, pytest.raises(Unsafe, match="sends host h2 to 127"):
        hooks.enter(DISK, GUEST, "start")
    assert hooked.rights() == {} and not hooked.attached("h2")


def test_a_disk_that_is_no_device_is_given_back_where_one_is_wanted(hooked: Hooked) -> None:
    with pytest.raises(Unsupported, match="the guest wants a block device"):
        hooked.enter("h1", disks=[GuestDisk("v", device=True)])
    assert hooked.rights() == {} and not hooked.attached("h1")


def test_a_right_that_was_given_and_not_used_is_found_again(hooked: Hooked) -> None:
    """The hook was killed between the manager's answer and its attach."""
    with hooked.agent("h1") as agent:
        said = agent.call("hook", "enter", names=["v"], guest="g", uuid="", why="start", read_only=False)
        assert said["result"]["given"] == ["v"]
    assert hooked.rights() == {"h1": True} and not hooked.attached("h1")
    hooked.enter("h1")
    assert hooked.attached("h1")
    hooked.leave("h1")
    with hooked.agent("h1") as agent:
        agent.call("hook", "enter", names=["v"], guest="g", uuid="", why="start")
    hooked.world.storkit("detach", "v", "--on", "h1")
    assert hooked.rights() == {}


def test_a_plan_that_has_not_ended_keeps_hooks_out_and_disks_where_they_are(hooked: Hooked) -> None:
    hooked.enter("h1")
    uuid = hooked.world.storkit("--json", "volume", "show", "v").json["uuid"]
    pending = hooked.directory / "a/pending"
    pending.mkdir(mode=0o700, exist_ok=True)
    mark = pending / "p1.json"
    mark.write_text(f'{{"plan": "p1", "names": ["{uuid}"], "title": "migrate g", "coordinator": "c"}}')
    with pytest.raises(Conflict, match="plan p1"):
        hooked.enter("h2", "arrive")
    hooked.leave("h1", "moved")
    with hooked.hooks("h1") as hooks:
        hooks.hold(DISK, GUEST, "/var/g.save")
        hooks.enter(DISK, GUEST, "wake")
    assert hooked.rights() == {"h1": True} and hooked.attached("h1")
    mark.unlink()
    hooked.leave("h1")
    assert hooked.rights() == {}


def test_a_fenced_host_is_not_let_in(hooked: Hooked) -> None:
    hooked.world.storkit("fence", "h2")
    with pytest.raises(Unsafe, match="host h2 is fenced"):
        hooked.enter("h2")
    assert hooked.rights() == {}


def test_an_image_is_read_and_never_written(hooked: Hooked) -> None:
    hooked.world.storkit("volume", "snapshot", "v", "v-snap")
    with pytest.raises(Unsafe, match="v-snap is a snapshot: nobody writes it"):
        hooked.enter("h2", disks=[GuestDisk("v-snap")])
    hooked.enter("h2", disks=[GuestDisk("v-snap", read_only=True)])
    assert hooked.rights("v-snap") == {"h2": False}
