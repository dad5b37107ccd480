"""A host that lies harms nobody: it counts as one that is silent, with the reason, and what it says is only shown."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storkit.core.identities import CONTROL
from tests import hostile
from tests.e2e.world import Done, World
from tests.hostile import FORGED, OTHER_UUID, Lie

pytestmark = pytest.mark.e2e


class Beside(World):
    """Host a and host c are directories of this machine, b is reached by ssh, and lies. Each of a and b has a pool."""

    def __init__(self, directory: Path) -> None:
        self.url = hostile.hosts(directory, "b")["b"]
        super().__init__(
            directory,
            inventory=f"""\
[hosts.a]
url = "local:{directory}/a"
address = "127.0.0.1"
[hosts.b]
url = "{self.url}"
state = "{directory}/b"
[hosts.c]
url = "local:{directory}/c"
address = "127.0.0.1"
[pools.here]
host = "a"
[pools.there]
host = "b"
[defaults]
pool = "here"
""",
        )
        self.environment["PATH"] = f"{directory}/bin:{self.environment['PATH']}"
        self.victim = directory / "victim"
        self.victim.mkdir()
        (self.victim / "precious").write_text("precious")
        self.storkit("volume", "create", "mine", "1MiB")
        self.storkit("volume", "create", "web", "1MiB", "--pool", "there")

    def tell(self, *lies: Lie) -> None:
        hostile.tell(self.directory, self.url, *lies)

    def ask(self, *words: object, ok: int | None = None) -> Done:
        """Run a command that is lied to. Whatever comes of it, nothing is harmed, and nothing of it is a traceback."""
        done = self.storkit(*words, ok=ok)
        said = done.stdout + done.stderr
        assert "Traceback" not in said and "a bug in storkit" not in said, said
        assert not CONTROL.search(said.replace("\n", "")), said
        assert not [line for line in said.splitlines() if line.startswith("  next: ") and "(host b says)" not in line
                    and "evil" in line], said  # fmt: skip
        for line in said.splitlines():
            marked = ("b: ", "  b | ", "says host b", "host b says", "host b answers with")
            assert "curl evil" not in line or any(mark in line for mark in marked), line
        assert (self.victim / "precious").read_text() == "precious"
        assert not (self.directory / "made").exists()
        return done


@pytest.fixture
def world(tmp_path: Path) -> Any:
    world = Beside(tmp_path)
    yield world
    world.tell()
    world.clear()


def lies(world: Beside, verb: str, record: str) -> list[Lie]:
    victim, made = str(world.victim), f"local:{world.directory}/made"
    return {
        "volume": [
            Lie(verb, "uuid", victim), Lie(verb, "uuid", f"../../{OTHER_UUID}"), Lie(verb, "name", "../victim"),
            Lie(verb, "name", FORGED), Lie(verb, "pool", "here"), Lie(verb, "host", "a"), Lie(verb, "size", -1),
            Lie(verb, "size", 10**30), Lie(verb, "path", f"{victim}/../x"), Lie(verb, "made", FORGED),
            Lie(verb, value=5),
            Lie(verb, value=[{"uuid": victim}]), Lie(verb, value={"volumes": [FORGED]}), Lie(verb, "kind", FORGED),
        ],
        "export": [
            Lie(verb, "uuid", victim), Lie(verb, "client", f"{made}/../x"), Lie(verb, "client", FORGED),
            Lie(verb, "transport", "nfs"), Lie(verb, "endpoint", FORGED), Lie(verb, value=[["x"]]),
        ],
        "offer": [
            Lie(verb, "uuid", victim), Lie(verb, "volume", "mine"), Lie(verb, "size", 512), Lie(verb, "server", "-o"),
            Lie(verb, "socket", "/run/x.sock"), Lie(verb, value=[]),
        ],
        "attachment": [
            Lie(verb, "uuid", OTHER_UUID), Lie(verb, "path", victim), Lie(verb, "host", "a"),
        ],
    }[record]  # fmt: skip


def test_a_pool_that_lies_is_silent_and_the_others_go_on(world: Beside) -> None:
    for lie in lies(world, "find", "volume"):
        world.tell(lie)
        done = world.ask("volume", "list", ok=0)
        assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["mine"], lie
        assert "host b" in done.stderr and "unknown" in done.stderr, (lie, done.stderr)
    done = world.ask("--json", "volume", "list", ok=0)
    assert [volume["name"] for volume in done.json] == ["mine"]
    for words in (("volume", "show", "web"), ("attach", "web", "--on", "c"), ("volume", "delete", "web")):
        assert world.ask(*words).status in (7, 10), words


def test_no_right_is_taken_up_that_was_not_asked_for(world: Beside) -> None:
    for lie in lies(world, "offers", "offer"):
        world.tell(lie)
        done = world.ask("attach", "web", "--on", "c")
        assert done.status not in (0, 1) and not (world.directory / "c/dev/web").is_symlink(), (lie, done.stderr)
        assert "b" in done.stderr
        world.tell()
        world.storkit("detach", "web", "--on", "c", ok=None)
        for plan in world.storkit("--json", "plan", "list").json:
            if plan["status"] in ("failed", "interrupted", "rolling back"):
                world.storkit("plan", "rollback", plan["id"])
    world.storkit("attach", "web", "--on", "c")


def test_a_client_is_sent_to_no_other_server(world: Beside) -> None:
    for lie in (Lie("offers", "server", "127.0.0.9"), Lie("offers", "portals", ["127.0.0.9:3260"])):
        world.tell(lie)
        done = world.ask("attach", "web", "--on", "c", ok=9)
        assert "host b sends host c to 127.0.0.9 for volume web" in done.stderr
        assert "the inventory, which has" in done.stderr
        assert "everything was put back" in done.stderr
    world.tell()
    world.storkit("attach", "web", "--on", "c")


def test_a_host_has_others_try_its_own_ports_alone(world: Beside) -> None:
    with socket.create_server(("127.0.0.1", 0)) as victim:
        port = victim.getsockname()[1]
        door = {"address": "127.0.0.1", "port": port, "last": port}
        ssh = f'url = "ssh://127.0.0.77"\nstate = "{world.directory}/c"\n'
        world.inventory.write_text(world.inventory.read_text().replace(f'url = "local:{world.directory}/c"\n', ssh))
        lie = Lie(value={"doors": [door] * 50, "findings": []}, verb="listen", kind="agent")
        world.tell(lie)
        said = world.ask("host", "check", "b")
        assert f"host b says that it listens at 127.0.0.1 port {port}, and does not by the inventory" in said.stdout
        victim.setblocking(False)
        with pytest.raises(BlockingIOError):
            victim.accept()


def test_a_client_that_lies_is_not_believed(world: Beside) -> None:
    for lie in lies(world, "attach", "attachment"):
        world.tell(lie)
        assert world.ask("attach", "mine", "--on", "b", "--read-only").status not in (0, 1), lie
        world.tell()
        for plan in world.storkit("--json", "plan", "list").json:
            if plan["status"] in ("failed", "interrupted", "rolling back"):
                world.storkit("plan", "rollback", plan["id"])


def test_exports_that_are_none_make_their_host_unknown_and_strange_clients_are_only_shown(world: Beside) -> None:
    world.storkit("attach", "web", "--on", "c")
    for lie in lies(world, "find_exports", "export"):
        world.tell(lie, replace(lie, verb="look_exports"))
        done = world.ask("status", ok=0)
        shown = [line.split() for line in done.stdout.splitlines()[1:]]
        assert "host b" in done.stderr, (lie, done.stderr)
        assert shown == [["web", "unknown", "c", "unknown", "attached"]], (lie, done.stdout)  # c's word alone
    made = f"local:{world.directory}/made"
    for client in (made, "ssh://root@127.0.0.99", "nobody"):
        world.tell(*(Lie(verb, "client", client) for verb in ("find_exports", "look_exports")))
        done = world.ask("status", ok=0)
        assert client in done.stdout and "not in the inventory" in done.stdout
        world.ask("volume", "show", "web", ok=0)
        world.ask("guest", "list", ok=0)


def test_words_of_a_host_are_its_own(world: Beside) -> None:
    for kind in ("not-found", "unsafe", "usage", "conflict", "what?"):
        world.tell(Lie(error={"kind": kind, "message": FORGED, "hint": FORGED}))
        done = world.ask("volume", "show", "web")
        assert "b: fine" in done.stderr and "curl evil" in done.stderr and done.status != 0
        world.ask("volume", "list", ok=0)
    world.tell(Lie("capacity", "warnings", [FORGED]))
    assert "\\x1b[2K" in (warned := world.ask("pool", "list", ok=0).stderr) and "storkit: b: fine" in warned
    bad = {"name": "web", "pool": "there", "host": "b", "message": FORGED, "hint": FORGED}
    cannot = {"kind": "unsafe", "message": "x", "hint": ""}
    world.tell(Lie("find", error=cannot), Lie("look", value={"volumes": [], "damaged": [bad]}))
    assert "b: fine" in world.ask("volume", "list", ok=0).stderr
    done = world.ask("attach", "web", "--on", "c", ok=9)
    assert "storkit: b: fine" in done.stderr and "next (says host b): fine" in done.stderr
    failed = {"kind": "command-failed", "message": "", "argv": [FORGED], "status": 1, "stderr": FORGED * 3, "host": "a"}
    world.tell(Lie("create", error={**failed, "hint": FORGED}))
    done = world.ask("volume", "create", "new", "1MiB", "--pool", "there")
    assert done.status == 6 and "next (says host b)" in done.stderr
    plan = world.storkit("--json", "plan", "list").json[-1]["id"]
    world.ask("plan", "show", plan, ok=0)


def test_what_a_host_cannot_say_stops_no_command_that_does_not_need_it(world: Beside) -> None:
    """Its hypervisor's daemon is down, a record of it is damaged: b has nothing of the guest's."""
    world.storkit("guest", "define", "g", "--disk", "mine", "--memory", "16MiB")
    world.storkit("fence", "c")
    cannot = {"kind": "unsafe", "message": "a record is damaged", "hint": FORGED}
    world.tell(Lie("find", error=cannot, kind="hypervisor"), Lie("find_off", error=cannot))
    for words in ("status", "guest list", "migrate status g", "guest stop g", "migrate cleanup g"):
        said = world.ask(*words.split(), ok=0).stderr
        assert "host b cannot say all of what qemu has there: b: a record is damaged" in said, (words, said)
    assert "g     stopped" in world.ask("guest", "list", ok=0).stdout
    told = world.storkit("--json", "status").json["unread"]
    assert [(each["host"], each["target"]) for each in told] == [("b", "hypervisor:qemu")]
    assert "cannot say which hosts are declared off" in world.ask("unfence", "c", ok=0).stderr
    world.storkit("attach", "web", "--on", "b")
    world.storkit("guest", "define", "w", "--disk", "web", "--memory", "16MiB")
    assert "a record is damaged" in world.ask("guest", "stop", "w", ok=9).stderr, "b has its disk, and may run it"
