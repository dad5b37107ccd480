"""Guests under a real User-Mode Linux: started, found, shut down, killed, hung; and fleets of them."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import termios
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from storkit.core.backend import Site
from storkit.core.errors import CommandFailed, Conflict, NotFound, TimedOut, Unsafe, Unsupported
from storkit.core.guest import Boot, Disk, Guest, Nic
from storkit.core.model import DiskSource
from storkit.hypervisors import uml as hypervisor
from storkit.hypervisors._uml import kernel, terminal
from storkit.hypervisors.uml import Uml, UmlSettings
from storkit.system.files import make_private
from storkit.system.run import run
from storkit.system.timeouts import scaled
from tests.e2e.qemuhosts import wait_until
from tests.e2e.test_kill_points import kill, points
from tests.e2e.world import World, commands
from tests.guestkit import uml

pytestmark = [pytest.mark.e2e, uml.needed]
NAME = "g"
INVENTORY = """\
[hosts.a]
url = "local:a"
[hosts.b]
url = "local:b"
[pools.default]
host = "a"
format = "{format}"
[defaults]
hypervisor = "uml"
"""


def processes(directory: Path) -> dict[int, list[str]]:
    """The processes that have to do with a directory, but for this one."""
    mine = (each for each in commands() if each[0] != os.getpid())
    return {pid: words for pid, words in mine if any(str(directory) in word for word in words)}


def kernels(directory: Path) -> list[int]:
    """The pids of guests' kernels and of their programs: a kernel's is the lowest."""
    return sorted(pid for pid, words in processes(directory).items() if words[0].endswith("/kernel"))


class OneHost:
    """A host with guests whose disk is a raw file."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.disk = uml.build(base / "disk.img")
        # the longest that a host has (storkit.hosts.site): its sockets fit below it
        longest = "r" * (69 - len(str(base)))
        self.site = Site("a", base / "state", base / longest, base / "dev")
        for directory in (self.site.state, self.site.run, self.site.dev):
            make_private(directory)
        self.uml = Uml(self.site, UmlSettings())

    def define(self, name: str = NAME, **changes: object) -> Guest:
        given = {"boot": Boot(cmdline=uml.CMDLINE), "disks": [Disk("v", uuid=str(uuid.uuid4()))], **changes}
        guest = Guest(name, str(uuid.uuid4()), 80 << 20, hypervisor="uml", **given)  # type: ignore[arg-type]
        self.uml.define(guest, [DiskSource("file", str(self.disk))] * len(guest.disks))
        return guest

    @property
    def status(self) -> str:
        return self.uml.find([NAME])[0].status

    def says(self, text: str) -> None:
        wait_until(lambda: text in self.uml.messages(NAME), f"the guest does not say {text!r}")

    def end(self) -> None:
        for state in self.uml.find():
            self.uml.stop(state.name, force=True)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in uml.preload(tmp_path).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def host(environment: None) -> Iterator[OneHost]:
    with tempfile.TemporaryDirectory(prefix="sk-") as base:
        found = OneHost(Path(base))
        try:
            yield found
        finally:
            found.end()


@pytest.fixture
def make(environment: None, make_world: Callable[..., World]) -> Callable[[str], World]:
    return lambda format: make_world(inventory=INVENTORY.format(format=format))


def defined(world: World) -> None:
    world.storkit("volume", "import", uml.build(world.directory / "g.img"), "g")
    world.storkit("guest", "define", "g", "--disk", "g", "--memory", uml.MEMORY, "--cmdline", uml.CMDLINE)


def said(world: World, host: str, name: str, text: str) -> None:
    log = world.directory / host / "uml" / name / "log"
    wait_until(lambda: text in log.read_text(errors="replace"), f"{name} does not say {text!r}")


# One host


def test_it_starts_writes_and_shuts_down(host: OneHost) -> None:
    guest = host.define()
    assert host.status == "stopped" and host.uml.check(guest) == []
    state = host.uml.start(NAME)
    assert (state.status, state.volumes) == ("running", {guest.disks[0].uuid: "v"}) and state.pid
    host.says("boot 1 of golden")
    host.says(f"serial {guest.disks[0].uuid[:20]}")
    assert host.uml.start(NAME).pid == state.pid
    host.uml.stop(NAME)
    assert host.status == "stopped" and "bye" in host.uml.messages(NAME)
    assert not processes(host.base) and uml.boots(host.disk) == 1
    host.uml.undefine(NAME)
    assert host.uml.find() == [] and not list(host.site.run.iterdir())


def test_people_type_at_its_console(host: OneHost) -> None:
    host.define()
    with pytest.raises(NotFound):
        host.uml.console(NAME)
    host.uml.start(NAME)
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with on_terminal(theirs, entrance(host)) as shown:
        hears(ours, b"Ctrl-] leaves it")
        os.write(ours, b"echo $((6 * 7))\n")
        hears(ours, b"42\r\n")
        os.write(ours, b"\x03")
        hears(ours, b"^C")  # it is the guest's
        os.write(ours, b"\x1d")
        assert shown.wait(scaled(10)) == 0
    assert termios.tcgetattr(theirs) == before

    def typed() -> bool:
        line = b"echo $((8 * 9)) >/dev/tty0\n"
        done = subprocess.run(entrance(host), input=line, timeout=scaled(10), capture_output=True)
        return done.returncode == 0 and "72" in host.uml.messages(NAME)

    wait_until(typed, "a pipe's line does not arrive")  # the line was hung up, and may be so in the middle of that
    with on_terminal(theirs, entrance(host)) as shown:
        hears(ours, b"Ctrl-] leaves it")
        host.uml.stop(NAME, force=True)
        assert shown.wait(scaled(10)) == 0, "it ends with its guest"


def entrance(host: OneHost) -> list[str]:
    """The program of the guest's console, once somebody listens there."""
    pid = host.uml.find([NAME])[0].pid
    wait_until(lambda: terminal.find(pid) is not None, "nobody has opened tty1")
    return host.uml.console(NAME).words


@contextmanager
def on_terminal(terminal: int, words: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A command whose terminal this is."""

    def controlled() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        words, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True, preexec_fn=controlled
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def hears(line: int, text: bytes) -> None:
    said, end = b"", time.monotonic() + scaled(10)
    while text not in said:
        assert select.select([line], [], [], end - time.monotonic())[0], f"{text!r} is not in {said!r}"
        said += os.read(line, 4096)


def test_nobody_listens_at_a_console_that_no_program_has_opened(host: OneHost) -> None:
    host.define(boot=Boot(cmdline="root=/dev/ubda rw init=/bin/busybox sleep 100"))
    host.uml.start(NAME)
    with pytest.raises(Conflict, match="has opened its tty1"):
        host.uml.console(NAME)


def test_many_starts_at_once_give_one_guest(host: OneHost) -> None:
    host.define()
    with ThreadPoolExecutor(4) as pool:
        states = list(pool.map(lambda _: host.uml.start(NAME), range(4)))
    assert len({state.pid for state in states}) == 1 and {state.status for state in states} == {"running"}


@pytest.mark.parametrize("which", [0, 1], ids=["the kernel", "the first process"])
def test_nothing_outlives_a_guest_that_is_killed(host: OneHost, which: int) -> None:
    host.define()
    state = host.uml.start(NAME)
    host.says("boot 1")
    assert len(kernels(host.base)) > 3, "its programs are processes too"
    os.kill([kernels(host.base)[0], state.pid][which], signal.SIGKILL)
    wait_until(lambda: host.status == "stopped", "the killed guest still lives")
    assert not processes(host.base)
    host.uml.start(NAME)
    host.says("boot 2")


def test_a_guest_that_reboots_goes_on(host: OneHost) -> None:
    host.define()
    pid = host.uml.start(NAME).pid
    host.says("boot 1")
    here = kernel.kernel(host.site, NAME)
    line = kernel._line()
    assert kernel._send(line, here.console, "cad")
    line.close()
    host.says("boot 2")
    assert host.uml.find()[0].pid == pid
    host.uml.stop(NAME)
    assert not processes(host.base)


def test_one_that_hangs_is_unknown_and_left_alone(host: OneHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "ASK_TIMEOUT", 0.5)
    host.define()
    host.uml.start(NAME)
    kernel_pid = kernels(host.base)[0]
    os.kill(kernel_pid, signal.SIGSTOP)
    try:
        with pytest.raises(Conflict, match="does not answer"):
            host.uml.stop(NAME)
        assert host.status == "unknown"
        with pytest.raises(Unsafe, match="unknown"):
            host.uml.retire(NAME)
        with pytest.raises(Conflict, match="has a process"):
            host.uml.undefine(NAME)
    finally:
        os.kill(kernel_pid, signal.SIGCONT)


def test_a_hung_one_is_ended_by_force(host: OneHost) -> None:
    host.define()
    host.uml.start(NAME)
    os.kill(kernels(host.base)[0], signal.SIGSTOP)
    host.uml.stop(NAME, force=True)
    assert host.status == "stopped" and not processes(host.base)


def test_one_that_takes_too_long_to_shut_down_still_reboots_afterwards(host: OneHost) -> None:
    host.define()
    host.uml.start(NAME)
    host.says("boot 1")
    with pytest.raises(TimedOut) as caught:
        host.uml.stop(NAME, timeout=0)
    assert caught.value.hint == f"storkit guest stop {NAME} --force"
    host.says("boot 2")


def test_a_start_that_fails_says_why_and_leaves_nothing(host: OneHost) -> None:
    program = host.base / "broken"
    program.write_text("#!/bin/sh\necho no kernel of mine\nexit 3\n")
    program.chmod(0o755)
    host.uml = Uml(host.site, UmlSettings(binary=str(program)))
    host.define()
    with pytest.raises(CommandFailed, match="no kernel of mine") as caught:
        host.uml.start(NAME)
    assert "args" in caught.value.hint
    assert host.status == "stopped" and not processes(host.base)


def test_a_kernel_that_panics_says_why(host: OneHost) -> None:
    console = host.base / "console"
    host.define(boot=Boot(cmdline="root=/dev/ubdh"), console=str(console))
    try:
        host.uml.start(NAME)  # it has come as far as its console by then, and may have got no further
    except CommandFailed as error:
        assert "Unable to mount root" in error.stderr
    wait_until(lambda: host.status == "stopped", "the kernel does not end")
    assert "Unable to mount root" in host.uml.messages(NAME) and "Unable to mount root" in console.read_text()
    assert not processes(host.base)


def test_a_disk_is_not_given_to_two_guests_that_run(host: OneHost) -> None:
    disks = host.define().disks
    host.define("other", disks=disks)
    host.uml.start(NAME)
    with pytest.raises(Unsafe, match=f"in use by guest {NAME} here"):
        host.uml.start("other")
    assert "in use" in host.uml.check(Guest("other", str(uuid.uuid4()), 80 << 20, hypervisor="uml", disks=disks))[0]


def test_what_it_cannot_do_is_said_beforehand(host: OneHost, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unsupported, match=r"boot\.kernel /bin/sh is not this host's"):
        host.define(boot=Boot("/bin/sh"))
    for words in ("ubd7=/etc/shadow", "mem=1G", "iomem=x,/etc/shadow"):
        with pytest.raises(Unsupported, match="for storkit to say"):
            host.define(boot=Boot(cmdline=words))
    two = Guest(NAME, str(uuid.uuid4()), 80 << 20, 2, "uml", nics=[Nic("br0"), Nic(kind="user")])
    found = "\n".join(host.uml.check(two))
    assert "one processor" in found and "tap device" in found and "no card of kind 'user'" in found
    monkeypatch.setattr(hypervisor, "FUSE", host.base / "none")
    image = DiskSource("file", str(host.disk), "qcow2")
    with pytest.raises(Unsupported, match=r"opens no qcow2 itself, and .*none is missing"):
        host.uml.define(Guest(NAME, str(uuid.uuid4()), 80 << 20, hypervisor="uml", disks=[Disk("v")]), [image])
    assert host.uml.find() == []
    assert [each.warning for each in host.uml.ready()] == [True]
    host.uml = Uml(host.site, UmlSettings(binary="linux.none"))
    assert host.uml.ready()[0].hint == "apt install user-mode-linux"
    for act in (lambda: host.uml.receive(NAME, True), lambda: host.uml.send(NAME, "x")):
        with pytest.raises(Unsupported, match="cannot be moved while they run"):
            act()


# The command line: disks over NBD


@pytest.mark.parametrize("format", ["qcow2", pytest.param("raw", marks=pytest.mark.slow)])
def test_a_guest_and_its_disk_on_two_hosts(make: Callable[[str], World], format: str) -> None:
    world = make(format)
    defined(world)
    world.storkit("guest", "start", "g")
    said(world, "a", "g", "boot 1")
    assert world.running() == ["a"]
    assert "a" in world.storkit("guest", "start", "g", "--on", "b", ok=5).stderr
    for words in (
        ("migrate", "run", "g", "--to", "b"),
        ("migrate", "prepare", "g", "--to", "b"),
        ("guest", "save", "g"),
    ):
        refused = world.storkit(*words, ok=3).stderr
        assert "uml, which can neither move nor save" in refused and "nothing was changed" in refused
        assert "storkit guest stop g" in refused
    world.storkit("guest", "stop", "g")
    world.storkit("guest", "start", "g", "--on", "b")
    said(world, "b", "g", "boot 2")
    assert world.running() == ["b"]
    world.storkit("guest", "stop", "g", "--force")
    assert not kernels(world.directory) and uml.boots(world.disk()) == 2
    world.storkit("guest", "delete", "g")
    assert world.leftovers() == []


@pytest.mark.parametrize("share", [4, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"])
def test_a_start_that_was_killed_is_gone_on_with_or_taken_back(make: Callable[[str], World], share: int) -> None:
    world = make("raw")
    defined(world)
    for number, point in enumerate(points(world, "guest", "start", "g")[1::share]):
        mend = ["resume", "rollback"][number % 2]
        if not (plan := kill(world, point, "guest", "start", "g")):
            break
        world.storkit("plan", mend, plan)
        assert world.running() == (["a"] if mend == "resume" else []), f"{mend} after {point}"
        world.storkit("guest", "stop", "g", "--force")
        assert not kernels(world.directory)


def test_a_start_that_was_killed_while_the_kernel_comes_up(host: OneHost) -> None:
    guest = host.define()
    child = os.fork()
    if child == 0:
        try:
            host.uml.start(NAME)
        finally:
            os._exit(0)
    wait_until(lambda: bool(kernels(host.base)), "no kernel is started")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait_until(lambda: host.status == "running", "the kernel that was started does not answer")
    host.says("boot 1")
    assert host.uml.start(guest.name).status == "running"


# Fleets


def fleet(world: World, count: int) -> None:
    world.storkit("volume", "import", "--golden", uml.build(world.directory / "golden.img"), "tiny")
    asked = ",".join(f"web-{number:02}" for number in range(1, count + 1))
    words = ("--memory", uml.MEMORY, "--cmdline", f"{uml.CMDLINE} ASK={asked}")
    made = world.storkit("fleet", "create", "web", "--image", "tiny", "--count", count, *words)
    assert "no way out, nor in by ssh: uml has no card of kind user" in made.stderr


def states(world: World) -> dict[str, str]:
    return {each["name"]: each["status"] for each in world.storkit("--json", "fleet", "show", "web").json["members"]}


def test_a_fleet_whose_members_see_each_other(make: Callable[[str], World]) -> None:
    world = make("qcow2")
    fleet(world, 3)
    names = ["web-01", "web-02", "web-03"]
    world.storkit("fleet", "start", "web")
    assert states(world) == dict.fromkeys(names, "running")
    for name in names:
        said(world, "a", name, f"boot 1 of {name}")
        for other in set(names) - {name}:
            said(world, "a", name, f"sees {other}")
    refused = world.storkit("fleet", "run", "web", "--", "true", ok=3).stderr
    assert "nothing leads to the members of fleet web" in refused
    world.storkit("fleet", "stop", "web", "web-01")
    world.storkit("fleet", "start", "web", "web-01")
    said(world, "a", "web-01", "boot 2 of web-01")
    world.storkit("fleet", "reset", "web", "web-01")
    said(world, "a", "web-01", "boot 1 of web-01")
    world.storkit("fleet", "replace", "web", "web-02")
    assert states(world) == {"web-01": "running", "web-02": "stopped", "web-03": "running"}
    world.storkit("fleet", "destroy", "web")
    assert not kernels(world.directory)
    assert [each["name"] for each in world.storkit("--json", "volume", "list").json] == ["tiny"]
    assert [left for left in world.leftovers() if "uml" in left] == []


@pytest.mark.slow
def test_twenty_of_them_in_a_minute(make: Callable[[str], World]) -> None:
    world = make("qcow2")
    begin = time.monotonic()
    fleet(world, 20)
    world.storkit("fleet", "start", "web")
    assert set(states(world).values()) == {"running"}
    for number in range(1, 21):
        said(world, "a", f"web-{number:02}", f"boot 1 of web-{number:02}")
    took = time.monotonic() - begin
    print(f"20 members under User-Mode Linux, made, started and booted: {took:.1f} s")
    assert took < scaled(60)
    world.storkit("fleet", "destroy", "web")


def test_a_machine_without_a_route_for_a_fleet_says_so() -> None:
    """In a network of its own, where there is none."""
    script = (
        "from storkit.core.guest import Guest, Nic; from storkit.hypervisors import uml; print(*uml."
        "_route_problems(Guest('g', 'u', 0, nics=[Nic(kind='group', group='239.192.1.1:20000')])))"
    )
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    said = run(["unshare", *user, "--net", sys.executable, "-c", script]).stdout
    assert said.startswith("no route leads to 239.192.1.1, No such device: ip route add")
