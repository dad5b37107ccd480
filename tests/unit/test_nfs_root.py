"""Guests with a tree for their root: what their records may say, what their kernels are told, what plans do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storkit.core import inventory
from storkit.core.errors import Conflict, Problems, StorkitError, Unsafe, UsageError
from storkit.core.guest import Boot, Disk, Guest, Nic, Root
from storkit.core.model import Client, Export, Volume, guest_client, guest_of
from storkit.guests import files
from storkit.guests.check import MIB, check
from storkit.guests.clone import clone
from storkit.guests.parse import read_root
from storkit.guests.render import FILES, render
from storkit.plans import migration
from storkit.plans.guests import running
from storkit.plans.migration import GuestView
from storkit.plans.plan import Plan
from storkit.plans.verbs.exports import client
from storkit.tech.nfs import rules, server
from storkit.tech.nfs.names import NfsClientGrant, NfsGrant, NfsSettings
from storkit.tech.nfs.server import Entry

UUID = "0f1d0c2e-5a44-4f7c-9d53-3c1a4b6f2f10"
TREE = "6f9d6a70-3d19-4a0e-9f5b-02a3f6b1c7aa"
ROOT = Root("web", "10.0.1.50/24", uuid=TREE, server="10.0.9.1", path="/srv/guests/web.tree/root")
WEB = Guest("web", UUID, 512 * MIB, boot=Boot("/srv/vmlinuz", "/srv/initrd", "quiet"), root=ROOT, nics=[Nic("br0")])
VOLUME = Volume("web", TREE, 4096, "guests", "s", "tree", "tree", "/srv/guests/web.tree/root")
HOSTS = """\
[hosts.a]
url = "ssh://a"
[hosts.b]
url = "ssh://b"
[hosts.s]
url = "ssh://s"
address = "10.0.9.1"
[pools.guests]
host = "s"
type = "nfs"
"""
INVENTORY = inventory.parse(HOSTS, Path("inventory.toml"))


def subject(places: dict[str, str], exported: bool, *disks: Disk, **more: Any) -> GuestView:
    exports = [Export("web", TREE, "guest:web", True, "nfs", True)] if exported else []
    guest = replace(WEB, disks=list(disks))
    return GuestView(guest, [], [], places, INVENTORY, root=VOLUME, root_exports=exports, **more)


def shown(plan: Plan) -> list[str]:
    return [f"{step.host} {step.verb}" for step in plan.steps]


@pytest.mark.parametrize("kind", FILES)
def test_every_hypervisors_configuration_has_the_whole_command_line(kind: str) -> None:
    guest = replace(WEB, nics=[]) if kind == "uml" else WEB
    text = render(guest, [], kind)
    for word in ("quiet", "root=/dev/nfs", "nfsroot=10.0.9.1:/srv/guests/web.tree/root,vers=4.2,tcp",
                 "ip=10.0.1.50:10.0.9.1::255.255.255.0:web::off", f"nfs.nfs4_unique_id={UUID}", "rw"):  # fmt: skip
        assert word in text.replace('"', " ").replace("<", " ").replace(">", " ").split()


def test_an_administrators_own_template_has_it_too(tmp_path: Path) -> None:
    (tmp_path / "qemu").mkdir()
    (tmp_path / "qemu/guest.args.j2").write_text("{{ guest.boot.cmdline }}")
    assert render(WEB, [], "qemu", templates=[tmp_path]) == WEB.cmdline != "quiet"


def test_an_address_of_ones_own_choice_stays() -> None:
    guest = replace(WEB, boot=replace(WEB.boot, cmdline="ip=dhcp quiet"))
    assert [word for word in guest.cmdline.split() if word.startswith("ip=")] == ["ip=dhcp"]
    assert replace(WEB, root=None).cmdline == "quiet"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"address": "10.0.1.50"}, "no IPv4 address with a prefix"),
        ({"address": "fd00::1/64"}, "no IPv4 address with a prefix"),
        ({"address": "10.0.1.50/24 init=/bin/sh"}, "no IPv4 address with a prefix"),
        ({"gateway": "router"}, "no IPv4 address"),
        ({"server": "10.0.9.1 x=y"}, "no IPv4 address"),
        ({"options": "vers=4.2 init=/bin/sh"}, "cannot stand"),
        ({"path": "/a b"}, "cannot stand"),
        ({"volume": "../web"}, "cannot name a volume"),
        ({"uuid": "x"}, "no UUID"),
    ],
)
def test_what_is_wrong_with_a_root(changes: dict[str, str], said: str) -> None:
    (problem,) = check(replace(WEB, root=replace(ROOT, **changes)))
    assert said in problem.message and problem.message.startswith("root.")


def test_a_root_needs_a_kernel_and_no_other_root() -> None:
    assert check(WEB) == []
    (problem,) = check(replace(WEB, boot=Boot()))
    assert problem.message.startswith("root: no firmware")
    (problem,) = check(replace(WEB, boot=replace(WEB.boot, cmdline="root=/dev/vda")))
    assert "'root=/dev/vda'" in problem.message


def test_a_file_says_it_and_says_no_more_than_needed(tmp_path: Path) -> None:
    files.save(tmp_path, WEB)
    assert files.load(tmp_path, "web") == WEB
    text = files.dumps(replace(WEB, root=Root("web", "10.0.1.50/24")))
    assert '[root]\nvolume = "web"\naddress = "10.0.1.50/24"\n' in text and "options" not in text
    assert "root" not in files.dumps(replace(WEB, root=None))


def test_a_command_line_is_read_back() -> None:
    assert read_root(WEB.cmdline) == ("quiet", replace(ROOT, uuid=""))
    for text in ("quiet", "root=/dev/nfs ip=dhcp", "root=/dev/nfs nfsroot=/srv,v3 ip=10.0.0.1:::255.0.0.0::eth0:off"):
        assert read_root(text) == (text, None)


def test_a_clone_has_a_tree_and_an_address_of_its_own() -> None:
    with pytest.raises((UsageError, Problems), match=r"root\.address: '10\.0\.1\.50/24' is web's own"):
        clone(WEB, "db")
    new = clone(WEB, "db", ["root.address=10.0.1.51/24"])
    assert new.root and (new.root.volume, new.root.host, new.root.uuid) == ("db", "10.0.1.51", "")
    with pytest.raises((UsageError, Problems), match=r"root\.volume: 'web' is web's own"):
        clone(WEB, "db", ["root.address=10.0.1.51/24", "root.volume=web"])
    added = clone(replace(WEB, root=None), "db", ["root.volume=t", "root.address=10.0.1.51/24"])
    assert added.root == Root("t", "10.0.1.51/24")


def test_guests_as_clients() -> None:
    assert guest_client("web") == "guest:web" and guest_of("guest:web") == "web" and guest_of("web") == ""
    with pytest.raises(StorkitError):
        INVENTORY.host("guest:web")


def test_a_start_exports_the_root_to_the_guest_for_writing() -> None:
    plan = running.start([(subject({}, False), "a")], INVENTORY)
    assert shown(plan) == ["s export", "s set_writers", "a define", "a start"]
    assert plan.steps[0].args["clients"] == ["guest:web"] == plan.steps[1].args["hosts"]
    assert TREE in plan.holds[0].names

    class Hosts:
        def same_machine(self, *_: str) -> bool:
            raise AssertionError("a guest is no host")

    found = client(Hosts(), "s", "guest:web", plan.steps[0].args["addresses"])  # type: ignore[arg-type]
    assert found == Client("guest:web", False, "10.0.1.50")


def test_what_an_earlier_instance_has_mounted_ends_with_the_next_start() -> None:
    plan = running.start([(subject({}, True), "a")], INVENTORY)
    assert shown(plan)[:3] == ["s unexport", "s export", "s set_writers"]
    assert shown(running.start([(subject({"a": "running"}, True), "a")], INVENTORY)) == []
    with pytest.raises(Unsafe, match="from before its root web was taken"):
        running.start([(subject({"a": "running"}, False), "a")], INVENTORY)


def test_a_host_that_is_silent_is_no_reason_to_fence_it() -> None:
    with pytest.raises(Unsafe) as caught:
        running.start([(subject({"a": "unknown"}, True), "b")], INVENTORY)
    assert "storkit detach web --on guest:web" in caught.value.hint


def test_a_migration_leaves_the_root_alone() -> None:
    plan = migration.migrate(subject({"a": "running"}, True), "b", {"prepare", "run", "finish"}, INVENTORY)
    assert shown(plan) == ["b define", "b receive", "a send", "b confirm", "a retire", "a undefine"]
    with pytest.raises(Unsafe, match="from before its root"):
        migration.migrate(subject({"a": "running"}, False), "b", {"run"}, INVENTORY)
    there = subject({"b": "running", "a": "migrated"}, True)
    assert "s unexport" not in shown(migration.finish(there, INVENTORY)) + shown(migration.cleanup(there, INVENTORY))


def test_the_root_is_taken_when_the_guest_has_stopped() -> None:
    stop = running.stop([subject({"a": "running"}, True)], False, 60, "", INVENTORY)
    assert shown(stop) == ["a stop", "s unexport", "a retire", "a undefine"]
    elsewhere = running.stop([subject({"a": "running"}, True)], False, 60, "b", INVENTORY)
    assert "s unexport" not in shown(elsewhere)
    assert "s unexport" in shown(migration.cleanup(subject({}, True), INVENTORY))


def test_a_root_stays_with_a_guest_that_may_be_on_another_host_than_it_is_stopped_on() -> None:
    for status in ("unknown", "arrived", "running"):
        plan = running.stop([subject({"a": "running", "b": status}, True)], True, 60, "a", INVENTORY)
        assert shown(plan) == ["a stop", "a retire", "a undefine"], status
    for places in ({"a": "running"}, {"a": "running", "b": "migrated"}):
        assert "s unexport" in shown(running.stop([subject(places, True)], True, 60, "a", INVENTORY))


def tree_problems(clients: dict[str, list[str]], granted: dict[str, NfsClientGrant]) -> list[StorkitError]:
    return list(rules.clients(VOLUME, clients, granted))


def test_whom_a_tree_is_given_to() -> None:
    assert tree_problems({"guest:web": ["10.0.1.50"]}, {}) == []
    (problem,) = tree_problems({"a": ["10.0.0.1"]}, {})
    assert "its guest mounts it, no host" in problem.message
    (problem,) = rules.clients(replace(VOLUME, kind="disk"), {"guest:web": ["10.0.1.50"]}, {})
    assert "can mount a tree only" in problem.message
    (problem,) = tree_problems({"guest:db": ["10.0.1.51"]}, {"guest:web": NfsClientGrant(["10.0.1.50"], "n")})
    assert isinstance(problem, Conflict) and "two guests cannot write one tree" in problem.message


@pytest.mark.parametrize(("first", "second"), [("guest:db", "guest:web"), ("a", "guest:web"), ("guest:web", "a")])
def test_a_guest_shares_its_address_with_nobody_whoever_came_first(first: str, second: str) -> None:
    there = [NfsGrant(replace(VOLUME, name="other"), clients={first: NfsClientGrant(["10.0.1.50"], "n")})]
    (problem,) = rules.shared({second: ["10.0.1.50", "10.0.1.51"]}, there)
    assert "both come from 10.0.1.50" in problem.message and problem.hint.startswith("give guest")
    assert list(rules.shared({first: ["10.0.1.50"], second: ["10.0.1.52"]}, there)) == []
    hosts = [NfsGrant(VOLUME, clients={"a": NfsClientGrant(["10.0.1.50"], "n")})]
    assert list(rules.shared({"b": ["10.0.1.50"]}, hosts)) == []


def test_what_no_tree_can_be_given_by() -> None:
    assert list(rules.tree(VOLUME, NfsSettings(), True)) == []
    said = [
        *rules.tree(VOLUME, NfsSettings(), False),
        *rules.tree(VOLUME, NfsSettings(sec="krb5p"), True),
        *rules.tree(replace(VOLUME, path="/srv/a b/web.tree/root"), NfsSettings(), True),
    ]
    assert [word in problem.message for word, problem in zip(("manage", "krb5p", "a b"), said, strict=True)] == [
        True
    ] * 3


def test_root_is_root_in_a_tree_and_nowhere_else() -> None:
    fsid = "6aa75046225c4f4f9b7a1f0d2c3b4a59"
    entry = Entry("/srv/guests/web.tree/root", "10.0.1.50/32", True, fsid, tree=True)
    words = server.options(NfsSettings(), entry).split(",")
    assert {"rw", "no_root_squash", "no_all_squash", "subtree_check", f"fsid={fsid}"} <= set(words)
    assert "all_squash" in server.options(NfsSettings(), replace(entry, tree=False)).split(",")
    there = replace(entry, options=tuple(words))
    assert there.ours and server.changed([there], [entry], NfsSettings()) == []
    assert not replace(there, options=("rw", "fsid=0")).ours
