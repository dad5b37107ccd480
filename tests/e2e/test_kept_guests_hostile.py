"""What another host keeps of a guest is data: it harms nobody, and makes no disk and opens no file unseen."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest

from tests.e2e.test_hostile_host import Beside
from tests.hostile import FORGED, OTHER_UUID, Lie

pytestmark = pytest.mark.e2e


@pytest.fixture
def world(tmp_path: Any) -> Any:
    """Host b keeps guest g with its volume web; nobody has files of it."""
    world = Beside(tmp_path)
    world.storkit("guest", "define", "g", "--disk", "web", "--memory", "16MiB")
    shutil.rmtree(tmp_path / "guests")
    yield world
    world.tell()
    world.clear()


def test_a_host_that_lies_of_its_guests_hides_no_others(world: Beside) -> None:
    world.storkit("guest", "define", "own", "--disk", "mine", "--memory", "16MiB")
    damaged = {"guests": [], "damaged": [{"message": FORGED, "hint": FORGED}]}
    lies = [
        Lie("kept", "uuid", "../x"), Lie("kept", "name", "../own"), Lie("kept", "by", FORGED), Lie("kept", value=5),
        Lie("kept", "generation", -1), Lie("kept", value=damaged), Lie("texts", "record", FORGED),
        Lie("texts", "record", "x = " + "[" * 60000), Lie("texts", value=[]), Lie("texts", "document", "<domain/>"),
        Lie("texts", "record", 'name = "own"\n'), Lie("texts", "record", "#" * (1 << 20)),
        Lie("texts", "uuid", OTHER_UUID), Lie("texts", "guest", OTHER_UUID),
        Lie("texts", error={"kind": "unsafe", "message": FORGED, "hint": FORGED}),
    ]  # fmt: skip
    for lie in lies:
        world.tell(lie)
        done = world.ask("guest", "list", ok=0)
        assert any(line.split()[:2] == ["own", "stopped"] for line in done.stdout.splitlines()), (lie, done.stdout)
        for words in (("guest", "checkout", "g"), ("guest", "start", "g", "--on", "c")):
            said = world.ask(*words)
            assert said.status not in (0, 1), (lie, words)
        assert not (world.directory / "guests/g.toml").exists(), lie
    world.tell(Lie("kept", "name", "own"))
    world.ask("guest", "list", ok=0)
    assert world.ask("guest", "show", "own", ok=0).status == 0, "who has files of a guest asks for nothing else"


def test_a_guest_opens_nothing_of_another_machine_until_somebody_has_looked(world: Beside) -> None:
    told = world.storkit("--json", "guest", "show", "g").json
    base = f'name = "g"\nuuid = "{told["uuid"]}"\nmemory = "16MiB"\n'
    disk = f'disks = [{{ volume = "web", uuid = "{told["disks"][0]["uuid"]}" }}'
    mine = world.storkit("--json", "volume", "show", "mine").json["uuid"]
    for record, why in (
        (f'{base}console = "{world.victim}/precious"\n{disk}]\n', "console"),
        (f'{base}extra = ["-chardev", "file,id=x,path={world.victim}/precious"]\n{disk}]\n', "the word"),
        (f'{base}{disk}]\n[boot]\nkernel = "/etc/shadow"\n', "kernel /etc/shadow"),
        (f'{base}{disk}, {{ volume = "mine", uuid = "{mine}" }}]\n', "volume mine of host a"),
    ):  # fmt: skip
        _keep(world, record)
        done = world.ask("guest", "start", "g", "--on", "c")
        assert done.status == 9 and why in done.stderr and "guest checkout g" in done.stderr, (why, done.stderr)
        assert "nothing was changed" in done.stderr
    _keep(world, f'{base}disks = [{{ volume = "mine", uuid = "{mine}" }}]\n')
    assert world.ask("guest", "start", "g", "--on", "c").status == 9, "it is kept with a disk that it does not have"
    _keep(world, f"{base}{disk}]\n")
    world.ask("guest", "checkout", "g", ok=0)
    assert base in (world.directory / "guests/g.toml").read_text()


def _keep(world: Beside, record: str) -> None:
    """Have b keep another record, as whoever has it could."""
    from storkit.core import codec
    from storkit.core.guest import KeptGuest, digest_of
    from storkit.system import files

    (place,) = (world.directory / "b/volumes/.guests").glob("*-*")
    kept = codec.load(KeptGuest, files.read_json(place / "1.json", "it"))
    files.write_atomic(place / "1.json", codec.text(replace(kept, record=record, digest=digest_of(record, ""))))
