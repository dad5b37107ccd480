"""Killed after any step, a command can be resumed and can be rolled back, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import pytest

from tests.e2e.world import World
from tests.guestkit import bootsector

KILLED = -9


def kill(world: World, point: str, *words: str) -> str:
    """Run a command that is killed at `point`; the id of its plan, or nothing if it had ended before."""
    done = world.killed(point, *words)
    assert done.status in (0, KILLED), done.stderr
    return "" if done.status == 0 else last_plan(world)


def last_plan(world: World) -> str:
    plans = world.storkit("--json", "plan", "list").json
    return str(plans[-1]["id"])


def points(world: World, *words: str) -> list[str]:
    """Every place where a command's plan can be cut: after its plan, and on both sides of each entry.

    One that is alone in its stage is not cut before it begins: nothing has changed since the end of the stage before.
    """
    found, entry = ["after:0"], 1
    for stage in world.storkit("--json", "-n", *words).json["stages"]:
        entries = range(entry, entry + 2 * len(stage))
        for number in entries:
            alone = len(stage) == 1 and 1 < number == entry
            found += [f"after:{number}"] if alone else [f"before:{number}", f"after:{number}"]
        entry = entries.stop
    return found


def walk(world: World, words: tuple[str, ...], mend: str, check: Callable[[str, str], None]) -> list[str]:
    """Cut the command at every point in turn, mend it by `resume` or `rollback`, and check what is then so."""
    walked: list[str] = []
    for point in points(world, *words):
        plan = kill(world, point, *words)
        if not plan:
            break
        done = world.storkit("plan", mend, plan, ok=None)
        if (point, mend) == ("after:0", "resume") and "before it began" in done.stderr:
            continue  # no host had its mark yet, and nothing is gone on with that nobody was told
        assert done.status == 0, f"{mend} after {point}"
        check(point, plan)
        walked.append(point)
    print(f"{' '.join(words)}: {mend} from {len(walked)} points: {' '.join(walked)}")
    return walked


@pytest.mark.e2e
@pytest.mark.parametrize(
    "mends",
    [
        pytest.param(["resume", "rollback"], id="resume and rollback"),
        pytest.param(["resume"], id="resume", marks=pytest.mark.slow),
        pytest.param(["rollback"], id="rollback", marks=pytest.mark.slow),
    ],
)
def test_migration(make_world: Callable[..., World], mends: list[str]) -> None:
    """`migrate run`, cut everywhere: the guest runs on exactly one host, which alone writes, and lost nothing.

    `mends`: by turns, one for each point.
    """
    world = make_world("raw")
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    here, there = "a", "b"
    walked = []
    cuts = points(world, "migrate", "run", "g", "--to", "b")
    disk = world.disk()
    for point, mend in zip(cuts, cycle(mends)):
        plan = kill(world, point, "migrate", "run", "g", "--to", there)
        if not plan:
            break
        done = world.storkit("plan", mend, plan, ok=None)
        if point == "after:0" and mend == "resume":
            # Nothing had been begun, and nobody had been told: such a plan is not gone on with.
            assert done.status == 5 and "before it began" in done.stderr
            continue
        assert done.status == 0, f"{mend} after {point}: {done.stderr}"
        if mend == "resume":
            here, there = there, here
        status = world.status()
        assert status["places"] == {here: "running"}, f"{mend} after {point}"
        assert status["writers"] == [here], f"{mend} after {point}"
        assert [export["client"] for export in status["exports"]] == [here], f"{mend} after {point}"
        assert world.wait_for_writes(disk, bootsector.last_record(disk)) > 0
        walked.append(point)
    world.storkit("guest", "stop", "g", "--force")
    report = bootsector.verify(world.disk())
    assert report.clean, report
    assert world.leftovers() == []
    assert len(walked) >= len(cuts) - 1
    print(f"migrate run: {' or '.join(mends)} from {len(walked)} points: {' '.join(walked)}")


@pytest.mark.e2e
@pytest.mark.parametrize("mend", ["resume", "rollback"])
def test_clone(world: World, mend: str) -> None:
    world.storkit("volume", "create", "gold", "4MiB")

    def check(point: str, plan: str) -> None:
        names = {volume["name"] for volume in world.storkit("--json", "volume", "list").json}
        wanted = {"gold", "one", "two"} if mend == "resume" else {"gold"}
        assert names == wanted, f"{mend} after {point}"
        if mend == "resume":
            world.storkit("volume", "delete", "one", "two")
        files = {path.name for path in (world.directory / "a/volumes").iterdir() if not path.name.startswith(".")}
        assert {name.partition(".")[0] for name in files} == {"gold"}, f"{mend} after {point}"

    walked = walk(world, ("volume", "clone", "gold", "one", "two"), mend, check)
    assert len(walked) >= 4


@pytest.mark.e2e
@pytest.mark.parametrize("mend", ["resume", "rollback"])
def test_import(world: World, mend: str) -> None:
    image = world.directory / "boot.img"
    bootsector.make_disk(image)

    def check(point: str, plan: str) -> None:
        volumes = world.storkit("--json", "volume", "list").json
        if mend == "resume":
            assert [(v["name"], v["made"], v["kind"]) for v in volumes] == [("gold", "imported", "image")], point
            assert world.disk("gold").read_bytes()[:512] == image.read_bytes()[:512]
            world.storkit("volume", "delete", "gold")
        assert world.storkit("--json", "volume", "list").json == [], point

    walked = walk(world, ("volume", "import", str(image), "gold", "--golden"), mend, check)
    assert len(walked) >= 9
