"""Commands inside a guest, by the guest agent that Debian has (qemu-ga), and what else it tells."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from storkit.core.guest import derived_mac
from storkit.system import timeouts
from storkit.system.timeouts import scaled
from tests.e2e.world import ROOT, Done, World
from tests.filesystems import mounted
from tests.guestkit import agent, linux

pytestmark = pytest.mark.e2e


def with_agent(world: World, name: str = "g") -> None:
    """A running guest that has an agent, once that answers.

    Its card is on a bridge by its record, and by the template on QEMU's own network: there is no bridge here.
    """
    template = (ROOT / "templates/qemu/guest.args.j2").read_text()
    bridge = "bridge,id=net{{ nic.index }},br={{ nic.bridge | opt }}"
    assert bridge in template
    place = world.directory / "templates/qemu"
    place.mkdir(parents=True)
    (place / "guest.args.j2").write_text(template.replace(bridge, "user,id=net{{ nic.index }},ipv6=off"))
    text = world.inventory.read_text()
    own = f'[hypervisors.qemu]\ntemplates = "{world.directory}/templates"'
    assert "[hypervisors.qemu]" in text
    world.inventory.write_text(text.replace("[hypervisors.qemu]", own))
    kit = agent.build()
    world.storkit("volume", "import", kit.root, name)
    boot = ("--kernel", kit.kernel, "--initrd", kit.initrd, "--cmdline", linux.CMDLINE)
    memory = f"{agent.MEMORY >> 20}MiB"
    world.storkit("guest", "define", name, "--disk", name, "--memory", memory, "--bridge", "lan", *boot)
    world.storkit("guest", "start", name)
    answers(world, name)


def answers(world: World, name: str = "g") -> None:
    """Wait until the agent is there: nothing tells but to ask it."""
    end = time.monotonic() + scaled(60)
    while (tried := world.storkit("guest", "exec", name, "--", "sh", "-c", ":", ok=None)).status:
        assert tried.status == 3 and "no agent answers" in tried.stderr, tried.stderr
        assert "apt install qemu-guest-agent" in tried.stderr
        assert time.monotonic() < end, tried.stderr
        time.sleep(0.5)


def sh(world: World, script: str, *options: object, ok: int = 0) -> Done:
    return world.storkit("guest", "exec", *options, "g", "--", "sh", "-c", script, ok=ok)


def piped(world: World, data: bytes, *words: object) -> bytes:
    """What a command prints that reads from a pipe."""
    argv = [*world.argv, *world.words(*words)]
    return subprocess.run(argv, input=data, stdout=subprocess.PIPE, env=world.environment, check=True).stdout


def test_commands_in_a_guest(world: World) -> None:
    assert "no guest 'g'" in world.storkit("guest", "exec", "g", "--", "true", ok=4).stderr
    with_agent(world)
    said = sh(world, "echo out; echo err >&2; exit 7", ok=7)
    assert (said.stdout, said.stderr) == ("out\n", "err\n")
    data = bytes(range(256)) * 5000
    assert piped(world, data, "guest", "exec", "--stdin", "g", "--", "cat") == data
    assert sh(world, "cat").stdout == ""  # it reads nothing, and waits for nothing
    left = world.storkit("--json", "guest", "exec", "g", "--", "sh", "-c", "printf '\\033[2J\\377'; kill -9 $$", ok=137)
    assert left.json == {
        "guest": "g", "host": "a", "status": 0, "signal": 9, "stdout": "\x1b[2J\ufffd", "stderr": "", "cut": [],
    }  # fmt: skip
    missing = world.storkit("guest", "exec", "g", "--", "no-such-program", ok=6)
    assert "no-such-program" in missing.stderr
    late = sh(world, "exec sleep 1000", "--timeout", "0.5", ok=8)
    assert "did not end within 0.5 seconds" in late.stderr and "it was killed there" in late.stderr
    assert "sleep 1000" not in world.storkit("guest", "exec", "g", "--", "ps").stdout
    (address,) = world.storkit("--json", "guest", "address", "g").json
    uuid = world.storkit("--json", "guest", "show", "g").json["uuid"]
    assert address == {
        "guest": "g", "host": "a", "address": "10.0.2.15", "seen": "agent", "mac": derived_mac(uuid, 0), "port": 0,
    }  # fmt: skip
    # It moves with its guest, and so does what leads to it.
    world.storkit("migrate", "run", "g", "--to", "b")
    assert world.storkit("--json", "guest", "exec", "g", "--", "sh", "-c", "echo hi").json["host"] == "b"
    # Its agent hangs.
    sh(world, "ga=$PPID; (sleep 0.2; kill -STOP $ga) >/dev/null 2>&1 &")
    time.sleep(0.5)
    world.environment[timeouts.VARIABLE] = "0.3"  # it is not waited for as long as on a busy machine
    hangs = sh(world, "true", ok=8)
    del world.environment[timeouts.VARIABLE]
    assert "has not answered" in hangs.stderr and "storkit guest console g" in hangs.stderr
    world.storkit("guest", "stop", "g", "--force")


@pytest.mark.slow
def test_much_is_cut_where_the_agent_cuts_it(world: World) -> None:
    with_agent(world)
    much = sh(world, "head -c 17000000 /dev/zero")
    assert len(much.stdout) == 16 << 20 and "only the beginning of its stdout" in much.stderr
    data = bytes(16 << 20)
    assert piped(world, data, "guest", "exec", "--stdin", "g", "--", "sh", "-c", "cat | busybox wc -c") == b"16777216\n"
    too_much = [*world.argv, *world.words("guest", "exec", "--stdin", "g", "--", "cat")]
    refused = subprocess.run(too_much, input=data + b"x", capture_output=True, env=world.environment, check=False)
    assert refused.returncode == 2 and b"16 MiB at most" in refused.stderr
    world.storkit("guest", "stop", "g", "--force")


@pytest.fixture
def sharing() -> Iterator[World]:
    """A world on a file system that shares blocks: disks are kept while guests have them."""
    with tempfile.TemporaryDirectory(prefix="sk-") as scratch:
        at = Path(scratch, "w")
        at.mkdir()
        with mounted("xfs", at, 600 << 20):
            world = World(at)
            with_agent(world)
            yield world
            world.storkit("guest", "stop", "g", "--force")
            world.clear()


def whole(image: Path) -> bool:
    """Whether a file system was unmounted, or stood still: nothing of it is in its journal alone (e2fsprogs)."""
    said = subprocess.run(["dumpe2fs", "-h", image], capture_output=True, text=True, check=True).stdout
    return "needs_recovery" not in said


def test_file_systems_stand_still_while_a_disk_is_kept(sharing: World) -> None:
    world = sharing
    sh(world, "echo written > /data/f")
    kept = world.storkit("--json", "guest", "snapshot", "g", "one")
    assert kept.json == {"guest": "g", "snapshots": {"g": "g.one"}, "paused": False, "frozen": 1}
    assert "its file systems stood still" in kept.stderr
    assert whole(world.disk("g.one")) and not whole(world.disk("g"))
    sh(world, "echo more > /data/f; sync")  # they go on
    assert "its file systems stood still" in world.storkit("volume", "snapshot", "g", "two").stderr
    assert whole(world.disk("two"))
    # Killed while they stand still: they go on without anybody's help.
    assert world.killed("after:2", "volume", "snapshot", "g", "three").status == -9
    end = time.monotonic() + scaled(30)
    while (tried := world.storkit("guest", "exec", "g", "--", "sh", "-c", "echo on > /data/f; sync", ok=None)).status:
        assert "frozen" in tried.stderr or "disabled" in tried.stderr, tried.stderr
        assert time.monotonic() < end, tried.stderr
    (plan,) = [each["id"] for each in world.storkit("--json", "plan", "list").json if each["status"] == "interrupted"]
    world.storkit("plan", "resume", plan)
    assert not whole(world.disk("three"))  # and the plan that goes on has what a power cut leaves
    # Its agent hangs: the disk is kept all the same.
    sh(world, "ga=$PPID; (sleep 0.2; kill -STOP $ga) >/dev/null 2>&1 &")
    time.sleep(0.5)
    world.environment[timeouts.VARIABLE] = "0.3"
    late = world.storkit("volume", "snapshot", "g", "four")
    del world.environment[timeouts.VARIABLE]
    assert "did not stand still" in late.stderr and "has not answered" in late.stderr


def test_where_there_is_no_way_it_says_so(world: World) -> None:
    world.guest()
    stopped = world.storkit("guest", "exec", "g", "--", "true", ok=5)
    assert "guest g does not run" in stopped.stderr and "storkit guest start g" in stopped.stderr
    assert "no command is given" in world.storkit("guest", "exec", "g", ok=2).stderr
    assert "in no plan" in world.storkit("-n", "guest", "exec", "g", "--", "true", ok=2).stderr
    world.storkit("guest", "start", "g")
    nobody = world.storkit("guest", "exec", "g", "--", "true", ok=3)
    assert "no agent answers in guest g" in nobody.stderr and "apt install qemu-guest-agent" in nobody.stderr
    world.storkit("guest", "stop", "g", "--force")
    # As one was that an earlier storkit has defined.
    world.storkit("guest", "define", "g", "--replace", "--without", "agent")
    world.storkit("guest", "start", "g")
    assert not any("guest_agent" in line for line in world.processes())
    none = world.storkit("guest", "exec", "g", "--", "true", ok=3)
    assert "without a channel" in none.stderr and "--replace --agent" in none.stderr
    world.storkit("migrate", "run", "g", "--to", "b")  # with the devices that it has
    world.storkit("guest", "stop", "g", "--force")
    world.storkit("guest", "define", "g", "--replace", "--agent")
    world.storkit("guest", "start", "g")
    assert any("guest_agent" in line for line in world.processes())
    # Somebody changes the record while it runs: the other host would make other devices.
    record = Path(world.directory, "guests", "g.toml")
    record.write_text(record.read_text().replace("agent = true\n", ""))
    world.storkit("guest", "commit", "g")
    assert "agent" in world.storkit("migrate", "run", "g", "--to", "b", ok=5).stderr
    world.storkit("guest", "stop", "g", "--force")
