"""What a coordinator's key can do on a host, by its grade and by the file of what the host accepts."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from storkit.hosts import accept
from storkit.hosts.accept import Accepted
from tests.e2e.pipe import Pipe, content
from tests.e2e.sshd import ADDRESSES, two_machines
from tests.e2e.world import ROOT, World
from tests.guestkit import bootsector

pytestmark = pytest.mark.e2e


class Host:
    """A host with its own file, and beside it what no coordinator may reach."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "state"
        for name in ("pool", "images", "backup", "secret"):
            (directory / name).mkdir(mode=0o700)
        (directory / "images" / "disk.img").write_bytes(b"\1" * 4096)
        (directory / "secret" / "disk.img").write_bytes(b"\2" * 4096)
        (directory / "images" / "out.img").symlink_to(directory / "secret" / "disk.img")
        self.evil = directory / "secret" / "evil"
        self.evil.write_text(f"#!/bin/sh\ntouch {directory}/secret/owned\n")
        self.evil.chmod(0o755)
        self.file = directory / "accept.toml"
        self.accepted = Accepted(
            state=str(self.state),
            import_=[str(directory / "images")],
            export=[str(directory / "backup")],
            pools={"p": {"type": "directory", "path": str(directory / "pool")}},
        )
        accept.save(self.file, self.accepted)

    def agent(self, grade: str, **setup: Any) -> Pipe:
        told = {"host": "h", "pools": {"p": {"type": "directory", "settings": {}}}, **setup}
        return Pipe(told, *(("--grade", grade) if grade else ()), "--file", str(self.file))

    def volume(self, name: str = "v") -> dict[str, Any]:
        return {"name": name, "uuid": str(uuid4()), "size": 1 << 20, "pool": "p", "host": "h"}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def refused(answer: dict[str, Any]) -> str:
    """The message of an answer that has to be a refusal."""
    assert answer.get("error", {}).get("kind") == "not-allowed", answer
    return str(answer["error"]["message"])


GUEST = {"name": "g", "uuid": str(uuid4()), "memory": 16 << 20}


@pytest.mark.parametrize("grade", ["read", "storage"])
def test_what_a_hello_may_not_name(host: Host, grade: str) -> None:
    before = content(host.directory)
    secret = str(host.directory / "secret")
    for setup in ({"state": secret}, {"templates": secret}):
        with host.agent(grade, **setup) as agent:
            assert f"does not accept {'the templates ' if 'templates' in setup else ''}{secret!r}" in refused(
                agent.welcome
            )
    assert content(host.directory) == before
    pools = {
        "p": {"type": "directory", "settings": {"path": secret}},
        "mine": {"type": "directory", "settings": {"path": secret}},
        "lv": {"type": "lvm", "settings": {"vg": "vg0"}},
        "nfs": {"type": "nfs", "settings": {"server": "127.0.0.1:/"}},
    }
    wrong = {"hypervisors": {"qemu": {"binary": str(host.evil)}}, "transports": {"nbd": {"tls_dir": secret}}}
    with host.agent(grade, pools=pools, **wrong, served_by=["transport:nbd"], runs=["qemu"]) as agent:
        for pool in pools:
            assert f"does not accept pool:{pool}" in refused(agent.call(f"pool:{pool}", "find"))
        assert "binary" in refused(agent.call("hypervisor:qemu", "find"))
        assert "tls_dir" in refused(agent.call("transport:nbd", "find_exports"))
        facts = agent.ask(do="facts")["result"]
        assert len(facts["refused"]) == len(pools) + 2
        assert facts["refused"][0]["hint"] == "there, as root: storkit host accept pool:p"
    after = {path: there for path, there in content(host.directory).items() if not path.startswith("state")}
    assert after == before and not (host.directory / "secret/owned").exists()


@pytest.mark.parametrize("grade", ["read", "storage"])
def test_guests_are_for_the_grade_guests_alone(host: Host, grade: str) -> None:
    with host.agent(grade) as agent:
        before = content(host.directory)
        for verb, args in (
            ("define", {"guest": {**GUEST, "extra": {"qemu": ["-chardev", "file,path=/x"]}}, "disks": []}),
            ("define", {"guest": {**GUEST, "console": str(host.directory / "secret/console")}, "disks": []}),
            ("define", {"guest": {**GUEST, "boot": {"kernel": str(host.evil)}}, "disks": []}),
            ("check", {"guest": {**GUEST, "boot": {"kernel": "/etc/shadow"}}}),
            ("fingerprint", {"guest": {**GUEST, "boot": {"kernel": "/etc/shadow"}}}),
            ("start", {"name": "g"}),
            ("receive", {"name": "g", "same_machine": True}),
            ("send", {"name": "g", "uri": "unix:/x"}),
            ("messages", {"name": "g"}),
        ):
            for hypervisor in ("qemu", "libvirt"):
                assert "takes the grade guests" in refused(agent.call(f"hypervisor:{hypervisor}", verb, **args))
        assert content(host.directory) == before


def test_read_reads_and_changes_nothing(host: Host) -> None:
    volume = host.volume()
    with host.agent("storage") as agent:
        assert agent.call("pool:p", "create", volumes=[volume])["result"]
    before = content(host.directory)
    with host.agent("read", hypervisors={"qemu": {}}) as agent:
        assert [found["name"] for found in agent.call("pool:p", "find")["result"]] == ["v"]
        assert agent.call("pool:p", "capacity")["result"]["pool"] == "p"
        assert agent.call("transport:nbd", "find_exports")["result"] == []
        assert agent.call("hypervisor:qemu", "find")["result"] == []
        assert agent.ask(do="facts")["result"]["refused"] == []
        assert agent.ask(do="marked", plan="x")["result"] is False
        for target, verb, args in (
            ("pool:p", "create", {"volumes": [host.volume("w")]}),
            ("pool:p", "delete", {"volumes": [volume]}),
            ("transport:nbd", "export", {"volumes": [volume], "clients": []}),
            ("transport:nbd", "offers", {"volumes": [volume], "client": "h"}),
            ("transport:nbd", "evidence", {"volumes": [volume]}),
            ("transport:nbd", "fence", {"client": "h"}),
            ("images", "inspect", {"source": str(host.directory / "images/disk.img")}),
            ("images", "export_image", {"volume": volume, "file": str(host.directory / "backup/x")}),
        ):
            assert "takes the grade storage" in refused(agent.call(target, verb, **args))
        for request in (
            {"do": "lock", "claims": [], "holder": "x", "plan": "", "over_marks": True},
            {"do": "mark", "plan": "x", "names": [], "title": "", "coordinator": ""},
            {"do": "unmark", "plan": "x"},
        ):
            assert "takes the grade storage" in refused(agent.ask(**request))
    assert content(host.directory) == before


def test_files_are_read_and_made_below_the_accepted_directories_alone(host: Host) -> None:
    here, volume = host.directory, host.volume()
    with host.agent("storage") as agent:
        agent.call("pool:p", "create", volumes=[volume])
        before = content(here)
        for source in (here / "secret/disk.img", here / "images/out.img", here / "images/../secret/disk.img",
                       "/etc/shadow", "disk.img", here / "pool/v.raw", here / "images-other"):  # fmt: skip
            assert "may not be read" in refused(agent.call("images", "inspect", source=str(source)))
            assert "may not be read" in refused(agent.call("images", "fill", volume=volume, source=str(source)))
            tree = agent.call("pool:p", "import_tree", volumes=[volume], source=str(source))
            assert "may not be read" in refused(tree)
        for file in (here / "secret/x", here / "images/x", here / "backup/../secret/x", "/etc/cron.d/x", "x"):
            answer = agent.call("images", "export_image", volume=volume, file=str(file), format="raw")
            assert "may not be written" in refused(answer)
        (here / "backup" / "up").symlink_to(here / "secret")
        answer = agent.call("images", "export_image", volume=volume, file=str(here / "backup/up/x"), format="raw")
        assert "may not be written" in refused(answer)
        (here / "backup" / "up").unlink()
        assert content(here) == before
        # Whoever can write the directory could put a link in the place of the file.
        (here / "backup").chmod(0o777)
        answer = agent.call("images", "export_image", volume=volume, file=str(here / "backup/x"), format="raw")
        assert answer["error"]["kind"] == "unsafe" and "others may write" in answer["error"]["message"]
        (here / "backup").chmod(0o700)
        assert content(here) == before


def test_images_in_and_out_of_the_accepted_directories(host: Host) -> None:
    """Messages and answers have the names that were given, and not what was opened for them."""
    here = host.directory
    source, copy = str(here / "images/disk.img"), str(here / "backup/copy.img")
    volume = {**host.volume(), "size": 4096, "made": "importing"}
    with host.agent("storage") as agent:
        assert agent.call("images", "inspect", source=source)["result"]["source"] == source
        agent.call("pool:p", "create", volumes=[volume])
        agent.call("pool:p", "relabel", volumes=[volume])
        filled = agent.call("images", "fill", volume=volume, source=source)
        assert filled["result"]["source"] == source, filled
        agent.call("pool:p", "relabel", volumes=[{**volume, "made": "imported"}])
        made = agent.call("images", "export_image", volume=volume, file=copy, format="raw")
        assert made["result"] == {"file": copy, "size": 4096}, made
        again = agent.call("images", "export_image", volume=volume, file=copy, format="raw")
        assert copy in again["error"]["message"] and "/proc/" not in str(again)
        missing = agent.call("images", "inspect", source=source + "x")
        assert missing["error"]["kind"] == "not-found" and source in missing["error"]["message"]
    assert Path(copy).read_bytes() == b"\1" * 4096


def test_a_tree_from_an_accepted_directory(host: Host) -> None:
    if os.geteuid() != 0:
        pytest.skip("trees keep owners: only root can make them")
    here = host.directory
    (here / "images/root/etc").mkdir(parents=True)
    (here / "images/root/etc/hostname").write_text("t\n")
    subprocess.run(["tar", "-C", here / "images/root", "-czf", here / "images/root.tgz", "."], check=True)
    (here / "trees").mkdir(mode=0o700)
    pools = {"t": {"type": "nfs", "path": str(here / "trees")}}
    accept.save(host.file, Accepted(state=str(host.state), import_=[str(here / "images")], pools=pools))
    with host.agent("storage", pools={"t": {"type": "nfs", "settings": {}}}) as agent:
        for name, source in (("one", "root"), ("two", "root.tgz")):
            volume = {**host.volume(name), "pool": "t", "size": 0, "kind": "tree"}
            answer = agent.call("pool:t", "import_tree", volumes=[volume], source=str(here / "images" / source))
            assert Path(answer["result"][0]["path"], "etc/hostname").read_text() == "t\n"


def test_where_there_is_a_file_it_holds_for_every_key(host: Host) -> None:
    secret = {"p": {"type": "directory", "settings": {"path": str(host.directory / "secret")}}}
    for grade in ("", "guests"):
        with host.agent(grade, pools=secret, hypervisors={"qemu": {"binary": str(host.evil)}}) as agent:
            refused(agent.call("pool:p", "find"))
            refused(agent.call("hypervisor:qemu", "check", guest=GUEST))
            refused(agent.call("images", "inspect", source="/etc/shadow"))
    assert not (host.directory / "secret/owned").exists()


def test_a_file_that_others_may_write_lets_nobody_in(host: Host) -> None:
    host.file.chmod(0o666)
    with host.agent("storage") as agent:
        assert agent.welcome["error"]["kind"] == "unsafe"
        assert "others may write" in agent.welcome["error"]["message"]


def test_the_boot_keeps_to_the_file_as_well(host: Host) -> None:
    """What was told is remembered for the boot; a path in it is believed no more then than it was before."""
    secret = str(host.directory / "secret")
    with host.agent("storage", transports={"nbd": {"tls_dir": secret}}, served_by=["transport:nbd"]) as agent:
        refused(agent.call("transport:nbd", "restore"))
    argv = [sys.executable, "-m", "storkit", "host", "restore", "--boot", "--file", str(host.file)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 12 and f"tls_dir = '{secret}'" in done.stderr, done.stderr
    assert "storkit host accept transport:nbd" in done.stderr
    with host.agent("storage", served_by=["transport:nbd"]) as agent:
        assert agent.call("transport:nbd", "restore")["result"] == []
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# Honest use, through a real sshd.


@pytest.fixture
def machines() -> Iterator[Callable[[str], World]]:
    """Two machines whose key has a grade, each with a file of its own."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sk-")))

        def make(grade: str) -> World:
            for name, address in ADDRESSES.items():
                accepted = Accepted(
                    state=str(directory / name),
                    import_=[str(directory)],
                    export=[str(directory)],
                    pools={"default" if name == "a" else "other": {"type": "directory", "format": "raw"}},
                )
                accept.save(directory / f"accept-{address}.toml", accepted)
            options = f"--grade {grade} --file {directory}/accept-$3.toml"
            return stack.enter_context(two_machines(directory, options))

        yield make


def test_a_key_of_grade_storage_is_enough_for_volumes(machines: Callable[[str], World]) -> None:
    world = machines("storage")
    image = world.directory / "boot.img"
    bootsector.make_disk(image)
    assert [host["problems"] for host in world.storkit("--json", "host", "check").json] == [[], []]
    world.storkit("volume", "import", image, "g")
    world.storkit("attach", "g", "--on", "b")
    assert world.storkit("--json", "verify", "g").json[0]["hosts"] == ["b"]
    world.storkit("detach", "g", "--on", "b")
    world.storkit("volume", "export", "g", world.directory / "copy.img")
    assert (world.directory / "copy.img").read_bytes() == image.read_bytes()
    world.storkit("guest", "define", "g", "--disk", "g", "--memory", "16MiB")
    done = world.storkit("guest", "start", "g", "--on", "a", ok=12)
    assert "takes the grade guests" in done.stderr and "storkit agent --grade guests" in done.stderr
    assert world.storkit("--json", "volume", "show", "g").json["exports"] == []
    world.storkit("guest", "delete", "g")
    world.storkit("volume", "delete", "g")
    assert world.leftovers() == []


def test_a_key_of_grade_guests_is_enough_for_all(machines: Callable[[str], World]) -> None:
    world = machines("guests")
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    world.storkit("migrate", "run", "g", "--to", "b")
    status = world.status()
    assert status["places"] == {"b": "running"} and status["writers"] == ["b"]
    world.storkit("guest", "stop", "g", "--force")
    assert bootsector.verify(world.disk()).clean
    assert world.leftovers() == []


def test_a_key_of_grade_read_is_enough_to_look(machines: Callable[[str], World]) -> None:
    """Host b has the coordinator's key pinned to reading: what would change it is refused, and host a put back."""
    world = machines("$(test $3 = 127.0.0.2 && echo read || echo storage)")
    world.storkit("volume", "create", "v", "1MiB")
    text = world.inventory.read_text()
    world.inventory.write_text(text + '[pools.other]\nhost = "b"\n[defaults]\npool = "other"\n')
    assert [volume["name"] for volume in world.storkit("--json", "volume", "list", "--pool", "default").json] == ["v"]
    for words in (("attach", "v", "--on", "b"), ("volume", "create", "w", "1MiB")):
        assert "takes the grade storage" in world.storkit(*words, ok=12).stderr
    status = world.storkit("--json", "status").json
    assert (status["exports"], status["plans"], status["silent"]) == ({"a": [], "b": []}, [], [])
    checked = world.storkit("--json", "host", "check").json
    (listens, reaches) = sorted(checked[1]["warnings"], reverse=True)
    assert listens.startswith("whether other hosts reach b by nbd was not tried: b: a key of grade read")
    assert reaches.startswith("whether b reaches other hosts' servers was not tried: b: a key of grade read")
    assert not [path for path in (world.directory / "b").rglob("*") if path.is_file()]


def test_a_pool_that_a_host_does_not_accept_is_named_with_the_command_for_it(
    machines: Callable[[str], World],
) -> None:
    """And once it is accepted, by what the host was told, all goes on."""
    world = machines("storage")
    (world.directory / "more").mkdir(mode=0o700)
    text = world.inventory.read_text() + f'[pools.more]\nhost = "a"\npath = "{world.directory}/more"\n'
    world.inventory.write_text(text + '[defaults]\npool = "more"\n')
    done = world.storkit("volume", "create", "v", "1MiB", ok=12)
    assert "host a does not accept pool:more: its file does not have it" in done.stderr
    assert "there, as root: storkit host accept pool:more" in done.stderr
    (checked, _) = world.storkit("--json", "host", "check", ok=1).json
    assert any("pool:more" in problem["message"] for problem in checked["problems"])
    file = world.directory / f"accept-{ADDRESSES['a']}.toml"
    accepted = subprocess.run(
        [*world.argv, "host", "accept", "pool:more", "--file", str(file)],
        env=world.environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert accepted.returncode == 0, accepted.stderr
    assert f'path = "{world.directory}/more"' in accepted.stdout
    world.storkit("volume", "create", "v", "1MiB")
