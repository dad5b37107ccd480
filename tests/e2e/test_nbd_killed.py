"""Every verb of the transport nbd, killed at every point where it changes something: done again, or undone, it leaves
what it should, and nothing else."""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storkit.core.model import Volume
from storkit.nbd import Nbd
from storkit.system.qemu import qmp
from storkit.tech.nbd.server import PLAIN_TCP
from storkit.tech.nbd.wire import NbdConnection
from tests.e2e.nbdhosts import NEEDS_SERVER, A, B, Hosts, N, hosts, offer, rights

__all__ = ["hosts"]

pytestmark = NEEDS_SERVER

CHANGES = {
    *("os.rename", "os.remove", "os.rmdir", "os.symlink", "os.mkdir", "os.fork", "os.truncate", "shutil.rmtree"),
    *("socket.bind", "socket.connect", "fcntl.flock", "signal.pidfd_send_signal"),
}


def killed_at(number: int, verb: Callable[[], object]) -> bool:
    """Run `verb` in a process that kills itself just before its change number `number`; whether it came to that."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _arm(number)
            verb()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, waited = os.waitpid(pid, 0)
    if os.WIFSIGNALED(waited):
        assert os.WTERMSIG(waited) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(waited) == 0, "the verb failed"
    return False


def _arm(number: int) -> None:
    own, left = os.getpid(), [number]

    def count() -> None:
        if os.getpid() == own:
            left[0] -= 1
            if left[0] < 0:
                os.kill(own, signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in CHANGES or writes:
            count()

    execute = qmp.Monitor.execute

    async def counted(self: qmp.Monitor, *arguments: Any, **options: Any) -> Any:
        count()
        result = await execute(self, *arguments, **options)
        count()
        return result

    qmp.Monitor.execute = counted  # type: ignore[method-assign]
    sys.addaudithook(audit)


def points(verb: Callable[[], object], after: Callable[[int], None]) -> int:
    """Kill `verb` at its first change, its second, ... until it comes through, calling `after` each time."""
    number = 0
    while killed_at(number, verb):
        after(number)
        number += 1
    after(number)
    print(f"{number} points")
    return number


@pytest.fixture(autouse=True)
def warm() -> Iterator[None]:
    """Import what verbs import lazily, so that a forked child need not."""
    import qemu.qmp  # noqa: F401
    import sh  # noqa: F401

    gc.freeze()  # a collection in each child would write to all of it
    yield
    gc.unfreeze()


Walk = Callable[..., int]


@pytest.fixture(params=["by turns", pytest.param("each", marks=pytest.mark.slow)])
def walk(request: pytest.FixtureRequest) -> Walk:
    """Kill a verb at each of its points, and do after it one of several things: by turns, or each in a walk of its own;
    the points of the shortest walk."""

    def by_turns(verb: Callable[[], object], *afters: Callable[[int], None]) -> int:
        return points(verb, lambda number: afters[number % len(afters)](number))

    def each(verb: Callable[[], object], *afters: Callable[[int], None]) -> int:
        return min(points(verb, after) for after in afters)

    return by_turns if request.param == "by turns" else each


def test_export(hosts: Hosts, walk: Walk) -> None:
    a = hosts.nbd("a")
    volume = hosts.volume()
    everyone = ["a", B.name, "n"]

    def undone(number: int) -> None:
        a.unexport([volume], everyone)
        hosts.assert_clean()

    def resumed(number: int) -> None:
        assert len(a.export([volume], [A, B, N])) == 3
        a.set_writers([volume], ["n"])
        assert rights(a, volume) == {"a": False, B.name: False, "n": True}
        undone(number)

    def restored(number: int) -> None:
        assert all(export.live for export in a.restore())
        undone(number)

    def fenced(number: int) -> None:
        a.fence("n")
        assert "n" not in {export.client for export in a.find_exports()}
        a.unfence("n")
        undone(number)

    assert walk(lambda: a.export([volume], [A, B, N]), undone, resumed, restored, fenced) > 30


def test_set_writers(hosts: Hosts, walk: Walk) -> None:
    a = hosts.nbd("a", plain_tcp=PLAIN_TCP)
    volume = hosts.volume()
    a.export([volume], [A, B, N])

    def never_more(number: int) -> None:
        now = rights_now(a, volume)
        assert {client for client, writable in now.items() if writable} <= {"a", "n"}, (number, now)

    def again(number: int) -> None:
        never_more(number)
        a.set_writers([volume], ["n"])
        assert rights(a, volume) == {"a": False, B.name: False, "n": True}
        assert n_may_write()
        a.set_writers([volume], ["a"])

    def back(number: int) -> None:
        never_more(number)
        a.set_writers([volume], ["a"])
        assert rights(a, volume) == {"a": True, B.name: False, "n": False}
        assert not n_may_write()

    def n_may_write() -> bool:
        """As seen over the network, with the whole way to the disk."""
        given = offer(a, volume, N)
        with NbdConnection((given.server, given.port)) as connection:
            writable = connection.go(given.name).writable
            assert connection.read(0, 4096) == bytes(4096)
            return writable

    a.set_writers([volume], ["a"])
    assert walk(lambda: a.set_writers([volume], ["n"]), again, back) > 10


def rights_now(a: Nbd, volume: Volume) -> dict[str, bool]:
    return {export.client: export.writable for export in a.find_exports([volume.uuid]) if export.live}


def test_unexport(hosts: Hosts) -> None:
    a = hosts.nbd("a")
    volume = hosts.volume()
    for clients in (["n"], ["a", B.name, "n"]):

        def ended(number: int, clients: list[str] = clients) -> None:
            a.unexport([volume], clients)
            assert {export.client for export in a.find_exports()} == {"a", B.name, "n"} - set(clients)
            if len(clients) == 3:
                hosts.assert_clean()
            a.export([volume], [A, B, N])

        a.export([volume], [A, B, N])
        assert points(lambda clients=clients: a.unexport([volume], clients), ended) > 5  # type: ignore[misc]


@pytest.mark.parametrize("client", [B, N])
def test_attach_and_detach(hosts: Hosts, client: Any) -> None:
    a, b = hosts.nbd("a"), hosts.nbd("b")
    volume = hosts.volume()
    a.export([volume], [client])
    given = offer(a, volume, client)
    side = hosts.root / "b"

    def clean() -> None:
        assert [path for path in side.rglob("*") if path.is_symlink() or not path.is_dir()] == []

    def undone(number: int) -> None:
        b.detach([volume])
        clean()

    def resumed(number: int) -> None:
        (attachment,) = b.attach([given])
        assert Path(attachment.path).is_symlink()
        undone(number)

    def detached(number: int) -> None:
        b.detach([volume])
        clean()
        b.attach([given])

    assert points(lambda: b.attach([given]), undone) > 3
    assert points(lambda: b.attach([given]), resumed) > 3
    b.attach([given])
    assert points(lambda: b.detach([volume]), detached) > 1


def test_fence(hosts: Hosts) -> None:
    a = hosts.nbd("a")
    volume = hosts.volume()

    def again(number: int) -> None:
        a.fence("n")
        assert "n" not in {export.client for export in a.find_exports()}
        a.unfence("n")
        a.export([volume], [A, N])

    a.export([volume], [A, N])
    assert points(lambda: a.fence("n"), again) > 5
