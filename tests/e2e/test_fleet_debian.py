"""A fleet of real Debian machines, of one golden image: each proves over ssh who it is, and finds the others."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.world import World
from tests.guestkit import debian

pytestmark = pytest.mark.parametrize("world", ["qcow2"], indirect=True)
FACTS = "hostname; cat /etc/machine-id; cat /sys/class/net/storkit1/address; cat /etc/ssh/ssh_host_ed25519_key.pub"
BOOT = 900
"""Seconds in which an emulated processor boots all of them, beside whatever else a machine has to do."""


def said(world: World, *words: object) -> dict[str, list[str]]:
    """What each member's command printed, by lines."""
    done = world.storkit("--json", "fleet", "run", "web", *words)
    return {each["member"]: each["stdout"].splitlines() for each in done.json}


def begin(world: World, count: int) -> Any:
    kit = debian.build()
    world.storkit("volume", "import", "--golden", kit.root, "debian")
    return world.storkit(
        "--json", "fleet", "create", "web", "--image", "debian", "--count", count, "--on", "a", "b",
        "--memory", debian.MEMORY, "--kernel", kit.kernel, "--initrd", kit.initrd,
        "--cmdline", f"{debian.CMDLINE} root=/dev/vda", "--start",
    ).json  # fmt: skip


def prove(world: World, count: int) -> dict[str, list[str]]:
    """Each member is who it was made to be, and no other is."""
    world.storkit("fleet", "wait", "web", "--timeout", BOOT)
    facts = said(world, "--", FACTS)
    assert list(facts) == [f"web-{number:02}" for number in range(1, count + 1)]
    for name, (hostname, machine, mac, key) in facts.items():
        guest = world.storkit("--json", "guest", "show", name).json
        assert hostname == name and machine == guest["uuid"].replace("-", "") and key.startswith("ssh-ed25519 ")
        assert mac.startswith("52:")
    for number in range(1, 4):
        assert len({each[number] for each in facts.values()}) == count
    return facts


@pytest.mark.parametrize("count", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_each_is_a_machine_of_its_own(world: World, count: int) -> None:
    members = begin(world, count)["members"]
    facts = prove(world, count)
    assert [each["name"] for each in members] == list(facts)
    # the network of their own: by name, from one host's to the other's
    last = members[-1]
    pinged = world.storkit("fleet", "run", "web", "--on", "web-01", "--", f"ping -c1 -W30 {last['name']}").stdout
    assert f"web-01: PING {last['name']} ({last['address']})" in pinged
    # the worst exit status is the command's
    failed = world.storkit("fleet", "run", "web", "--", 'test "$(hostname)" != web-02', ok=1)
    assert failed.status == 1
    shown = world.storkit("fleet", "ssh", "web-01", "--", "hostname", argv=world.argv)
    assert shown.stdout == "web-01\n"
    world.storkit("fleet", "run", "web", "--", "echo mine > /root/written; sync")
    # one is set back while the others run: what it wrote is gone, and it is who it was
    world.storkit("fleet", "reset", "web", "web-02")
    if count > 4:
        # one is replaced: it is another machine of the same name
        world.storkit("fleet", "replace", "web", "web-03", "--start")
        after = prove(world, count)
        assert {name for name in facts if facts[name] != after[name]} == {"web-03"}
        there = world.storkit("--json", "fleet", "run", "web", "--", "cat /root/written", ok=None).json
        assert {each["member"] for each in there if each["stdout"] != "mine\n"} == {"web-02", "web-03"}
    else:
        others = [each["name"] for each in members if each["name"] != "web-02"]
        words = [word for name in others for word in ("--on", name)]
        assert set(map(tuple, said(world, *words, "--", "cat /root/written").values())) == {("mine",)}
    world.storkit("fleet", "destroy", "web")
    assert [left for left in world.leftovers() if "qemu" in left or "web-" in left] == []
