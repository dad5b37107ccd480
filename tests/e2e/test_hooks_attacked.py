"""A host's bound key in hostile hands: whatever it asks for beyond its own right is refused, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from storkit.core import calls
from storkit.core.host import Claim
from storkit.hosts import accept
from storkit.hosts.accept import GuestHost
from storkit.hosts.guard import Guard
from storkit.hosts.remote import wire
from storkit.hosts.setup import Setup
from storkit.hosts.site import site
from storkit.system.timeouts import VARIABLE
from tests.e2e.hooked import DISK, GUEST, INVENTORY, Hooked
from tests.e2e.pipe import Pipe
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

ENTER = {"names": ["v"], "guest": "g", "uuid": GUEST.uuid, "why": "start"}
HOLD = {"names": ["v"], "guest": "g", "uuid": GUEST.uuid, "file": "/x"}


@pytest.fixture
def hooked(make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> Hooked:
    """h1 writes v; `secret` is outside the policy of all of them."""
    made = Hooked(make_world(inventory=INVENTORY), monkeypatch)
    for name in ("v", "secret"):
        made.world.storkit("volume", "create", name, "1MiB")
    made.enter("h1")
    return made


def refused(answer: dict[str, Any]) -> str:
    assert "error" in answer, answer
    assert "bug" not in answer["error"]["message"]
    return f"{answer['error']['kind']}: {answer['error']['message']}"


def every_other_request() -> list[dict[str, Any]]:
    """All that the contracts have beside the hooks' own verbs."""
    targets = {"pool": "pool:default", "transport": "transport:nbd", "hypervisor": "hypervisor:qemu"}
    return [
        {"do": verb} if kind == "agent" else
        {"do": "call", "target": targets.get(kind, kind), "verb": verb, "args": {}}
        for kind in calls.CONTRACTS if kind != "hook"
        for verb in sorted(calls.verbs(kind))
    ]  # fmt: skip


def test_nothing_but_the_hooks_verbs_is_done(hooked: Hooked) -> None:
    before = hooked.kept()
    more: list[dict[str, Any]] = [
        {}, {"do": None}, {"do": 7}, {"do": ["call"]}, {"do": "__init__"},
        {"do": "call", "target": "hook:x", "verb": "enter", "args": ENTER},
        {"do": "call", "target": ["hook"], "verb": "enter", "args": ENTER},
        {"do": "call", "target": "pool:default", "verb": "find", "args": {}, "for": "h1"},
    ]  # fmt: skip
    with hooked.agent("h2") as agent:
        for request in [*every_other_request(), *more]:
            assert refused(agent.ask(**request)).startswith("not-allowed: the key of host h2 is for its hooks alone")
        assert refused(agent.call("hook", "set_writers", names=["v"])).startswith("unsupported: there is no hook")
        assert refused(agent.call("hook", "__init__", names=["v"])).startswith("unsupported: there is no hook")
    assert hooked.kept() == before and hooked.rights() == {"h1": True}


def test_nothing_of_another_is_taken_held_or_given(hooked: Hooked) -> None:
    before = hooked.kept()
    with hooked.agent("h2") as agent:
        assert "is written by h1" in refused(agent.call("hook", "enter", **ENTER))
        assert "no guest sleeps" in refused(agent.call("hook", "enter", **{**ENTER, "why": "wake"}))
        assert "not by h2 alone" in refused(agent.call("hook", "hold", **HOLD))
        for why in ("moved", "ended", "failed", "unknown"):
            assert agent.call("hook", "leave", names=["v"], why=why)["result"] is None
        assert agent.call("hook", "woken", names=["v"], uuid=GUEST.uuid)["result"] is None
        for claim in ({"client": "h1"}, {"host": "h1"}, {"address": "10.0.0.1"}, {"clients": ["h1"]}):
            assert "unknown argument" in refused(agent.call("hook", "enter", **ENTER, **claim))
            assert "unknown argument" in refused(agent.call("hook", "leave", names=["v"], why="moved", **claim))
    assert hooked.kept() == before and hooked.rights() == {"h1": True} and hooked.attached("h1")


def test_a_sleep_of_another_host_s_guest_is_not_ended(hooked: Hooked) -> None:
    with hooked.hooks("h1") as hooks:
        hooks.hold(DISK, GUEST, "/var/g.save")
    before = hooked.kept()
    other = GUEST.uuid.replace("1", "8")
    with hooked.agent("h2") as agent:
        for uuid in (other, ""):
            assert "and not this one" in refused(agent.call("hook", "enter", **{**ENTER, "why": "wake", "uuid": uuid}))
        assert "cannot be woken up for another guest" in refused(agent.call("hook", "woken", names=["v"], uuid=other))
        assert "not by h2 alone" in refused(agent.call("hook", "woken", names=["v"], uuid=GUEST.uuid))
        assert "cannot be held for guest g as well" in refused(agent.call("hook", "hold", **{**HOLD, "uuid": other}))
        assert GUEST.uuid not in str(agent.call("hook", "enter", **{**ENTER, "why": "wake", "uuid": other}))
    assert hooked.kept() == before


def test_names_beyond_the_policy_are_refused_as_if_there_were_none(hooked: Hooked) -> None:
    """The same words for a volume that is there and for one that is not."""
    before = hooked.kept()
    with hooked.agent("h2") as agent:
        said = {
            name: refused(agent.call("hook", verb, **args)).replace(name, "NAME")
            for name in ("secret", "nothing")
            for verb, args in (
                ("enter", {**ENTER, "names": [name]}),
                ("enter", {**ENTER, "names": [name], "read_only": True}),
                ("hold", {**HOLD, "names": [name]}),
                ("leave", {"names": [name], "why": "moved"}),
                ("may_leave", {"names": [name], "why": "moved"}),
                ("woken", {"names": [name], "uuid": GUEST.uuid}),
            )
        }
        assert said["secret"] == said["nothing"] == "not-allowed: host h2 may not have a volume NAME of host a"
        for name in ("../v", "v/../secret", "default/v", "*", "v*", "", "v\n", "x" * 64, "/etc/shadow", "v\0", ".."):
            assert refused(agent.call("hook", "enter", **{**ENTER, "names": [name]})).startswith("usage")
        for names in ([], [f"v{number}" for number in range(65)], ["v"] * 10000 + ["secret"]):
            assert refused(agent.call("hook", "enter", **{**ENTER, "names": names})).startswith(
                ("usage", "not-allowed")
            )
    assert hooked.kept() == before


def test_the_policy_binds_a_window_too(hooked: Hooked) -> None:
    hooked.admit({"h1": GuestHost(["default/v"], "127.0.0.1"), "h2": GuestHost(["*/w*", "oth*/*"], "127.0.0.1")})
    before = hooked.kept()
    with hooked.agent("h2") as agent:
        assert "may not have a volume v" in refused(agent.call("hook", "enter", **{**ENTER, "why": "arrive"}))
    assert hooked.kept() == before
    with hooked.agent("h3") as agent:
        assert "admits no hooks of host h3" in refused(agent.welcome)


def test_what_is_malformed_or_huge_is_refused(hooked: Hooked) -> None:
    before = hooked.kept()
    wrong: list[dict[str, Any]] = [
        {"why": "destroy"}, {"why": ["start"]}, {"guest": "../g"}, {"guest": ""}, {"guest": "g" * 100},
        {"uuid": "no uuid"}, {"uuid": GUEST.uuid.upper() + "\n"}, {"names": "v"}, {"names": {"v": 1}}, {"names": None},
        {"read_only": "yes"}, {"names": [["v"]]}, {"names": [7]},
    ]  # fmt: skip
    with hooked.agent("h2") as agent:
        for each in wrong:
            assert refused(agent.call("hook", "enter", **{**ENTER, **each})).startswith("usage"), each
        assert refused(agent.call("hook", "hold", **{**HOLD, "file": "/x\n\x1b[2J"})).startswith("usage")
        assert refused(agent.ask(do="call", target="hook", verb="enter", args=[1])).startswith("usage")
        assert refused(agent.ask(do="call", target="hook", verb=["enter"], args={})).startswith(
            ("usage", "not-allowed")
        )
        assert refused(agent.ask(do="call", target="hook", verb="enter", args={}, epoch="9")).startswith("usage")
        deep: Any = "v"
        for _ in range(200):
            deep = [deep]
        assert refused(agent.call("hook", "enter", **{**ENTER, "names": deep})).startswith("usage")
        huge = refused(agent.call("hook", "enter", **{**ENTER, "guest": "g" * wire.HOOK_LINE_MAX}))
        assert "not the agent's protocol: a line of more than 256 KiB" in huge
    with hooked.agent("h2") as agent:
        assert agent.call("hook", "may_leave", names=["v"], why="ended")["result"] == ["v"]
    assert hooked.kept() == before


def test_what_the_hello_says_is_not_believed(hooked: Hooked) -> None:
    """Neither names, nor pools, nor places: they are the manager's own."""
    evil = str(hooked.directory / "evil")
    setup = {
        "host": "h1", "address": "10.6.6.6", "state": evil, "templates": evil,
        "pools": {"default": {"type": "directory", "settings": {"path": evil}}},
        "transports": {"nbd": {"tls_dir": evil}}, "served_by": ["transport:nbd"],
    }  # fmt: skip
    before = hooked.kept()
    with hooked.agent("h2", **setup) as agent:
        assert "is written by h1" in refused(agent.call("hook", "enter", **ENTER))
        assert agent.call("hook", "may_leave", names=["v"], why="ended")["result"] == ["v"]
    assert hooked.kept() == before and not (hooked.directory / "evil").exists()


def test_keys_that_are_bound_to_nobody_have_no_hooks(hooked: Hooked) -> None:
    before = hooked.kept()
    for options in ((), ("--grade", "guests"), ("--grade", "read")):
        with Pipe({"host": "a"}, *options, "--file", str(hooked.file)) as agent:
            assert refused(agent.call("hook", "enter", **ENTER)).startswith("not-allowed")
    with Pipe({"host": "a"}, "--for", "h2", "--file", str(hooked.directory / "none.toml")) as agent:
        assert "admits no hooks of host h2" in refused(agent.welcome)
    accept.save(hooked.file, accept.Accepted(host="a"))
    with hooked.agent("h1") as agent:
        assert "admits no hooks of host h1" in refused(agent.welcome)
    assert hooked.kept() == before


def test_a_lock_of_another_is_respected(hooked: Hooked, monkeypatch: pytest.MonkeyPatch) -> None:
    """While somebody has the volume, nothing of it is told or changed."""
    monkeypatch.setenv(VARIABLE, "0.1")
    uuid = hooked.world.storkit("--json", "volume", "show", "v").json["uuid"]
    guard = Guard(site(Setup("a", state=str(hooked.directory / "a"))))
    taken, _ = guard.lock([Claim([uuid])], "a coordinator")
    before = hooked.kept()
    try:
        with hooked.agent("h2") as agent:
            for verb, args in (("may_leave", {"names": ["v"], "why": "ended"}), ("enter", {**ENTER, "why": "arrive"})):
                assert "is locked by a coordinator" in refused(agent.call("hook", verb, **args))
    finally:
        for lock in taken:
            lock.release(remove=True)
    assert hooked.kept() == before
