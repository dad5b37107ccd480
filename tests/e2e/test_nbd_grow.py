"""An NBD server whose volume becomes larger, and what is cut short or fails meanwhile: its clients are served again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from storkit.core.errors import Conflict, StorkitError
from storkit.core.model import Client, Volume
from storkit.system.qemu import qmp
from storkit.tech.nbd.server import VolumeServer
from tests.e2e.nbdhosts import Hosts
from tests.e2e.nbdhosts import hosts as hosts  # the fixture

pytestmark = pytest.mark.e2e

B = Client("b", True)


@pytest.fixture(params=["raw", "qcow2"])
def served(hosts: Hosts, request: pytest.FixtureRequest) -> Iterator[tuple[Any, Volume, Volume]]:
    """Host a's transport, a volume that b may write, and as it is to be."""
    volume = hosts.volume("v", format=request.param)
    home = hosts.nbd("a")
    home.export([volume], [B])
    home.set_writers([volume], ["b"])
    larger = replace(volume, size=2 * volume.size)
    if request.param == "raw":
        os.truncate(volume.path, larger.size)
    yield home, volume, larger


def served_size(home: Any, volume: Volume) -> int:
    (offer,) = home.offers([volume], "b")
    assert offer.writable
    return int(offer.size)


def test_a_server_that_cannot_is_as_it_was(served: tuple[Any, Volume, Volume], monkeypatch: pytest.MonkeyPatch) -> None:
    home, volume, larger = served
    execute = qmp.Monitor.execute

    async def refused(self: qmp.Monitor, command: str, *args: Any, **more: Any) -> Any:
        if command == "block_resize":
            raise qmp.Refused(command, "no space left", "")
        return await execute(self, command, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(qmp.Monitor, "execute", refused)
        with pytest.raises(StorkitError, match="no space left"):
            home.grow([larger])
    assert served_size(home, volume) == volume.size
    home.grow([larger])
    assert served_size(home, volume) == larger.size


@pytest.mark.parametrize("when", ["ended", "enlarged"])
def test_what_was_cut_short_is_served_again_and_ended_by_the_same_verb(
    served: tuple[Any, Volume, Volume], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The exports have been ended, and nobody has given them again: their clients wait."""
    home, volume, larger = served

    class Killed(BaseException):
        pass

    enlarge = VolumeServer._enlarge

    async def killed(self: VolumeServer, monitor: Any) -> None:
        if when == "enlarged":
            await enlarge(self, monitor)
        else:
            for name in await self._live(monitor):
                await self._delete(monitor, name)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(VolumeServer, "_enlarge", killed)
        with pytest.raises(Killed):
            home.grow([larger])
    if when == "ended":
        home.restore()
        assert served_size(home, volume) == volume.size
    else:
        with pytest.raises(Conflict) as refused:
            home.restore()
        assert refused.value.hint == f"storkit volume resize v {larger.size}B"
    home.grow([larger])
    assert served_size(home, volume) == larger.size


def test_one_that_has_died_comes_back_with_its_size(served: tuple[Any, Volume, Volume], hosts: Hosts) -> None:
    home, volume, larger = served
    home.grow([larger])
    for pid in hosts.servers():
        os.kill(pid, 9)
    home.restore()
    assert served_size(home, volume) == larger.size
    with pytest.raises(Conflict, match="cannot become smaller"):
        home.grow([volume])
